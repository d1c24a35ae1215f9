"""Writes of observed attempts. The ledger must not delay a user's activity."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from time import monotonic
from typing import Literal

from tasquencer.core.errors import LedgerConflict, LedgerUnavailable

__all__ = ["ObservedWriter", "OnOutage"]

OnOutage = Literal["continue", "wait"]

_PATIENCE = timedelta(seconds=2)
"""How long a write may take before it counts as an outage."""

_REST_SECONDS = 5.0
"""The time between two tries in an outage of the ledger. Activities in between do not wait for it."""

_AGAIN_SECONDS = 0.5

_log = logging.getLogger("tasquencer.temporal.observing")


class ObservedWriter:
    """Writes to the ledger, unless that would delay a user's activity."""

    def __init__(self, on_outage: OnOutage) -> None:
        self._waits = on_outage == "wait"
        self._down_since: float | None = None
        self._tried_at = 0.0
        self._missed_now = 0
        self.missed = 0

    async def write(self, writing: Callable[[], Awaitable[None]], *, is_last: bool = False) -> bool:
        """Write, and return whether that succeeded.

        Args:
            is_last: True if there is no later write. If it fails, the attempt counts as missed.
        """
        while not await self._try(writing):
            if not self._waits:
                if is_last:
                    self._missed_now += 1
                    self.missed += 1
                return False
            await asyncio.sleep(_AGAIN_SECONDS)
        return True

    async def _try(self, writing: Callable[[], Awaitable[None]]) -> bool:
        if not self._waits and self._down_since is not None and monotonic() - self._tried_at < _REST_SECONDS:
            return False
        self._tried_at = monotonic()
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                await writing()
        except LedgerConflict as conflict:
            # The next attempt, the reconciler or the end of its task has just settled it.
            _log.debug("an observed attempt is already settled: %s", conflict)
        except (LedgerUnavailable, TimeoutError) as error:
            self._went_down(str(error) or f"no answer within {_PATIENCE.total_seconds():g} s")
            return False
        except Exception:
            if not self._waits:
                # Our bug must not fail a user's activity.
                _log.exception("an observed attempt could not be recorded")
                return False
            raise
        if self._down_since is not None:
            missed, self._missed_now, self._down_since = self._missed_now, 0, None
            _log.warning(
                "the ledger can be written again; attempts of observed activities that it lacks: %d", missed
            )
        return True

    def _went_down(self, problem: str) -> None:
        if self._down_since is None:
            self._down_since = monotonic()
            what = "they wait for it" if self._waits else "they run unrecorded"
            _log.error("the ledger cannot be written, observed activities: %s: %s", what, problem)
