"""Finds what is wrong in a story: contradictions in what is known of the task, breaches of an invariant.

The checks are pure functions from a story to sentences. They know the promises of the documents, not the code
that keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tests.stories import action_checks, call_checks, ending_checks, lineage_checks, record_checks
from tests.stories.story import Story

__all__ = ["CHECKS", "Check", "violations"]

Check = Callable[[Story], Iterator[str]]

CHECKS: Sequence[Check] = (
    record_checks.paths_are_legal,
    record_checks.what_ended_never_changed,
    record_checks.nothing_stays_open,
    record_checks.the_query_agrees_with_the_ledger,
    record_checks.the_ai_jobs_agree,
    record_checks.the_history_replays,
    lineage_checks.nothing_starts_early,
    lineage_checks.each_lineage_is_bounded,
    lineage_checks.nothing_starts_after_the_deadline,
    lineage_checks.no_more_at_once_than_allowed,
    lineage_checks.no_retry_is_left_out,
    ending_checks.a_cancel_is_obeyed,
    ending_checks.the_policy_decides,
    ending_checks.the_end_says_what_happened,
    call_checks.each_request_has_its_work_item,
    call_checks.each_end_has_its_cause,
    action_checks.each_action_counts_once,
)


def violations(story: Story) -> list[str]:
    """What each check finds; nothing for a story that is as it should be."""
    if story.ending.state == "hangs":
        return ["the task cannot be brought to an end"]
    if not story.items:
        # A task that is canceled before its worker has looked at it does nothing at all.
        nothing_to_do = story.ending.cancel_at is not None and not story.calls
        return [] if nothing_to_do else ["the ledger has no work item of the task"]
    found = []
    for check in CHECKS:
        try:
            found += list(check(story))
        except (KeyError, IndexError, TypeError) as error:  # the story is too contradictory for it
            found.append(f"{check.__name__} stumbles: {error!r}")
    return found
