"""The program `tasq`. It reports missing packages with the command that installs them."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names, and end the process."""
    try:
        from tasquencer.cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tasquencer":
            raise
        print(f"error: tasq needs {error.name}: pip install 'tasquencer[worker]'", file=sys.stderr)
        sys.exit(1)
    run()
