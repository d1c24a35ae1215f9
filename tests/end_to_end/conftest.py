"""What the end-to-end tests run on: a real server, a scripted provider, the real worker process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import Stage
from tests.support.answers import ok
from tests.support.provider import ScriptedProvider


@pytest.fixture
async def stage(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage whose provider answers `ok()`; tests that need more make their own."""
    async with ScriptedProvider(then=ok()) as provider:
        yield await Stage.on(dev_server, provider, tmp_path)
