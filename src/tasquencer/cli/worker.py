"""`tasq worker`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from tasquencer.cli.application import bundled_application
from tasquencer.cli.help import examples

__all__ = ["EXAMPLES", "SETTINGS", "worker"]

EXAMPLES = examples(
    "tasq worker --help",
    "OPENAI_BASE_URL=http://127.0.0.1:11434/v1 TASQ_MODEL=llama3.2 tasq worker",
)

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""The command knows no option: all of them are the program's, `--help` too."""


def worker(context: typer.Context) -> None:
    """Run a worker: ./worker.py if there is one, else the one that comes with tasquencer.

    All options are the program's: see tasq worker --help.
    """
    own = Path("worker.py").absolute()
    program = own if own.is_file() else bundled_application() / "worker.py"
    sys.stdout.flush()
    sys.stderr.flush()
    # In this very process, so that signals reach the worker and its exit status is the command's.
    os.execv(sys.executable, [sys.executable, str(program), *context.args])  # noqa: S606
