"""The connection to Temporal, from the settings that the `temporal` CLI reads too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.client import Client, Plugin
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime

from tasquencer.errors import TemporalUnreachable
from tasquencer.temporal.converter import data_converter

__all__ = ["DEFAULT_ADDRESS", "connect"]

DEFAULT_ADDRESS = "localhost:7233"


async def connect(*, plugins: Sequence[Plugin] = (), runtime: Runtime | None = None) -> Client:
    """A client connected as the environment and the profile file say.

    Reads `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_PROFILE`, TLS and API key through
    `temporalio.envconfig`; without any, `localhost:7233` and namespace `default`.

    Args:
        plugins: A worker gives its `TasquencerPlugin` here (and only here, not to the worker too).
        runtime: For metrics; None takes the SDK's default.

    Raises:
        TemporalUnreachable: nobody answers there, or not with these credentials.
    """
    try:
        config: dict[str, Any] = dict(ClientConfig.load_client_connect_config())
    except Exception as error:  # the SDK raises bare RuntimeErrors for an unreadable profile
        raise TemporalUnreachable("the configured profile", str(error)) from error
    config.setdefault("target_host", DEFAULT_ADDRESS)
    try:
        return await Client.connect(**config, data_converter=data_converter, plugins=plugins, runtime=runtime)
    except RuntimeError as error:
        raise TemporalUnreachable(config["target_host"], _first_cause(str(error))) from error


def _first_cause(message: str) -> str:
    for cause, plain in (
        ("Connection refused", "connection refused"),
        ("dns error", "the host name cannot be resolved"),
        ("deadline", "no answer in time"),
        ("InvalidCertificate", "its TLS certificate is not accepted"),
        ("Unauthenticated", "the credentials are not accepted"),
    ):
        if cause.lower() in message.lower():
            return plain
    return " ".join(message.split())[:300]
