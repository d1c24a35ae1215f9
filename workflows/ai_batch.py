"""The batch: any number of prompts, each its own task, a few at a time, under one policy."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from tasquencer.batch.rows import AiBatchResult, BatchPause, BatchProgress, parse_batch, parse_pause
from tasquencer.temporal import accept
from tasquencer.temporal.batch_engine import BatchEngine

__all__ = ["AiBatchTask"]


@workflow.defn(name="AiBatchTask", sandboxed=False)  # see AiAgentTask
class AiBatchTask:
    """Input: nothing, or the JSON object that `AiBatchRequest` describes. Result: `AiBatchResult`.

    The rows are in the ledger, under the workflow's id. Each runs as an `AiAgentTask`.
    """

    @workflow.init
    def __init__(self, raw: Any = None, *rest: Any) -> None:
        self._batch = BatchEngine(raw)

    @workflow.run
    async def run(self, raw: Any = None, *rest: Any) -> AiBatchResult:
        """Run all rows, or as many as the policy allows."""
        batch, request = self._batch, accept(parse_batch, [raw, *rest] if rest else raw)
        try:
            await batch.begin(request)
            while not batch.is_decided:
                if batch.history_is_long:
                    batch.continue_as_new()
                else:
                    batch.start_rows()
                    batch.load_rows()
                    batch.save_outcomes()
                    batch.follow_tasks()
                await batch.changed()
        except (asyncio.CancelledError, ActivityError) as error:
            if is_cancelled_exception(error):
                await batch.cancel()
            raise
        return await batch.end()

    @workflow.query
    def progress(self) -> BatchProgress | None:
        """Return the batch's progress, or None before it has begun."""
        return self._batch.progress()

    @workflow.update
    def pause(self, raw: Any = None) -> BatchPause | None:
        """Start no further rows until `resume`. Running rows are not affected."""
        return self._batch.set_pause(parse_pause(raw))

    @workflow.update
    def resume(self, raw: Any = None) -> BatchPause | None:
        """Start rows again."""
        return self._batch.set_pause(None)

    @pause.validator
    def _check_pause(self, raw: Any = None) -> None:
        accept(parse_pause, raw)

    @resume.validator
    def _check_resume(self, raw: Any = None) -> None:
        accept(parse_pause, raw)
