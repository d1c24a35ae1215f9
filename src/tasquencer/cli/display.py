"""Shows the progress of a running task: a live table on a terminal, else lines.

Both go to standard error. Standard output is for the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasquencer.cli.output import end_for_closed_pipe, print_text
from tasquencer.cli.progress import progress_lines
from tasquencer.cli.rendering import live_table
from tasquencer.core.display_text import terminal_line
from tasquencer.core.work_item import WorkItem

__all__ = ["Display", "counting", "display_of", "output_console", "print_table"]

_WIDE = 110
"""The width that a terminal needs for the complete table."""

_PIPED_WIDTH = 200
"""The width of a table in a file or for another program."""


class Display(Protocol):
    """Shows a task's progress."""

    def show(self, items: Sequence[WorkItem]) -> None:
        """Show the task's current work items, oldest first."""

    def say(self, line: str) -> None:
        """Show another message."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        end_for_closed_pipe()


def output_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error) that never cuts or interprets text."""
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def print_table(draw: Callable[[bool], Table]) -> None:
    """Print a table on standard output, without trailing blanks if it is not a terminal.

    Args:
        draw: Makes the table, wide or not.
    """
    console = output_console()
    table = draw(console.width >= _WIDE)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    print_text("\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n"))


_QUIET_SECONDS = 5.0
"""Seconds between two lines of progress if there is no terminal."""


@contextmanager
def display_of(task_id: str, max_retries: int | None) -> Iterator[Display]:
    """Return the display that fits standard error. It is live within the block."""
    console = output_console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, max_retries)
        return
    table = _LiveTable(console, task_id, max_retries)
    with Live(console=console, get_renderable=table.render, refresh_per_second=4):
        yield table


@contextmanager
def counting() -> Iterator[Callable[[str], None]]:
    """Shows progress on standard error: a line that changes on a terminal, else one now and then."""
    console = output_console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("…") as status:
            yield lambda line: status.update(terminal_line(line))
        return
    said = monotonic()

    def say(line: str) -> None:
        nonlocal said
        if monotonic() - said >= _QUIET_SECONDS:
            said = monotonic()
            console.print(terminal_line(line), soft_wrap=True)

    yield say


class _Lines:
    def __init__(self, console: Console, max_retries: int | None) -> None:
        self._console = console
        self._max_retries = max_retries
        self._items: Sequence[WorkItem] = ()

    def show(self, items: Sequence[WorkItem]) -> None:
        for line in progress_lines(self._items, items, max_retries=self._max_retries):
            self.say(line)
        self._items = items

    def say(self, line: str) -> None:
        self._console.print(terminal_line(line), soft_wrap=True)


class _LiveTable:
    def __init__(self, console: Console, task_id: str, max_retries: int | None) -> None:
        self._console = console
        self._task_id = task_id
        self._max_retries = max_retries
        self._items: Sequence[WorkItem] = ()

    def show(self, items: Sequence[WorkItem]) -> None:
        self._items = items

    def say(self, line: str) -> None:
        self._console.print(terminal_line(line), soft_wrap=True)

    def render(self) -> RenderableType:
        if not self._items:
            return Text(f"task {terminal_line(self._task_id)}: no work item yet", style="dim")
        # A row may take two lines. A table that does not fit the screen cannot be redrawn.
        most_rows = max(1, (self._console.height - 5) // 2)
        return live_table(
            self._items, max_retries=self._max_retries, now=datetime.now(UTC), most_rows=most_rows
        )
