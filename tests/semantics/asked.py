"""Who was asked what, in which order."""

from __future__ import annotations

from tasquencer.core.hooks import NextAttempt, StateChange, StateChangeHook, retry_by_recipe
from tasquencer.core.policy import Counts, TaskPolicy, Verdict, until_exhausted
from tasquencer.core.work_item import Transition

__all__ = ["Asked"]


class Asked:
    """Passes each question on to a hook or a policy, and notes who was asked about what."""

    def __init__(
        self, *, hook: StateChangeHook = retry_by_recipe, policy: TaskPolicy = until_exhausted
    ) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.counts: list[Counts] = []
        self._hook = hook
        self._policy = policy

    def hook(self, change: StateChange) -> NextAttempt | None:
        """The hook of the task."""
        self.log.append(("hook", change.work_item.id, change.transition.next_state.value))
        return self._hook(change)

    def policy(self, transition: Transition, counts: Counts) -> Verdict:
        """The policy of the task."""
        self.log.append(("policy", transition.work_item_id, transition.next_state.value))
        self.counts.append(counts)
        return self._policy(transition, counts)
