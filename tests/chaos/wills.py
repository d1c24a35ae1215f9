"""Orders for a worker to die or stop at a chosen moment, and its reports about them.

A will is a file in the folder of its worker. A deed is a line in a file of all workers. The nemesis writes
wills and reads deeds, `tests.chaos.mortal_worker` reads wills and writes deeds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from tests.chaos.provider import Log

__all__ = ["Deed", "Deeds", "Will", "Wills"]


@dataclass(frozen=True)
class Will:
    """Something to do once.

    Attributes:
        what: `die` or `pause`.
        moment: One of `tests.chaos.plan.MOMENTS`.
        later_seconds: How long after the moment.
    """

    id: str
    what: str
    moment: str
    later_seconds: float


class Wills:
    """The wills of one worker that wait for their moments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, what: str, moment: str, later_seconds: float) -> Will:
        """Tell the worker to do something."""
        will = Will(uuid4().hex, what, moment, later_seconds)
        draft = self._file(will).with_suffix(".draft")
        draft.write_text(json.dumps(asdict(will)))
        draft.rename(self._file(will))
        return will

    def take(self, moment: str) -> Will | None:
        """One for this moment, which is no longer there then."""
        for file in self._folder.glob("*.will"):
            try:
                will = Will(**json.loads(file.read_text()))
            except FileNotFoundError:  # it was taken or withdrawn
                continue
            if will.moment == moment and self.withdraw(will):
                return will
        return None

    def withdraw(self, will: Will) -> bool:
        """Whether nobody has taken it."""
        try:
            self._file(will).unlink()
        except FileNotFoundError:
            return False
        return True

    def _file(self, will: Will) -> Path:
        return self._folder / f"{will.id}.will"


@dataclass(frozen=True)
class Deed:
    """The report that a process carried out a will, or continues after it.

    Attributes:
        what: `die`, `pause` or `continue`.
        at: Seconds since 1970.
    """

    will: str
    pid: int
    what: str
    moment: str
    at: float


class Deeds:
    """What all workers did by their wills."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._log = Log(file)

    def write(self, will: Will, what: str) -> None:
        """Note what this process is about to do."""
        self._log.write(**asdict(Deed(will.id, os.getpid(), what, will.moment, time.time())))

    def __iter__(self) -> Iterator[Deed]:
        for line in self._file.read_text().splitlines():
            yield Deed(**json.loads(line))

    def of_will(self, will: Will, what: str) -> Deed | None:
        """Whether a will was carried out."""
        return next((deed for deed in self if (deed.will, deed.what) == (will.id, what)), None)
