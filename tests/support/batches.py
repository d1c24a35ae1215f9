"""Batches in tests: rows in a store, as `tasq batch` puts them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tasquencer.batch.rows import BatchRow
from tasquencer.batch.store import Batch, BatchStore

__all__ = ["filled_batch"]


async def filled_batch(
    batches: BatchStore,
    batch_id: str,
    prompts: Sequence[str | dict[str, Any]] | Mapping[str, Mapping[str, Any]],
    **defaults: Any,
) -> None:
    """A batch with a row for each prompt (or request), whose ids are `row-0`, `row-1` …, or those given."""
    if isinstance(prompts, Mapping):
        requests = {key: dict(request) for key, request in prompts.items()}
    else:
        requests = {
            f"row-{position}": prompt if isinstance(prompt, dict) else {"prompt": prompt}
            for position, prompt in enumerate(prompts)
        }
    await batches.create(
        Batch(
            id=batch_id,
            digest="as told",
            rows=len(requests),
            defaults=defaults,
            created_at=datetime.now(UTC),
        )
    )
    rows = [
        BatchRow(position=position, row_id=row_id, request=request)
        for position, (row_id, request) in enumerate(requests.items())
    ]
    await batches.fill(batch_id, rows)
    await batches.filled(batch_id)
