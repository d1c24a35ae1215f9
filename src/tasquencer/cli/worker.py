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
"""The command has no options. It passes all of them, including `--help`, to the program."""


def worker(context: typer.Context) -> None:
    """Run a worker: ./worker.py if it exists, else the worker of tasquencer.

    The program defines the options: see tasq worker --help.
    """
    own = Path("worker.py").absolute()
    program = own if own.is_file() else bundled_application() / "worker.py"
    sys.stdout.flush()
    sys.stderr.flush()
    # In this process, so that signals reach the worker and its exit status becomes the command's.
    os.execv(sys.executable, [sys.executable, str(program), *context.args])  # noqa: S606
