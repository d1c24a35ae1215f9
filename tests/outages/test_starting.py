"""What cannot be reached or is set wrongly: one line that says so, and the right exit status."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import worker
from tasquencer.cli.main import app
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.outages.postgres import FallingPostgres
from tests.outages.tls import (
    Certificate,
    authority_and_certificate,
    postgres_with_tls,
    server,
    server_with_tls,
)
from tests.support.patience import PATIENCE_SECONDS

KEY = "sk-s3cret"
PASSWORD = "s3cret"
worker_app = typer.Typer(pretty_exceptions_enable=False)
worker_app.command()(worker.main)


@dataclass(frozen=True)
class Ports:
    """Servers that are not what they should be, and the certificates that they show."""

    good: Certificate
    expired: Certificate
    tls: int
    expired_tls: int
    postgres_tls: int
    expired_postgres_tls: int
    unauthorized: int


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


async def _refuse_credentials(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As much of gRPC as it takes to answer the first call with UNAUTHENTICATED."""
    await reader.readexactly(24)  # the preface of HTTP/2
    writer.write(_frame(4, 0, 0))
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == 1:  # HEADERS: the call
            answer = b"\x88" + _header(b"content-type", b"application/grpc") + _header(b"grpc-status", b"16")
            stream = int.from_bytes(head[5:], "big")
            writer.write(_frame(1, 0x5, stream, answer + _header(b"grpc-message", b"Request unauthorized.")))


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """They answer from a thread of their own, while the test runs a command in this one."""
    folder = tmp_path_factory.mktemp("certificates")
    good = authority_and_certificate(folder / "good")
    expired = authority_and_certificate(folder / "expired", expired=True)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[Ports] = []
    done = asyncio.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(context)
                for context in (
                    server_with_tls(good),
                    server_with_tls(expired),
                    postgres_with_tls(good),
                    postgres_with_tls(expired),
                    server(_refuse_credentials),
                )
            ]
            found.append(Ports(good, expired, *opened))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    yield found[0]
    loop.call_soon_threadsafe(done.set)
    thread.join()


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dev_server: EmbeddedTemporal
) -> pytest.MonkeyPatch:
    """All is well, until a test changes a setting."""
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "TASQ_", "TEMPORAL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("TEMPORAL_ADDRESS", dev_server.address)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("TASQ_DATABASE_URL", f"sqlite:///{tmp_path}/ledger.db")
    return monkeypatch


def ends(program: typer.Typer, *arguments: str) -> tuple[int, str]:
    """The exit status and the one line of the program that cannot do its work."""
    result = CliRunner().invoke(program, arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "s3cret" not in line
    return result.exit_code, line.removeprefix("error: ")


# Temporal

TEMPORAL: dict[str, tuple[dict[str, str], str]] = {
    "an address that is none": (
        {"TEMPORAL_ADDRESS": "127.0.0.1:99999"},
        "TEMPORAL_ADDRESS: must be host:port, without http://, not '127.0.0.1:99999'",
    ),
    "an address with a scheme": (
        {"TEMPORAL_ADDRESS": "http://127.0.0.1:7233"},
        "TEMPORAL_ADDRESS: must be host:port, without http://, not 'http://127.0.0.1:7233'",
    ),
    "an expired certificate": (
        {"TEMPORAL_ADDRESS": "localhost:{expired_tls}", "TEMPORAL_TLS": "true"},
        "its TLS certificate has expired (renew it on the server)",
    ),
    "a certificate signed by an unknown authority": (
        {"TEMPORAL_ADDRESS": "localhost:{tls}", "TEMPORAL_TLS": "true"},
        "its TLS certificate is not accepted (TEMPORAL_TLS_SERVER_CA_CERT_PATH names the authority",
    ),
    "a certificate for another name": (
        {
            "TEMPORAL_ADDRESS": "127.0.0.1:{tls}",
            "TEMPORAL_TLS": "true",
            "TEMPORAL_TLS_SERVER_CA_CERT_PATH": "{good.authority}",
        },
        "its TLS certificate is for another name (check TEMPORAL_ADDRESS, or set TEMPORAL_TLS_SERVER_NAME)",
    ),
    "an authority whose file is missing": (
        {"TEMPORAL_TLS": "true", "TEMPORAL_TLS_SERVER_CA_CERT_PATH": "/nowhere/ca.pem"},
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH: there is no file '/nowhere/ca.pem'",
    ),
    "TLS to a port without": (
        {"TEMPORAL_TLS": "true"},
        "it does not speak TLS (unset TEMPORAL_TLS; an API key turns TLS on unless TEMPORAL_TLS=false)",
    ),
    "no TLS to a port with": (
        {"TEMPORAL_ADDRESS": "127.0.0.1:{tls}"},
        "a server answers, but it is not Temporal (check the port; a server with TLS needs ",
    ),
    "a wrong API key": (
        {
            "TEMPORAL_ADDRESS": "127.0.0.1:{unauthorized}",
            "TEMPORAL_API_KEY": KEY,
            "TEMPORAL_TLS": "false",
        },
        "the credentials are not accepted (check TEMPORAL_API_KEY, or the client certificate)",
    ),
    "a file of profiles that is missing": (
        {"TEMPORAL_CONFIG_FILE": "/nowhere/temporal.toml"},
        "TEMPORAL_CONFIG_FILE: there is no file '/nowhere/temporal.toml'",
    ),
    "a profile that is unknown": (
        {"TEMPORAL_PROFILE": "nope"},
        "TEMPORAL_PROFILE: Profile 'nope' not found",
    ),
}


@pytest.mark.parametrize("problem", TEMPORAL)
def test_a_temporal_that_cannot_be_used(environment: pytest.MonkeyPatch, ports: Ports, problem: str) -> None:
    settings, says = TEMPORAL[problem]
    for name, value in settings.items():
        environment.setenv(name, value.format_map(_Facts(ports)))
    _cannot_reach_temporal(says)


def _cannot_reach_temporal(*says: str) -> None:
    """And the line says one of these."""
    for program, arguments in ((worker_app, ()), (app, ("run", "hello", "--detach"))):
        status, line = ends(program, *arguments)
        assert any(one in line for one in says), line
        is_setting = line.startswith("TEMPORAL_")
        assert status == (2 if is_setting else 3)
        assert is_setting or line.startswith("cannot reach Temporal at ")


class _Facts(dict[str, Any]):
    def __init__(self, ports: Ports) -> None:
        super().__init__(vars(ports))


def test_a_host_that_is_unknown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TEMPORAL_ADDRESS", "nowhere.invalid:7233")
    remedy = "(set TEMPORAL_ADDRESS, or "
    # The second where no name server answers.
    _cannot_reach_temporal(f"the host name cannot be resolved {remedy}", f"no answer within 10 s {remedy}")


def test_a_namespace_that_does_not_exist(
    environment: pytest.MonkeyPatch, dev_server: EmbeddedTemporal
) -> None:
    environment.setenv("TEMPORAL_NAMESPACE", "nowhere")
    status, line = ends(worker_app)
    assert status == 3
    assert line == (
        f"cannot reach Temporal at {dev_server.address}: it has no namespace 'nowhere' "
        "(set TEMPORAL_NAMESPACE, or create it: temporal operator namespace create)"
    )


def test_a_temporal_that_accepts_and_never_answers(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("tasquencer.temporal.connection._CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment.setenv("TEMPORAL_ADDRESS", address)
        for program, arguments in ((worker_app, ()), (app, ("run", "hello", "--detach"))):
            status, line = ends(program, *arguments)
            assert status == 3
            assert line.startswith(f"cannot reach Temporal at {address}: no answer within 0.5 s (set ")


# The ledger


def _refuses(environment: pytest.MonkeyPatch, url: str, *says: str, is_setting: bool = False) -> None:
    """With one of these texts."""
    environment.setenv("TASQ_DATABASE_URL", url)
    for program, arguments in ((worker_app, ()), (app, ("list",))):
        status, line = ends(program, *arguments)
        assert status == (2 if is_setting else 3)
        assert line.startswith("TASQ_DATABASE_URL: ") == is_setting
        assert any(one in line for one in says), line


VERIFY = "sslmode=verify-full&sslrootcert="
POSTGRESQL = {
    "a port out of range": ("127.0.0.1:99999/db", "port must be 0-65535"),
    "an expired certificate": (
        "localhost:{expired_postgres_tls}/db?" + VERIFY + "{expired.authority}",
        "certificate has expired",
    ),
    "a certificate for another name": (
        "127.0.0.1:{postgres_tls}/db?" + VERIFY + "{good.authority}",
        "certificate is not valid for '127.0.0.1'",
    ),
    "a certificate signed by an unknown authority": (
        "localhost:{postgres_tls}/db?" + VERIFY + "{expired.authority}",
        "unable to get local issuer certificate",
    ),
}


@pytest.mark.postgresql
@pytest.mark.parametrize("problem", POSTGRESQL)
def test_a_postgresql_that_cannot_be_reached(
    environment: pytest.MonkeyPatch, ports: Ports, problem: str
) -> None:
    place, says = POSTGRESQL[problem]
    _refuses(environment, f"postgresql://me:{PASSWORD}@" + place.format_map(_Facts(ports)), says)


def test_a_postgresql_on_an_unknown_host(environment: pytest.MonkeyPatch) -> None:
    # The others where no name server answers.
    says = ("Name or service not known", "Temporary failure in name resolution", "no answer in time")
    _refuses(environment, f"postgresql://me:{PASSWORD}@nowhere.invalid/db", *says)


def test_an_authority_for_postgresql_whose_file_is_missing(environment: pytest.MonkeyPatch) -> None:
    url = f"postgresql://me:{PASSWORD}@localhost/db?{VERIFY}/nowhere/ca.pem"
    _refuses(
        environment,
        url,
        "sslrootcert in the database URL names '/nowhere/ca.pem', which does not",
        is_setting=True,
    )


@pytest.mark.postgresql
def test_a_postgresql_that_refuses(environment: pytest.MonkeyPatch, falling: FallingPostgres) -> None:
    run(falling.run("CREATE ROLE locked LOGIN PASSWORD 'right'"))
    with _password_wanted(falling):
        url = f"postgresql://locked:s3cret@127.0.0.1:{falling.port}/ledger"
        _refuses(environment, url, 'password authentication failed for user "locked"')
    _refuses(environment, falling.url + "?sslmode=require", "rejected SSL upgrade")
    _refuses(
        environment,
        falling.url + "?sslmode=sometimes",
        "sslmode in the database URL is 'sometimes'",
        is_setting=True,
    )
    _refuses(environment, falling.url + "?no_such_setting=3", '"no_such_setting"')
    _refuses(environment, falling.url.replace("/ledger", "/nowhere"), 'database "nowhere" does not exist')
    _refuses(environment, falling.url.replace("/ledger", "/template1"), "has no schema, this release needs ")


@contextmanager
def _password_wanted(server: FallingPostgres) -> Iterator[None]:
    access = server.data / "pg_hba.conf"
    before = access.read_text()
    access.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + before)
    run(server.run("SELECT pg_reload_conf()"))
    try:
        yield
    finally:
        access.write_text(before)
        run(server.run("SELECT pg_reload_conf()"))


def run(work: Coroutine[Any, Any, None]) -> None:
    """From a test that is not itself asynchronous."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


def test_an_at_sign_in_a_password_must_be_escaped(
    environment: pytest.MonkeyPatch,
) -> None:
    url = "postgresql://me:pass@s3cret@127.0.0.1/db"
    _refuses(
        environment,
        url,
        "the database URL contains an unescaped @: write it as %40 in the password",
        is_setting=True,
    )


def test_a_sqlite_file_that_cannot_be_written(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    _refuses(environment, f"sqlite:///{folder}", "unable to open database file")
    (tmp_path / "file").touch()
    _refuses(environment, f"sqlite:///{tmp_path}/file/ledger.db", "File exists")
    _refuses(
        environment, f"sqlite:///file:{tmp_path}/new.db?mode=ro&uri=true", "unable to open database file"
    )
    with closing(sqlite3.connect(tmp_path / "empty.db")) as empty:
        empty.execute("PRAGMA user_version = 1")
    _refuses(environment, f"sqlite:///file:{tmp_path}/empty.db?mode=ro&uri=true", "readonly database")


# The worker's own settings


def problems_of_the_worker(environment: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What `worker.py` says of settings that it cannot use: a line for each, and status 2."""
    program = Path(worker.__file__)
    ran = subprocess.run(
        [sys.executable, program, *arguments],
        cwd=program.parent,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"s3cret" not in ran.stderr
    lines = ran.stderr.decode().splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


def test_all_problems_are_told_and_nothing_is_started(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "TASQ_CONCURRENT_CALLS": "many",
        "TASQ_DATABASE_URL": "mysql://localhost/db",
        "TEMPORAL_ADDRESS": "http://localhost:7233",
        "OPENAI_API_KEY": '"sk-s3cret"',
        "OPENAI_BASE_URL": "https://models.example.org/v1/chat/completions",
        "ALL_PROXY": "ftp://proxy",
        "SSL_CERT_FILE": "/nowhere/ca.pem",
    }.items():
        environment.setenv(name, value)
    problems = problems_of_the_worker(environment)
    assert [problem.partition(":")[0] for problem in problems] == [
        "TASQ_CONCURRENT_CALLS",
        "TASQ_DATABASE_URL",
        "TEMPORAL_ADDRESS",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "ALL_PROXY",
        "SSL_CERT_FILE",
    ]


def test_tasq_checks_what_it_uses_and_tells_all_problems(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", "'quoted'")  # only workers call a model
    environment.setenv("TASQ_DATABASE_URL", "mysql://localhost/db")
    environment.setenv("TEMPORAL_ADDRESS", "localhost")
    result = CliRunner().invoke(app, ["list"])
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", " TASQ_DATABASE_URL"],
        ["error", " TEMPORAL_ADDRESS"],
    ]


def test_empty_settings_are_unset_and_white_space_is_stripped(
    environment: pytest.MonkeyPatch, dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    empty = ("TASQ_TASK_QUEUE", "TASQ_LOG_LEVEL", "TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE", "TEMPORAL_TLS")
    for name in (*empty, "TEMPORAL_API_KEY", "TEMPORAL_CONFIG_FILE"):
        environment.setenv(name, " ")
    environment.setenv("TEMPORAL_ADDRESS", f" {dev_server.address}\n")
    environment.setenv("TASQ_DATABASE_URL", f"sqlite:///{tmp_path}/ledger.db\r\n")
    environment.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["run", "hello", "--detach"])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("models.example.org/v1", "expected a URL such as https://models.example.org/v1 or "),
        ("localhost:11434/v1", "expected a URL such as https://models.example.org/v1 or "),
        ("http://127.0.0.1:port/v1", "Port could not be cast to integer value"),
    ],
)
@pytest.mark.parametrize("key", [KEY, None])
def test_a_base_url_that_is_none(
    environment: pytest.MonkeyPatch, base_url: str, says: str, key: str | None
) -> None:
    environment.setenv("OPENAI_BASE_URL", base_url)
    if key is None:
        environment.delenv("OPENAI_API_KEY")
    status, line = ends(worker_app)
    assert status == 2
    assert line.startswith("OPENAI_BASE_URL: ") and says in line


def test_a_metrics_port_that_is_occupied(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment.setenv("TASQ_METRICS_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        status, line = ends(worker_app)
    assert status == 2
    assert line.startswith("TASQ_METRICS_ADDRESS: ") and "Address already in use" in line


def test_a_log_level_that_is_unknown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TASQ_LOG_LEVEL", "LOUD")
    problems = problems_of_the_worker(environment)
    assert problems == ["TASQ_LOG_LEVEL: must be one of DEBUG, INFO, WARNING, ERROR, not 'LOUD'"]
