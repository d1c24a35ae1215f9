"""Database URLs: reads them, and shows them without the password."""

from __future__ import annotations

import re
from urllib.parse import unquote

import sqlalchemy as sa

__all__ = ["parse", "shown", "without_secrets"]

_EXPECTED = "expected sqlite:///file.db or postgresql://user@host/database"

_SEVERAL_HOSTS = re.compile(r"(?P<start>[^:/?#]+://(?:[^/?#]*@)?)(?P<hosts>[^/?#@]*,[^/?#@]*)(?P<rest>.*)")
_HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>\d*))?")


def parse(database_url: str) -> sa.URL:
    """Return the URL with the driver that the ledger uses.

    Takes `sqlite:///file.db`, `sqlite://` (in memory), `postgresql://user@host/database` and `postgres://…`,
    with or without a driver. Ignores white space and quotes around the URL and line breaks in it. Several
    hosts of a PostgreSQL URL become one host name with commas, as in libpq.

    Raises:
        ValueError: it is not such a URL. The message does not repeat it, because it may contain a password.
    """
    text = re.sub(r"[\r\n\t]", "", database_url).strip().removeprefix("psql ").strip(" \"'")
    text = text.removeprefix("jdbc:")
    several = _SEVERAL_HOSTS.fullmatch(text)
    hosts = [_HOST.fullmatch(one) for one in several["hosts"].split(",")] if several else []
    if several is not None:
        text = several["start"] + "host" + several["rest"]
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(f"the database URL cannot be read: {_EXPECTED}") from None
    kind = url.drivername.partition("+")[0].lower()
    if kind == "sqlite":
        return _sqlite(url)
    if kind in ("postgres", "postgresql"):
        return _postgresql(url, [one for one in hosts if one is not None])
    raise ValueError(f"the ledger supports SQLite and PostgreSQL, not {url.drivername!r}: {_EXPECTED}")


def _sqlite(url: sa.URL) -> sa.URL:
    if url.host is not None or url.username is not None:
        raise ValueError(
            "the database URL has two slashes before the file's name: write sqlite:///file.db (three) "
            "for a file in the current folder, sqlite:////folder/file.db (four) for an absolute path"
        )
    return url.set(drivername="sqlite+pysqlite")


def _postgresql(url: sa.URL, hosts: list[re.Match[str]]) -> sa.URL:
    """Return the URL with the parts of the address that its options give."""
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    query = {name: value.strip() for name, value in query.items() if value.strip()}
    if hosts:
        url = url.set(host=",".join(one["host"].strip("[]") for one in hosts))
        if any(one["port"] for one in hosts):
            query.setdefault("port", ",".join(one["port"] or "5432" for one in hosts))
    address = query.pop("hostaddr", None)
    host = query.pop("host", None) or url.host or address
    if host is not None and "@" in host:
        raise ValueError("the database URL contains an unescaped @: write it as %40 in the password")
    port = query.pop("port", None)
    if port is not None and port.isdigit():
        url, port = url.set(port=int(port)), None
    database = query.pop("dbname", None) or query.pop("database", None) or url.database
    return sa.URL.create(
        "postgresql+asyncpg",
        username=query.pop("user", None) or url.username,
        password=query.pop("password", None) or url.password,
        host=unquote(host) if host is not None else None,
        port=url.port,
        database=database,
        query=query if port is None else {**query, "port": port},
    )


def shown(url: sa.URL) -> str:
    """Return the URL for people: no driver, no options, `***` for the password."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return plain.render_as_string(hide_password=True)


def without_secrets(text: str, url: sa.URL) -> str:
    """Return the text without the URL's passwords, in case a driver repeated them."""
    for secret in (url.password, url.query.get("sslpassword")):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
