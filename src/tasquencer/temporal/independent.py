"""The kinds of independent lineages, and what holds for them."""

from __future__ import annotations

from collections.abc import Mapping

from tasquencer.ai.record import ai_job_record
from tasquencer.core.hooks import LineageRules, retry_by_recipe

__all__ = ["ASK", "RULES"]

ASK = "ask"
"""The kind of a call of `ask`."""

RULES: Mapping[str, LineageRules] = {ASK: LineageRules(retry_by_recipe, ai_job_record)}
"""By kind. Each release keeps the kinds of earlier ones: a task may carry them along."""
