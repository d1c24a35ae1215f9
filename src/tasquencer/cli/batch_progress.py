"""Shows a batch's progress on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from tasquencer.batch.rows import BatchProgress
from tasquencer.cli.display import output_console
from tasquencer.cli.rendering import cost_label
from tasquencer.core.display_text import terminal_line
from tasquencer.core.wording import duration

__all__ = ["BatchDisplay", "Pace", "batch_display", "progress_line"]

_LINE_SECONDS = 10.0
"""Seconds between two lines if there is no terminal for the bar."""

_PACE_SECONDS = 60.0
"""The pace is measured over the last minute."""


class Pace:
    """Measures how fast rows end."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, at: float, ended: int) -> None:
        """Note how many rows had ended at this time, in seconds."""
        self._seen.append((at, ended))
        while len(self._seen) > 2 and self._seen[1][0] <= at - _PACE_SECONDS:
            self._seen.popleft()

    def rows_per_second(self) -> float | None:
        """Rows per second. None while it is not known."""
        if len(self._seen) < 2:
            return None
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else None


def progress_line(progress: BatchProgress, retrying: int, pace: float | None) -> str:
    """`1,200 of 5,000 · 3 failed · 2 retrying · 41/s · 9,000 tokens in, 2,100 out · $0.02 · 2 min left`.

    Args:
        progress: The batch's progress.
        retrying: How many tasks run or wait for a retry.
        pace: Rows per second.
    """
    parts = [f"{progress.ended:,} of {progress.rows:,}"]
    counted = (("failed", progress.failed), ("canceled", progress.canceled), ("retrying", retrying))
    parts += [f"{count:,} {name}" for name, count in counted if count]
    if progress.paused is not None:
        reason = f": {progress.paused.reason}" if progress.paused.reason else ""
        parts.append(terminal_line(f"paused by {progress.paused.actor}{reason}"))
    if pace:
        parts.append(f"{pace:,.1f}/s" if pace < 10 else f"{pace:,.0f}/s")
    if progress.input_tokens or progress.output_tokens:
        parts.append(f"{progress.input_tokens:,} tokens in, {progress.output_tokens:,} out")
    if progress.cost_usd is not None:
        parts.append(cost_label(round(progress.cost_usd, 4)))
    left = progress.rows - progress.ended
    if pace and left and progress.paused is None:
        parts.append(f"{duration(left / pace)} left")
    return " · ".join(parts)


class BatchDisplay(Protocol):
    """Shows a batch's progress."""

    def show(self, progress: BatchProgress, retrying: int) -> None:
        """Show the current progress."""

    def say(self, line: str) -> None:
        """Show another message."""


@contextmanager
def batch_display() -> Iterator[BatchDisplay]:
    """Return the display that fits standard error. It is live within the block."""
    console = output_console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
        return
    bar = _Bar(console)
    with Live(console=console, get_renderable=bar.render, refresh_per_second=4):
        yield bar


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._said: float | None = None

    def show(self, progress: BatchProgress, retrying: int) -> None:
        now = monotonic()
        self._pace.see(now, progress.ended)
        if self._said is None or now - self._said >= _LINE_SECONDS or progress.ended == progress.rows:
            self._said = now
            self.say(progress_line(progress, retrying, self._pace.rows_per_second()))

    def say(self, line: str) -> None:
        self._console.print(terminal_line(line), soft_wrap=True)


class _Bar:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._line = "waiting for a worker"
        self._progress: BatchProgress | None = None

    def show(self, progress: BatchProgress, retrying: int) -> None:
        self._pace.see(monotonic(), progress.ended)
        self._progress = progress
        self._line = progress_line(progress, retrying, self._pace.rows_per_second())

    def say(self, line: str) -> None:
        self._console.print(terminal_line(line), soft_wrap=True)

    def render(self) -> RenderableType:
        if self._progress is None:
            return Text(self._line, style="dim")
        bar = ProgressBar(total=self._progress.rows, completed=self._progress.ended, width=60)
        return Group(bar, Text(self._line))
