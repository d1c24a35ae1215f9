"""`tasq batch`: a real server, a real worker, an HTTP provider, and files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client

from tasquencer.batch.store import Batch
from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tasquencer.sql import SqlLedger
from tests.cli.conftest import Tasq
from tests.cli.processes import Finished, Running, finish, on_a_terminal, start, until
from tests.support.answers import Answer, Hold, ok, stall, status
from tests.support.provider import ScriptedProvider

RESULT = {
    "id",
    "text",
    "model",
    "finish_reason",
    "work_item_id",
    "attempts",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "total",
}


class Provider:
    """Answers with the prompt; `bad …` is refused for good, `held …` waits until `release`."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self._hold = Hold()

    def answer(self, request: Any) -> Answer:
        prompt = request.body["messages"][-1]["content"]
        self.asked[prompt] += 1
        if prompt.startswith("bad") and "better" not in request.body["model"]:
            return status(400)
        if prompt.startswith("held"):
            return stall(self._hold, ok(f"echo of {prompt}"))
        return ok(f"echo of {prompt}")

    def hold(self) -> None:
        self._hold = Hold()

    def release(self) -> None:
        self._hold.release()


@dataclass(frozen=True)
class Scene:
    environment: dict[str, str]
    provider: Provider
    client: Client

    async def tasq(self, *arguments: str | Path) -> Finished:
        return await finish(*map(str, arguments), environment=self.environment)

    async def start(self, *arguments: str | Path) -> Running:
        return await start(*map(str, arguments), environment=self.environment)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    """A worker that serves a task queue, and the environment of a `tasq` that uses it."""
    folder = tmp_path_factory.mktemp("batch")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="cli-batches")
    provider = Provider()
    async with ScriptedProvider(provider.answer) as server:
        model = AnsweringModel(
            "scripted", None, server.base_url, {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        )
        variables = worker_environment(os.environ, dev_server, settings, model, server.base_url, folder)
        async with running_worker(find_worker(Path.cwd()), variables):
            yield Scene(variables, provider, await Client.connect(dev_server.address))


def lines(file: Path | str) -> list[dict[str, Any]]:
    text = file.read_text() if isinstance(file, Path) else file
    return [json.loads(line) for line in text.splitlines()]


def written(file: Path, *rows: dict[str, Any] | str) -> Path:
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


async def test_each_line_is_answered_and_what_fails_is_input_again(scene: Scene, tmp_path: Path) -> None:
    prompts = written(
        tmp_path / "prompts.jsonl",
        {"id": "a", "prompt": "one"},
        {"id": 2, "prompt": "bad two", "metadata": {"topic": "moons"}},
        "",
        {"messages": [{"role": "user", "content": "three"}], "model": "mine"},
    )
    out = tmp_path / "results.jsonl"
    ran = await scene.tasq("batch", prompts, "--out", out, "--model", "theirs", "--concurrency", "2")
    assert (ran.code, ran.stdout) == (0, ""), ran.stderr
    found = lines(out)
    assert [(row["id"], row["text"], row["model"]) for row in found] == [
        ("a", "echo of one", "theirs"),
        ("line-4", "echo of three", "mine"),
    ]
    assert all(row.keys() == RESULT and row["attempts"] == 1 for row in found)
    failed = tmp_path / "results.failed.jsonl"
    (lost,) = lines(failed)
    failure = lost.pop("failure")
    assert lost == {"id": "2", "prompt": "bad two", "metadata": {"topic": "moons"}}
    assert (failure["type"], failure["kind"]) == ("NotRetryable", "invalid_request")
    assert "2 completed · 1 failed" in ran.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "prompts.jsonl",
        "results.failed.jsonl",
        "results.jsonl",
    ]

    again = await scene.tasq("batch", failed, "--out", tmp_path / "second.jsonl", "--model", "better")
    assert again.code == 0
    assert [row["text"] for row in lines(tmp_path / "second.jsonl")] == ["echo of bad two"]
    assert lines(tmp_path / "second.failed.jsonl") == []


async def test_files_of_the_batch_api_are_taken_and_written(scene: Scene, tmp_path: Path) -> None:
    def asked(name: str, prompt: str, **more: Any) -> dict[str, Any]:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    wrong = written(tmp_path / "wrong.jsonl", asked("a", "x"), asked("b", "y", tools=[{"type": "function"}]))
    refused = await scene.tasq("batch", wrong, "--out", tmp_path / "none.jsonl")
    assert (refused.code, refused.stderr.splitlines()[0]) == (2, "line 2: body.tools: cannot be carried out")

    prompts = written(
        tmp_path / "in.jsonl", asked("a", "api one\u2028two", max_tokens=5), asked("b", "bad api")
    )
    out = tmp_path / "out.jsonl"
    ran = await scene.tasq("batch", prompts, "--out", out, "--format", "openai")
    assert ran.code == 0, ran.stderr
    (found,) = lines(out)
    assert (found["custom_id"], found["error"], found["response"]["status_code"]) == ("a", None, 200)
    answer = found["response"]["body"]["choices"][0]["message"]["content"]
    assert answer == "echo of api one\u2028two"
    (lost,) = lines(tmp_path / "out.failed.jsonl")
    assert (lost["custom_id"], lost["response"], lost["error"]["code"]) == ("b", None, "invalid_request")
    plain = tmp_path / "plain.jsonl"
    assert (
        await scene.tasq("batch", "attach", ran.stderr.split("batch ")[1].split(":")[0], "--out", plain)
    ).code == 0
    assert [row["id"] for row in lines(plain)] == ["a"]


async def test_the_same_file_again_asks_nothing_twice(scene: Scene, tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", {"prompt": "again one"}, {"prompt": "bad again"})
    first, second, third = (tmp_path / f"{number}.jsonl" for number in (1, 2, 3))
    assert (await scene.tasq("batch", prompts, "--out", first)).code == 0
    ran = await scene.tasq("batch", prompts, "--out", second)
    assert ran.code == 0
    assert "has already completed; 1 row without an answer (--retry-failed tries again)" in ran.stderr
    assert second.read_text() == first.read_text()
    assert (scene.provider.asked["again one"], scene.provider.asked["bad again"]) == (1, 1)
    ran = await scene.tasq("batch", prompts, "--out", third, "--retry-failed")
    assert ran.code == 0
    assert (scene.provider.asked["again one"], scene.provider.asked["bad again"]) == (1, 2)
    assert third.read_text() == first.read_text()


async def test_answers_that_were_pruned_can_be_brought_back(scene: Scene, tmp_path: Path) -> None:
    prompts = written(
        tmp_path / "old.jsonl", {"id": "a", "prompt": "old one"}, {"id": "b", "prompt": "old two"}
    )
    out = tmp_path / "results.jsonl"
    command = ("batch", prompts, "--out", out, "--id", "old")
    await scene.tasq(*command)
    first = lines(out)
    pruned = await scene.tasq("ledger", "prune", "--yes", "--ended-before", datetime.now(UTC).isoformat())
    assert pruned.code == 0, pruned.stderr
    again = await scene.tasq(*command)
    assert again.code == 0, again.stderr
    assert "2 answers without text: the ledger no longer has the work items" in again.stderr
    assert [line["text"] for line in lines(out)] == [None, None]
    for row in "ab":
        rebuilt = await scene.tasq("ledger", "rebuild", f"old/{row}")
        assert rebuilt.code == 0, rebuilt.stderr
    assert "no text" not in (await scene.tasq(*command)).stderr
    assert lines(out) == first
    assert scene.provider.asked["old one"] == scene.provider.asked["old two"] == 1


async def test_an_id_belongs_to_one_content(scene: Scene, tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", {"prompt": "mine"})
    assert (await scene.tasq("batch", prompts, "--id", "taken", "--out", tmp_path / "o.jsonl")).code == 0
    other = written(tmp_path / "other.jsonl", {"prompt": "other"})
    for file, *more in ((other,), (prompts, "--model", "x")):
        ran = await scene.tasq("batch", file, "--id", "taken", *more, "--detach")
        assert (ran.code, ran.stdout) == (1, "")
        assert ran.stderr == (
            "error: there is already a batch 'taken' with other prompts or options: choose another --id\n"
        )
    task = await scene.tasq("run", "hello", "--id", "a-task", "--detach")
    assert task.code == 0
    ran = await scene.tasq("batch", prompts, "--id", "a-task", "--detach")
    assert ran.code == 1
    assert "'a-task' is not a batch but a task of type AiAgentTask" in ran.stderr


async def test_standard_input_and_output_as_the_answers_come(scene: Scene) -> None:
    process = await start("batch", "-", "--unordered", environment=scene.environment)
    assert (await process.finish()).code == 2  # the input is empty here
    scene.provider.hold()

    async def answer(seen: Callable[[], str]) -> None:
        await until(lambda: "1 of 2" in seen(), seen)
        scene.provider.release()

    code, seen = await on_a_terminal(
        *("batch", "-", "--unordered"),
        environment=scene.environment,
        types='{"prompt": "typed"}\n{"prompt": "held and typed"}\n\x04',
        meanwhile=answer,
    )
    assert code == 0
    assert '"text": "echo of typed"' in seen and '"text": "echo of held and typed"' in seen


async def test_ctrl_c_lets_the_batch_go_on_and_says_how_to_attach(scene: Scene, tmp_path: Path) -> None:
    scene.provider.hold()
    prompts = written(tmp_path / "p.jsonl", {"prompt": "held a"}, {"prompt": "b"})
    out = tmp_path / "r.jsonl"
    running = await scene.start("batch", prompts, "--id", "left-alone", "--out", out)
    await until(
        lambda: scene.provider.asked["held a"] == 1 and "1 of 2" in running.stderr,
        lambda: running.stderr,
    )
    running.interrupt()
    stopped = await running.finish()
    assert stopped.code == 130
    assert stopped.stderr.splitlines()[-1] == (
        "stopped watching; batch left-alone continues. Follow it again: tasq batch attach left-alone "
        f"--out {out} · cancel it: tasq cancel left-alone"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    following = await scene.start("batch", prompts, "--id", "left-alone", "--out", out)
    await following.says("is already running")
    scene.provider.release()
    assert (await following.finish()).code == 0
    attached = await scene.tasq("batch", "attach", "left-alone", "--out", tmp_path / "r2.jsonl")
    assert attached.code == 0
    assert [row["text"] for row in lines(out)] == ["echo of held a", "echo of b"]
    assert (tmp_path / "r2.jsonl").read_text() == out.read_text()
    assert scene.provider.asked["held a"] == 1


async def test_pause_status_resume_and_cancel(scene: Scene, tmp_path: Path) -> None:
    scene.provider.hold()
    rows = [{"id": f"held-{number}", "prompt": f"held {number}"} for number in range(5)]
    prompts = written(tmp_path / "p.jsonl", *rows)
    out = tmp_path / "r.jsonl"
    ran = await scene.tasq("batch", prompts, "--id", "acted-on", "--concurrency", "2", "--detach")
    assert (ran.code, ran.stdout) == (0, "acted-on\n")
    await until(
        lambda: scene.provider.asked["held 0"] == scene.provider.asked["held 1"] == 1,
        lambda: f"not both are asked: {scene.provider.asked}",
    )
    paused = await scene.tasq("batch", "pause", "acted-on", "--actor", "anna", "--reason", "lunch")
    assert (paused.code, paused.stderr) == (0, "batch acted-on is paused\n")
    said = await scene.tasq("batch", "status", "acted-on")
    assert said.stdout == "batch acted-on is started: 0 of 5 · paused by anna: lunch\n"
    assert (await scene.tasq("batch", "resume", "acted-on")).stderr == "batch acted-on continues\n"
    told = json.loads((await scene.tasq("batch", "status", "acted-on", "--json")).stdout)
    assert (told["running"], told["paused"], told["state"]) == (2, None, "started")
    assert (await scene.tasq("cancel", "acted-on", "--yes")).code == 0
    ended = await scene.tasq("batch", "attach", "acted-on", "--out", out, "--json")
    assert ended.code == 1
    end = json.loads(ended.stdout)
    assert (end["completed"], end["canceled"], end["error"]["type"]) == (0, 5, "Canceled")
    assert out.read_text() == ""
    assert [row["failure"]["type"] for row in lines(tmp_path / "r.failed.jsonl")] == ["Canceled"] * 5
    refused = await scene.tasq("batch", "pause", "acted-on")
    assert (refused.code, refused.stderr) == (1, "error: batch 'acted-on' is not running\n")

    scene.provider.release()
    again = await scene.tasq("batch", prompts, "--id", "acted-on", "--out", out)
    assert again.code == 0, again.stderr
    assert [row["id"] for row in lines(out)] == [row["id"] for row in rows]
    assert scene.provider.asked["held 4"] == 1


async def test_a_batch_that_its_policy_ends_fails_and_still_writes_what_there_is(
    scene: Scene, tmp_path: Path
) -> None:
    rows = [{"prompt": "fine"}, {"prompt": "bad luck"}, {"prompt": "after"}, {"prompt": "after that"}]
    prompts = written(tmp_path / "p.jsonl", *rows)
    options = ("--max-failures", "0", "--concurrency", "1", "--out", tmp_path / "r.jsonl")
    ran = await scene.tasq("batch", prompts, *options)
    assert ran.code == 1
    assert (
        "error: TaskFailed: the policy ended the batch: 1 of 4 rows failed; the last one: line-2: "
        in ran.stderr
    )
    assert [row["id"] for row in lines(tmp_path / "r.jsonl")] == ["line-1"]
    assert [row["id"] for row in lines(tmp_path / "r.failed.jsonl")] == ["line-2", "line-3", "line-4"]


def test_wrong_lines_are_told_with_their_numbers_and_nothing_is_sent(tasq: Tasq, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [{"id": "a", "prompt": "fine"}, "{", {"id": "a", "prompt": "twice"}]
    prompts = written(tmp_path / "p.jsonl", *rows, *[{"prompt": ""}] * 30)
    ran = tasq("batch", str(prompts), "--out", str(tmp_path / "r.jsonl"))
    assert ran.exit_code == 2
    told = ran.stderr.splitlines()
    assert told[0].startswith("line 2: is not JSON: ")
    assert told[1] == "line 3: id: 'a' is already on line 1"
    assert told[2] == "line 4: prompt: must not be empty"
    assert told[20] == "and 12 more"
    assert len(told) == 22
    assert told[21] == (
        f"error: FILE: {str(prompts)!r}: 32 lines are wrong, nothing was started. "
        "--skip-invalid FILE continues without them"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


async def test_wrong_lines_can_be_set_aside(scene: Scene, tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", {"prompt": "set aside"}, "{", {"prompt": "x", "foo": 1})
    wrong, out = tmp_path / "wrong.jsonl", tmp_path / "r.jsonl"
    ran = await scene.tasq("batch", prompts, "--out", out, "--skip-invalid", wrong)
    assert ran.code == 0
    assert "2 wrong lines are in" in ran.stderr
    assert wrong.read_text() == '{\n{"prompt": "x", "foo": 1}\n'
    assert [row["text"] for row in lines(out)] == ["echo of set aside"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--out", "p.jsonl"), "--out: 'p.jsonl' is the input, too"),
        (("--out", "r.jsonl", "--skip-invalid", "p.jsonl"), "--skip-invalid: 'p.jsonl' is the input, too"),
        (("--out", "/dev/null"), "--out: cannot write '/dev/null': it is not a regular file"),
        (("--out", "r.jsonl", "--failures", "r.jsonl"), "--failures: 'r.jsonl' is --out, too"),
        (("--out", "nowhere/r.jsonl"), "--out: cannot write 'nowhere/r.jsonl': its folder cannot be written"),
        (("--json",), "--json: needs --out FILE, because the JSON goes to standard output"),
        (("--concurrency", "0"), "--concurrency: should be greater than or equal to 1"),
        (("--successes", "2"), "--successes: 2 are required of only 1 prompt"),
        (("--max-retries", "-1"), "--max-retries: should be greater than or equal to 0"),
        (("--id", "a/b"), "--id: must not contain a slash, which separates batch and row"),
        (("--detach", "--out", "r.jsonl"), "--detach: takes no --out, --failures or --unordered"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    tasq: Tasq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "p.jsonl", {"prompt": "x"})
    ran = tasq("batch", "p.jsonl", *arguments)
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"error: {problem}")


def test_an_unreadable_file_and_an_empty_one(tasq: Tasq, tmp_path: Path) -> None:
    ran = tasq("batch", str(tmp_path / "none.jsonl"))
    assert (ran.exit_code, "cannot read" in ran.stderr) == (2, True)
    ran = tasq("batch", "-", stdin="\n\n")
    assert ran.exit_code == 2
    assert ran.stderr == "error: FILE: standard input has no prompts: write one JSON object per line\n"


async def test_a_batch_whose_prompts_were_sent_in_part_cannot_be_attached_to(
    scene: Scene, tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    out.write_text("what was there before\n")
    async with SqlLedger(scene.environment["TASQ_DATABASE_URL"]) as ledger:
        batch = Batch(id="half-sent", digest="d", rows=2, defaults={}, created_at=datetime.now(UTC))
        await ledger.batches.create(batch)
    ran = await scene.tasq("batch", "attach", "half-sent", "--out", out)
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr == (
        "error: batch 'half-sent' has not begun, because only a part of its prompts was sent: "
        "run `tasq batch` with the same file to continue\n"
    )
    assert out.read_text() == "what was there before\n"


async def test_a_batch_that_does_not_exist(scene: Scene) -> None:
    for command in ("attach", "status"):
        ran = await scene.tasq("batch", command, "nobody")
        assert (ran.code, ran.stdout) == (1, "")
        assert ran.stderr == "error: the ledger has no batch 'nobody': `tasq batch FILE` starts one\n"
