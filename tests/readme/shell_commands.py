"""Checks of the commands that the documentation tells people to type: they exist, and so do their options."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import typer

from tasquencer.cli.main import app
from tests.readme.documents import ROOT
from tests.support.tasks import executable
from worker import main as worker_main

ORDINARY = {".", "cd", "cp", "docker", "export", "kill", "mkdir", "pg_dump", "python3", "zcat"}
"""Commands that this repository does not make."""


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command, without the settings before it."""
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r" (?:\||&&) ", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[-1] == "&":
                words = words[:-1]
            if words:
                yield words


def problem(words: Sequence[str]) -> str | None:
    """Return what is wrong with a command, or None."""
    program, arguments = words[0].rpartition("/")[2], list(words[1:])
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    match program:
        case "tasq":
            return _of_tasq(arguments)
        case "temporal":
            return _of_temporal(arguments)
        case "make":
            return _of_make(arguments)
        case "pip":
            return _of_pip(arguments)
        case "python" | "pytest":
            return _of_python(program, arguments)
        case _:
            return None if program in ORDINARY else f"nobody checks {program}"


def _of_tasq(arguments: list[str]) -> str | None:
    if "--help" in arguments:
        arguments.remove("--help")
        if not arguments:
            return None
    command: Any = typer.main.get_command(app)
    context, name = None, "tasq"
    try:
        while True:
            if name == "worker":
                program = typer.Typer(add_completion=False)
                program.command()(worker_main)
                command = typer.main.get_command(program)
            context = command.make_context(name, list(arguments), parent=context)
            if not hasattr(command, "commands"):
                return None
            name, command, arguments = command.resolve_command(
                context, [*getattr(context, "_protected_args", []), *context.args]
            )
    except Exception as error:  # noqa: BLE001 - click's errors come from where the version of typer has them
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"


@cache
def _temporal_help(*names: str) -> str:
    done = subprocess.run(
        [executable("temporal"), *names, "--help"], capture_output=True, text=True, check=True
    )
    return done.stdout


def _of_temporal(arguments: list[str]) -> str | None:
    names = arguments[: _first_option(arguments)]
    options = [word for word in arguments if re.fullmatch(r"--[a-z-]+", word)]
    described = _temporal_help(*names) + _temporal_help("options")
    if f"temporal {' '.join(names)}" not in described:
        return f"there is no temporal {' '.join(names)}"
    unknown = [option for option in options if f"{option} " not in described]
    return f"unknown options {unknown}" if unknown else None


def _first_option(arguments: Sequence[str]) -> int:
    return next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))


def _of_make(arguments: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    places = {"CHAOS_ARGS": "tests/chaos/__main__.py", "BENCH_ARGS": "benchmarks/suite.py"}
    for argument in arguments:
        variable, given, value = argument.partition("=")
        if not given:
            if variable not in targets:
                return f"there is no target {variable}"
        elif variable in places:
            parser = (ROOT / places[variable]).read_text()
            for option in re.findall(r"--[a-z-]+", value):
                if f'"{option}"' not in parser and option != "--help":
                    return f"{places[variable]} has no {option}"
        elif f"$({variable})" not in (ROOT / "Makefile").read_text():
            return f"the Makefile does not use {variable}"
    return None


def _of_pip(arguments: list[str]) -> str | None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for argument in arguments:
        if found := re.fullmatch(r"tasquencer\[([a-z,]+)\]", argument):
            unknown = set(found[1].split(",")) - set(extras)
            if unknown:
                return f"there is no extra {sorted(unknown)}"
    return None


def _of_python(program: str, arguments: list[str]) -> str | None:
    if arguments[:1] == ["-m"]:
        module = arguments[1]
        known = module in {"pytest", "venv"} or (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        return None if known else f"there is no module {module}"
    files = [argument for argument in arguments if argument.endswith(".py")]
    return None if files or program == "pytest" else f"{sys.executable} {arguments}: what does it run?"
