"""`tasq new`."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tasquencer.cli.application import write_application
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_text

__all__ = ["EXAMPLES", "new"]

EXAMPLES = examples("tasq new my-agents")

_NEXT = """\
Wrote an application to {folder}. See its README.md. To try it:

  cd {folder}
  pip install -r requirements-dev.txt
  python -m pytest
  tasq worker"""


def new(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")]) -> None:
    """Write a new application: workflows, activities, a worker, a test, a compose file."""
    write_application(folder, version("tasquencer"))
    print_text(_NEXT.format(folder=shlex.quote(str(folder))))
