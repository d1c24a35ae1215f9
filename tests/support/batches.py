"""Batches in tests: rows in a store, as `tasq batch` puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tasquencer.batch import BatchRow
from tasquencer.batch_store import Batch, BatchStore

__all__ = ["filled_batch"]


async def filled_batch(
    batches: BatchStore, batch_id: str, prompts: Sequence[str | dict[str, Any]], **defaults: Any
) -> None:
    """A batch with a row for each prompt (or request), whose ids are `row-0`, `row-1` …"""
    requests = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
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
        BatchRow(position=position, row_id=f"row-{position}", request=request)
        for position, request in enumerate(requests)
    ]
    await batches.fill(batch_id, rows)
    await batches.filled(batch_id)
