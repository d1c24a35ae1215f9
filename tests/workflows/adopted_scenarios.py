"""What applications do with activities: each scenario runs natively, observed and adopted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError

Cancellation = workflow.ActivityCancellationType

QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1, maximum_attempts=4)
LIMIT = timedelta(seconds=20)
SOON = timedelta(seconds=10)
"""A timeout that is to end an activity, but not before it has begun, however busy the machine is."""


@dataclass
class Order:
    """A type of the application's own, as argument and as result."""

    id: str
    lines: list[int]


def told(error: BaseException | None) -> list[dict[str, Any]]:
    """An error and its causes, as far as an application can tell them apart. Ids differ in each run."""
    chain: list[dict[str, Any]] = []
    while error is not None:
        facts: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
        for name in ("type", "non_retryable", "details", "activity_type", "retry_state"):
            if hasattr(error, name):
                value = getattr(error, name)
                facts[name] = [str(one) for one in value] if name == "details" else str(value)
        chain.append(facts)
        error = error.cause if isinstance(error, FailureError) else error.__cause__
    return chain


async def outcome(waiting: Awaitable[Any]) -> Any:
    """The result, or the error as `told`."""
    try:
        return {"result": await waiting}
    except (FailureError, asyncio.CancelledError) as error:
        return {"error": told(error)}


class Shop:
    """The application's activities. They count how often they were made."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.tokens: dict[str, bytes] = {}
        self.seen: list[Any] = []

    def _count(self, name: str) -> int:
        self.made[name] = self.made.get(name, 0) + 1
        return self.made[name]

    @activity.defn
    async def flaky(self, failures: int, value: Any = None) -> Any:
        """Fails so often, then returns the value."""
        if self._count("flaky") <= failures:
            raise ApplicationError(f"failure {self.made['flaky']}", {"n": 1}, type="Flaky")
        return value

    @activity.defn
    async def raise_value_error(self) -> None:
        self._count("value")
        raise ValueError("not an error of Temporal's")

    @activity.defn
    async def caused(self) -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ApplicationError("outer", type="Outer", non_retryable=True) from inner

    @activity.defn
    async def fatal(self) -> None:
        self._count("fatal")
        raise ApplicationError("never again", type="Fatal", non_retryable=True)

    @activity.defn
    async def asks_for_a_delay(self, seconds: float) -> float:
        if self._count("delay") == 1:
            self.at = time.monotonic()
            raise ApplicationError("later", type="Later", next_retry_delay=timedelta(seconds=seconds))
        return round(time.monotonic() - self.at, 1)

    @activity.defn
    async def order(self, given: Order) -> Order:
        return Order(given.id + "!", [*given.lines, len(given.lines)])

    @activity.defn
    async def hang(self) -> str:
        """Without heartbeats."""
        self._count("hang")
        await asyncio.sleep(3600)
        return "never"

    @activity.defn
    async def beating(self, ends_how: str) -> str:
        """Heartbeats until it is canceled."""
        self._count("beating")
        try:
            while True:
                activity.heartbeat("beat", self.made["beating"])
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            if ends_how == "completes":
                return "completed anyway"
            if ends_how == "fails":
                raise ApplicationError("failed anyway", type="Stubborn") from None
            raise

    @activity.defn
    async def resumes(self) -> list[Any]:
        """Goes on where the attempt before has stopped, as its heartbeat says."""
        details = list(activity.info().heartbeat_details)
        done = details[0] if details else 0
        self.seen.append([activity.info().attempt, details])
        activity.heartbeat(done + 1, {"page": [1, 2]})
        if done < 2:
            raise ApplicationError(f"after page {done + 1}", type="Flaky")
        return self.seen

    @activity.defn
    async def goes_silent(self) -> list[Any]:
        details = list(activity.info().heartbeat_details)
        if self._count("silent") == 1:
            activity.heartbeat("the last sign")
            await asyncio.sleep(3600)
        return details

    @activity.defn
    async def attempt(self) -> int:
        if self._count("attempt") < 3:
            raise ApplicationError("again", type="Flaky")
        return activity.info().attempt

    @activity.defn
    async def elsewhere(self, key: str) -> str:
        self._count(key)
        self.tokens[key] = activity.info().task_token
        activity.raise_complete_async()

    @activity.defn
    def in_a_thread(self, failures: int) -> str:
        activity.heartbeat("from a thread")
        if self._count("thread") <= failures:
            raise ApplicationError("in a thread", type="Flaky")
        return "thread"

    @activity.defn
    async def priority(self) -> int | None:
        return activity.info().priority.priority_key


@activity.defn
def in_a_process(failures: int) -> int:
    if activity.info().attempt <= failures:
        raise ApplicationError("in a process", type="Flaky")
    return activity.info().attempt


def run(kind: str, *args: Any, **options: Any) -> Awaitable[Any]:
    """One activity with usual options."""
    options.setdefault("start_to_close_timeout", LIMIT)
    options.setdefault("retry_policy", QUICK)
    return workflow.start_activity(kind, args=args, **options)


async def when_told(w: Scenario, cancel: Any, signals: int = 1) -> None:
    """Cancel it after this number of signals. The last one comes when the activity is where it must be."""
    await workflow.wait_condition(lambda: len(w.signals) >= signals)
    cancel.cancel()


SCENARIOS: dict[str, Callable[[Scenario], Awaitable[Any]]] = {}


def scenario(function: Callable[[Scenario], Awaitable[Any]]) -> Callable[[Scenario], Awaitable[Any]]:
    """Give the function a name in the list."""
    SCENARIOS[function.__name__] = function
    return function


@workflow.defn(sandboxed=False)
class Scenario:
    """Carries out the scenario of this name."""

    def __init__(self) -> None:
        self.signals: list[str] = []

    @workflow.run
    async def run(self, name: str) -> Any:
        return await SCENARIOS[name](self)

    @workflow.signal
    async def note(self, text: str) -> None:
        self.signals.append(text)

    @workflow.update
    async def noted(self, text: str) -> int:
        self.signals.append(text)
        return len(self.signals)


@workflow.defn(sandboxed=False)
class Child:
    @workflow.run
    async def run(self) -> Any:
        return await run("flaky", 1, "of the child")


@scenario
async def a_result_at_the_first_try(w: Scenario) -> Any:
    return await outcome(run("flaky", 0, {"a": [1, None]}))


@scenario
async def a_result_after_two_failures(w: Scenario) -> Any:
    return await outcome(run("flaky", 2, "at last"))


@scenario
async def types_of_the_application(w: Scenario) -> Any:
    order: Any = Shop.order
    got = await workflow.execute_activity(order, Order("a", [1]), start_to_close_timeout=LIMIT)
    return [type(got).__name__, got.id, got.lines]


@scenario
async def arguments_are_those_of_the_start(w: Scenario) -> Any:
    order = Order("a", [1])
    handle = run("order", order)
    order.lines.append(2)
    return await handle


@scenario
async def no_attempt_left(w: Scenario) -> Any:
    return await outcome(run("flaky", 9))


@scenario
async def no_retry_at_all(w: Scenario) -> Any:
    return await outcome(run("flaky", 9, retry_policy=RetryPolicy(maximum_attempts=1)))


@scenario
async def an_error_that_is_non_retryable(w: Scenario) -> Any:
    return await outcome(run("fatal"))


@scenario
async def a_type_that_is_non_retryable(w: Scenario) -> Any:
    policy = RetryPolicy(maximum_attempts=3, non_retryable_error_types=["Other", "Flaky"])
    return await outcome(run("flaky", 9, retry_policy=policy))


@scenario
async def a_class_that_is_non_retryable(w: Scenario) -> Any:
    policy = RetryPolicy(maximum_attempts=3, non_retryable_error_types=["ValueError"])
    return await outcome(run("raise_value_error", retry_policy=policy))


@scenario
async def an_error_of_python_with_retries(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
    return await outcome(run("raise_value_error", retry_policy=policy))


@scenario
async def an_error_with_a_cause(w: Scenario) -> Any:
    return await outcome(run("caused"))


@scenario
async def an_activity_that_does_not_exist(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
    return await outcome(run("no_such_activity", retry_policy=policy))


@scenario
async def a_longer_delay_is_asked_for(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_interval=timedelta(seconds=1))
    return (await run("asks_for_a_delay", 2.0, retry_policy=policy)) >= 2.0


@scenario
async def a_shorter_delay_is_asked_for(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(seconds=30))
    return (await run("asks_for_a_delay", 0.1, retry_policy=policy)) < 25


@scenario
async def a_backoff_that_grows(w: Scenario) -> Any:
    policy = RetryPolicy(
        initial_interval=timedelta(milliseconds=300), backoff_coefficient=2, maximum_attempts=3
    )
    began = workflow.now()
    ended = await outcome(run("flaky", 2, "done", retry_policy=policy))
    return [ended, (workflow.now() - began) >= timedelta(seconds=0.9)]


@scenario
async def a_start_to_close_timeout(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
    return await outcome(run("hang", start_to_close_timeout=timedelta(seconds=0.5), retry_policy=policy))


@scenario
async def a_start_to_close_timeout_that_is_non_retryable(w: Scenario) -> Any:
    policy = RetryPolicy(maximum_attempts=3, non_retryable_error_types=["TemporalTimeout:StartToClose"])
    return await outcome(run("hang", start_to_close_timeout=timedelta(seconds=0.5), retry_policy=policy))


@scenario
async def a_heartbeat_timeout(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=1)
    return await outcome(run("goes_silent", heartbeat_timeout=timedelta(seconds=0.7), retry_policy=policy))


@scenario
async def a_schedule_to_start_timeout(w: Scenario) -> Any:
    return await outcome(
        run("flaky", 0, task_queue="nobody-polls-this", schedule_to_start_timeout=timedelta(seconds=0.5))
    )


@scenario
async def a_schedule_to_close_timeout_while_it_runs(w: Scenario) -> Any:
    return await outcome(run("hang", schedule_to_close_timeout=SOON, start_to_close_timeout=None))


@scenario
async def a_schedule_to_close_timeout_while_nobody_polls(w: Scenario) -> Any:
    return await outcome(run("flaky", 0, task_queue="nobody-polls-this", schedule_to_close_timeout=SOON))


@scenario
async def a_backoff_beyond_the_schedule_to_close_timeout(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(seconds=60))
    return await outcome(run("flaky", 9, schedule_to_close_timeout=LIMIT, retry_policy=policy))


@scenario
async def a_schedule_to_close_timeout_in_the_second_attempt(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=10))
    return await outcome(
        run(
            "hang",
            # A third attempt has no time, and the second one has ten seconds to begin.
            schedule_to_close_timeout=timedelta(seconds=22),
            start_to_close_timeout=timedelta(seconds=12),
            retry_policy=policy,
        )
    )


@scenario
async def heartbeat_details_of_attempts_that_failed(w: Scenario) -> Any:
    return await outcome(run("resumes", heartbeat_timeout=timedelta(seconds=10)))


@scenario
async def heartbeat_details_of_an_attempt_that_went_silent(w: Scenario) -> Any:
    return await outcome(run("goes_silent", heartbeat_timeout=SOON))


@scenario
async def the_number_of_the_attempt(w: Scenario) -> Any:
    return await outcome(run("attempt"))


async def _canceled(w: Scenario, how: Cancellation, ends_how: str) -> Any:
    handle: Any = run("beating", ends_how, cancellation_type=how, heartbeat_timeout=LIMIT)
    canceling = asyncio.create_task(when_told(w, handle))
    ended = await outcome(handle)
    await canceling
    return [ended, handle.done(), handle.cancelled()]


@scenario
async def try_cancel(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.TRY_CANCEL, "")


@scenario
async def try_cancel_of_one_that_completes(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.TRY_CANCEL, "completes")


@scenario
async def wait_for_the_cancellation(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.WAIT_CANCELLATION_COMPLETED, "")


@scenario
async def wait_for_the_cancellation_of_one_that_completes(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.WAIT_CANCELLATION_COMPLETED, "completes")


@scenario
async def wait_for_the_cancellation_of_one_that_fails(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.WAIT_CANCELLATION_COMPLETED, "fails")


@scenario
async def abandon(w: Scenario) -> Any:
    return await _canceled(w, Cancellation.ABANDON, "")


@scenario
async def cancel_before_anything_happens(w: Scenario) -> Any:
    handle: Any = run("flaky", 0, "x")
    handle.cancel()
    ended = await outcome(handle)
    return [ended, handle.cancelled()]


@scenario
async def cancel_in_the_backoff(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=timedelta(seconds=60))
    found = []
    kinds = (Cancellation.TRY_CANCEL, Cancellation.WAIT_CANCELLATION_COMPLETED, Cancellation.ABANDON)
    for number, how in enumerate(kinds, 1):
        handle: Any = run("flaky", 9, retry_policy=policy, cancellation_type=how)
        canceling = asyncio.create_task(when_told(w, handle, number))
        found.append(await outcome(handle))
        await canceling
    return found


@scenario
async def cancel_of_what_has_ended(w: Scenario) -> Any:
    handle: Any = run("flaky", 0, "x")
    await handle
    return [handle.cancel(), handle.done(), handle.cancelled(), await handle, await handle]


@scenario
async def an_error_awaited_twice(w: Scenario) -> Any:
    handle: Any = run("fatal")
    return [await outcome(handle), await outcome(handle), type(handle.exception()).__name__]


@scenario
async def several_in_a_gather(w: Scenario) -> Any:
    kinds = [run("flaky", 1, "a"), run("flaky", 0, "b"), run("order", Order("c", [])), run("fatal")]
    found = await asyncio.gather(*kinds, return_exceptions=True)
    return [told(one) if isinstance(one, BaseException) else one for one in found]


@scenario
async def a_timeout_of_the_code_s_own(w: Scenario) -> Any:
    try:
        await asyncio.wait_for(run("beating", "", heartbeat_timeout=LIMIT), 0.5)
    except TimeoutError as error:
        return type(error).__name__
    return "no timeout"


@scenario
async def a_race_whose_loser_is_canceled(w: Scenario) -> Any:
    slow: Any = run("beating", "", heartbeat_timeout=LIMIT)
    fast: Any = run("flaky", 0, "first")
    done, pending = await workflow.wait([slow, fast], return_when=asyncio.FIRST_COMPLETED)
    for one in pending:
        one.cancel()
    return [await next(iter(done)), await outcome(slow)]


@scenario
async def one_that_nobody_awaits(w: Scenario) -> Any:
    run("hang")
    await workflow.wait_condition(lambda: bool(w.signals))
    return "ended without it"


@scenario
async def completed_elsewhere(w: Scenario) -> Any:
    return await outcome(run("elsewhere", "good"))


@scenario
async def failed_elsewhere(w: Scenario) -> Any:
    return await outcome(run("elsewhere", "bad", retry_policy=RetryPolicy(maximum_attempts=1)))


@scenario
async def canceled_elsewhere(w: Scenario) -> Any:
    return await outcome(run("elsewhere", "gone"))


@scenario
async def completed_elsewhere_by_its_id(w: Scenario) -> Any:
    return await outcome(run("elsewhere", "by-id", activity_id="an-id"))


@scenario
async def in_a_thread(w: Scenario) -> Any:
    return await outcome(run("in_a_thread", 1, heartbeat_timeout=LIMIT))


@scenario
async def in_a_process_of_its_own(w: Scenario) -> Any:
    return await outcome(run("in_a_process", 1, task_queue=f"{workflow.info().task_queue}-processes"))


@scenario
async def a_local_activity(w: Scenario) -> Any:
    return await outcome(
        workflow.start_local_activity(
            "flaky", args=[1, "local"], start_to_close_timeout=LIMIT, retry_policy=QUICK
        )
    )


@scenario
async def a_local_activity_that_fails(w: Scenario) -> Any:
    return await outcome(
        workflow.start_local_activity(
            "fatal", args=[], start_to_close_timeout=LIMIT, retry_policy=RetryPolicy(maximum_attempts=2)
        )
    )


@scenario
async def a_child_workflow(w: Scenario) -> Any:
    return await workflow.execute_child_workflow(Child.run, id=f"{workflow.info().workflow_id}/child")


@scenario
async def an_error_that_nobody_catches(w: Scenario) -> Any:
    return await run("fatal")


@scenario
async def priorities_and_summaries(w: Scenario) -> Any:
    return await outcome(run("priority", priority=Priority(priority_key=2), summary="a summary"))


@scenario
async def signals_and_updates_in_the_backoff(w: Scenario) -> Any:
    policy = RetryPolicy(initial_interval=SOON, maximum_attempts=2)
    handle: Any = run("flaky", 1, "after", retry_policy=policy)
    await workflow.wait_condition(lambda: len(w.signals) == 2)
    early = handle.done()
    return [early, sorted(w.signals), await handle]


@scenario
async def the_workflow_is_canceled(w: Scenario) -> Any:
    try:
        await run("beating", "", heartbeat_timeout=LIMIT)
    except FailureError as error:
        seen = told(error)
        return [seen, await run("flaky", 0, "cleaned up")]
    return "not canceled"


@scenario
async def the_workflow_is_canceled_and_ends_so(w: Scenario) -> Any:
    return await run("beating", "", heartbeat_timeout=LIMIT)


@scenario
async def the_workflow_is_canceled_while_it_waits_for_another(w: Scenario) -> Any:
    handle = run("elsewhere", "good")
    try:
        await workflow.sleep(60)
    except asyncio.CancelledError:
        w.signals.append("canceled")
    return [w.signals, await outcome(handle)]


@scenario
async def no_timeout_at_all(w: Scenario) -> Any:
    try:
        run("flaky", 0, start_to_close_timeout=None)
    except ValueError as error:
        return str(error)
    return "started"


@scenario
async def an_argument_that_cannot_be_sent(w: Scenario) -> Any:
    try:
        run("flaky", 0, object())
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return "sent"


def processes() -> concurrent.futures.ProcessPoolExecutor:
    """Where activities run that are processes."""
    return concurrent.futures.ProcessPoolExecutor(1)
