#!/usr/bin/env bash
# Runs once, on an empty volume. Temporal and the ledger get databases and users of their own, so that each can be
# backed up, moved and limited alone, and neither can read the other. The ledger has two users: its owner, for
# `tasq db upgrade` and `tasq ledger prune`, and that of the workers, who may not change what has ended.
# psql reads the passwords from the environment: arguments of a process are visible to every user of the machine.
set -euo pipefail

run() { # SQL on standard input, variables as arguments
    psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" "$@"
}

create_user() { # user, name of the variable with the password
    run --set "user=$1" <<SQL
\\getenv password $2
CREATE ROLE :"user" LOGIN PASSWORD :'password';
SQL
}

create_databases() { # owner, database …
    for database in "${@:2}"; do
        run --set "owner=$1" --set "database=$database" \
            <<<'CREATE DATABASE :"database" OWNER :"owner"; REVOKE ALL ON DATABASE :"database" FROM PUBLIC;'
    done
}

create_user temporal TEMPORAL_DB_PASSWORD
create_databases temporal temporal temporal_visibility
create_user tasquencer TASQ_DB_PASSWORD
create_user tasquencer_worker TASQ_DB_WORKER_PASSWORD
create_databases tasquencer tasquencer
