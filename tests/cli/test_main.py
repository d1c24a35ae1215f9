from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.cli.conftest import Tasq

ACTIONS = [["retry-now"], ["complete"], ["fail"], ["cancel"]]
COMMANDS = [
    ["demo"],
    ["run"],
    ["fan-out"],
    ["draft"],
    ["watch"],
    *ACTIONS,
    ["tasks"],
    ["list"],
    ["show"],
    ["review"],
    ["reconcile"],
    ["providers"],
    ["batch", "run"],
    ["new"],
    ["batch", "attach"],
    ["batch", "status"],
    ["batch", "pause"],
    ["batch", "resume"],
    ["ledger", "verify"],
    ["ledger", "rebuild"],
    ["ledger", "prune"],
    ["db", "upgrade"],
    ["db", "version"],
]

LOADED_BY_HELP = """
import json, sys
sys.argv = ["tasq", "--help"]
from tasquencer.cli.main import main
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def test_help_loads_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED_BY_HELP], capture_output=True, text=True, check=True)
    assert "tasq" in ran.stdout
    assert not {"alembic", "openai", "pydantic", "sqlalchemy", "temporalio"} & set(json.loads(ran.stderr))


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_the_help_of_every_command_has_an_example(tasq: Tasq, command: list[str]) -> None:
    result = tasq(*command, "--help")
    assert result.exit_code == 0
    examples = result.stdout.partition("Example")[2]
    assert f"tasq {' '.join(command)}".strip() in examples


def test_every_command_is_tried_for_its_example(tasq: Tasq) -> None:
    shown = "".join(tasq(*group, "--help").stdout for group in ([], ["batch"], ["db"], ["ledger"]))
    names = {line.split()[1] for line in shown.splitlines() if line.startswith("│ ") and line[2] not in " -"}
    shown_by_the_program = {"worker"}  # its help is that of worker.py: see the packaging tests
    assert names == {word for command in COMMANDS for word in command} | shown_by_the_program


def test_the_version_is_the_package_s(tasq: Tasq) -> None:
    assert tasq("--version").stdout == f"tasq {version('tasquencer')}\n"


@pytest.mark.parametrize("command", [[], ["batch"], ["db"]])
def test_without_a_command_the_help_is_shown(tasq: Tasq, command: list[str]) -> None:
    result = tasq(*command)
    assert result.exit_code == 2
    assert "Usage: tasq" in result.stdout
    assert result.stderr == ""


def test_an_unknown_command_is_refused_in_one_line(tasq: Tasq) -> None:
    result = tasq("lsit")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: No such command 'lsit'. Did you mean 'list'? Try 'tasq --help'.\n"


@pytest.mark.parametrize("command", [["run", "hello"], ["run", "hello", "--detach"], ["watch", "x"]])
def test_a_temporal_that_cannot_be_reached_is_one_line_and_status_3(tasq: Tasq, command: list[str]) -> None:
    result = tasq(*command)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: cannot reach Temporal at 127.0.0.1:1: connection refused (set ")
    assert result.stderr.count("\n") == 1
