#!/usr/bin/env bash
# Runs once, on an empty volume. Temporal and the ledger get databases and users of their own, so that each
# can be backed up, moved and given its limits alone, and neither can read the other.
set -euo pipefail

create() { # user, password, database …
    local user=$1 password=$2
    psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set "user=$user" --set "password=$password" \
        <<<"CREATE ROLE :\"user\" LOGIN PASSWORD :'password';"
    for database in "${@:3}"; do
        psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set "user=$user" --set "database=$database" \
            <<<"CREATE DATABASE :\"database\" OWNER :\"user\"; REVOKE ALL ON DATABASE :\"database\" FROM PUBLIC;"
    done
}

create temporal "$TEMPORAL_DB_PASSWORD" temporal temporal_visibility
create tasquencer "$TASQ_DB_PASSWORD" tasquencer
