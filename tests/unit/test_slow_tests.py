"""The tables of slow tests in `tests/conftest.py`: they name what exists, and `make test` leaves it out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import LONGEST, SHORTEST, SLOW

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "place", [*LONGEST, *SHORTEST, *(place for places in SLOW.values() for place in places)]
)
def test_a_slow_test_exists(place: str) -> None:
    path, _, test = place.partition("::")
    assert (ROOT / path).exists()
    assert not test or f"def {test}(" in (ROOT / path).read_text()


def test_make_test_leaves_out_what_is_slow() -> None:
    (left_out,) = re.findall(r'-m "not \((.*)\)"', (ROOT / "Makefile").read_text())
    assert set(left_out.split(" or ")) == {"browser", *SLOW}
