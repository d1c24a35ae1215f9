"""The options of a PostgreSQL URL, as asyncpg takes them.

People paste URLs that were written for libpq, for SQLAlchemy or for another program. asyncpg supports some
options of libpq. It sends every other option to the server as a setting, and the server then refuses the
connection.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa

__all__ = ["connect_arguments"]

_TLS = (
    "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)  # fmt: skip
"""asyncpg accepts them only in a URL."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OTHER_SSL_MODES = {
    **dict.fromkeys(("true", "1", "on", "yes", "no-verify"), "require"),
    **dict.fromkeys(("false", "0", "off", "no"), "disable"),
}

_IGNORED = {
    "channel_binding", "client_encoding", "gssdelegation", "gssencmode", "hostaddr", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "max_protocol_version", "min_protocol_version", "oauth_client_id", "oauth_client_secret",
    "oauth_issuer", "oauth_scope", "replication", "require_auth", "requirepeer", "scram_client_key",
    "scram_server_key", "sslcertmode", "sslcompression", "sslcrldir", "sslkeylogfile", "sslsni",
    "tcp_user_timeout", "async_fallback", "connection_limit", "pool_timeout",
    "prepared_statement_name_func", "socket_timeout",
}  # fmt: skip
"""Options of libpq that have no counterpart in asyncpg, and options of SQLAlchemy and of other programs."""


def _flag(text: str) -> bool:
    known = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False}
    return known[text.lower()] if text.lower() in known else bool(int(text))


_OF_ASYNCPG: dict[str, Callable[[str], object]] = {
    "passfile": str,
    "service": str,
    "servicefile": str,
    "target_session_attrs": str,
    "krbsrvname": str,
    "gsslib": str,
    "direct_tls": _flag,
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "prepared_statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}


_CACHE_SIZES = ("statement_cache_size", "prepared_statement_cache_size")


def connect_arguments(url: sa.URL) -> tuple[dict[str, Any], bool | None]:
    """Return the arguments of `asyncpg.connect`, and whether the URL names a pooler (None: it does not say).

    Options that are neither libpq's nor asyncpg's become settings of the server.

    Raises:
        ValueError: an option has a value that cannot be used.
    """
    options = {name: value for name, value in url.query.items() if isinstance(value, str)}
    arguments: dict[str, Any] = _address(url, options.pop("port", None))
    for name in [name for name in options if name in _OF_ASYNCPG]:
        arguments[name] = _converted(name, options.pop(name))
    if (seconds := options.pop("connect_timeout", None)) is not None and _number(seconds) > 0:
        arguments["timeout"] = max(2.0, _number(seconds))  # as libpq does
    cache_sizes = [arguments.pop(name) for name in _CACHE_SIZES if name in arguments]
    pooled = 0 in cache_sizes if cache_sizes else None
    if _flag_or_refuse("pgbouncer", options.pop("pgbouncer", "false")):
        pooled = True
    _refuse_what_would_be_less_safe(options)
    _tls(arguments, options)
    settings = {name: value for name, value in options.items() if name not in _IGNORED}
    fallback = settings.pop("fallback_application_name", None)
    if fallback is not None:
        settings.setdefault("application_name", fallback)
    if settings:
        arguments["server_settings"] = settings
    _check_service(arguments)
    return arguments, pooled


def _address(url: sa.URL, ports: str | None) -> dict[str, Any]:
    hosts = url.host.split(",") if url.host else []
    numbers = [_port(port) for port in ports.split(",")] if ports else [url.port] if url.port else []
    if len(numbers) not in (0, 1, max(1, len(hosts))):
        raise ValueError(f"the database URL has {len(hosts)} hosts and {len(numbers)} ports")
    found = {
        "host": hosts if len(hosts) > 1 else hosts[0] if hosts else None,
        "port": numbers if len(numbers) > 1 else numbers[0] if numbers else None,
        "user": url.username,
        "password": url.password,
        "database": url.database or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _port(text: str) -> int:
    return int(_converted("port", text or "5432", int))


def _converted(name: str, text: str, kind: Callable[[str], Any] | None = None) -> Any:
    convert = kind or _OF_ASYNCPG[name]
    try:
        return convert(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} in the database URL is {text!r}, not a number") from None


def _number(seconds: str) -> float:
    return float(_converted("connect_timeout", seconds, float))


def _flag_or_refuse(name: str, text: str) -> bool:
    return bool(_converted(name, text, _flag))


def _refuse_what_would_be_less_safe(options: Mapping[str, str]) -> None:
    if options.get("gssencmode") == "require":
        raise ValueError(
            "gssencmode=require in the database URL: the driver has no GSSAPI encryption; use sslmode"
        )


def _tls(arguments: dict[str, Any], options: dict[str, str]) -> None:
    """Move the TLS options to the arguments."""
    mode = options.pop("sslmode", None)
    mode = options.pop("ssl", None) if mode is None else mode
    if _flag_or_refuse("requiressl", options.pop("requiressl", "0")):
        mode = mode or "require"
    tls = {name: options.pop(name) for name in _TLS if name in options}
    for option in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):  # asyncpg's error names no file
        file = tls.get(option)
        if file is not None and (option, file) != ("sslrootcert", "system") and not Path(file).exists():
            raise ValueError(f"{option} in the database URL names {file!r}, which does not exist")
    if mode is not None:
        mode = _OTHER_SSL_MODES.get(mode.lower(), mode.lower())
        if mode not in _SSL_MODES:
            raise ValueError(
                f"sslmode in the database URL is {mode!r}: expected one of {', '.join(_SSL_MODES)}"
            )
        arguments["ssl"] = mode
    if tls.get("sslrootcert") == "system":  # the authorities of the machine, as in libpq 16
        context = ssl.create_default_context()
        if "sslcert" in tls:
            context.load_cert_chain(tls["sslcert"], tls.get("sslkey"), tls.get("sslpassword"))
        arguments["ssl"] = context
        tls = {}
    # asyncpg looks for a service only if it gets a URL, even an empty one.
    arguments["dsn"] = "postgresql://" + (f"?{urlencode(tls)}" if tls else "")


def _check_service(arguments: Mapping[str, Any]) -> None:
    """Refuse a service that does not exist, because asyncpg would connect to this machine instead."""
    service = arguments.get("service")
    if service is None:
        return
    file = arguments.get("servicefile") or os.environ.get("PGSERVICEFILE")
    path = Path(file) if file else Path.home() / ".pg_service.conf"
    known = ConfigParser()
    known.read(path)
    if service not in known.sections():
        raise ValueError(f"service in the database URL is {service!r}, which {path} does not have")
