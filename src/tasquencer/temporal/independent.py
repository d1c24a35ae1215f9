"""The kinds of independent lineages, and what holds for them."""

from __future__ import annotations

from collections.abc import Mapping

from tasquencer.ai.agent import TOOL_RULES
from tasquencer.ai.ladder import climb
from tasquencer.ai.record import ai_job_record
from tasquencer.core.hooks import LineageRules

__all__ = ["ASK", "RULES"]

ASK = "ask"
"""The kind of a call of `ask`, or of the model turns in it."""

RULES: Mapping[str, LineageRules] = {ASK: LineageRules(climb, ai_job_record), **TOOL_RULES}
"""By kind. Each release keeps the kinds of earlier ones: a task may carry them along."""
