"""What the package exports, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tasquencer

FLOORS = [
    "actions",
    "ai",
    "batch",
    "batch_store",
    "batch_window",
    "comparison",
    "ending",
    "entries",
    "errors",
    "failure",
    "fan_out",
    "ledger",
    "policy",
    "reconciliation",
    "retry",
    "retry_after",
    "review",
    "task_state",
    "testing",
    "wording",
    "work_item",
]
MODULES = ["tasquencer", *(f"tasquencer.{name}" for name in FLOORS)]


def in_order(names: list[str]) -> list[str]:
    """Constants, then classes, then functions, as the linter sorts them."""

    def place(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    return sorted(names, key=place)


def defined_in(module: ModuleType) -> set[str]:
    """The public names that a module's own text defines."""
    names: set[str] = set()
    for node in ast.parse(Path(str(module.__file__)).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_the_exports_are_sorted_and_exist(name: str) -> None:
    module = importlib.import_module(name)

    assert in_order(module.__all__) == module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [missing for missing in module.__all__ if not hasattr(module, missing)] == []


@pytest.mark.parametrize("name", MODULES[1:])
def test_a_module_exports_every_public_name_it_defines(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == defined_in(module)


def test_every_module_of_the_pure_floors_is_checked_here() -> None:
    found = {path.stem for path in Path(str(tasquencer.__file__)).parent.glob("*.py")}

    assert found - {"__init__", "settings"} == set(FLOORS)


def test_the_package_exports_what_it_shows_to_type_checkers_and_nothing_else() -> None:
    tree = ast.parse(Path(str(tasquencer.__file__)).read_text())
    (shown,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name for node in shown.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert set(tasquencer.__all__) == imported
    assert [name for name in tasquencer.__all__ if not hasattr(tasquencer, name)] == []


def test_a_name_of_the_package_is_the_same_object_as_in_its_module() -> None:
    for name in FLOORS:
        module = importlib.import_module(f"tasquencer.{name}")
        for shared in set(module.__all__) & set(tasquencer.__all__):
            assert getattr(tasquencer, shared) is getattr(module, shared)


def test_every_error_is_exported_by_the_package() -> None:
    errors = importlib.import_module("tasquencer.errors")

    assert set(errors.__all__) - set(tasquencer.__all__) == set()


def test_the_pure_floors_import_neither_server_nor_database_nor_client() -> None:
    program = (
        f"import sys, {', '.join(MODULES)}\n"
        "heavy = {'temporalio', 'sqlalchemy', 'alembic', 'openai', 'asyncpg', 'typer', 'rich'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []
