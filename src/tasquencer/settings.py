"""Reads and checks settings from the environment.

An empty setting counts as not set, as for the `temporal` CLI. White space around a value is ignored. The
settings of the provider and of Temporal are checked in `tasquencer.ai.provider.settings` and
`tasquencer.temporal.settings`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasquencer.core.errors import WrongSetting

__all__ = [
    "DATA_CONVERTER",
    "DEFAULT_MODEL",
    "DEFAULT_TASK_QUEUE",
    "Settings",
    "address_problem",
    "clean",
    "cleaned",
    "key_problem",
    "named_setting",
    "problems_in",
    "secrets_in",
]

DATA_CONVERTER = "TASQ_DATA_CONVERTER"
"""The name of the data converter for Temporal. See `tasquencer.temporal.converter.configured`."""

DEFAULT_TASK_QUEUE = "ai-agent"
DEFAULT_MODEL = "gpt-5-mini"

_OURS = ("TASQ_", "OPENAI_", "TEMPORAL_", "SSL_CERT_")
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without white space around settings and without empty settings."""
    stripped = {name: value.strip() if _is_setting(name) else value for name, value in environment.items()}
    return {name: value for name, value in stripped.items() if value or not _is_setting(name)}


def clean(environment: MutableMapping[str, str]) -> None:
    """Do the same to the environment of this process, from which other packages read settings too."""
    kept = cleaned(environment)
    for name, value in list(environment.items()):
        if name not in kept:
            del environment[name]
        elif kept[name] != value:
            environment[name] = kept[name]


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """Return the secrets of the ledger and of Temporal. Those of providers are in `Endpoints`."""
    known = cleaned(environment)
    try:
        password = unquote(urlsplit(known.get("TASQ_DATABASE_URL", "")).password or "")
    except ValueError:  # the ledger refuses the URL
        password = ""
    return [password, known.get("TEMPORAL_API_KEY", ""), known.get("TEMPORAL_CODEC_AUTH", "")]


def _is_setting(name: str) -> bool:
    return name.startswith(_OURS) or name.upper() in _PROXIES


@dataclass(frozen=True)
class Settings:
    """The settings that the worker and the command line share.

    Attributes:
        database_url: SQLAlchemy URL of the ledger (`TASQ_DATABASE_URL`). By default a SQLite file in the
        user's data folder.
        model: The model for requests that name none (`TASQ_MODEL`).
        task_queue: The task queue (`TASQ_TASK_QUEUE`).

    The AI call itself reads the file of prices that `TASQ_PRICES` names, see `tasquencer.ai.provider.prices`.
    """

    database_url: str
    model: str = DEFAULT_MODEL
    task_queue: str = DEFAULT_TASK_QUEUE

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Return the settings. An empty variable counts as unset."""
        known = cleaned(environment)
        return cls(
            database_url=known.get("TASQ_DATABASE_URL") or _default_database_url(),
            model=known.get("TASQ_MODEL") or DEFAULT_MODEL,
            task_queue=known.get("TASQ_TASK_QUEUE") or DEFAULT_TASK_QUEUE,
        )


@contextmanager
def named_setting(name: str) -> Iterator[None]:
    """Turn a `ValueError` of the block into a `WrongSetting` that names the setting."""
    try:
        yield
    except ValueError as error:
        raise WrongSetting(name, str(error)) from error


@dataclass(frozen=True)
class _Number:
    least: float
    most: float = math.inf
    whole: bool = False

    def problem(self, value: str) -> str | None:
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            return f"must be a {'whole ' if self.whole else ''}number, not {value[:50]!r}"
        if not self.least <= number <= self.most or math.isinf(number):
            most = "" if math.isinf(self.most) else f" and at most {self.most:g}"
            return f"must be at least {self.least:g}{most}, not {value[:50]!r}"
        return None


_LONGEST = 86_400.0 * 365
_NUMBERS = {
    "TASQ_CONCURRENT_CALLS": _Number(1, 1_000_000, whole=True),
    "TASQ_CALLS_PER_SECOND": _Number(0.001, 1_000_000),
    "TASQ_GRACE_PERIOD": _Number(0, _LONGEST),
    "TASQ_HEARTBEAT_INTERVAL": _Number(0.1, _LONGEST),
    "TASQ_RECONCILE_EVERY": _Number(0, _LONGEST),
}
_CHOICES = {
    "TASQ_LOG_LEVEL": ("DEBUG", "INFO", "WARNING", "ERROR"),
    "TASQ_VERSIONING": ("pinned", "auto-upgrade"),
}
_NAMES = {"TASQ_TASK_QUEUE": 1_000, "TASQ_MODEL": 200, "TEMPORAL_NAMESPACE": 1_000}
"""Settings that are names, and their maximum length."""


def problems_in(environment: Mapping[str, str]) -> list[WrongSetting]:
    """Return the problems with our own settings, except the database URL."""
    known = cleaned(environment)
    problems = {name: number.problem(known[name]) for name, number in _NUMBERS.items() if name in known}
    for name, choices in _CHOICES.items():
        if name in known and known[name].lower() not in map(str.lower, choices):
            problems[name] = f"must be one of {', '.join(choices)}, not {known[name][:50]!r}"
    for name, longest in _NAMES.items():
        if name in known:
            problems[name] = _name_problem(known[name], longest)
    if address := known.get("TASQ_METRICS_ADDRESS"):
        problems["TASQ_METRICS_ADDRESS"] = address_problem(address)
    return [WrongSetting(name, problem) for name, problem in problems.items() if problem is not None]


def _name_problem(value: str, longest: int) -> str | None:
    if _in_quotes(value):
        return "is in quotes: remove them"
    if not value.isprintable():
        return f"must not contain control characters: {value[:50]!r}"
    if len(value) > longest:
        return f"has {len(value):,} characters, the limit is {longest:,}"
    return None


_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\"'\[\]]+):(\d{1,5})")


def address_problem(address: str) -> str | None:
    """Return the problem with a `host:port`, or None."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 65_536:
        return f"must be host:port, without http://, not {address[:100]!r}"
    return None


_NOT_IN_KEYS = re.compile(r"[^!-~]|[\"'`<>{}$\\,;]")


def key_problem(key: str) -> str | None:
    """Return the problem with an API key, or None. The text does not contain the key."""
    if _in_quotes(key):
        return "is in quotes: remove them"
    if re.match(r"(authorization:\s*)?bearer\b", key, re.IGNORECASE):
        return 'starts with "Bearer": set only the key'
    if found := _NOT_IN_KEYS.search(key):
        kind = "a space or a line break" if found.group().isspace() else "a character"
        return f"has {kind} that no key has, at position {found.start() + 1} of {len(key)}: copy it again"
    return None


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] in "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"


def _default_database_url() -> str:
    import platformdirs

    folder = Path(platformdirs.user_data_dir("tasquencer", appauthor=False))
    return f"sqlite:///{folder / 'ledger.db'}"
