"""Cancels that follow from a result, without a server: they are held, and released by the next event."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.bridge.proto.workflow_activation import WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.temporal.held_cancels import HeldCancels
from tasquencer.temporal.jobs import Part

EVENT, RESULT, QUERY = "signal_workflow", "local result", "query_workflow"


def job(name: str, number: int = 0) -> WorkflowActivationJob:
    made = WorkflowActivationJob()
    if name == RESULT:
        made.resolve_activity.is_local = True
    else:
        getattr(made, name).SetInParent()
    if number:
        made.fire_timer.seq = number
    return made


class Run:
    """Tells which commands leave, of those that the code gives."""

    def __init__(self) -> None:
        self.cancels = HeldCancels()

    def hears(
        self, heard: WorkflowActivationJob | str, commands: Sequence[str] = (), *, holds: bool = True
    ) -> list[str]:
        """Commands are given by name, those with a number as `name 3`."""
        jobs = [job(heard) if isinstance(heard, str) else heard]
        completion = WorkflowActivationCompletion()
        completion.successful.SetInParent()
        for name, _, number in (text.partition(" ") for text in commands):
            command = completion.successful.commands.add()
            getattr(command, name).SetInParent()
            field = "child_workflow_seq" if name.startswith("cancel_child") else "seq"
            if number:
                setattr(getattr(command, name), field, int(number))
        follows = heard in (RESULT, QUERY) or any(job.HasField("resolve_activity") for job in jobs)
        self.cancels.pass_on(Part.of(jobs, follows=follows), completion, holds=holds)
        return [str(one.WhichOneof("variant")) for one in completion.successful.commands]


def test_the_cancel_of_a_new_timer_waits_for_an_event_and_nothing_else_does() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"])
    assert run.hears(RESULT, ["cancel_timer 1", "start_timer 2"]) == ["start_timer"]
    assert run.hears(QUERY) == []
    assert run.hears(EVENT, ["schedule_activity 1"]) == ["cancel_timer", "schedule_activity"]


def test_a_timer_that_fires_needs_no_cancel() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"])
    run.hears(RESULT, ["cancel_timer 1"])
    assert run.hears(job("fire_timer", 1), ["start_timer 2"]) == ["start_timer"]
    assert run.hears(EVENT) == []


def test_the_cancel_of_a_new_activity_brings_an_event_and_holds_what_follows() -> None:
    run = Run()
    run.hears(EVENT, ["schedule_activity 1", "start_child_workflow_execution 1"])
    canceled = ["start_timer 1", "request_cancel_activity 1", "complete_workflow_execution"]
    assert run.hears(RESULT, canceled) == ["start_timer", "start_timer"]
    assert run.hears(RESULT, ["cancel_child_workflow_execution 1"]) == []
    wake = job("fire_timer", 4_000_000_000)
    assert run.cancels.without_own([wake]) == []
    held = ["request_cancel_activity", "complete_workflow_execution", "cancel_child_workflow_execution"]
    assert run.hears(wake) == held


def test_an_update_releases_nothing_because_it_may_be_refused() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"])
    run.hears(RESULT, ["cancel_timer 1"])
    assert run.hears("do_update", ["start_timer 2", "cancel_timer 2"]) == ["start_timer", "cancel_timer"]
    assert run.hears(EVENT) == ["cancel_timer"]


def test_a_cancel_by_an_event_and_one_in_the_same_answer_are_sent_at_once() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"])
    assert run.hears(EVENT, ["cancel_timer 1"]) == ["cancel_timer"]


def test_after_its_end_the_code_hears_nothing() -> None:
    run = Run()
    run.hears(EVENT, ["schedule_activity 1"])
    assert run.cancels.without_own([job(EVENT)]) == [job(EVENT)]
    run.hears(RESULT, ["request_cancel_activity 1", "complete_workflow_execution"])
    assert run.cancels.without_own([job(EVENT), job(QUERY)]) == [job(QUERY)]


def test_runs_of_earlier_releases_hold_nothing() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"], holds=False)
    assert run.hears(RESULT, ["cancel_timer 1"], holds=False) == ["cancel_timer"]


def test_what_has_ended_by_itself_is_not_canceled() -> None:
    run = Run()
    run.hears(EVENT, ["signal_external_workflow_execution 7"])
    assert run.hears(RESULT, ["cancel_signal_workflow 7"]) == ["start_timer"]
    failed = WorkflowActivationJob()
    failed.resolve_signal_external_workflow.seq = 7
    assert run.hears(failed) == []


def test_a_patch_does_not_wait() -> None:
    run = Run()
    run.hears(EVENT, ["schedule_activity 1"])
    run.hears(RESULT, ["request_cancel_activity 1"])
    assert run.hears(RESULT, ["set_patch_marker", "start_timer 1"]) == ["set_patch_marker"]


def test_what_the_sdk_answers_at_once_is_no_event() -> None:
    run = Run()
    run.hears(EVENT, ["start_timer 1"])
    run.hears(RESULT, ["cancel_timer 1"])
    at_once = WorkflowActivationJob()
    at_once.resolve_activity.seq = 9
    assert run.hears(at_once) == []
    assert run.hears(EVENT) == ["cancel_timer"]


def test_the_end_of_what_is_canceled_makes_the_cancel_needless() -> None:
    run = Run()
    run.hears(EVENT, ["schedule_activity 1"])
    run.hears(EVENT)
    assert run.hears(RESULT, ["request_cancel_activity 1", "schedule_activity 2"]) == ["start_timer"]
    ended = WorkflowActivationJob()
    ended.resolve_activity.seq = 1
    run.cancels.pass_on(Part.of([ended], follows=False), answer := WorkflowActivationCompletion(), holds=True)
    assert [one.WhichOneof("variant") for one in answer.successful.commands] == ["schedule_activity"]
