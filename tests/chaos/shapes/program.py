"""A task's shape as a small program, drawn from a seed; `tests.chaos.shapes.interpreter` carries it out.

A program is plain JSON: any shape can be written down, replayed and made smaller. Its body is a list of
statements. Each is a list of a name and arguments; the statements inside it are lists again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "CONSTRUCTS",
    "Act",
    "Attempt",
    "Program",
    "Statement",
    "lineages_in",
    "program_of",
    "read_program",
    "watched_program",
]

CONSTRUCTS = (
    "gather",
    "gather_exceptions",
    "group",
    "first",
    "spawn",
    "timeout",
    "swallow",
    "saga",
    "signal",
    "child",
    "local",
    "sleep",
    "break",
    "return",
    "operators",
    "pause",
    "visit",
    "cancel",
    "reset",
    "continue_as_new",
)
"""All parts of a program in addition to plain lineages, policies and hooks."""

Statement = list[Any]


@dataclass(frozen=True)
class Attempt:
    """What the activity of one attempt does.

    Attributes:
        how: `ok`, `fail` (a retry may follow), `refuse` (none does), `hang` (until it is stopped), or `deaf`
            (as `ok`, and it does not hear that it is stopped).
        ms: How long that takes.
    """

    how: str
    ms: int


@dataclass(frozen=True)
class Act:
    """Something that is done to the task from outside.

    Attributes:
        name: `signal`, `retry_now`, `complete`, `fail`, `cancel_item`, `pause` (and resume), `cancel`,
            `reset`, or `visit-0` and on: an update of the program's own that carries out this lineage.
        at: Seconds after the task's start.
        choice: Which of several work items, or workflow tasks, or how long a pause lasts, from 0 to 1.
    """

    name: str
    at: float
    choice: float = 0.0


@dataclass(frozen=True)
class Program:
    """One task.

    Attributes:
        policy: `until_exhausted`, `fail_fast`, `absorb` or `require`, with its argument.
        hook: `recipe`, `payload` (a retry gets another payload) or `stop` (a second failure gets no retry).
        concurrency: See `Task`.
        retries: Of each lineage.
        backoff: Seconds before the first retry. They double, to a limit.
        call_seconds: After this time a call has timed out.
        attempts: What each attempt of each lineage does; beyond the list, as the last one.
        looked_at: Whether it is queried ten times a second.
    """

    seed: int
    name: str
    policy: tuple[str, float | None] = ("until_exhausted", None)
    hook: str = "recipe"
    concurrency: int | None = None
    retries: int = 2
    backoff: float = 0.1
    call_seconds: float = 5.0
    body: list[Statement] = field(default_factory=list)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    acts: list[Act] = field(default_factory=list)
    looked_at: bool = False

    def as_json(self) -> dict[str, Any]:
        """As the workflow takes it."""
        return asdict(self)

    def attempt(self, lineage: str, number: int) -> Attempt:
        """What this attempt does."""
        known = self.attempts[lineage]
        return known[min(number, len(known) - 1)]


def program_of(seed: int, constructs: Sequence[str] = CONSTRUCTS) -> Program:
    """The program that the seed stands for; the same ones always, given the same constructs."""
    return _Author(seed, constructs).program()


def watched_program(seed: int) -> Program:
    """A fan-out or, for an odd seed, an agent, that is queried ten times a second."""
    dice = random.Random(f"watched {seed}")
    attempts: dict[str, list[Attempt]] = {}

    def lineage(name: str) -> Statement:
        hows = ["fail"] * dice.choice([0, 0, 1, 2]) + ["ok"]
        attempts[name] = [Attempt(how, dice.choice([5, 40, 200])) for how in hows]
        return ["lineage", name, [], "loop"]

    body: list[Statement] = []
    if seed % 2:
        for turn in range(dice.randint(3, 5)):
            body.append(lineage(f"turn-{turn}"))
            tools = range(dice.randint(2, 3))
            body.append(["gather", [[lineage(f"turn-{turn}/tool-{tool}")] for tool in tools]])
    else:
        body.append(["gather", [[lineage(f"prompt-{number}")] for number in range(dice.randint(8, 16))]])
    return Program(
        seed=seed,
        name=f"watched-{seed}",
        policy=("absorb", None),
        concurrency=None if seed % 2 else dice.randint(3, 5),
        retries=3,
        body=body,
        attempts=attempts,
        looked_at=True,
    )


def read_program(raw: dict[str, Any]) -> Program:
    """The program that was written down as JSON."""
    known = {name: [Attempt(**one) for one in listed] for name, listed in raw["attempts"].items()}
    acts = [Act(**one) for one in raw["acts"]]
    name, argument = raw["policy"]
    return Program(**{**raw, "attempts": known, "acts": acts, "policy": (name, argument)})


def lineages_in(body: Sequence[Statement]) -> Iterator[str]:
    """The names of all lineages that the statements may begin."""
    for statement in body:
        if statement[0] == "lineage":
            yield statement[1]
        for part in statement[1:]:
            for nested in _bodies(part):
                yield from lineages_in(nested)


def _bodies(part: Any) -> Iterator[list[Statement]]:
    if isinstance(part, list) and part and isinstance(part[0], list):
        if part[0] and isinstance(part[0][0], str):
            yield part
        else:
            yield from part


_LONG_BACKOFF = 2.0
"""Seconds. On a busy machine, too, an operator finds an attempt that waits."""


class _Author:
    def __init__(self, seed: int, constructs: Sequence[str]) -> None:
        self._dice = random.Random(f"shape {seed}")
        self._seed = seed
        self._may = set(constructs)
        self._attempts: dict[str, list[Attempt]] = {}
        self._is_operated = "operators" in self._may and self._dice.random() < 0.2

    def program(self) -> Program:
        dice = self._dice
        is_long = "continue_as_new" in self._may and dice.random() < 0.15
        policy = dice.choice(
            [("until_exhausted", None), ("absorb", None), ("absorb", 1), ("fail_fast", None), ("require", 1)]
        )
        if is_long:
            policy = ("absorb", None)
        body = self._body(depth=0, length=dice.randint(1, 3))
        if not self._attempts:
            body.append(self._lineage())
        if is_long:
            for attempts in self._attempts.values():
                attempts[:0] = [Attempt("fail", 5)] * dice.randint(2, 4)
        return Program(
            seed=self._seed,
            name=f"shape-{self._seed}",
            policy=policy,
            hook=dice.choice(["recipe", "recipe", "recipe", "payload", "stop"]),
            concurrency=dice.choice([None, None, None, 1, 2]),
            retries=5 if is_long else dice.randint(0, 3),
            backoff=_LONG_BACKOFF if self._is_operated else dice.choice([0.02, 0.1, 0.3]),
            body=body,
            attempts=self._attempts,
            acts=sorted([*self._acts(), *self._visits()], key=lambda act: act.at),
            looked_at=dice.random() < 0.5,
        )

    def _body(self, depth: int, length: int) -> list[Statement]:
        return [self._statement(depth) for _ in range(length)]

    def _bodies(self, depth: int) -> list[list[Statement]]:
        return [self._body(depth + 1, self._dice.randint(1, 2)) for _ in range(self._dice.randint(2, 3))]

    def _statement(self, depth: int) -> Statement:
        dice = self._dice
        names = ["lineage"] * (3 + 2 * depth)
        if depth < 2:
            names += [
                one
                for one in (
                    "gather",
                    "gather_exceptions",
                    "group",
                    "first",
                    "spawn",
                    "timeout",
                    "swallow",
                    "saga",
                    "signal",
                )
                if one in self._may
            ]
        names += [one for one in ("child", "local", "sleep") if one in self._may]
        name = dice.choice(names)
        match name:
            case "gather" | "gather_exceptions" | "group":
                return [name, self._bodies(depth)]
            case "first":
                return [name, self._bodies(depth), dice.choice(["leave", "cancel", "await"])]
            case "spawn":
                return [name, self._body(depth + 1, 1), dice.choice(["leave", "await"])]
            case "timeout":
                return [name, dice.choice([20, 150, 600]), self._body(depth + 1, 1)]
            case "swallow":
                return [name, self._body(depth + 1, 1), self._body(depth + 1, 1)]
            case "saga":
                return [name, self._body(depth + 1, dice.randint(1, 2)), [self._lineage()]]
            case "signal":
                return [name, dice.choice([0, 100, 400]), self._body(depth + 1, 1), self._body(depth + 1, 1)]
            case "child":
                return [name, dice.choice([10, 200]), dice.random() < 0.2]
            case "local" | "sleep":
                return [name, dice.choice([5, 50, 200])]
        return self._lineage()

    def _lineage(self) -> Statement:
        dice = self._dice
        name = f"line-{len(self._attempts)}"
        hows = dice.choices(["ok", "fail", "refuse", "hang", "deaf"], [60, 28, 4, 4, 4], k=dice.randint(1, 4))
        times = [200, 1500] if self._is_operated else [1, 5, 40, 200, 500]
        self._attempts[name] = [Attempt(how, dice.choice(times)) for how in hows]
        insides = [one for one in ("child", "local", "sleep") if one in self._may]
        inside: list[Statement] = [[one, dice.choice([5, 50])] for one in insides if dice.random() < 0.12]
        if dice.random() < 0.06 and "operators" in self._may:
            inside.append(["outcome", dice.choice([300, 800])])
        leaves = ["loop"] * 12 + [one for one in ("break", "return") if one in self._may]
        return ["lineage", name, inside, dice.choice(leaves)]

    def _visits(self) -> Iterator[Act]:
        dice = random.Random(f"visits {self._seed}")
        if "visit" not in self._may or dice.random() < 0.7:
            return
        for number in range(dice.choice([1, 1, 2])):
            hows = dice.choices(["ok", "fail", "refuse"], [75, 20, 5], k=dice.randint(1, 3))
            self._attempts[f"visit-{number}"] = [Attempt(how, dice.choice([1, 5, 40, 200])) for how in hows]
            yield Act(f"visit-{number}", dice.choice([0.0, round(dice.uniform(0.0, 1.0), 3)]))

    def _acts(self) -> Iterator[Act]:
        dice = self._dice

        def some(name: str, odds: float, latest: float = 1.5) -> Iterator[Act]:
            if dice.random() < odds:
                yield Act(name, round(dice.uniform(0.0, latest), 3), round(dice.random(), 3))

        if "signal" in self._may:
            yield from some("signal", 0.4)
        if "operators" in self._may:
            for name in ("retry_now", "complete", "fail", "cancel_item"):
                yield from some(name, 0.6 if self._is_operated else 0.15)
        if "pause" in self._may:
            yield from some("pause", 0.2)
        if "cancel" in self._may:
            yield from some("cancel", 0.15)
        if "reset" in self._may:
            yield from some("reset", 0.1)
