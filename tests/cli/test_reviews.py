"""`tasq review` and `tasq draft`: what waits comes from the ledger, decisions go to a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.settings import Settings
from tasquencer.sql import SqlLedger
from tests.cli.conftest import Tasq
from tests.cli.processes import finish, on_a_terminal, start
from tests.cli.stories import NOON, ReviewStory, Story
from tests.support.answers import ok, stall
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import executable

Tell = Callable[[Story], None]
Environment = dict[str, str]

ROOT = Path(__file__).resolve().parents[2]


def ago(seconds: float) -> float:
    """So many seconds before now, as the stories tell it: in seconds since their noon."""
    return (datetime.now(UTC) - NOON).total_seconds() - seconds


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# The list


def test_review_lists_what_waits_for_a_person_and_nothing_else(tasq: Tasq, tell: Tell) -> None:
    tell(Story("answered").start(0).complete(1))
    tell(Story("under-way").start(0))
    tell(ReviewStory("decided").decide(5, {"decision": "approve"}))
    tell(ReviewStory("later", "\n  Dear Ben,\nhello", begin=ago(60), timeout_seconds=None))
    tell(
        ReviewStory(
            "earlier",
            "Dear Anna,\nhello",
            begin=ago(7200),
            timeout_seconds=9000,
            reminder_seconds=3600,
        )
    )
    result = tasq("review")
    assert (result.exit_code, result.stderr) == (0, "")
    _, _, first, second = lines(result.stdout)
    assert re.fullmatch(r"earlier earlier-1 review-1 2 h in (30|29) min.* reminded Dear Anna,", first)
    assert re.fullmatch(r"later later-1 review-1 1 min( \d+ s)? Dear Ben,", second)


def test_review_lists_what_waits_as_json(tasq: Tasq, tell: Tell) -> None:
    tell(ReviewStory("drafted", "Dear Anna,\nhello", begin=0.5, reminder_seconds=60))
    (review,) = json.loads(tasq("review", "--json").stdout)
    assert review == {
        "task_id": "drafted",
        "task_type": "ReviewedDraft",
        "work_item_id": "drafted-1",
        "lineage": "review-1",
        "number": 1,
        "since": "2026-11-23T12:00:00.500000+00:00",
        "reminded": True,
        "due_at": "2026-11-23T13:00:00.500000+00:00",
        "first_line": "Dear Anna,",
    }


def test_review_says_when_nothing_waits(tasq: Tasq, tell: Tell) -> None:
    tell(Story("under-way").start(0))
    listed = tasq("review")
    assert (listed.exit_code, listed.stdout, listed.stderr) == (0, "", "No draft is waiting for a review.\n")
    assert json.loads(tasq("review", "--json").stdout) == []


def test_review_says_when_there_are_more(tasq: Tasq, tell: Tell) -> None:
    for number in range(3):
        tell(ReviewStory(f"drafted-{number}", begin=number))
    result = tasq("review", "--limit", "2")
    assert [line.split()[0] for line in lines(result.stdout)[2:]] == ["drafted-0", "drafted-1"]
    assert result.stderr == "There are more than 2: --limit\n"


# One draft


def test_review_prints_the_whole_draft_and_asks_nobody_where_there_is_no_terminal(
    tasq: Tasq, tell: Tell
) -> None:
    tell(ReviewStory("drafted", "Dear Anna,\n\nhello", comments="Shorter,\nplease."))
    result = tasq("review", "drafted")
    assert (result.exit_code, result.stdout) == (0, "Dear Anna,\n\nhello\n")
    assert result.stderr.splitlines() == [
        "review-1 of task drafted, waiting since 2026-11-23 12:00:00 UTC, until 2026-11-23 13:00:00 UTC",
        "the previous draft was rejected: Shorter, please.",
    ]


def test_review_prints_a_draft_as_json(tasq: Tasq, tell: Tell) -> None:
    tell(ReviewStory("drafted", "Dear Anna,\n\nhello", comments="Shorter."))
    shown = json.loads(tasq("review", "drafted", "--json").stdout)
    assert (shown["work_item_id"], shown["draft"], shown["comments"]) == (
        "drafted-1",
        "Dear Anna,\n\nhello",
        "Shorter.",
    )


def test_of_several_reviews_in_a_task_one_is_chosen(tasq: Tasq, tell: Tell) -> None:
    tell(ReviewStory("drafted", reviews=2))
    several = tasq("review", "drafted")
    assert several.exit_code == 1
    assert several.stderr == (
        "error: 2 reviews of the task wait; choose one with --work-item ID: drafted-1, drafted-2\n"
    )
    chosen = tasq("review", "drafted", "--work-item", "drafted-2", "--json")
    assert json.loads(chosen.stdout)["lineage"] == "review-2"


def test_show_tells_what_was_decided(tasq: Tasq, tell: Tell) -> None:
    tell(ReviewStory("rejected").decide(60, {"decision": "reject", "comments": "Shorter,\nplease."}))
    shown = lines(tasq("show", "rejected").stdout)
    assert shown[-2].startswith(
        "review-1 first try completed none 2026-11-23 12:00:00 1 min reject: Shorter, p"
    )
    assert "12 tokens in, 34 out" in shown[-3]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (
            ["nobody"],
            "",
            1,
            "no review of task 'nobody' is waiting, according to the ledger: `tasq review` lists them",
        ),
        (["drafted", "--work-item", "x"], "", 1, "no review 'x' of task 'drafted' is waiting"),
        (["--approve"], "", 2, "--approve and --reject need a TASK: `tasq review` lists them"),
        (["drafted", "--approve", "--reject", "no"], "", 2, "--approve and --reject: give one of them"),
        (["drafted", "--reject", "", "--yes"], "", 2, "--reject: must not be empty"),
        (["drafted", "--reject", "-", "--yes"], "\n", 2, "--reject: must not be empty"),
        (["drafted", "--reject", "-", "--yes"], b"\xff", 2, "--reject: standard input is not UTF-8 text"),
        (["drafted", "--approve"], "", 2, "there is no terminal to ask for confirmation: add --yes"),
        (["drafted", "--approve", "--yes"], "", 3, "cannot reach Temporal at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_decided_is_said_in_one_line(
    tasq: Tasq, tell: Tell, arguments: list[str], stdin: str | bytes, code: int, message: str
) -> None:
    tell(ReviewStory("drafted"))
    result = tasq("review", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1


# Deciding


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Environment]:
    """The environment of `tasq`, while a worker serves its task queue."""
    folder = tmp_path_factory.mktemp("reviews")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="cli-reviews")
    script = {"Shorter.": [ok("Short.")] * 9, "hangs": [stall()]}
    async with ScriptedProvider(script, then=ok("Dear \x1b[2JAnna,\nhello")) as provider:
        model = AnsweringModel(
            "scripted", None, provider.base_url, {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        )
        variables = worker_environment(os.environ, dev_server, settings, model, provider.base_url, folder)
        async with running_worker(find_worker(Path.cwd()), variables):
            yield variables


async def drafted(environment: Environment, task_id: str, *options: str) -> dict[str, Any]:
    """Start a reviewed draft; its first draft, once it waits for a review."""
    started = await finish("draft", "Write.", "--id", task_id, "--detach", *options, environment=environment)
    assert (started.code, started.stdout) == (0, f"{task_id}\n"), started.stderr
    assert started.stderr == f"when there is a draft, review it: tasq review {task_id}\n"
    return await waiting(environment, task_id, number=1)


async def waiting(environment: Environment, task_id: str, number: int) -> dict[str, Any]:
    """The draft with this number, once it waits for a review."""

    async with SqlLedger(environment["TASQ_DATABASE_URL"]) as ledger:

        async def probe() -> bool:
            started = WorkItemFilter(task_id=task_id, states=frozenset({WorkItemState.STARTED}))
            return any(item.lineage == f"review-{number}" for item in await ledger.work_items(started))

        await eventually(probe, f"draft {number} of {task_id} to wait for a review")
    shown = await finish("review", task_id, "--json", environment=environment)
    assert shown.code == 0, shown.stderr
    review: dict[str, Any] = json.loads(shown.stdout)
    assert review["number"] == number
    return review


async def decide(environment: Environment, *arguments: str) -> tuple[int, str]:
    acted = await finish("review", *arguments, "--yes", environment=environment)
    assert acted.stdout == ""
    return acted.code, acted.stderr


async def watched(environment: Environment, task_id: str) -> tuple[int, str, str]:
    seen = await finish("watch", task_id, environment=environment)
    return seen.code, seen.stdout, seen.stderr.splitlines()[-1]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_draft_that_is_approved_is_the_answer(environment: Environment) -> None:
    draft = await drafted(environment, "approved")
    acted = await decide(environment, "approved", "--approve", "--actor", "anna", "--reason", "well said")
    assert acted == (0, f"work item {draft['work_item_id']} is completed\n")
    code, answer, footer = await watched(environment, "approved")
    assert (code, answer) == (0, "Dear \x1b[2JAnna,\nhello\n")
    assert footer.startswith("1 attempt · 11 tokens in, 7 out · cost ")
    assert footer.endswith(" · approved by anna · task approved")
    shown = await finish("show", "approved", "--json", environment=environment)
    change = json.loads(shown.stdout)["work_items"][-1]["transitions"][-1]
    assert (change["actor"], change["reason"]) == ("anna", "well said")


@pytest.mark.asyncio(loop_scope="module")
async def test_who_stays_sees_the_draft_come_and_gets_it_once_it_is_approved(
    environment: Environment,
) -> None:
    running = await start("draft", "Write.", "--id", "watched", environment=environment)
    await running.says("when there is a draft, review it: tasq review watched\n")
    await running.says("review-1: first try started")
    assert (await decide(environment, "watched", "--approve", "--actor", "anna"))[0] == 0
    ended = await running.finish()
    assert (ended.code, ended.stdout) == (0, "Dear \x1b[2JAnna,\nhello\n")
    assert ended.stderr.endswith("approved by anna · task watched\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_draft_that_is_rejected_comes_again(environment: Environment) -> None:
    await drafted(environment, "rejected")
    assert (await decide(environment, "rejected", "--reject", "Shorter."))[0] == 0
    second = await waiting(environment, "rejected", number=2)
    assert (second["draft"], second["comments"]) == ("Short.", "Shorter.")
    assert (await decide(environment, "rejected", "--approve"))[0] == 0
    code, answer, _ = await watched(environment, "rejected")
    assert (code, answer) == (0, "Short.\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_rejection_too_many_is_one_line_and_status_1(environment: Environment) -> None:
    await drafted(environment, "spent", "--max-revisions", "0")
    assert (await decide(environment, "spent", "--reject", "Shorter.", "--actor", "anna"))[0] == 0
    code, answer, last = await watched(environment, "spent")
    assert (code, answer) == (1, "")
    assert last.startswith(
        "error: TaskFailed: review-1: rejected by anna (Shorter.); no revisions are allowed"
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_is_no_decision_and_the_refusal_says_what_is(environment: Environment) -> None:
    await drafted(environment, "answered")
    acted = await finish("complete", "answered", "a better one", "--yes", environment=environment)
    assert acted.code == 1
    assert acted.stderr == (
        "error: result.decision: required; the work item is a review, so its result is "
        '{"decision": "approve"} or {"decision": "reject", "comments": "…"}\n'
    )
    assert (await finish("cancel", "answered", "--yes", environment=environment)).code == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_of_two_reviewers_the_second_is_told_in_one_line(environment: Environment) -> None:
    await drafted(environment, "raced")
    answers = await asyncio.gather(
        decide(environment, "raced", "--approve", "--actor", "anna"),
        decide(environment, "raced", "--approve", "--actor", "ben"),
    )
    assert sorted(code for code, _ in answers) == [0, 1]
    (refusal,) = [said for code, said in answers if code == 1]
    assert refusal.startswith("error: ") and refusal.count("\n") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_review_whose_task_is_gone_is_one_line_and_status_1(
    environment: Environment, dev_server: EmbeddedTemporal
) -> None:
    await drafted(environment, "gone")
    client = await Client.connect(dev_server.address)
    await client.get_workflow_handle("gone").terminate()
    code, said = await decide(environment, "gone", "--approve")
    assert (code, said) == (1, "error: Temporal: workflow execution already completed\n")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("types", "decision"),
    [
        ("what?\napprove\n", {"decision": "approve"}),
        ("r\nShorter.\n", {"decision": "reject", "comments": "Shorter."}),
        ("\n", None),
    ],
    ids=["approve", "reject", "later"],
)
async def test_a_terminal_shows_the_draft_and_asks(
    environment: Environment, types: str, decision: dict[str, str] | None
) -> None:
    task_id = f"asked-{(decision or {'decision': 'nothing'})['decision']}"
    await drafted(environment, task_id)
    code, screen = await on_a_terminal("review", task_id, environment=environment, types=types)
    assert code == 0, screen
    assert "Dear \N{REPLACEMENT CHARACTER}[2JAnna," in screen  # the model does not steer the terminal
    assert "approve, reject or later? [later]: " in screen
    shown = json.loads((await finish("show", task_id, "--json", environment=environment)).stdout)
    (review,) = [item for item in shown["work_items"] if item["lineage"] == "review-1"]
    assert (review["state"], review["result"]) == ("completed" if decision else "started", decision)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_documents_command_starts_a_reviewed_draft(environment: Environment) -> None:
    document = (ROOT / "docs/guides/reviews.md").read_text()
    (command,) = re.findall(
        r"^temporal workflow start --type ReviewedDraft.*?(?=^```|^tasq)", document, re.MULTILINE | re.DOTALL
    )
    command = command.replace("--task-queue ai-agent", "--task-queue cli-reviews")
    path = f"{Path(executable('temporal')).parent}:{environment['PATH']}"
    shell = await asyncio.create_subprocess_shell(
        command, env={**environment, "PATH": path}, stdout=asyncio.subprocess.PIPE
    )
    await asyncio.wait_for(shell.communicate(), PATIENCE_SECONDS)
    assert shell.returncode == 0
    (task_id,) = re.findall(r"--workflow-id (\S+)", command)
    await waiting(environment, task_id, number=1)
    assert (await decide(environment, task_id, "--approve"))[0] == 0
