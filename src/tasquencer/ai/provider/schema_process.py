"""Checks schemas and outputs in a separate process, which `tasquencer.ai.provider.schemas` starts and limits.

It reads one request per line, `{"schema": …, "output": null or the output's text}`, and answers one line,
`{"problem": null or why it does not fit}`. As a program it imports nothing from this package.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

__all__ = ["main", "problem_of"]

_MOST_PROBLEM = 2_000
"""Maximum characters of a problem. A mismatch quotes the output."""


def problem_of(schema: str, output: str | None) -> str | None:
    """Return why this is not a JSON Schema, or why the output does not fit it, or None."""
    try:
        return _problem_of_schema(schema) if output is None else _problem_of_output(schema, output)
    except RecursionError:
        return "it is nested too deeply"


def _problem_of_schema(schema: str) -> str | None:
    read = json.loads(schema)
    try:
        validator_for(read, default=jsonschema.Draft202012Validator).check_schema(read)
    except jsonschema.SchemaError as error:
        return str(error.message)
    return None


def _problem_of_output(schema: str, output: str) -> str | None:
    try:
        mismatch = jsonschema.exceptions.best_match(
            _validator(schema).iter_errors(json.loads(output, parse_constant=_reject_constant))
        )
    except Unresolvable as error:
        return f"the schema refers to something unknown: {error.ref}"
    except ValueError as error:
        return f"it is not JSON: {error}"
    return None if mismatch is None else f"at {mismatch.json_path}: {mismatch.message}"


@lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    read = json.loads(schema)
    # The registry is empty, because a schema must not make the worker fetch its references.
    return validator_for(read, default=jsonschema.Draft202012Validator)(read, registry=Registry())


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def main(cpu_seconds: int, memory_bytes: int) -> None:
    """Answer requests until the input ends. The kernel ends a process that exceeds its limits."""
    os.nice(5)  # other calls of the worker come first
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for line in sys.stdin.buffer:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(usage.ru_utime + usage.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + 1 + cpu_seconds, hard))
        request = json.loads(line)
        try:
            problem = problem_of(request["schema"], request["output"])
        except MemoryError:
            problem = f"checking it takes more than {memory_bytes // 2**20} MiB of memory"
        answer = {"problem": None if problem is None else problem[:_MOST_PROBLEM]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
