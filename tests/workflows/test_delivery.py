"""An outcome waits until Temporal answers; one call asks for all."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.temporal import delivery
from tasquencer.temporal.delivery import Delivery
from tests.support.patience import PATIENCE_SECONDS


class Asked:
    """A Temporal that is away until it is back, and counts who asks."""

    def __init__(self) -> None:
        self.times = 0
        self.is_away = False
        self.status = RPCStatusCode.UNAVAILABLE

    @property
    def client(self) -> Client:
        return cast("Client", SimpleNamespace(workflow_service=self))

    async def get_system_info(self, *_: Any, **__: Any) -> None:
        self.times += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise RPCError("away", self.status, b"")


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer stays fresh, however long the machine pauses."""
    monkeypatch.setattr(delivery, "monotonic", lambda: 1_000.0)


async def test_of_many_outcomes_at_a_time_one_asks() -> None:
    delivery, temporal = Delivery(), Asked()
    await asyncio.gather(*(delivery.possible(temporal.client) for _ in range(100)))
    assert temporal.times == 1


async def test_an_outcome_waits_until_temporal_answers() -> None:
    delivery, temporal = Delivery(), Asked()
    temporal.is_away = True
    waiting = [asyncio.create_task(delivery.possible(temporal.client)) for _ in range(10)]
    done, _ = await asyncio.wait(waiting, timeout=0.1)
    assert not done
    temporal.is_away = False
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_SECONDS)
    assert temporal.times == 2


async def test_a_temporal_that_refuses_to_tell_is_there() -> None:
    delivery, temporal = Delivery(), Asked()
    temporal.is_away, temporal.status = True, RPCStatusCode.PERMISSION_DENIED
    await asyncio.wait_for(delivery.possible(temporal.client), PATIENCE_SECONDS)


async def test_an_activity_that_is_canceled_hands_its_outcome_in() -> None:
    delivery, temporal = Delivery(), Asked()
    temporal.is_away = True
    first, second = (asyncio.create_task(delivery.possible(temporal.client)) for _ in range(2))
    await asyncio.wait([first, second], timeout=0.05)
    first.cancel()
    await asyncio.wait_for(first, PATIENCE_SECONDS)
    assert not second.done()
    second.cancel()
    await asyncio.wait_for(second, PATIENCE_SECONDS)
