"""Checks Temporal's settings, which the `temporal` CLI reads too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from temporalio.envconfig import ClientConfig

from tasquencer.core.errors import WrongSetting
from tasquencer.settings import address_problem, cleaned, key_problem

__all__ = ["problems_in"]

_FILES = (
    "TEMPORAL_CONFIG_FILE",
    "TEMPORAL_TLS_CLIENT_CERT_PATH",
    "TEMPORAL_TLS_CLIENT_KEY_PATH",
    "TEMPORAL_TLS_SERVER_CA_CERT_PATH",
)


def problems_in(environment: Mapping[str, str]) -> list[WrongSetting]:
    """Return the problems with them, without asking the server."""
    known = cleaned(environment)
    problems: dict[str, str | None] = {}
    if (address := known.get("TEMPORAL_ADDRESS")) is not None:
        problems["TEMPORAL_ADDRESS"] = address_problem(address)
    if (key := known.get("TEMPORAL_API_KEY")) is not None:
        problems["TEMPORAL_API_KEY"] = key_problem(key)
    for name in _FILES:
        if name in known and not Path(known[name]).exists():
            problems[name] = f"there is no file {known[name]!r}"
    found = [WrongSetting(name, problem) for name, problem in problems.items() if problem is not None]
    return found or _refused(known)


def _refused(known: Mapping[str, str]) -> list[WrongSetting]:
    """Return further problems that the SDK reports, such as a profile that does not exist."""
    try:
        ClientConfig.load_client_connect_config(override_env_vars=dict(known))
    except Exception as error:  # noqa: BLE001 - the SDK raises bare RuntimeErrors
        name = "TEMPORAL_PROFILE" if "TEMPORAL_PROFILE" in known else "TEMPORAL_CONFIG_FILE"
        said = " ".join(str(error).split())
        names = sorted((one for one in known if one.startswith("TEMPORAL_")), key=len, reverse=True)
        named = next((one for one in names if one in said), name)
        return [WrongSetting(named, said)]
    return []
