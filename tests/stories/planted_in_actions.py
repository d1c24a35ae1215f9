"""Violations of `action_checks`."""

from __future__ import annotations

from dataclasses import replace

from tests.stories.action_checks import each_action_counts_once
from tests.stories.good import retried_by_hand
from tests.stories.planting import Plant, Planted, act, step
from tests.stories.playing import at
from tests.stories.story import Reply, Story

__all__ = ["IN_ACTIONS"]

HURRIED, HURRIED_AGAIN, REFUSED, FAILED = range(4)
"""The actions on `retried_by_hand`, in their order."""


def _never_asked(story: Story) -> Story:
    return replace(story, acts=[one for one in story.acts if one.update_id != "update-4"])


def _planted(says: str, plant: Plant) -> Planted:
    return Planted(each_action_counts_once, says, retried_by_hand, plant)


BY_THE_FAILER = {"actor": "operator-4", "reason": "because operator-4 says so"}

IN_ACTIONS = [
    _planted("operator-4 acted, but never asked to", _never_asked),
    _planted("cancel_work_item update-3 was taken on and never answered", act(REFUSED, reply=Reply.LOST)),
    _planted("fail_work_item update-4 was not accepted, yet it acted", act(FAILED, reply=Reply.REFUSED)),
    _planted("was answered in two ways", act(HURRIED_AGAIN, value={"work_item_ids": ["w2"]})),
    _planted("fail_work_item update-4 acted on w1 2 times", step(1, 1, **BY_THE_FAILER)),
    _planted("update-4 acted on w1, the answer names ['w2']", act(FAILED, value={"work_item_id": "w2"})),
    _planted(
        "cancel_work_item update-3 was accepted and did nothing to w0",
        act(REFUSED, reply=Reply.ACCEPTED, value={"work_item_id": "w0"}),
    ),
    _planted("cancel_work_item update-4 led to failed", act(FAILED, name="cancel_work_item")),
    _planted("acted on w1, it was meant for w0", act(FAILED, work_item_id="w0")),
    _planted("its reason is not in the ledger", step(1, 2, reason="no reason")),
    _planted("not between question and answer", act(FAILED, sent_at=at(9.5))),
    _planted("not between question and answer", act(FAILED, answered_at=at(8.5))),
    _planted("was answered before it was in the ledger", act(FAILED, recorded=frozenset())),
    _planted("was answered before it was in the ledger", act(HURRIED_AGAIN, recorded=frozenset())),
]
