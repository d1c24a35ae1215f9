"""The application's tasks: deterministic code, one task per file."""

from __future__ import annotations

from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reconcile_ledger import ReconcileLedger
from workflows.reviewed_draft import ReviewedDraft

WORKFLOWS: list[type] = [AiAgentTask, AiFanOutTask, AiBatchTask, ReviewedDraft, ReconcileLedger]
"""The worker's workflows. Add your own here."""
