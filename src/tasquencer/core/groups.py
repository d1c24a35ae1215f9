"""The groups of a task: lineages that make one result together, which the policy counts as one lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from tasquencer.core.books import Books
from tasquencer.core.hooks import LineageRules, RecordOf
from tasquencer.core.lineage import Group
from tasquencer.core.work_item import Transition, WorkItemState

__all__ = ["Groups"]


class Groups(Books):
    """Books with groups of lineages. See `Group`."""

    def __init__(
        self, task_id: str, record_of: RecordOf | None, rules: Mapping[str, LineageRules] | None = None
    ) -> None:
        super().__init__(task_id, record_of, rules)
        self.groups: dict[str, Group] = {}

    def group_of(self, lineage: str) -> Group | None:
        """The group that the lineage belongs to."""
        name = self.lineages[lineage].group
        return None if name is None else self.groups[name]

    def begin_group(self, name: str, *, counted: bool) -> Group:
        """Begin a group of lineages, or return the one that was carried along."""
        if name not in self.groups:
            self.put_group(name, Group(counted))
        return self.groups[name]

    def put_group(self, name: str, group: Group) -> None:
        """Add a group, or change one."""
        before = self.groups.get(name)
        if before is not None and before.counted:
            self._standings[before.state] -= 1
        self.groups[name] = group
        if group.counted:
            self._standings[group.state] += 1

    def conclude_group(self, name: str, group: Group, now: datetime, actor: str) -> Transition:
        """End an open group, and cancel what is open in it. Returns the end as the policy judges it."""
        self.put_group(name, group)
        for item in self.open_work_items():
            if self.lineages[item.lineage].group == name:
                self.move(item, WorkItemState.CANCELED, now, actor, f"{name} has ended")
        last = group.last or ""
        item = self.latest(last)
        return Transition(
            work_item_id=item.id,
            sequence=self.sequence(item.id),
            previous_state=None,
            next_state=group.state or item.state,
            at=now,
            actor=actor,
            reason=self.lineages[last].reason,
        )

    def cancel_groups(self) -> None:
        """End the open groups that the policy counts, because the policy has ended the task."""
        for name, group in self.groups.items():
            if group.counted and group.state is None:
                self.put_group(name, replace(group, state=WorkItemState.CANCELED))
