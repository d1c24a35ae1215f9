"""What the commands' help texts share."""

from __future__ import annotations

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """The end of a command's help: one example a line."""
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines])
