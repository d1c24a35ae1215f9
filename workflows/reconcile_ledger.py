"""The reconciler as a workflow: cancels work items that closed tasks have left open, page by page."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy

from tasquencer.temporal import accept
from tasquencer.temporal.reconciling import RECONCILE, Page, PageRequest, Reconciliation, parse_reconcile
from tasquencer.temporal.schedules import RECONCILE_WORKFLOW
from tasquencer.temporal.wire import received, sent

__all__ = ["ReconcileLedger"]


@workflow.defn(name=RECONCILE_WORKFLOW, sandboxed=False)  # see AiAgentTask
class ReconcileLedger:
    """Input: nothing, or the JSON object that `ReconcileRequest` describes. Result: `Reconciliation`."""

    @workflow.run
    async def run(self, raw: Any = None, *rest: Any) -> Reconciliation:
        """Check all open work items of the ledger. Continue in a new run when the history grows long."""
        request = accept(parse_reconcile, [raw, *rest] if rest else raw)
        after, found = request.after, request.so_far
        while True:
            wanted = PageRequest(
                grace_seconds=request.grace_seconds,
                forgotten_after_seconds=request.forgotten_after_seconds,
                size=request.page_size,
                after=after,
            )
            returned = await workflow.execute_activity(
                RECONCILE,
                sent(wanted),
                result_type=RawValue,
                start_to_close_timeout=timedelta(minutes=10),
                heartbeat_timeout=timedelta(seconds=30),
                # Waits for the end of an outage of the ledger.
                retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            )
            page = received(returned, Page)
            found = found.plus(page.found)
            if page.next is None:
                return found
            after = page.next
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(request.model_copy(update={"after": after, "so_far": found}))
