"""The application's activities: effects on the world. The plugin brings the AI call, `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activities.file_ticket import file_ticket

ACTIVITIES: list[Callable[..., Any]] = [file_ticket]
"""The worker's activities in addition to the AI call. Add your own here."""

TOOLS: list[Callable[..., Any]] = []
"""What models may call: functions with type hints and a docstring, see `tasquencer.ai.tool`."""
