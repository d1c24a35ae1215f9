"""When a provider comes back: with jitter the retries of a batch do not come all at once."""

from __future__ import annotations

from datetime import timedelta

from tests.outages.herd import herd

HOUR, TEN_MINUTES = timedelta(hours=1), timedelta(minutes=10)


def test_jitter_spreads_the_retries_of_a_batch_that_was_started_at_once() -> None:
    peaks = [herd(300, jitter, outage=HOUR, longest=TEN_MINUTES).peak for jitter in (0, 0.5, 1)]
    assert peaks[0] >= 100  # as fast as they were started
    assert max(peaks[1:]) <= 10


def test_nobody_waits_longer_than_the_longest_delay() -> None:
    for jitter in (0, 0.5, 1):
        seen = herd(300, jitter, outage=HOUR, longest=TEN_MINUTES)
        assert seen.last <= TEN_MINUTES.total_seconds() * (1 + jitter)
