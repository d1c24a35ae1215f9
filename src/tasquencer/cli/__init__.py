"""The command line `tasq`.

    tasquencer.cli.main         the commands, and the end of the process
    tasquencer.cli.errors       exit codes, and errors as one line
    tasquencer.cli.tasks        run, watch: start and follow tasks on Temporal
    tasquencer.cli.ledger       list, show, db: read the ledger
    tasquencer.cli.demo         demo: everything on this machine

Modules with commands import nothing heavy at their top, so that `tasq --help` is fast.
"""
