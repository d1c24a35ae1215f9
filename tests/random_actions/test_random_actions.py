"""Random actions on random tasks, on a real server, with the real AI call and the ledger in a real database.

A run starts a number of AI agent tasks and fan-outs against a provider that answers at random, and lets
operators act on them at random moments. Afterwards each task's story is checked by `tests.stories.checks`,
whose own tests plant each violation in a good story and see it found.

At length, with a seed of one's choice:

    TASQ_RANDOM_SEED=7 TASQ_RANDOM_TASKS=200 pytest -s tests/random_actions -k sqlite
"""

from __future__ import annotations

import os

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tests.random_actions.run import random_stories, reached
from tests.stories.checks import violations
from tests.stories.story import LEADS_TO
from tests.stories.telling import told

SEED = int(os.environ.get("TASQ_RANDOM_SEED", "1"))
TASKS = int(os.environ.get("TASQ_RANDOM_TASKS", "40"))

ENOUGH_TASKS = 40
"""So many tasks reach all of `WANTED`."""

WANTED = [
    "task completed",
    "task canceled",
    "disconnected",
    "hurried",
    "accepted again under the same id",
    *(f"{name} {reply}" for name in LEADS_TO for reply in ("accepted", "refused")),
]


@pytest.mark.timeout(300 + 4 * TASKS)
async def test_random_actions_break_no_invariant(dev_server: EmbeddedTemporal, ledger: Ledger) -> None:
    stories = await random_stories(dev_server, ledger, SEED, TASKS)
    seen = reached(stories)
    print("", *(f"{count:6} {what}" for what, count in sorted(seen.items())), sep="\n")
    wrong = [(story, found) for story in stories if (found := violations(story))]
    if wrong:
        smallest, _ = min(wrong, key=lambda pair: len(told(pair[0])))
        problems = "\n".join(f"  {story.task_id}: {problem}" for story, found in wrong for problem in found)
        pytest.fail(
            f"seed {SEED}, {len(wrong)} of {len(stories)} tasks:\n{problems}\n\n"
            f"the smallest story:\n{told(smallest)}"
        )
    if TASKS >= ENOUGH_TASKS:
        assert [what for what in WANTED if not seen[what]] == []
