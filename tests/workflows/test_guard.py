"""The guard before a workflow instance, without a server: what it makes of each activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.core.actions import TRY_AGAIN
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.bookkeeping import RECORD
from tasquencer.temporal.guard import Guard
from tasquencer.temporal.run_status import Status


class Instance:
    """Stands in for the SDK's instance: its code looks at the guard in each activation.

    Args:
        writes: Begin a write to the ledger in the first activation.
    """

    def __init__(self, code: Callable[[], object], *, writes: bool = False) -> None:
        self._code = code
        self._writes = writes
        self.saw: list[object] = []
        self.heard: list[list[str]] = []
        self.commands: list[str] = []
        self.versioning = 0

    def activate(self, activation: WorkflowActivation) -> WorkflowActivationCompletion:
        self.saw.append(self._code())
        self.heard.append([str(job.WhichOneof("variant")) for job in activation.jobs])
        completion = WorkflowActivationCompletion()
        completion.successful.versioning_behavior = self.versioning  # type: ignore[assignment]
        completion.successful.SetInParent()
        for name in self.commands:
            getattr(completion.successful.commands.add(), name).SetInParent()
        if self._writes:
            completion.successful.commands.add().schedule_local_activity.activity_type = RECORD
            self._writes = False
        return completion


def activation(*jobs: str, suggested: bool, length: int, replaying: bool = False) -> WorkflowActivation:
    made = WorkflowActivation(
        history_length=length,
        history_size_bytes=100 * length,
        continue_as_new_suggested=suggested,
        is_replaying=replaying,
    )
    made.timestamp.FromSeconds(length)
    for name in jobs:
        job = made.jobs.add()
        if name == "local result":
            job.resolve_activity.is_local = True
        else:
            getattr(job, name).SetInParent()
    return made


def guarded(
    *behaviours: Behaviour, writes: bool = False, is_lost: bool = False, may_join: bool = True
) -> tuple[Guard, Instance]:
    guard = Guard(is_lost=lambda _event_id, _began: is_lost, may_join=lambda _event_id: may_join)

    def code() -> bool:
        for behaviour in (Behaviour.RESULTS_ONE_BY_ONE, *behaviours):
            guard.decides(behaviour)
        return guard.suggests_new_run

    instance = Instance(code, writes=writes)
    guard.surround(instance)  # type: ignore[arg-type]
    return guard, instance


def test_the_result_of_a_local_activity_alone_makes_no_new_run_due() -> None:
    guard, instance = guarded()
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("local result", suggested=True, length=9))
    guard.activate(activation("query_workflow", suggested=True, length=9))
    guard.activate(activation("fire_timer", suggested=True, length=12))
    assert instance.saw == [False, False, False, True]


def test_results_of_local_activities_are_heard_first_and_one_by_one_however_they_are_grouped() -> None:
    guard, instance = guarded()
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("fire_timer", "local result", "local result", suggested=False, length=9))
    heard = [["resolve_activity"], ["resolve_activity"], ["fire_timer"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_a_history_that_was_recorded_before_keeps_its_groups() -> None:
    guard, instance = guarded()
    guard.activate(activation("initialize_workflow", suggested=False, length=3, replaying=True))
    guard.activate(activation("local result", "local result", suggested=False, length=9, replaying=True))
    assert instance.heard == [["initialize_workflow"], ["resolve_activity"] * 2]


def test_a_result_that_comes_with_events_is_seen_before_their_suggestion() -> None:
    guard, instance = guarded()
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("fire_timer", "local result", suggested=True, length=9))
    assert instance.saw == [False, False, True]


def query(query_id: str, *, length: int) -> WorkflowActivation:
    """An activation with a query only. The SDK always says that it replays."""
    made = activation("query_workflow", suggested=False, length=length, replaying=True)
    made.jobs[0].query_workflow.query_id = query_id
    return made


def test_a_query_fails_after_decisions_that_no_workflow_task_has_reported() -> None:
    guard, _ = guarded(is_lost=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("resolve_activity", suggested=False, length=9))
    assert guard.activate(query("7f3c", length=9)).HasField("successful")  # as part of the workflow task
    assert guard.activate(query("legacy_query", length=9)).HasField("failed")


def test_a_query_is_answered_after_a_workflow_task() -> None:
    guard, _ = guarded(is_lost=False)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("resolve_activity", suggested=False, length=9))
    assert guard.activate(query("legacy_query", length=9)).HasField("successful")


def test_a_query_that_brings_the_end_of_the_workflow_task_is_answered() -> None:
    guard, _ = guarded(is_lost=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("resolve_activity", suggested=False, length=9))
    assert guard.activate(query("legacy_query", length=11)).HasField("successful")


def asking(status: Status) -> tuple[Guard, list[Status], Instance]:
    """A guard, what Temporal has answered it, and its instance."""
    answers: list[Status] = []

    def ask() -> Status:
        answers.append(status)
        return status

    guard = Guard(ask)
    instance = Instance(lambda: guard.decides(Behaviour.RESULTS_ONE_BY_ONE))
    guard.surround(instance)  # type: ignore[arg-type]
    return guard, answers, instance


def test_temporal_is_not_asked_about_the_workflow_task_after_a_query() -> None:
    guard, answers, _ = asking(Status(is_closed=False, waits=True))
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(query("legacy_query", length=5))
    assert guard.activate(activation("fire_timer", suggested=False, length=9)).HasField("successful")
    assert not answers


def test_events_after_the_late_end_of_a_canceled_activity_may_have_come_with_a_query() -> None:
    guard, _, instance = asking(Status(is_closed=False, waits=True))
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    instance.commands = ["request_cancel_activity"]
    guard.activate(activation("fire_timer", suggested=False, length=9))
    assert guard.activate(activation("fire_timer", suggested=False, length=15)).HasField("failed")


def test_events_after_a_lost_workflow_task_may_have_come_with_a_query() -> None:
    guard, _, _ = asking(Status(is_closed=False, waits=True))
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    late = activation("fire_timer", suggested=False, length=9)
    late.timestamp.FromSeconds(3)
    assert guard.activate(late).HasField("failed")


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([["fire_timer"], ["local result"]], id="live, the write outlasts a workflow task"),
        pytest.param([["fire_timer", "local result"]], id="replayed"),
        pytest.param([["local result"], ["fire_timer"]], id="the write ends first"),
    ],
)
def test_events_that_arrive_during_a_write_are_heard_after_it(groups: list[list[str]]) -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    for number, group in enumerate(groups):
        completion = guard.activate(activation(*group, suggested=False, length=9 + 3 * number))
        assert completion.HasField("successful")
    assert instance.heard == [["initialize_workflow"], ["resolve_activity"], ["fire_timer"]]


def test_queries_do_not_wait_for_a_write() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("signal_workflow", suggested=False, length=9))
    guard.activate(activation("query_workflow", suggested=False, length=9))
    guard.activate(activation("local result", suggested=False, length=12))
    heard = [["query_workflow"], ["resolve_activity"], ["signal_workflow"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_an_update_is_refused_while_a_write_outlasts_its_workflow_task() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    early = activation("do_update", "signal_workflow", suggested=False, length=9)
    early.jobs[0].do_update.protocol_instance_id = "early"
    (command,) = guard.activate(early).successful.commands
    assert command.update_response.protocol_instance_id == "early"
    assert command.update_response.rejected.application_failure_info.type == TRY_AGAIN
    guard.activate(activation("local result", suggested=False, length=12))
    guard.activate(activation("do_update", suggested=False, length=15))
    heard = [["resolve_activity"], ["signal_workflow"], ["do_update"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_an_update_that_comes_with_the_end_of_the_write_is_refused_too() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    (command,) = guard.activate(
        activation("do_update", "local result", suggested=False, length=9)
    ).successful.commands
    assert command.update_response.HasField("rejected")
    assert instance.heard == [["initialize_workflow"], ["resolve_activity"]]


def test_an_update_that_comes_with_the_result_of_any_local_activity_is_refused() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    both = activation("local result", "do_update", suggested=False, length=6)
    (command,) = guard.activate(both).successful.commands
    assert command.update_response.rejected.application_failure_info.type == TRY_AGAIN
    assert instance.heard == [["initialize_workflow"], ["resolve_activity"]]


def test_an_update_that_comes_with_the_start_is_heard() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", "do_update", suggested=False, length=3))
    guard.activate(activation("fire_timer", "do_update", suggested=False, length=9))
    assert instance.heard == [["initialize_workflow", "do_update"], ["fire_timer", "do_update"]]


def test_an_update_that_comes_with_a_start_that_another_worker_has_seen_is_refused() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    again = activation("initialize_workflow", "do_update", suggested=False, length=10)
    again.available_internal_flags.append(Behaviour.NEWS_AFTER_WRITES)
    (command,) = guard.activate(again).successful.commands
    assert command.update_response.rejected.application_failure_info.type == TRY_AGAIN
    assert instance.heard == [["initialize_workflow"]]


def test_an_update_that_comes_with_other_events_to_the_next_worker_is_refused() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    start = activation("initialize_workflow", suggested=False, length=4, replaying=True)
    start.available_internal_flags.append(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(start)
    guard.activate(activation("fire_timer", "do_update", suggested=False, length=10))
    guard.activate(activation("do_update", suggested=False, length=15))
    assert instance.heard == [["initialize_workflow"], ["fire_timer"], ["do_update"]]


def test_an_update_that_comes_with_events_of_one_workflow_task_is_heard() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, may_join=False)
    start = activation("initialize_workflow", suggested=False, length=4, replaying=True)
    start.available_internal_flags.append(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(start)
    guard.activate(activation("fire_timer", "do_update", suggested=False, length=10))
    assert instance.heard == [["initialize_workflow"], ["fire_timer", "do_update"]]


def test_an_update_that_comes_alone_to_the_next_worker_is_heard() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    start = activation("initialize_workflow", suggested=False, length=4, replaying=True)
    start.available_internal_flags.append(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(start)
    guard.activate(activation("do_update", suggested=False, length=8))
    assert instance.heard == [["initialize_workflow"], ["do_update"]]


@pytest.mark.parametrize("replaying", [False, True])
def test_an_update_that_a_reset_brings_waits_for_the_write(replaying: bool) -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, Behaviour.CANCELS_ON_NEWS, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    brought = activation("update_random_seed", "do_update", suggested=False, length=9, replaying=replaying)
    assert not guard.activate(brought).successful.commands
    guard.activate(activation("local result", suggested=False, length=9, replaying=replaying))
    heard = [["update_random_seed"], ["resolve_activity"], ["do_update"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_an_update_that_a_reset_brings_with_a_start_that_another_worker_has_seen_comes_after_it() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, Behaviour.CANCELS_ON_NEWS, writes=True)
    names = ["initialize_workflow", "update_random_seed", "do_update", "cancel_workflow"]
    joined = activation(*names, suggested=False, length=10)
    joined.available_internal_flags.extend([Behaviour.NEWS_AFTER_WRITES, Behaviour.CANCELS_ON_NEWS])
    guard.activate(joined)
    guard.activate(activation("local result", suggested=False, length=10))
    heard = [["update_random_seed"], ["resolve_activity"], ["do_update", "cancel_workflow"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_a_history_that_was_recorded_before_hears_events_during_a_write() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3, replaying=True))
    guard.activate(activation("fire_timer", suggested=False, length=9, replaying=True))
    guard.activate(activation("local result", suggested=False, length=12, replaying=True))
    assert instance.heard == [["initialize_workflow"], ["fire_timer"], ["resolve_activity"]]


def test_events_that_waited_for_a_write_are_heard_as_they_came() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("signal_workflow", suggested=False, length=7))
    guard.activate(activation("fire_timer", "local result", suggested=False, length=11))
    heard = [["resolve_activity"], ["signal_workflow"], ["fire_timer"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_a_patch_is_known_before_the_first_part() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("notify_has_patch", "local result", "fire_timer", suggested=False, length=7))
    heard = [["notify_has_patch", "resolve_activity"], ["fire_timer"]]
    assert instance.heard == [["initialize_workflow"], *heard]


def test_a_patch_does_not_wait_for_a_write() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("notify_has_patch", "fire_timer", suggested=False, length=7))
    assert instance.heard == [["initialize_workflow"], ["notify_has_patch"]]


def test_a_reset_is_known_before_the_handlers_run() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, Behaviour.CANCELS_ON_NEWS)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("signal_workflow", "update_random_seed", suggested=False, length=9))
    assert instance.heard == [["initialize_workflow"], ["update_random_seed"], ["signal_workflow"]]


def test_an_answer_within_a_workflow_task_is_no_event() -> None:
    guard, _ = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("local result", suggested=False, length=7))
    assert not guard.hears_event
    guard.activate(activation("resolve_activity", suggested=True, length=7))
    assert (guard.hears_event, guard.suggests_new_run) == (False, False)
    guard.activate(activation("resolve_activity", suggested=True, length=11))
    assert (guard.hears_event, guard.suggests_new_run) == (True, True)


def test_every_answer_has_the_versioning_behaviour_of_the_sdk_s_own() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES, writes=True)
    instance.versioning = 1
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    held = guard.activate(activation("fire_timer", suggested=False, length=7))
    assert held.successful.versioning_behavior == 1
    assert instance.heard == [["initialize_workflow"]]


def test_the_cancel_of_a_local_activity_that_has_just_ended_is_left_out() -> None:
    guard, instance = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    instance.commands = ["request_cancel_local_activity"]
    both = activation("local result", "local result", suggested=False, length=7)
    assert not guard.activate(both).successful.commands


def test_a_refused_update_is_no_event() -> None:
    guard, _ = guarded(Behaviour.NEWS_AFTER_WRITES)
    guard.activate(activation("initialize_workflow", suggested=False, length=3))
    guard.activate(activation("local result", suggested=False, length=7))
    guard.activate(activation("do_update", suggested=False, length=9))
    assert guard.hears_event
