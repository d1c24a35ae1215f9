"""Database URLs as people have them: pasted from a provider's page, written for libpq or other programs."""

from __future__ import annotations

import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasquencer.sql import SqlLedger
from tasquencer.sql.databases import database_at
from tasquencer.sql.postgres_options import connect_arguments
from tasquencer.sql.urls import parse, without_secrets
from tests.support.postgres import EmbeddedPostgres

SHOWN = {
    "sqlite:///a/b.db": "sqlite:///a/b.db",
    "sqlite+aiosqlite:////a/b.db": "sqlite:////a/b.db",
    "sqlite://": "sqlite://",
    " sqlite:///a/b.db\n": "sqlite:///a/b.db",
    "postgres://me:secret@host/db": "postgresql://me:***@host/db",
    "postgresql://me:secret@host:5/db?sslmode=require": "postgresql://me:***@host:5/db",
    "postgresql+asyncpg://host/db?password=secret": "postgresql://host/db",
    "postgresql+psycopg2://me:secret@host/db": "postgresql://me:***@host/db",
    "POSTGRESQL://me:secret@host/db": "postgresql://me:***@host/db",
    "jdbc:postgresql://host/db?user=me&password=secret": "postgresql://me:***@host/db",
    "'postgresql://me:secret@host/db'": "postgresql://me:***@host/db",
    "psql 'postgresql://me:secret@host/db'": "postgresql://me:***@host/db",
    "\t postgresql://me:secret@ho\r\nst/db \r\n": "postgresql://me:***@host/db",
    "postgresql://me:se/cr?et@host/db": "postgresql://me:***@host/db",
    "postgresql://me:secret@one:1,two:2/db": "postgresql://me:***@one,two/db",
    "postgresql://me:secret@[::1]:5/db": "postgresql://me:***@[::1]:5/db",
}


@pytest.mark.parametrize("url", SHOWN)
def test_a_url_is_shown_without_driver_options_and_password(url: str) -> None:
    assert SqlLedger(url).database == SHOWN[url]


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "secret", "", "sqlite:secret.db"])
def test_a_url_of_another_kind_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"expected sqlite:///file\.db or postgresql://user@host/database"
    ) as refusal:
        SqlLedger(url)
    assert "secret" not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    "url", ["sqlite://ledger.db", "sqlite://folder/ledger.db", "sqlite+aiosqlite://a.db"]
)
def test_a_sqlite_url_with_two_slashes_is_explained(url: str) -> None:
    with pytest.raises(ValueError, match=r"two slashes .*: write sqlite:///file\.db \(three\)"):
        SqlLedger(url)


HOST = {"host": "h", "dsn": "postgresql://"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    # addresses
    "postgresql://h": HOST,
    "postgresql://u:p%40%2F@h:6/d": HOST | {"user": "u", "password": "p@/", "port": 6, "database": "d"},
    "postgresql:///d?host=/run/postgresql&port=6": HOST
    | {"host": "/run/postgresql", "port": 6, "database": "d"},
    "postgresql://%2Frun%2Fpostgresql/d": HOST | {"host": "/run/postgresql", "database": "d"},
    "postgresql://h/d?user=u&password=p&port=6": HOST
    | {"user": "u", "password": "p", "port": 6, "database": "d"},
    "postgresql://h/?dbname=d": HOST | {"database": "d"},
    "postgresql://?hostaddr=127.0.0.1": HOST | {"host": "127.0.0.1"},
    "postgresql://u@a:1,b:2/d?target_session_attrs=read-write": HOST
    | {
        "host": ["a", "b"],
        "port": [1, 2],
        "user": "u",
        "database": "d",
        "target_session_attrs": "read-write",
    },
    "postgresql://a,b:2/": HOST | {"host": ["a", "b"], "port": [5432, 2]},
    "postgresql://a,b/": HOST | {"host": ["a", "b"]},
    "postgresql://[::1]:1,[::2]/": HOST | {"host": ["::1", "::2"], "port": [1, 5432]},
    "postgresql:///?host=a,b&port=1,2": HOST | {"host": ["a", "b"], "port": [1, 2]},
    "postgresql:///?host=a,b&port=1": HOST | {"host": ["a", "b"], "port": 1},
    # libpq's options
    "postgresql://h?connect_timeout=5": HOST | {"timeout": 5.0},
    "postgresql://h?connect_timeout=1": HOST | {"timeout": 2.0},
    "postgresql://h?connect_timeout=0": HOST,
    "postgresql://h?sslmode=require": HOST | {"ssl": "require"},
    "postgresql://h?sslmode=": HOST,
    "postgresql://h?requiressl=1": HOST | {"ssl": "require"},
    "postgresql://h?sslmode=require&channel_binding=require": HOST | {"ssl": "require"},
    "postgresql://h?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5": HOST,
    "postgresql://h?tcp_user_timeout=5000&gssencmode=disable&krbsrvname=pg": HOST | {"krbsrvname": "pg"},
    "postgresql://h?application_name=mine": HOST | {"server_settings": {"application_name": "mine"}},
    "postgresql://h?fallback_application_name=mine": HOST | {"server_settings": {"application_name": "mine"}},
    "postgresql://h?options=-c%20search_path%3Dours": HOST
    | {"server_settings": {"options": "-c search_path=ours"}},
    "postgresql://h?client_encoding=utf8&sslcompression=0&sslsni=1&require_auth=scram-sha-256": HOST,
    "postgresql://h?load_balance_hosts=random&passfile=/p": HOST | {"passfile": "/p"},
    "postgresql://h?sslnegotiation=direct": HOST | {"dsn": "postgresql://?sslnegotiation=direct"},
    # asyncpg's and SQLAlchemy's
    "postgresql+asyncpg://h?ssl=true": HOST | {"ssl": "require"},
    "postgresql+asyncpg://h?ssl=verify-full": HOST | {"ssl": "verify-full"},
    "postgresql+asyncpg://h?ssl=false": HOST | {"ssl": "disable"},
    "postgresql+asyncpg://h?timeout=5&command_timeout=2.5": HOST | {"timeout": 5.0, "command_timeout": 2.5},
    "postgresql+asyncpg://h?max_cached_statement_lifetime=60&max_cacheable_statement_size=0": HOST
    | {"max_cached_statement_lifetime": 60, "max_cacheable_statement_size": 0},
    "postgresql+asyncpg://h?direct_tls=true&async_fallback=true": HOST | {"direct_tls": True},
    # other programs'
    "postgresql://h?connection_limit=5&pool_timeout=10": HOST,
    # the server's
    "postgresql://h?statement_timeout=5000&search_path=ours": HOST
    | {"server_settings": {"statement_timeout": "5000", "search_path": "ours"}},
}


@pytest.mark.parametrize("url", ARGUMENTS)
def test_what_asyncpg_is_given(url: str) -> None:
    assert connect_arguments(parse(url)) == (ARGUMENTS[url], None)


@pytest.mark.parametrize(
    ("option", "pooled"),
    [
        ("statement_cache_size=0", True),
        ("prepared_statement_cache_size=0", True),
        ("pgbouncer=true", True),
        ("pgbouncer=false", None),
        ("statement_cache_size=50", False),
    ],
)
def test_a_url_may_say_whether_a_pooler_is_in_between(option: str, pooled: bool | None) -> None:
    arguments, found = connect_arguments(parse(f"postgresql://h?{option}"))
    assert (arguments, found) == (HOST, pooled)


REFUSED = {
    "connect_timeout=soon": "connect_timeout in the database URL is 'soon', not a number",
    "statement_cache_size=many": "statement_cache_size in the database URL is 'many', not a number",
    "port=x": "port in the database URL is 'x', not a number",
    "sslmode=sometimes": "sslmode in the database URL is 'sometimes': expected one of disable, allow, ",
    "gssencmode=require": "no GSSAPI encryption; use sslmode",
    "sslrootcert=/nowhere/ca.pem": "sslrootcert in the database URL names '/nowhere/ca.pem', which does",
    "service=nowhere": "service in the database URL is 'nowhere', which ",
    "port=1,2": "the database URL has 1 hosts and 2 ports",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_cannot_be_used_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"in the database URL|the database URL has") as refusal:
        database_at(f"postgresql://u:secret@h/d?{option}")
    assert REFUSED[option] in str(refusal.value)


def test_the_machines_own_authorities() -> None:
    arguments, _ = connect_arguments(parse("postgresql://h?sslmode=verify-full&sslrootcert=system"))
    assert isinstance(arguments["ssl"], ssl.SSLContext)
    assert arguments["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert arguments["ssl"].check_hostname


def test_no_password_of_a_url_is_repeated() -> None:
    url = parse("postgresql://h/d?password=first&sslpassword=second")
    assert without_secrets("first second third", url) == "*** *** third"


async def asked(url: str, question: str) -> object:
    database = database_at(url)
    try:
        return await database.read(lambda connection: connection.scalar(sa.text(question)))
    finally:
        await database.close()


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "options",
    [
        "sslmode=prefer&channel_binding=prefer&connect_timeout=10&gssencmode=prefer",
        "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=9000",
        "sslmode=disable&client_encoding=UTF8&load_balance_hosts=disable&replication=0&sslcompression=0",
        "command_timeout=20&timeout=20&statement_cache_size=50&prepared_statement_cache_size=50",
        "max_cached_statement_lifetime=0&max_cacheable_statement_size=100&async_fallback=true",
        "target_session_attrs=read-write&hostaddr=127.0.0.1",
        "pgbouncer=true&connection_limit=5&pool_timeout=10",
    ],
)
async def test_a_server_takes_a_url_with_these_options(postgres: EmbeddedPostgres, options: str) -> None:
    assert await asked(f"{postgres.url}?{options}", "SELECT 1") == 1


@pytest.mark.postgresql
async def test_what_the_options_say_holds_in_the_session(postgres: EmbeddedPostgres) -> None:
    name = await asked(postgres.url + "?application_name=mine", "SHOW application_name")
    assert name == "mine"
    path = await asked(postgres.url + "?options=-csearch_path%3Dours", "SHOW search_path")
    assert path == "ours"
    timeout = await asked(postgres.url + "?statement_timeout=5000", "SHOW statement_timeout")
    assert timeout == "5s"


@pytest.mark.postgresql
async def test_the_next_host_serves_when_the_first_is_down(postgres: EmbeddedPostgres) -> None:
    url = f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{postgres.port}/postgres"
    assert await asked(url + "?target_session_attrs=primary", "SELECT 1") == 1


@pytest.mark.postgresql
async def test_a_service_names_the_server(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    file = tmp_path / "services.conf"
    file.write_text(f"[ours]\nhost=127.0.0.1\nport={postgres.port}\nuser=postgres\ndbname=postgres\n")
    assert await asked(f"postgresql://?service=ours&servicefile={file}", "SELECT 1") == 1
