"""The guard before a workflow instance, without a server: what it makes of each activation."""

from __future__ import annotations

from collections.abc import Callable

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.temporal.activations import Behaviour, _Guard


class Instance:
    """Stands in for the SDK's instance: its code looks at the guard in each activation."""

    def __init__(self, code: Callable[[], object]) -> None:
        self._code = code
        self.saw: list[object] = []
        self.heard: list[list[str]] = []

    def activate(self, activation: WorkflowActivation) -> WorkflowActivationCompletion:
        self.saw.append(self._code())
        self.heard.append([str(job.WhichOneof("variant")) for job in activation.jobs])
        completion = WorkflowActivationCompletion()
        completion.successful.SetInParent()
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


def guarded() -> tuple[_Guard, Instance]:
    guard = _Guard()

    def code() -> bool:
        guard.decides(Behaviour.RESULTS_ONE_BY_ONE)
        return guard.suggests_new_run

    instance = Instance(code)
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
