"""What all tests share: real servers on free loopback ports, and how the tests are chosen and spread."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta

import pytest
from hypothesis import settings

from tasquencer.devkit.temporal_server import PUSHED_CANCELS, EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import bookkeeping, writing
from tests.support.ports import KeptPort
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres
from tests.support.stalls import allow_stalls

# A shell starts commands in its background with these signals ignored, and child processes inherit that.
for _key, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_key) is signal.SIG_IGN:
        signal.signal(_key, _usual)

SLOW = {
    "crash": (
        "tests/chaos/test_foreign_short.py::test_no_promise_is_broken_in_foreign_workflows_and_agents",
        "tests/chaos/test_shapes_short.py::test_no_promise_is_broken_whatever_the_shape",
        "tests/cli/test_demo.py::test_a_demo_that_is_stopped_leaves_nothing",
        "tests/chaos/test_short.py::test_no_promise_is_broken_while_the_parts_are_killed",
        "tests/end_to_end/test_batch.py",
        "tests/end_to_end/test_worker.py::test_a_call_that_outlasts_the_grace_period_fails_and_the_next_worker_goes_on",
        "tests/end_to_end/test_worker.py::test_a_worker_killed_in_a_call_costs_one_attempt_and_no_second_request",
        "tests/end_to_end/test_worker.py::test_a_worker_killed_in_the_backoff_brings_no_request_forward",
        "tests/workflows/test_lost_decisions.py",
    ),
    "outage": (
        "tests/outages/test_ledger_down.py::test_a_server_that_is_killed_under_fifty_tasks_costs_two_lines_of_log",
        "tests/outages/test_ledger_down.py::test_an_outage_of_most_of_an_hour_burns_no_attempt_and_little_history",
        "tests/outages/test_temporal_down.py",
    ),
    "slow": (
        "tests/asking/test_testing_guide.py",
        "tests/benchmarks/test_benchmarks.py::test_the_quick_form_runs_and_writes_its_table",
        "tests/chaos/test_shapes_short.py::test_fan_outs_and_agents_that_are_looked_at_end_and_replay",
        "tests/cli/test_actions.py::test_cancel_ends_the_task_and_stops_its_call",
        "tests/cli/test_actions.py::test_cancel_of_one_work_item_leaves_the_verdict_to_the_policy",
        "tests/cli/test_actions.py::test_complete_gives_the_answer_by_hand",
        "tests/cli/test_actions.py::test_fail_lets_the_recipe_decide",
        "tests/cli/test_actions.py::test_pause_holds_a_task_back_until_resume",
        "tests/cli/test_actions.py::test_retry_now_ends_the_backoff_and_says_who_did_it",
        "tests/cli/test_batch.py::test_an_id_belongs_to_one_content",
        "tests/cli/test_batch.py::test_answers_that_were_pruned_can_be_brought_back",
        "tests/cli/test_batch.py::test_ctrl_c_lets_the_batch_go_on_and_says_how_to_attach",
        "tests/cli/test_batch.py::test_each_line_is_answered_and_what_fails_is_input_again",
        "tests/cli/test_batch.py::test_files_of_the_batch_api_are_taken_and_written",
        "tests/cli/test_batch.py::test_pause_status_resume_and_cancel",
        "tests/cli/test_batch.py::test_standard_input_and_output_as_the_answers_come",
        "tests/cli/test_batch.py::test_the_same_file_again_asks_nothing_twice",
        "tests/cli/test_demo.py::test_a_kept_demo_stays_until_ctrl_c_and_says_how_to_go_on",
        "tests/cli/test_following.py::test_a_batch_shows_its_progress_and_its_pause_without_a_query",
        "tests/cli/test_following.py::test_a_task_that_the_ledger_does_not_have_is_asked_itself",
        "tests/cli/test_following.py::test_the_current_work_item_is_found_without_a_query",
        "tests/cli/test_following.py::test_work_items_of_an_earlier_task_with_the_same_id_are_not_shown",
        "tests/cli/test_histories.py::test_a_task_of_one_s_own_is_named_with_its_class",
        "tests/cli/test_histories.py::test_rebuild_adds_what_is_missing_and_says_so",
        "tests/cli/test_histories.py::test_rebuild_fills_an_empty_ledger_on_postgresql",
        "tests/cli/test_histories.py::test_without_a_task_it_takes_those_that_temporal_lists",
        "tests/cli/test_output.py::test_a_closed_pipe_ends_the_command_quietly",
        "tests/cli/test_output.py::test_what_the_encoding_cannot_show_is_replaced",
        "tests/cli/test_providers.py::test_providers_are_listed_and_asked",
        "tests/cli/test_reconcile.py::test_on_a_terminal_it_asks_where_temporal_knows_none_of_the_tasks",
        "tests/cli/test_reconcile.py::test_the_schedule_is_created_changed_and_removed",
        "tests/cli/test_reviews.py::test_a_draft_that_is_approved_is_the_answer",
        "tests/cli/test_reviews.py::test_a_draft_that_is_rejected_comes_again",
        "tests/cli/test_reviews.py::test_a_rejection_too_many_is_one_line_and_status_1",
        "tests/cli/test_reviews.py::test_a_review_whose_task_is_gone_is_one_line_and_status_1",
        "tests/cli/test_reviews.py::test_a_terminal_shows_the_draft_and_asks",
        "tests/cli/test_reviews.py::test_an_answer_is_no_decision_and_the_refusal_says_what_is",
        "tests/cli/test_reviews.py::test_of_two_reviewers_the_second_is_told_in_one_line",
        "tests/cli/test_reviews.py::test_the_documents_command_starts_a_reviewed_draft",
        "tests/cli/test_reviews.py::test_who_stays_sees_the_draft_come_and_gets_it_once_it_is_approved",
        "tests/cli/test_run_and_watch.py::test_a_detached_task_can_be_watched_and_its_id_is_taken",
        "tests/cli/test_run_and_watch.py::test_a_failure_comes_as_json",
        "tests/cli/test_run_and_watch.py::test_a_queue_that_nobody_polls_is_said",
        "tests/cli/test_run_and_watch.py::test_ctrl_c_stops_watching_and_not_the_task",
        "tests/cli/test_run_and_watch.py::test_run_and_show_print_the_tokens_of_all_attempts",
        "tests/cli/test_run_and_watch.py::test_the_result_comes_as_json",
        "tests/cli/test_run_with_tools.py",
        "tests/cli/test_tools_in_many_prompts.py",
        "tests/devkit/test_local_model.py",
        "tests/end_to_end/test_attacks_on_the_worker.py",
        "tests/end_to_end/test_reconciliation.py::test_a_worker_leaves_a_schedule_that_is_there_as_it_is",
        "tests/end_to_end/test_reconciliation.py::test_a_worker_that_is_told_so_creates_no_schedule",
        "tests/end_to_end/test_text_in_web_ui.py",
        "tests/end_to_end/test_worker.py::test_a_ledger_of_a_newer_release_is_left_alone",
        "tests/end_to_end/test_worker.py::test_a_second_signal_stops_it_at_once",
        "tests/end_to_end/test_worker.py::test_a_setting_out_of_range_is_refused",
        "tests/end_to_end/test_worker.py::test_a_signal_lets_the_call_under_way_end_and_the_next_worker_goes_on",
        "tests/end_to_end/test_worker.py::test_a_wrong_option_is_reported_before_a_missing_key",
        "tests/end_to_end/test_worker.py::test_it_makes_no_more_calls_a_second_than_it_is_told_to",
        "tests/end_to_end/test_worker.py::test_it_makes_no_more_calls_at_once_than_it_is_told_to",
        "tests/end_to_end/test_worker.py::test_without_a_key_it_says_what_to_set",
        "tests/end_to_end/test_worker_processes.py",
        "tests/examples",
        "tests/layer/test_command.py",
        "tests/layer/test_observing.py::test_the_tools_cope_with_observed_rows",
        "tests/layer/test_plain_workflows.py::test_histories_with_and_without_the_plugin_are_the_same_and_replay_on_each_other",
        "tests/ledger/test_migrations.py::test_several_processes_may_upgrade_at_once",
        "tests/ledger/test_poolers.py",
        "tests/packaging/test_readme.py",
        "tests/packaging/test_without_a_checkout.py",
        "tests/poison/test_hostile_answers.py::test_a_hostile_answer_holds_up_no_other_call",
        "tests/poison/test_hostile_answers.py::test_a_schema_without_end_is_given_up_and_holds_up_no_other_call",
        "tests/poison/test_hostile_answers.py::test_schemas_are_checked_again_after_one_was_given_up",
        "tests/poison/test_memory.py",
        "tests/random_actions",
        "tests/secrets/test_no_secret_is_kept.py::test_a_database_that_repeats_the_password_is_not_believed",
        "tests/secrets/test_no_secret_is_kept.py::test_whatever_a_provider_says_about_the_key_is_not_kept",
        "tests/tutorial",
        "tests/workflows/test_adopted_switching.py",
        "tests/workflows/test_agent_outcomes.py",
        "tests/workflows/test_ai_batch.py::test_a_batch_that_was_terminated_takes_up_the_tasks_it_left",
        "tests/workflows/test_ai_batch.py::test_a_new_run_leaves_the_calls_their_places",
        "tests/workflows/test_ai_batch.py::test_it_goes_on_in_new_runs_that_follow_what_the_run_before_has_started",
        "tests/workflows/test_ai_batch.py::test_it_works_on_postgresql_too",
        "tests/workflows/test_ai_batch.py::test_pause_starts_nothing_more_and_lasts_into_the_next_run",
        "tests/workflows/test_ai_batch.py::test_rows_that_somebody_has_deleted_end_it",
        "tests/workflows/test_ai_batch.py::test_the_largest_prompts_pass_a_few_at_a_time",
        "tests/workflows/test_crashes_and_cancels.py::test_a_bug_in_the_workflow_pauses_the_task_until_it_is_repaired_and_burns_no_attempt",
        "tests/workflows/test_crashes_and_cancels.py::test_the_largest_request_continues_as_new",
        "tests/workflows/test_follow_up.py::test_a_cancel_that_meets_the_last_moments_gets_one_truth",
        "tests/workflows/test_histories.py::test_tasks_under_way_agree_at_every_moment",
        "tests/workflows/test_looks_after_a_slow_query.py",
        "tests/workflows/test_lost_decisions.py",
        "tests/workflows/test_mcp.py::test_a_server_that_dies_is_started_again",
        "tests/workflows/test_pending_together.py",
        "tests/workflows/test_queries.py::test_a_query_that_waits_for_a_worker_while_a_backoff_ends_starts_nothing_early",
        "tests/workflows/test_queries.py::test_tasks_that_are_looked_at_end_and_replay",
        "tests/workflows/test_reconcile.py::test_beside_tasks_under_way_it_never_settles_anything",
        "tests/workflows/test_reset_matrix.py",
        "tests/workflows/test_reviewed_draft.py::test_it_survives_continuing_as_new_with_drafts_too_large_to_travel_along",
        "tests/workflows/test_time_limits.py::test_a_call_that_waits_for_a_worker_ends_with_the_deadline",
    ),
    "upgrade": ("tests/upgrades",),
}
"""The tests that only `make test-all` runs, by what makes them slow: folders, files, single tests.

A test file can give its tests these markers itself, too.
"""

LONGEST = (
    "tests/chaos/test_short.py",
    "tests/chaos/test_shapes_short.py",
    "tests/chaos/test_foreign_short.py",
    "tests/upgrades/test_deployments.py",
    "tests/benchmarks/test_benchmarks.py::test_the_quick_form_runs_and_writes_its_table",
    "tests/workflows/test_adopted_activities.py",
    "tests/workflows/test_lost_decisions.py",
    "tests/cli/test_actions.py",
    "tests/cli/test_histories.py",
    "tests/workflows/cancel/test_bookkeeping.py",
    "tests/end_to_end/test_worker.py",
    "tests/activities/test_failures.py",
    "tests/cli/test_reconcile.py",
    "tests/cli/test_run_and_watch.py",
    "tests/cli/test_batch.py",
    "tests/cli/test_reviews.py",
    "tests/workflows/test_ai_batch.py",
    "tests/random_actions",
    "tests/workflows/test_adopted_switching.py",
    "tests/outages",
    "tests/workflows/test_histories.py",
    "tests/workflows/test_reconcile.py",
)
"""What takes longest begins first, so that no process is left with a long file at the end."""

SHORTEST = ("tests/stories", "tests/unit")
"""What takes a second a file comes last."""

_TEARDOWN_SECONDS = 300
_STDERR = pytest.StashKey[int]()

allow_stalls()

settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Keep standard error as it is before pytest captures it."""
    config.stash[_STDERR] = os.dup(2)


def pytest_xdist_auto_num_workers() -> int:
    """Two a core, or `PROCESSES_A_CORE`: a test mostly waits for its servers."""
    cores = os.cpu_count() or 1
    return max(cores, min(int(os.environ.get("PROCESSES_A_CORE", "2")) * cores, 8))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and let the longest files begin first."""
    for item in items:
        for marker, places in SLOW.items():
            if _is_in(item, places):
                item.add_marker(marker)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    for turn, place in enumerate(LONGEST):
        if _is_in(item, (place,)):
            return turn
    return len(LONGEST) + _is_in(item, SHORTEST)


def _is_in(item: pytest.Item, places: Sequence[str]) -> bool:
    test = item.nodeid.split("[")[0]
    return any(test == place or test.startswith((f"{place}/", f"{place}::")) for place in places)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """End the process if the teardown hangs: after a failure pytest-timeout no longer looks at the time."""
    faulthandler.dump_traceback_later(_TEARDOWN_SECONDS, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
async def dev_server() -> AsyncIterator[EmbeddedTemporal]:
    """A real Temporal dev server."""
    async with embedded_temporal(ui=False) as server:
        yield server


@pytest.fixture(scope="session")
async def server_without_pushes() -> AsyncIterator[EmbeddedTemporal]:
    """A Temporal dev server without pushed cancels: they reach a call in the answers to its heartbeats."""
    async with embedded_temporal(ui=False, dynamic_config=dict.fromkeys(PUSHED_CANCELS, False)) as server:
        yield server


@pytest.fixture
def no_write_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task in this process looks for news after a write, however busy the machine is."""
    monkeypatch.setattr(bookkeeping, "_SLOW_SECONDS", math.inf)
    monkeypatch.setattr(bookkeeping, "_PATIENCE", timedelta(minutes=1))  # one that is repeated counts as slow
    monkeypatch.setattr(writing, "RECORD_TIMEOUT", timedelta(minutes=2))


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A real PostgreSQL server; each test makes a database of its own."""
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            yield server


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nothing listens. It is taken, so that no other process opens it."""
    port = KeptPort()
    yield port.number
    port.release()
