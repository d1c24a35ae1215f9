"""At every transition the hook is asked first, then the policy, which sees what the hook has added."""

from __future__ import annotations

from tasquencer.core.policy import Counts, Verdict
from tests.semantics.asked import Asked
from tests.unit.driving import NOON, after, rate_limited, task


def test_at_every_transition_the_hook_is_asked_and_then_the_policy() -> None:
    asked = Asked()
    state = task(on_work_item_state_changed=asked.hook, policy=asked.policy)

    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.complete("w0", "done", now=after(1))

    assert asked.log == [
        ("hook", "w0", "initialized"),
        ("policy", "w0", "initialized"),
        ("hook", "w0", "started"),
        ("policy", "w0", "started"),
        ("hook", "w0", "completed"),
        ("policy", "w0", "completed"),
    ]


def test_a_retry_is_there_before_the_policy_is_asked_about_the_failure() -> None:
    asked = Asked()
    state = task(on_work_item_state_changed=asked.hook, policy=asked.policy)
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    asked.log.clear()

    state.fail("w0", rate_limited(), now=after(1))

    assert asked.log == [
        ("hook", "w0", "failed"),
        ("hook", "w1", "initialized"),
        ("policy", "w1", "initialized"),
        ("policy", "w0", "failed"),
    ]
    assert asked.counts[-2:] == [Counts(initialized=1, failed=1, open_lineages=1)] * 2


def test_a_policy_sees_no_lineage_lost_while_a_retry_is_planned() -> None:
    seen: list[int] = []

    def noting(transition: object, counts: Counts) -> Verdict:
        seen.append(counts.lost_lineages)
        return Verdict.CONTINUE

    state = task(policy=noting)
    state.begin("job", now=NOON)
    for attempt in range(4):
        state.start(f"w{attempt}", now=NOON)
        state.fail(f"w{attempt}", rate_limited(), now=NOON)

    assert seen[:-1] == [0] * (len(seen) - 1)
    assert seen[-1] == 1
