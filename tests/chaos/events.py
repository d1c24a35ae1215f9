"""What the nemesis did, and when: the fifth account of a run, by which the other four are judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["BUSY", "DEATHS", "PAUSES", "Event", "Events"]

DEATHS = ("kill worker", "die at", "stop worker")
"""Kinds of event after which a worker process is gone."""

PAUSES = ("pause worker", "pause at")
"""Kinds of event during which a worker process does nothing."""

BUSY = "busy machine"
"""Kind of event that is nobody's doing: the machine kept even the harness waiting, so all may be late."""


@dataclass
class Event:
    """Something that happened to a part.

    Attributes:
        kind: A kind of fault, or `start worker`, `worker ended by itself`, `busy machine`.
        until: When its cause was over: the part had come back, connections were let through again; None:
            not yet.
        pid: The worker process that it happened to.
        quiet: Whether nothing else was done to the parts until the tasks had gone on.
    """

    kind: str
    at: datetime
    until: datetime | None = None
    worker: str = ""
    pid: int = 0
    peer: str = ""
    note: str = ""
    quiet: bool = False

    def __str__(self) -> str:
        words = [self.kind, self.worker, self.peer and f"to {self.peer}", self.note]
        lasted = "" if self.until is None else f"for {(self.until - self.at).total_seconds():.1f} s"
        return " ".join(word for word in [*words, lasted, f"(pid {self.pid})" if self.pid else ""] if word)

    def overlaps(self, begin: datetime, end: datetime) -> bool:
        """Return whether it, or its effect, lasted at some time from begin to end."""
        return self.at <= end and (self.until is None or self.until >= begin)

    def lasts(self, duration: timedelta, *, until: datetime) -> bool:
        """Return whether it had lasted for this duration by then."""
        return min(self.until or until, until) - self.at >= duration


class Events:
    """All events of a run, oldest first."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __iter__(self) -> Iterator[Event]:
        return iter(sorted(self._events, key=lambda event: event.at))

    def begin(self, kind: str, **facts: object) -> Event:
        """Note that something begins now."""
        event = Event(kind, datetime.now(UTC), **facts)  # type: ignore[arg-type]
        self._events.append(event)
        return event

    def end(self, event: Event) -> None:
        """Note that it is over."""
        event.until = datetime.now(UTC)

    def of_kinds(self, kinds: Sequence[str]) -> list[Event]:
        """Those of these kinds, oldest first."""
        return [event for event in self if event.kind in kinds]

    def end_of_faults(self) -> datetime | None:
        """Return the end of the last of them, except those that no fault caused."""
        return max((event.until or event.at for event in self if event.kind != BUSY), default=None)

    def save(self, file: Path) -> None:
        """As JSON lines."""
        file.write_text("".join(json.dumps(asdict(event), default=str) + "\n" for event in self))
