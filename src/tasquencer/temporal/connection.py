"""The connection to Temporal, from the settings that the `temporal` CLI reads too."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Unpack

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client, ClientConfig, ClientConnectConfig, Plugin
from temporalio.envconfig import ClientConfig as Profile
from temporalio.service import ConnectConfig, RPCError, RPCStatusCode, ServiceClient

from tasquencer.core.errors import TemporalUnreachable
from tasquencer.settings import cleaned
from tasquencer.temporal.converter import configured, data_converter, is_default
from tasquencer.temporal.delivery import OUTAGES

__all__ = ["DEFAULT_ADDRESS", "check_namespace", "connect", "report_outages"]

DEFAULT_ADDRESS = "localhost:7233"

_CONNECT_SECONDS = 10

_LOOK_SECONDS = 3.0

_log = logging.getLogger(__name__)


async def connect(**options: Unpack[ClientConnectConfig]) -> Client:
    """Connect a client with the settings of the environment and the profile file.

    Reads `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_PROFILE`, TLS and API key through
    `temporalio.envconfig`. The defaults are `localhost:7233` and namespace `default`. The data converter is
    the one that `TASQ_DATA_CONVERTER` names (`module:attribute`), else that of a plugin, else ours.

    Args:
        options: The options of `Client.connect`. They take precedence over the environment. Give a worker's
        `TasquencerPlugin` either here in `plugins` or to the worker, not to both.

    Raises:
        TemporalUnreachable: no server answers within ten seconds, or it refuses these settings.
        WrongSetting: `TASQ_DATA_CONVERTER` names no data converter.
    """
    config: dict[str, Any] = {**_configured(), **options}
    address: str = config["target_host"]
    no_address = TemporalUnreachable(
        address, "that is not an address", "TEMPORAL_ADDRESS must be host:port, without http://"
    )
    if "://" in address:
        raise no_address
    if "data_converter" not in config:
        converter = configured(os.environ)
        if converter is not None:
            config["data_converter"] = converter
        else:
            config["plugins"] = [*config.get("plugins", ()), _OurConverter()]
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await Client.connect(**config)
    except TimeoutError:
        raise TemporalUnreachable(address, f"no answer within {_CONNECT_SECONDS} s") from None
    except ValueError as error:
        if "invalid target URL" not in str(error):
            raise
        raise no_address from error
    except RuntimeError as error:
        raise TemporalUnreachable(address, *_first_cause(str(error))) from error


class _OurConverter(Plugin):
    """Runs last: installs our data converter if no earlier plugin has set one."""

    def configure_client(self, config: ClientConfig) -> ClientConfig:
        if is_default(config["data_converter"]):
            config["data_converter"] = data_converter
        return config

    async def connect_service_client(
        self,
        config: ConnectConfig,
        next: Callable[[ConnectConfig], Awaitable[ServiceClient]],  # noqa: A002
    ) -> ServiceClient:
        return await next(config)


async def check_namespace(client: Client) -> None:
    """Raise `TemporalUnreachable` if the client's namespace does not exist for these credentials.

    Credentials without permission to describe the namespace pass this check.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    address = client.service_client.config.target_host
    try:
        await client.workflow_service.describe_namespace(request, timeout=timedelta(seconds=_CONNECT_SECONDS))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            remedy = "set TEMPORAL_NAMESPACE, or create it: temporal operator namespace create"
            problem = f"it has no namespace {client.namespace!r}"
            raise TemporalUnreachable(address, problem, remedy) from error
        if error.status is RPCStatusCode.UNAUTHENTICATED:
            raise TemporalUnreachable(address, *_CREDENTIALS) from error


async def report_outages(client: Client) -> NoReturn:
    """Log once when Temporal stops answering, and once when it answers again, until canceled."""
    address = client.service_client.config.target_host
    down = False
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            await client.workflow_service.get_system_info(
                GetSystemInfoRequest(), timeout=timedelta(seconds=_CONNECT_SECONDS)
            )
        except RPCError as error:
            if not down and error.status in OUTAGES:
                down = True
                _log.error("Temporal at %s does not answer; the worker waits for it", address)
        else:
            if down:
                down = False
                _log.warning("Temporal answers again")


def _configured() -> dict[str, Any]:
    """The arguments of `Client.connect`, as the settings give them."""
    environment = cleaned(os.environ)
    file = environment.get("TEMPORAL_CONFIG_FILE")
    try:
        if file and not Path(file).exists():  # the SDK would ignore this and connect to another server
            raise FileNotFoundError(f"there is no file {file!r}")
        config: dict[str, Any] = dict(Profile.load_client_connect_config(override_env_vars=environment))
    except Exception as error:  # the SDK raises bare RuntimeErrors for an unreadable profile
        raise TemporalUnreachable(
            "the configured address",
            " ".join(str(error).split()),
            "check TEMPORAL_CONFIG_FILE, TEMPORAL_PROFILE and the other TEMPORAL_ settings",
        ) from error
    config.setdefault("target_host", DEFAULT_ADDRESS)
    return config


_CREDENTIALS = ("the credentials are not accepted", "check TEMPORAL_API_KEY, or the client certificate")

_CAUSES: tuple[tuple[str, str, str | None], ...] = (
    ("Connection refused", "connection refused", None),
    ("dns error", "the host name cannot be resolved", None),
    ("deadline", "no answer in time", None),
    ("InvalidCertificate(Expired", "its TLS certificate has expired", "renew it on the server"),
    (
        "InvalidCertificate(NotValidForName",
        "its TLS certificate is for another name",
        "check TEMPORAL_ADDRESS, or set TEMPORAL_TLS_SERVER_NAME",
    ),
    (
        "InvalidCertificate",
        "its TLS certificate is not accepted",
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH names the authority that signed it",
    ),
    (
        "InvalidContentType",
        "it does not speak TLS",
        "unset TEMPORAL_TLS; an API key turns TLS on unless TEMPORAL_TLS=false",
    ),
    ("Unauthenticated", *_CREDENTIALS),
    ("PermissionDenied", *_CREDENTIALS),
    ("CertificateRequired", *_CREDENTIALS),
    (
        "tonic::transport::Error",
        "a server answers, but it is not Temporal",
        "check the port; a server with TLS needs TEMPORAL_TLS=true",
    ),
)
"""A part of the SDK's error, its meaning, and the remedy. The first match counts."""


def _first_cause(message: str) -> tuple[str, str | None]:
    for cause, plain, remedy in _CAUSES:
        if cause.lower() in message.lower():
            return plain, remedy
    return " ".join(message.split())[:300], None
