"""A provider that answers at random: well, late, never, with errors."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress

from tasquencer.devkit.http_server import Exchange
from tasquencer.ledger.contract import Ledger
from tests.stories.record_checks import LAG
from tests.stories.story import Call, Given
from tests.support import answers
from tests.support.answers import Answer, Body
from tests.support.provider import ProviderRequest, ScriptedProvider

__all__ = ["RandomProvider", "task_of"]


def task_of(prompt: str) -> str:
    """Which task asks this prompt: `task 7: 2` is the second prompt of `task 7`."""
    return prompt.partition(":")[0]


class RandomProvider:
    """Decides about the answers, and notes what the ledger knows when a request arrives.

    It tells the operators when something happens to a task, because that is when an action meets something.

    Args:
        seed: The same seed gives the same answers to the first, second … request of each prompt.
        ledger: Where the work items of the requests must be.
    """

    def __init__(self, seed: str, ledger: Ledger) -> None:
        self._seed = seed
        self._ledger = ledger
        self._given: dict[int, Given] = {}
        self._held: dict[int, Sequence[str]] = {}
        self._requests: Counter[str] = Counter()
        self.moments: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.server = ScriptedProvider(self._choose)

    async def _choose(self, request: ProviderRequest) -> Answer:
        prompt, key = request.prompt, request.idempotency_key or ""
        self._requests[prompt] += 1
        dice = random.Random(f"{self._seed}/{prompt}/{self._requests[prompt]}")
        chosen, self._given[request.number] = _random_answer(dice, key)
        log = await self._ledger.transitions(key)
        self._held[request.number] = [step.next_state.value for step in log]
        moment = self.moments[task_of(prompt)]
        moment.set()

        async def give(exchange: Exchange, body: Body) -> None:
            await chosen.give(exchange, body)
            moment.set()

        return Answer(chosen.name, give)

    async def last_word_to(self, task: str) -> None:
        """Return once all requests of the task have ended, or should have: they may outlive it a little."""
        ends = [request.ended.wait() for request in self.server.requests if task_of(request.prompt) == task]
        with suppress(TimeoutError):
            async with asyncio.timeout(LAG.total_seconds()):
                await asyncio.gather(*ends)

    def calls_of(self, task: str) -> list[Call]:
        """All requests of the task."""
        return [
            Call(
                key=request.idempotency_key,
                at=request.at,
                ended_at=request.ended_at,
                given=self._given[request.number],
                complete=request.complete,
                client_left=request.client_left,
                held=self._held.get(request.number),
            )
            for request in self.server.requests
            if task_of(request.prompt) == task
        ]


def _random_answer(dice: random.Random, key: str) -> tuple[Answer, Given]:
    """An answer and what it means; good ones quote the request's key, so that no two are alike."""
    text = f"answer to {key}"
    asked = dice.choice([None, 0.0, 0.1, 0.35])
    (name,) = dice.choices(
        ["ok", "slow", "stall", "rate_limited", "status 500", "status 400", "reset", "closed", "filtered"],
        [3, 3, 6, 5, 4, 1, 2, 1, 1],
    )
    header = None if asked is None else str(asked)
    makers: dict[str, tuple[Answer, Given]] = {
        "ok": (answers.ok(text), Given(name, None, text)),
        "slow": (answers.slow(text, pause_seconds=dice.choice([0.02, 0.2])), Given(name, None, text)),
        "stall": (answers.stall(), Given(name, "timed_out", endless=True)),
        "rate_limited": (answers.rate_limited(header), Given(name, "rate_limited", retry_after=asked)),
        "status 500": (answers.status(500), Given(name, "provider_error")),
        "status 400": (answers.status(400), Given(name, "invalid_request")),
        "reset": (answers.reset(), Given(name, "unreachable")),
        "closed": (answers.closed(), Given(name, "unreachable")),
        "filtered": (answers.content_filter(), Given(name, "refused")),
    }
    answer, given = makers[name]
    if dice.random() < 0.5:
        answer = _late(dice.uniform(0, 0.6), answer)
    return answer, given


def _late(seconds: float, then: Answer) -> Answer:
    async def give(exchange: Exchange, body: Body) -> None:
        await asyncio.sleep(seconds)
        await then.give(exchange, body)

    return Answer(then.name, give)
