"""Reports the end of a task, for `tasq run`, `tasq watch` and `tasq demo`."""

from __future__ import annotations

import json
import shlex

from pydantic import JsonValue

from tasquencer.cli.display import display_of
from tasquencer.cli.errors import ExitCode, complain
from tasquencer.cli.following import FollowedTask, Outcome, follow
from tasquencer.cli.ledger_view import LedgerView
from tasquencer.cli.output import print_answer, print_json, say
from tasquencer.cli.rendering import usage_labels
from tasquencer.core.wording import counted, one_line
from tasquencer.settings import Settings

__all__ = ["follow_and_report"]


async def follow_and_report(task: FollowedTask, settings: Settings, *, as_json: bool) -> ExitCode:
    """Show the task until it ends, then print its answer on standard output, or report its failure.

    Args:
        task: The task to follow.
        settings: The settings that name the ledger with its work items.
        as_json: Print the end as JSON.
    """
    async with LedgerView(settings) as ledger:
        with display_of(task.id, task.max_retries) as display:
            outcome = await follow(task, display, ledger)
    if as_json:
        print_json(_json(task.id, outcome))
    elif outcome.error_type is None:
        text = _text(outcome.result)
        print_answer(text)
    if outcome.error_type is None:
        say(_footer(task.id, outcome.result))
        return ExitCode.COMPLETED
    complain(
        f"{outcome.error_type}: {one_line(outcome.message, 2_000)} "
        f"(task {task.id}: `tasq show {shlex.quote(task.id)}` shows all attempts)"
    )
    return ExitCode.FAILED


def _json(task_id: str, outcome: Outcome) -> JsonValue:
    if outcome.error_type is None:
        return outcome.result
    error: JsonValue = {
        "type": outcome.error_type,
        "message": outcome.message,
        "failure": outcome.failure,
    }
    return {"error": error, "task_id": task_id}


def _text(result: JsonValue) -> str:
    results = result.get("results") if isinstance(result, dict) else None
    if isinstance(results, list):  # of a fan-out
        return "\n".join(f"[{number}] {_answer(found)}" for number, found in enumerate(results, 1))
    text = result.get("text") if isinstance(result, dict) else None
    return text if isinstance(text, str) else json.dumps(result, ensure_ascii=False, indent=2)


def _answer(found: JsonValue) -> str:
    """Return the outcome of one prompt of a fan-out."""
    if not isinstance(found, dict):
        return json.dumps(found)
    if isinstance(found.get("text"), str):
        return str(found["text"])
    if found.get("omitted"):
        return f"(too large to show here: see work item {found.get('work_item_id')})"
    failure = found.get("failure")
    why = f": {failure.get('kind')}: {failure.get('message')}" if isinstance(failure, dict) else ""
    return f"({found.get('state')}{why})"


def _footer(task_id: str, result: JsonValue) -> str:
    """`3 attempts · 42 tokens in, 118 out · cost $0.0004 · task ai-agent-1a2b3c4d`, of all attempts."""
    parts = []
    if isinstance(result, dict):
        states = ("completed", "failed", "canceled")
        parts = [f"{result[state]} {state}" for state in states if result.get(state)]
        if isinstance(attempts := result.get("attempts"), int):
            parts.append(counted(attempts, "attempt"))
        if isinstance(total := result.get("total") or result, dict) and "cost_usd" in total:
            parts += usage_labels(total)
        if "approved_by" in result:
            parts.append(f"approved by {result['approved_by']}")
    return " · ".join([*parts, f"task {task_id}"])
