"""Behaviours of a task by the release that began its run. SDK flags of its workflow tasks keep them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["FROM_THE_START", "Behaviour"]


class Behaviour(IntEnum):
    """Behaviours of a task since the release that introduced them. The number is that of the SDK flag."""

    RESULTS_FIRST = 72_001
    """Results of local activities come before the other events of their activation."""
    SECOND_EDITION = 72_002
    """Ids and jitter depend on run, lineage and attempt. The end of a run begins nothing new."""
    NEW_RUN_ON_NEWS = 72_003
    """Only an activation with events can make a new run due, never the result of a local activity alone."""
    OPERATORS_COMMANDS = 72_004
    """An activity that `temporal activity fail` has ended is an `operator` failure, which qualifies."""
    RESULTS_ONE_BY_ONE = 72_005
    """Each result of a local activity is handed over on its own. A canceled work item frees its place."""
    SETTLES_UNBEGUN = 72_006
    """A run with a task that has begun nothing settles what a lost workflow task may have begun."""
    APPROVALS_LIKE_REVIEWS = 72_008
    """An approval reminds, and ends at the deadline. The model learns who ended one without a decision."""
    NEWS_AFTER_WRITES = 72_009
    """Events wait for the ends of the writes that are under way."""
    ANSWERS_ON_NEWS = 72_010
    """The answer to an update comes with an event, not with the result of a write."""
    NEW_RUN_BY_RECORD = 72_011
    """The last write to the ledger says whether a new run is due. The history keeps its answer."""
    CANCELS_ON_NEWS = 72_012
    """A cancel that follows from a result waits for an event. A reset is known before handlers run."""
    SETTLES_EACH_RUN = 72_013
    """A run settles what its lost workflow tasks have left also before it continues as new."""


FROM_THE_START = (
    Behaviour.NEW_RUN_ON_NEWS, Behaviour.NEWS_AFTER_WRITES, Behaviour.NEW_RUN_BY_RECORD,
    Behaviour.CANCELS_ON_NEWS, Behaviour.SETTLES_EACH_RUN,
)  # fmt: skip
"""Behaviours that a run has from its first workflow task on."""
