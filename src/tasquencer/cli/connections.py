"""Connections of the commands: the settings, Temporal, the ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasquencer.cli.environment import checked_settings
from tasquencer.cli.errors import CommandFailed, ExitCode

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.runtime import Runtime

    from tasquencer.settings import Settings
    from tasquencer.sql import SqlLedger

__all__ = ["connect_temporal", "open_ledger", "quiet_runtime", "read_settings", "readable_database_url"]


def read_settings() -> Settings:
    """Return the settings from this process's environment. Raises `WrongSettings`."""
    return checked_settings()


async def connect_temporal() -> Client:
    """Connect to the server that the environment names. Raises `WrongSettings`, `TemporalUnreachable`."""
    from tasquencer.cli.decoding import telling
    from tasquencer.temporal.connection import connect
    from tasquencer.temporal.converter import configured, data_converter

    checked_settings()
    converter = telling(configured(os.environ) or data_converter)
    return await connect(runtime=quiet_runtime(), data_converter=converter)


def quiet_runtime() -> Runtime:
    """Return a Temporal runtime that logs nothing, because its warnings would break the live tables."""
    from temporalio.runtime import Runtime, TelemetryConfig

    return Runtime(telemetry=TelemetryConfig(logging=None))


def open_ledger(settings: Settings) -> SqlLedger:
    """Return the ledger, for use in `async with`."""
    from tasquencer.sql import SqlLedger

    with readable_database_url():
        return SqlLedger(settings.database_url)


@contextmanager
def readable_database_url() -> Iterator[None]:
    """Name the setting if the block finds that the database URL is wrong."""
    try:
        yield
    except ValueError as error:
        raise CommandFailed(f"TASQ_DATABASE_URL: {error}", ExitCode.USAGE) from None
