"""What a user installs: the package alone, importable without its optional parts."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a release is."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tasquencer"}
    assert "tasquencer/py.typed" in names
    assert any(name.startswith("tasquencer/sql/migrations/versions/0001") for name in names)


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
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing.split()!r}))\n"  # None: importing it fails
        f"sys.path.insert(0, {str(wheel)!r})\n"
        f"import {modules}\n"
        "print(sys.modules['tasquencer'].__file__)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert wheel.name in ran.stdout, "imported from elsewhere than the wheel"
