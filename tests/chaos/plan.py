"""What a run does, decided by its seed before anything happens: the tasks, the faults, the operators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.stories.story import CANCEL_TASK, LEADS_TO

__all__ = [
    "BY_WILL",
    "FAULTS",
    "HEARTBEAT_SECONDS",
    "MOMENTS",
    "RECOVERY_SECONDS",
    "TERMINATE",
    "Fault",
    "Kind",
    "OperatorPlan",
    "Options",
    "TaskPlan",
    "plan_faults",
    "plan_rows",
    "plan_tasks",
]

HEARTBEAT_SECONDS = 3.0
"""Heartbeat timeout of all calls."""

RECOVERY_SECONDS = 1.5 * HEARTBEAT_SECONDS + 5
"""A task whose call was under way on a killed worker has gone on elsewhere by then."""

TERMINATE = "terminate_task"
"""Temporal's own terminate, among the operators' actions."""

Kind = str

MOMENTS = (
    "before initialized",
    "after initialized",
    "before started",
    "after started",
    "before completed",
    "after completed",
    "before failed",
    "after failed",
    "before canceled",
    "after canceled",
    "before settled",
    "after settled",
    "request",
    "response",
    "continue-as-new",
)
"""Moments in a worker's life at which a will can make it die or stop. See `tests.chaos.mortal_worker`."""

BY_WILL = ("die at", "pause at")
"""Faults that a worker does to itself, at one of these moments."""

FAULTS: Mapping[Kind, int] = {
    "kill worker": 22,
    "die at": 34,
    "pause at": 12,
    "pause worker": 8,
    "stop worker": 6,
    "kill temporal": 5,
    "kill postgres": 6,
    "cut": 14,
    "refuse": 8,
    "stall": 8,
    "ledger full": 5,
}
"""How often each kind of fault is chosen, of all."""


@dataclass(frozen=True)
class Options:
    """What is asked of a run.

    Attributes:
        rows: Of a batch that runs beside the tasks; each is a task, too.
        workers: That the nemesis may kill.
        witness: Whether there is one more worker that is never killed, so that its memory can be measured.
        gap_seconds: Mean time from one fault to the next.
        patience_seconds: How long the tasks have to end once the faults have stopped.
        quiet: The part of the kills after which nothing else happens until the tasks have gone on.
        spare_seconds: What calls and heartbeats have beyond their usual limits, on a machine that is busy.
    """

    seed: int = 1
    tasks: int = 2000
    faults: int = 300
    rows: int = 0
    ledger: str = "postgresql"
    workers: int = 2
    witness: bool = True
    gap_seconds: float = 1.6
    patience_seconds: float = 150.0
    quiet: float = 0.2
    spare_seconds: float = 0.0

    @property
    def is_postgres(self) -> bool:
        return self.ledger == "postgresql"


@dataclass(frozen=True)
class Fault:
    """One thing that is done to the parts.

    Attributes:
        target: Number of the worker it happens to, where it happens to one.
        peer: The other end of the connection, of `cut`, `refuse` and `stall`.
        seconds: How long it lasts, or how long what was killed stays away.
        moment: Of those `BY_WILL`: one of `MOMENTS`.
        later_seconds: Of those `BY_WILL`: how long after the moment.
        quiet: Whether nothing else happens until the tasks have gone on, so that their recovery is measured.
    """

    kind: Kind
    gap_seconds: float
    target: int = 0
    peer: str = ""
    seconds: float = 0.0
    moment: str = ""
    later_seconds: float = 0.0
    quiet: bool = False


@dataclass(frozen=True)
class OperatorPlan:
    """What somebody does to a task, once."""

    name: str
    after_seconds: float
    pick: float
    """Which work item, as a part of the list."""


@dataclass(frozen=True)
class TaskPlan:
    """A task and who acts on it.

    Attributes:
        run_timeout_seconds: After which Temporal ends a run of it; None: never.
    """

    name: str
    workflow: str
    request: Mapping[str, Any]
    operators: Sequence[OperatorPlan]
    run_timeout_seconds: float | None = None


def plan_tasks(options: Options) -> list[TaskPlan]:
    """The tasks of the run."""
    return [
        _task(random.Random(f"{options.seed}/task {n}"), f"task {n}", options.spare_seconds)
        for n in range(options.tasks)
    ]


def plan_rows(options: Options) -> list[TaskPlan]:
    """The tasks that are rows of the batch."""
    found: list[TaskPlan] = []
    for number in range(options.rows):
        dice = random.Random(f"{options.seed}/row {number}")
        plan = _task(dice, f"row {number}", options.spare_seconds, may_fan_out=False)
        found.append(replace(plan, run_timeout_seconds=None))
    return found


def _task(dice: random.Random, name: str, spare: float, *, may_fan_out: bool = True) -> TaskPlan:
    request: dict[str, Any] = {
        "max_retries": dice.choice([0, 1, 2, 3, 3, 4, 8]),
        "retry": {
            "initial_interval_seconds": dice.choice([0, 0.2, 0.5, 1]),
            "maximum_interval_seconds": 3,
            "jitter": dice.choice([0, 0, 0.2]),
            "retry_on": dice.choice(["transient", "transient", "any"]),
        },
        "attempt_timeout_seconds": dice.choice([3, 5]) + spare,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS + spare,
    }
    if dice.random() < 0.1:
        request["deadline_seconds"] = dice.choice([4, 10, 30])
    is_fan_out = dice.random() < 0.12 and may_fan_out
    if is_fan_out:
        count = dice.randrange(2, 6)
        request["prompts"] = [f"{name}: {number}" for number in range(count)]
        request["concurrency"] = dice.randrange(1, 4)
        request["policy"] = dice.choice(
            ["absorb_failures", "until_exhausted", "fail_fast", {"name": "require_successes", "successes": 1}]
        )
    else:
        request["prompt"] = name
    operators = []
    if dice.random() < 0.2:
        names = dice.choices([*LEADS_TO, CANCEL_TASK], [3, 2, 3, 1, 3], k=dice.choice([1, 1, 2]))
        operators = [OperatorPlan(one, dice.uniform(0, 4), dice.random()) for one in names]
    if dice.random() < 0.06:
        operators.append(OperatorPlan(TERMINATE, dice.uniform(0, 6), 0))
    run_timeout = dice.choice([10, 14]) + 2 * spare if dice.random() < 0.08 else None
    return TaskPlan(name, "AiFanOutTask" if is_fan_out else "AiAgentTask", request, operators, run_timeout)


def plan_faults(options: Options) -> Iterator[Fault]:
    """The faults of the run, in their order, without end: not every moment of a death comes."""
    dice = random.Random(f"{options.seed}/faults")
    shares = dict(FAULTS)
    if not options.is_postgres:
        del shares["kill postgres"]
    while True:
        yield _fault(dice, options, shares)


def _fault(dice: random.Random, options: Options, shares: Mapping[Kind, int]) -> Fault:
    (kind,) = dice.choices(list(shares), list(shares.values()))
    gap = dice.uniform(0.2, 2 * options.gap_seconds - 0.2)
    # The witness is cut off and paused like all others, but never killed.
    mortal = kind in ("kill worker", "die at", "stop worker")
    target = dice.randrange(options.workers + (options.witness and not mortal))
    peers = ["temporal", "provider", *(["postgres"] if options.is_postgres else [])]
    return Fault(
        kind=kind,
        gap_seconds=gap,
        target=target,
        peer=dice.choice(peers) if kind in ("cut", "refuse", "stall") else "",
        seconds=_seconds(dice, kind),
        moment=dice.choice(MOMENTS) if kind in BY_WILL else "",
        later_seconds=dice.choice([0, 0, 0.02, 0.2, 0.6]) if kind in BY_WILL else 0.0,
        quiet=kind == "kill worker" and dice.random() < options.quiet,
    )


def _seconds(dice: random.Random, kind: Kind) -> float:
    match kind:
        case "cut":
            return 0.0
        case "pause worker" | "pause at":
            return dice.choice([0.2, 1, 2, 4, 6, 8])
        case "refuse" | "stall":
            return dice.choice([0.5, 1, 3, 5])
        case "ledger full":
            return dice.choice([0.5, 2, 4])
        case _:
            return dice.choice([0, 0, 0.5, 1, 3])
