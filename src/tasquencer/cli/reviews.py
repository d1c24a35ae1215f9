"""`tasq draft` and `tasq review`: a model writes a draft, and a person approves or rejects it."""

from __future__ import annotations

import asyncio
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tasquencer.cli import options
from tasquencer.cli.actions import Actor, Reason, Yes, act, confirm
from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_answer, print_json, say
from tasquencer.cli.request import check_request, read_messages, read_prompt
from tasquencer.cli.tasks import chosen_id, start_and_report

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.cli.review_listing import PendingReview

__all__ = ["DRAFT_EXAMPLES", "REVIEW_EXAMPLES", "draft", "review"]

DRAFT_EXAMPLES = examples(
    'tasq draft "Write to Anna that we are late." --detach',
    "cat brief.txt | tasq draft - --max-revisions 5 --review-timeout 2d --reminder 1d",
)

REVIEW_EXAMPLES = examples(
    "tasq review",
    "tasq review reviewed-draft-1a2b3c4d",
    "tasq review reviewed-draft-1a2b3c4d --approve --yes",
    'tasq review reviewed-draft-1a2b3c4d --reject "Shorter, and no title." --yes',
)

_REVIEWS = "Reviews"

_MOST_OF_A_TASK = 100
"""Reviews of one task that may wait at the same time."""


@options.with_call_options
def draft(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to write; - reads it from standard input.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="A whole conversation instead of the prompt: a JSON list."),
    ] = None,
    max_revisions: Annotated[
        int | None,
        typer.Option(help="Rejections that lead to a new draft. Default: 3.", rich_help_panel=_REVIEWS),
    ] = None,
    review_timeout: Annotated[
        float | None,
        typer.Option(
            parser=options.seconds,
            metavar="TIME",
            help="How long each review may wait. Default: 7d.",
            rich_help_panel=_REVIEWS,
        ),
    ] = None,
    reminder: Annotated[
        float | None,
        typer.Option(
            parser=options.seconds,
            metavar="TIME",
            help="When to send a reminder about a waiting review. Default: never.",
            rich_help_panel=_REVIEWS,
        ),
    ] = None,
    reminder_activity: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The activity that sends the reminder.", rich_help_panel=_REVIEWS),
    ] = None,
    reminder_task_queue: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The task queue of that activity. Default: the task's.",
            rich_help_panel=_REVIEWS,
        ),
    ] = None,
    calls: options.Calls = {},  # noqa: B006 (the decorator gives it)
    task_id: options.TaskId = None,
    detach: options.Detach = False,
    as_json: options.Json = False,
) -> None:
    """Write a draft, wait for its review (`tasq review`), and revise it until it is approved.

    The approved draft goes to standard output, everything else to standard
    error. Ctrl-C stops watching, not the task.

    Exit status as for `tasq run`.
    """
    from tasquencer.ai.review import parse_reviewed_draft
    from tasquencer.cli.following import DRAFT_TYPE

    request = check_request(
        {
            "prompt": read_prompt(prompt),
            "messages": None if messages is None else read_messages(messages),
            "max_revisions": max_revisions,
            "review_timeout_seconds": review_timeout,
            "reminder_seconds": reminder,
            "reminder_activity": reminder_activity,
            "reminder_task_queue": reminder_task_queue,
            **calls,
        },
        parse_reviewed_draft,
    )
    chosen = chosen_id(task_id, "reviewed-draft")
    hint = f"when there is a draft, review it: tasq review {shlex.quote(chosen)}"
    end_with(start_and_report(request, DRAFT_TYPE, chosen, detach=detach, as_json=as_json, hint=hint))


def review(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="The task's id. Default: list the waiting reviews.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Approve the draft.")] = False,
    reject: Annotated[
        str | None,
        typer.Option(
            metavar="COMMENTS", help="Reject the draft with these comments; - reads them from standard input."
        ),
    ] = None,
    work_item: Annotated[
        str | None, typer.Option(metavar="ID", help="Selects the review if the task has several.")
    ] = None,
    reason: Reason = None,
    actor: Actor = None,
    yes: Yes = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many to list.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and ask nothing.")] = False,
) -> None:
    """List the drafts that wait for a review, longest wait first, or show one and decide.

    With TASK alone it prints the draft and, on a terminal, asks for your
    decision. Reviews and drafts are read from the ledger.
    """
    if task is None:
        if approve or reject is not None:
            raise CommandFailed(
                "--approve and --reject need a TASK: `tasq review` lists them", ExitCode.USAGE
            )
        end_with(_list(limit, as_json=as_json))
    result = _decision(approve, reject)
    pending = asyncio.run(_pending(task, work_item))
    if result is None:
        _show(pending, as_json=as_json)
        result = None if yes or as_json or not _can_ask() else _asked()
        if result is None:
            raise typer.Exit(ExitCode.COMPLETED)
    else:
        confirm(f"{'Approve' if approve else 'Reject'} {pending.item.lineage} of {task}?", yes)
    _decide(pending, result, actor, reason)


def _decision(approve: bool, reject: str | None) -> dict[str, JsonValue] | None:
    """Return the decision in the options, or None."""
    if approve and reject is not None:
        raise CommandFailed("--approve and --reject: give one of them, not both", ExitCode.USAGE)
    if approve:
        return {"decision": "approve"}
    comments = read_prompt(reject, "--reject")
    return None if comments is None else {"decision": "reject", "comments": comments}


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _asked() -> dict[str, JsonValue] | None:
    """Ask the person at the terminal for a decision. None means none yet."""
    while True:
        said = typer.prompt("approve, reject or later?", default="later", err=True).strip().lower()
        if said in ("a", "approve"):
            return {"decision": "approve"}
        if said in ("r", "reject"):
            return {"decision": "reject", "comments": typer.prompt("What must change?", err=True)}
        if said in ("l", "later"):
            return None


def _decide(
    pending: PendingReview, result: dict[str, JsonValue], actor: str | None, reason: str | None
) -> NoReturn:
    item = pending.item
    end_with(act(item.task_id, "complete_work_item", item.id, {"result": result}, actor, reason))


def _show(pending: PendingReview, *, as_json: bool) -> None:
    from tasquencer.cli.review_listing import heading, listed_review

    if as_json:
        _print_json(listed_review(pending, datetime.now(UTC), whole=True))
        return
    for line in heading(pending):
        say(line)
    text = pending.review.draft
    print_answer(text)


async def _list(limit: int, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.display import print_table
    from tasquencer.cli.review_listing import listed_review, reviews_table

    found = await _pending_reviews(None, limit + 1)  # one more than shown, to see whether there are more
    pending, now = found[:limit], datetime.now(UTC)
    if as_json:
        _print_json([listed_review(one, now) for one in pending])
    elif pending:
        print_table(lambda wide: reviews_table(pending, now, wide=wide))
    if len(found) > len(pending):
        say(f"There are more than {limit}: --limit")
    elif not found:
        say("No draft is waiting for a review.")
    return ExitCode.COMPLETED


async def _pending(task_id: str, work_item_id: str | None) -> PendingReview:
    """Return the waiting review of the task. Raises `CommandFailed` if there is not exactly one."""
    found = await _pending_reviews(task_id, _MOST_OF_A_TASK)
    wanted = [one for one in found if work_item_id in (None, one.item.id)]
    if not wanted:
        which = f"no review {work_item_id!r}" if work_item_id is not None else "no review"
        raise CommandFailed(
            f"{which} of task {task_id!r} is waiting, according to the ledger: `tasq review` lists them"
        )
    if len(wanted) > 1:
        ids = ", ".join(one.item.id for one in wanted)
        raise CommandFailed(f"{len(wanted)} reviews of the task wait; choose one with --work-item ID: {ids}")
    return wanted[0]


async def _pending_reviews(task_id: str | None, limit: int) -> list[PendingReview]:
    from tasquencer.ai.review import REVIEW_KIND
    from tasquencer.cli.connections import open_ledger, read_settings
    from tasquencer.cli.review_listing import pending_in
    from tasquencer.core.work_item import WorkItemState
    from tasquencer.ledger.contract import WorkItemFilter

    wanted = WorkItemFilter(
        task_id=task_id,
        states=frozenset({WorkItemState.STARTED}),
        payload_kind=REVIEW_KIND,
        limit=limit,
        oldest_first=True,
    )
    async with open_ledger(read_settings()) as ledger:
        return pending_in(await ledger.work_items(wanted))


def _print_json(value: JsonValue) -> None:
    print_json(value, indent=2)
