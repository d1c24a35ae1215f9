"""A native attempt of an activity: its identity and its work item."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue
from temporalio import activity
from temporalio.client import Client
from temporalio.common import RetryPolicy

from tasquencer.core.observed import observed_id
from tasquencer.core.retry import MOST_RETRIES
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState

__all__ = ["ACTIVITY_ID", "STANDALONE", "TEMPORAL", "Attempt"]

TEMPORAL = "temporal"
"""The actor of the transitions of observed attempts."""

ACTIVITY_ID = "activity_id"
"""The activity's id in the payload of a work item whose lineage has another name."""

STANDALONE = "activity:"
"""The prefix of the task id for an activity without a workflow."""

_LOOK_BACK = 4
"""Earlier attempts to look for. Those whose worker died before it could write have no work item."""


@dataclass(frozen=True)
class Attempt:
    """The identity of a native attempt of an activity.

    Attributes:
        number: 0-based. Temporal's number minus one.
        scheduled_at: When Temporal scheduled this attempt.
    """

    namespace: str
    task_id: str
    run_id: str
    task_type: str
    activity_id: str
    number: int
    first_scheduled_at: datetime
    scheduled_at: datetime
    started_at: datetime
    policy: RetryPolicy | None
    worker: str
    is_local: bool

    @classmethod
    def of(cls, info: activity.Info, client: Client) -> Attempt:
        """Return the attempt that is running."""
        scheduled_at = info.current_attempt_scheduled_time.astimezone(UTC)
        return cls(
            namespace=info.namespace,
            task_id=info.workflow_id or STANDALONE + info.activity_id,
            run_id=info.workflow_run_id or info.activity_run_id or "",
            task_type=info.workflow_type or info.activity_type,
            activity_id=info.activity_id,
            number=info.attempt - 1,
            first_scheduled_at=info.scheduled_time.astimezone(UTC),
            scheduled_at=scheduled_at,
            started_at=max(scheduled_at, info.started_time.astimezone(UTC)),
            policy=info.retry_policy,
            worker=client.identity,
            is_local=info.is_local,
        )

    @property
    def id(self) -> str:
        """The id of its work item."""
        return self._id_of(self.number)

    def ids_before(self) -> list[str]:
        """The ids of the last few attempts before this one, the latest first."""
        return [self._id_of(number) for number in range(self.number - 1, -1, -1)[:_LOOK_BACK]]

    @property
    def id_again(self) -> str:
        """The id for an activity that was reset and has already had an attempt with this number."""
        return observed_id(self.id, self.scheduled_at.isoformat())

    @property
    def was_begun_again(self) -> bool:
        """Return whether it is the first attempt after a reset, scheduled later than the activity."""
        return self.number == 0 and not self.is_local and self.scheduled_at > self.first_scheduled_at

    def _id_of(self, number: int) -> str:
        scheduled = self.first_scheduled_at.isoformat()
        return observed_id(self.namespace, self.run_id, self.activity_id, scheduled, str(number))

    @property
    def most_retries(self) -> int:
        """The number of retries that the policy allows."""
        most = self.policy.maximum_attempts if self.policy is not None else 0
        return most - 1 if most > 0 else MOST_RETRIES

    def expected_wait(self) -> timedelta:
        """The backoff before this attempt according to the retry policy."""
        policy = self.policy
        if policy is None or self.number == 0:
            return timedelta(0)
        try:
            wait = policy.initial_interval * policy.backoff_coefficient ** (self.number - 1)
        except OverflowError:
            wait = timedelta.max
        most = policy.maximum_interval or 100 * policy.initial_interval
        return min(wait, most)

    def work_item(self, payload: JsonValue, lineage: str) -> WorkItem:
        """Return its work item, started."""
        return WorkItem(
            id=self.id,
            task_id=self.task_id,
            run_id=self.run_id,
            task_type=self.task_type,
            lineage=lineage,
            attempt=self.number,
            state=WorkItemState.STARTED,
            payload=payload,
            delay_reason=DelayReason.FIRST_TRY if self.number == 0 else DelayReason.BACKOFF,
            not_before=self.scheduled_at,
            created_at=self.scheduled_at,
            started_at=self.started_at,
            worker=self.worker,
        )
