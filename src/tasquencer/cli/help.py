"""Shared parts of the commands' help texts."""

from __future__ import annotations

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """Return the end of a command's help: one example per line."""
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines])
