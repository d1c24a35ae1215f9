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

SOURCE = Path(str(tasquencer.__file__)).parent
PURE = ["core", "ledger", "ai", "batch"]
FACES = ["tasquencer", "tasquencer.ai"]
LONGEST_MODULE = 400


def modules_of(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in sorted((SOURCE / folder).rglob("*.py"))]
    named = [path for path in paths if path.stem != "__init__"]
    return [".".join(("tasquencer", *path.relative_to(SOURCE).with_suffix("").parts)) for path in named]


MODULES = modules_of(*PURE)


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


@pytest.mark.parametrize("name", MODULES)
def test_a_module_exports_every_public_name_it_defines(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == defined_in(module)


@pytest.mark.parametrize("name", FACES)
def test_a_package_exports_what_it_shows_to_type_checkers_and_nothing_else(name: str) -> None:
    package = importlib.import_module(name)
    tree = ast.parse(Path(str(package.__file__)).read_text())
    (shown,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: node.module
        for node in shown.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert set(package.__all__) == set(homes)
    for shared, home in homes.items():
        assert getattr(package, shared) is getattr(importlib.import_module(str(home)), shared)


def test_a_name_that_a_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tasquencer' has no attribute 'nothing'"):
        tasquencer.nothing  # noqa: B018


def test_every_error_is_exported_by_the_package() -> None:
    errors = importlib.import_module("tasquencer.core.errors")

    assert set(errors.__all__) - set(tasquencer.__all__) == set()


def test_the_pure_floors_import_neither_server_nor_database_nor_client() -> None:
    pure = [name for name in MODULES if not name.startswith("tasquencer.ai.provider.")]
    program = (
        f"import sys, tasquencer, tasquencer.testing, {', '.join(pure)}\n"
        "heavy = {'temporalio', 'sqlalchemy', 'alembic', 'openai', 'asyncpg', 'typer', 'rich'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []


def test_no_module_has_more_than_400_lines() -> None:
    root = SOURCE.parents[1]
    modules = [root / "worker.py"]
    for folder in ("src", "workflows", "activities"):
        modules += sorted((root / folder).rglob("*.py"))
    lengths = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in modules}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}
