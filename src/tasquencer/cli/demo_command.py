"""`tasq demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from tasquencer.cli.help import examples

__all__ = ["EXAMPLES", "demo"]

EXAMPLES = examples("tasq demo", 'tasq demo --keep --prompt "Write a haiku about patience."')


def demo(
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Stay until Ctrl-C, so that the Web UI and `tasq run` can be tried."),
    ] = False,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to ask.")] = None,
) -> None:
    """Run one task on this machine, with two failures on the way, and show each attempt.

    Starts everything it needs: Temporal with its Web UI, a small language
    model, a proxy that fails its first two requests, a worker. With
    OPENAI_API_KEY or OPENAI_BASE_URL set it asks that provider instead.
    Leaves nothing running.
    """
    from tasquencer.cli.demo import run_demo

    raise typer.Exit(run_demo(keep=keep, prompt=prompt))
