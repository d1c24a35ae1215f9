"""Each block of code on each page holds: commands exist, Python compiles, JSON and SQL are read."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import re
import sqlite3
import textwrap
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tasquencer
from tasquencer import (
    Counts,
    Failure,
    FollowUp,
    RetryRecipe,
    StateChange,
    TaskEnd,
    TaskEndState,
    Transition,
    Verdict,
    WorkItem,
    WorkItemState,
)
from tasquencer.ai import parse_request
from tasquencer.ai.mcp import read_servers
from tasquencer.ai.provider.directory import named_providers
from tasquencer.ai.provider.prices import own_prices
from tasquencer.batch.rows import check_row, parse_line
from tasquencer.sql import SqlLedger
from tests.readme.documents import DOCS, Block, blocks, blocks_of
from tests.readme.shell_commands import commands, problem

CHECKED = {"sh", "python", "json", "toml", "sql", "ts", "text"}
"""`text` is what a program prints."""


def each(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*languages), ids=str)


def test_every_block_names_a_language_that_is_checked() -> None:
    assert [str(block) for block in blocks() if block.language not in CHECKED] == []


@each("sh")
def test_the_commands_and_their_options_exist(block: Block) -> None:
    found = {" ".join(words): problem(words) for words in commands(block.code)}
    assert found
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "command",
    [
        "tasq shwo TASK",
        "tasq show TASK --jsno",
        "tasq show",
        "tasq batch statsu BATCH",
        "tasq worker --concurent-calls 3",
        "temporal workflow begin --type X",
        "temporal workflow start --tipe X",
        "make tests",
        'make chaos CHAOS_ARGS="--sed 7"',
        "pip install 'tasquencer[workers]'",
        "python -m tests.chaso",
        "tasque run x",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    (words,) = commands(command)
    assert problem(words) is not None


def parsed(block: Block) -> ast.Module:
    """The block's code, which may be a part of an asynchronous function."""
    code = re.sub(r"(?<=[=\[])…", "...", block.code)
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.parse(f"async def example():\n{textwrap.indent(code, '    ')}")


@each("python")
def test_python_compiles_and_what_it_imports_exists(block: Block) -> None:
    for node in ast.walk(parsed(block)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.split(".")[0] not in {"tasquencer", "temporalio", "activities", "workflows"}:
            continue
        module = importlib.import_module(node.module)
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@each("python")
def test_python_uses_no_name_of_ours_that_does_not_exist(block: Block) -> None:
    """A keyword argument that a class or a function of the package does not take is found, too."""
    for node in ast.walk(parsed(block)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        called = getattr(tasquencer, node.func.id, None) if node.func.id in tasquencer.__all__ else None
        if called is None:
            continue
        given = {keyword.arg for keyword in node.keywords if keyword.arg}
        taken = inspect.signature(called).parameters
        assert any(p.kind is p.VAR_KEYWORD for p in taken.values()) or given <= set(taken)


@each("json")
def test_json_is_read_as_lines_of_a_batch_or_as_mcp_servers(block: Block, tmp_path: Path) -> None:
    if "mcpServers" in block.code:
        file = tmp_path / "servers.json"
        file.write_text(block.code)
        assert read_servers({"TASQ_MCP_SERVERS": str(file), "SHOP_TOKEN": "secret"})
        return
    for number, line in enumerate(block.code.splitlines(), 1):
        _, request = parse_line(line.encode(), number)
        check_row({}, request)


@each("ts")
def test_the_request_of_another_language_is_accepted(block: Block) -> None:
    (object_,) = re.findall(r"args: \[(\{.*\})\]", block.code)
    parse_request(json.loads(re.sub(r"(\w+):", r'"\1":', object_)))


@each("toml")
def test_the_prices_and_the_providers_are_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.toml"
    file.write_text(block.code)
    if "[providers." in block.code:
        assert named_providers({"TASQ_PROVIDERS": str(file)})
    else:
        assert own_prices({"TASQ_PRICES": str(file)})


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite file with the ledger's tables."""
    file = str(tmp_path_factory.mktemp("documents") / "ledger.db")

    async def make() -> None:
        async with SqlLedger(f"sqlite:///{file}"):
            pass

    asyncio.run(make())
    return file


def statements(block: Block) -> list[str]:
    return [part.strip() for part in block.code.split(";") if part.strip()]


ON_SQLITE = [
    (block, statement)
    for block in blocks("sql")
    for statement in statements(block)
    if "PostgreSQL" not in statement and not re.search(r"^(CREATE|REVOKE)", statement, re.MULTILINE)
]


@pytest.mark.parametrize(("block", "statement"), ON_SQLITE, ids=lambda value: str(value)[:40])
def test_the_sql_runs_on_sqlite(block: Block, statement: str, empty_ledger: str) -> None:
    with sqlite3.connect(empty_ledger) as connection:
        connection.execute(statement).fetchall()


def defined(name: str) -> Callable[..., Any]:
    """The function of this name on the page about writing tasks."""
    (block,) = [
        block
        for block in blocks_of(DOCS / "guides/writing-tasks.md")
        if re.search(rf"^def {name}\(", block.code, re.MULTILINE)
    ]
    names: dict[str, Any] = {public: getattr(tasquencer, public) for public in tasquencer.__all__}
    names["replace"] = replace
    exec(f"from __future__ import annotations\n{block.code}", names)
    function: Callable[..., Any] = names[name]
    return function


NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def a_failure(kind: str) -> StateChange:
    """What a hook learns when the first try failed so."""
    item = WorkItem(
        id="a",
        task_id="letter",
        run_id="run",
        task_type="Letter",
        lineage="main",
        attempt=0,
        state=WorkItemState.FAILED,
        payload={"prompt": "Write.", "model": "the-smaller-one"},
        failure=Failure(kind=kind, message="no", transient=True),
        not_before=NOW,
        created_at=NOW,
    )
    transition = Transition(
        work_item_id="a",
        sequence=2,
        previous_state=WorkItemState.STARTED,
        next_state=WorkItemState.FAILED,
        at=NOW,
        actor="task",
    )
    return StateChange(item, transition, RetryRecipe(), jitter=0)


@pytest.mark.parametrize(
    ("kind", "model"), [("invalid_output", "the-larger-one"), ("rate_limited", "the-smaller-one")]
)
def test_the_hook_on_the_page_chooses_the_model(kind: str, model: str) -> None:
    following = defined("with_a_larger_model")(a_failure(kind))
    assert following.payload == {"prompt": "Write.", "model": model}


def test_the_policy_on_the_page_decides() -> None:
    policy = defined("half_will_do")
    transition = a_failure("refused").transition
    assert policy(transition, Counts(open_lineages=1)) is Verdict.CONTINUE
    assert policy(transition, Counts(completed_lineages=1, failed_lineages=1)) is Verdict.COMPLETE
    assert policy(transition, Counts(completed_lineages=1, failed_lineages=2)) is Verdict.FAIL


def test_the_function_of_the_end_on_the_page_starts_a_workflow() -> None:
    tell = defined("tell_the_team")
    failed = TaskEnd("letter", "Letter", TaskEndState.FAILED, "TaskFailed", "it is late", Counts())
    assert tell(failed) == FollowUp("TellTheTeam", {"task": "letter", "why": "it is late"})
    assert tell(replace(failed, state=TaskEndState.COMPLETED)) is None
