"""The errors of the devkit."""

from __future__ import annotations

from tasquencer.core.errors import TasquencerError

__all__ = ["DevkitError", "MissingPart", "ProcessFailed"]


class DevkitError(TasquencerError):
    """A part of the devkit cannot be used. The message says in one line what to do."""


class MissingPart(DevkitError):
    """A package that the part needs is not installed."""

    def __init__(self, part: str, package: str, remedy: str = "pip install 'tasquencer[devkit]'") -> None:
        self.part = part
        self.package = package
        super().__init__(f"{part} needs the package {package}: {remedy}")


class ProcessFailed(DevkitError):
    """A child process did not become ready. The message ends with the last line of its output."""

    def __init__(self, name: str, problem: str, last_output: str) -> None:
        self.name = name
        self.problem = problem
        self.last_output = last_output
        said = f": {last_output}" if last_output else ""
        super().__init__(f"{name} {problem}{said}")
