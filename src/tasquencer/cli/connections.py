"""What commands connect to: the settings, Temporal, the ledger."""

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
    """The settings from this process's environment. Raises `WrongSettings`."""
    return checked_settings()


async def connect_temporal() -> Client:
    """A client for the server that the environment names. Raises `WrongSettings`, `TemporalUnreachable`."""
    from tasquencer.cli.decoding import telling
    from tasquencer.temporal.connection import connect
    from tasquencer.temporal.converter import configured, data_converter

    checked_settings()
    converter = telling(configured(os.environ) or data_converter)
    return await connect(runtime=quiet_runtime(), data_converter=converter)


def quiet_runtime() -> Runtime:
    """A Temporal runtime that logs nothing: its warnings about retried calls would tear the tables."""
    from temporalio.runtime import Runtime, TelemetryConfig

    return Runtime(telemetry=TelemetryConfig(logging=None))


def open_ledger(settings: Settings) -> SqlLedger:
    """The ledger, to be entered with `async with`."""
    from tasquencer.sql import SqlLedger

    with readable_database_url():
        return SqlLedger(settings.database_url)


@contextmanager
def readable_database_url() -> Iterator[None]:
    """Says which setting is wrong where the block finds that the database URL is."""
    try:
        yield
    except ValueError as error:
        raise CommandFailed(f"TASQ_DATABASE_URL: {error}", ExitCode.USAGE) from None
