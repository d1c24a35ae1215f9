"""The application that comes with the library: finds it, and writes new applications from it.

In a wheel it is package data. In a checkout it is the top of the repository. Its folder `starter` has the
files that only a new application gets: a first task and activity, a test, a README.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import tasquencer
from tasquencer.cli.errors import CommandFailed, ExitCode

__all__ = ["bundled_application", "find_worker", "write_application"]

_SHARED = ("activities", "deploy", "workflows", ".env.example", "docker-compose.yml", "worker.py")
"""The files that a new application gets from the bundled one. `starter` is copied over them."""


def bundled_application() -> Path:
    """Return the folder of the application that comes with the library. Raises `CommandFailed`."""
    package = Path(str(tasquencer.__file__)).resolve().parent
    for folder in (package / "application", package.parents[1]):
        if _is_application(folder):
            return folder
    raise CommandFailed(f"the application is missing from {package}: install tasquencer again")


def find_worker(here: Path) -> Path:
    """Return the worker's program: `worker.py` in this folder, else the bundled one."""
    return (here if _is_application(here) else bundled_application()) / "worker.py"


def _is_application(folder: Path) -> bool:
    return (folder / "worker.py").is_file() and (folder / "workflows" / "ai_agent.py").is_file()


def write_application(folder: Path, version: str) -> None:
    """Write a new application into a folder that is empty or does not exist.

    Args:
        folder: Its name becomes the application's name.
        version: The oldest version of tasquencer that the application runs on.

    Raises:
        CommandFailed: the folder is not empty, or cannot be written.
    """
    source = bundled_application()
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise CommandFailed(f"{folder} is not an empty folder: name a new one", ExitCode.USAGE)
        for name in _SHARED:
            _copy(source / name, folder / name)
        _copy(source / "starter", folder)
        (folder / "requirements.txt").write_text(f"tasquencer[worker]>={version}\n")
        _rename(folder / "docker-compose.yml", folder.resolve().name)
    except OSError as error:
        raise CommandFailed(f"cannot write {folder}: {error.strerror or error}") from None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _rename(compose_file: Path, name: str) -> None:
    """Give the containers and the image the application's name, so that two applications share no volumes."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "application"
    text = compose_file.read_text()
    text = re.sub(r"^name: tasquencer$", f"name: {slug}", text, flags=re.MULTILINE)
    compose_file.write_text(text.replace("image: tasquencer-worker:", f"image: {slug}-worker:"))
