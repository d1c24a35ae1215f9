"""`tasq providers`: which providers this machine's settings describe, and whether they answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.environment import checked_settings
from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_json, print_line

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["PROVIDERS_EXAMPLES", "providers"]

PROVIDERS_EXAMPLES = examples("tasq providers", "tasq providers --check")

_CHECK_SECONDS = 30.0


def providers(
    check: Annotated[bool, typer.Option("--check", help="Make one cheap call to each provider.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the model providers: the default one, and those of the file TASQ_PROVIDERS.

    With --check each provider gets one call of a few tokens, which is billed. The exit status is 1 if one of
    them fails.
    """
    settings = checked_settings(provider=True)
    rows = asyncio.run(_rows(settings.model, check=check))
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print_line("  ".join(str(value) for value in row.values() if value is not None))
    if failed := [str(row["name"]) for row in rows if check and row["check"] != "ok"]:
        raise CommandFailed(f"no answer from {', '.join(failed)}", ExitCode.FAILED)


async def _rows(default_model: str, *, check: bool) -> list[dict[str, JsonValue]]:
    from tasquencer.temporal.ai_calls import AiCalls

    async with AiCalls(default_model=default_model) as calls:
        rows: list[dict[str, JsonValue]] = []
        for endpoint in calls.endpoints:
            row: dict[str, JsonValue] = {
                "name": endpoint.name,
                "base_url": str(endpoint.client.base_url.copy_with(query=None)),
                "api": endpoint.api,
                "default_model": endpoint.default_model,
                "concurrent_calls": endpoint.concurrent_calls,
            }
            if check:
                row["check"] = await calls.check(endpoint, _CHECK_SECONDS)
            rows.append(row)
    return rows
