"""The package as the wheel brings it, in place of the one in the checkout."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import PATIENCE_SECONDS

__all__ = ["ROOT", "TASQ", "Installed"]

ROOT = Path(__file__).resolve().parents[2]
TASQ = "import sys; sys.argv[0] = 'tasq'; from tasquencer.cli.entry import main; main()"


@dataclass(frozen=True)
class Installed:
    """Where the files of the wheel are."""

    folder: Path

    @property
    def application(self) -> Path:
        """The application that the wheel carries."""
        return self.folder / "tasquencer" / "application"

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment, with this package before the checkout's."""
        return {**inherited, "PYTHONPATH": str(self.folder), "COLUMNS": "200"}

    async def run(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = ("-c", TASQ),
        environment: Mapping[str, str] = os.environ,
        before: Path | None = None,
        seconds: float = PATIENCE_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run `tasq`, or another Python program, in this folder to its end.

        Args:
            folder: The working directory.
            arguments: Of the program.
            program: Options of Python.
            environment: To this the package is added.
            before: A folder whose modules come before all others.
            seconds: How long it may take.
        """
        complete = self.environment(environment)
        if before is not None:
            complete["PYTHONPATH"] = f"{before}{os.pathsep}{self.folder}"
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, *program, *arguments],
            cwd=folder,
            env=complete,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    @staticmethod
    def tasq(*arguments: str) -> list[str]:
        """The command line of `tasq`."""
        return [sys.executable, "-c", TASQ, *arguments]
