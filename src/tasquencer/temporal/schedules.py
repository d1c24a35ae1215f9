"""The Temporal Schedule that reconciles the ledger regularly."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError

from tasquencer.temporal.not_found import is_missing

__all__ = [
    "RECONCILE_WORKFLOW",
    "create_schedule",
    "put_schedule",
    "remove_schedule",
    "schedule_id",
]

RECONCILE_WORKFLOW = "ReconcileLedger"
"""Name of the workflow that the schedule starts."""

_CATCH_UP = timedelta(minutes=1)
"""After an outage of Temporal, runs that were missed longer ago are skipped, because one run is enough."""

_LONGEST_RUN = timedelta(hours=1)
"""A run that waits for ever, such as one that is pinned to a build that is gone, would block all later ones.
The next run continues after the work items that this one has settled."""


def schedule_id(task_queue: str) -> str:
    """Return the id of the schedule for this task queue, whose workers share a ledger."""
    return f"tasq-reconcile-{task_queue}"


async def create_schedule(client: Client, task_queue: str, every: timedelta) -> bool:
    """Create the schedule if there is none, and return whether it was created.

    Raises:
        RPCError: Temporal does not answer, or does not allow it.
    """
    try:
        await client.create_schedule(schedule_id(task_queue), _schedule(task_queue, every))
    except ScheduleAlreadyRunningError:
        return False
    return True


async def put_schedule(client: Client, task_queue: str, every: timedelta) -> bool:
    """Create or update the schedule, and return whether it was created.

    A paused schedule stays paused. Raises like `create_schedule`.
    """
    if await create_schedule(client, task_queue, every):
        return True
    wanted = _schedule(task_queue, every)

    def changed(found: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(wanted, state=found.description.schedule.state))

    await client.get_schedule_handle(schedule_id(task_queue)).update(changed)
    return False


async def remove_schedule(client: Client, task_queue: str) -> bool:
    """Remove the schedule, and return whether there was one. Raises like `create_schedule`."""
    try:
        await client.get_schedule_handle(schedule_id(task_queue)).delete()
    except RPCError as error:
        if not is_missing(error):
            raise
        return False
    return True


def _schedule(task_queue: str, every: timedelta) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            RECONCILE_WORKFLOW,
            id=f"reconcile-ledger-{task_queue}",
            task_queue=task_queue,
            execution_timeout=_LONGEST_RUN,
            static_summary="settles what closed tasks have left open",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCH_UP),
    )
