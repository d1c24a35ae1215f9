"""No API key, authorization header or password rests in a history, the ledger, a log or what `tasq` says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from temporalio.client import WorkflowFailureError
from typer.testing import CliRunner

from tasquencer.cli.main import app
from tasquencer.core.failure import FailureKind
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import upgrade
from tests.activities.calling import error_of
from tests.end_to_end.stage import Stage
from tests.poison.wire import GOOD, head, sending
from tests.secrets.search import found_in
from tests.support import answers
from tests.support.answers import Answer, raw, status
from tests.support.patience import PATIENCE_SECONDS
from tests.support.postgres import EmbeddedPostgres
from tests.support.provider import ProviderRequest, ScriptedProvider
from tests.support.tasks import executable

K = FailureKind
KEY = "zqX7-wvKp2/Lm9+Rt4Yb8Nc3=Hd6jF5"
DATABASE_PASSWORD = "pW-8f!3k@Zr5:Qm2/x"
TEMPORAL_KEY = "tmprl.eyJz8Kq4Vw.Xn7Lb2"
URL_PASSWORD = "uP4-Gx9.Ty6_Bv1"
SECRETS = [KEY, DATABASE_PASSWORD, TEMPORAL_KEY, URL_PASSWORD]

MASKED = f"{KEY[:8]}{'*' * 12}{KEY[-4:]}"
BASIC = base64.b64encode(f"user:{URL_PASSWORD}".encode()).decode()
ECHO = (
    f"Incorrect API key provided: {KEY}. Was 'Authorization: Bearer {KEY}', in a URL {quote(KEY, safe='')}, "
    f"masked {MASKED}, cut {KEY[:20]}, from http://user:{KEY}@host/?key={KEY}#{KEY} or x-api-key: {KEY}"
)
HEADERS = {
    "x-request-id": KEY,
    "request-id": f"Bearer {KEY}",
    "set-cookie": f"session={KEY}",
    "x-echo": f"Authorization: Bearer {KEY}",
    "retry-after": KEY,
}


def echoing(number: int, **fields: Any) -> Answer:
    """An error that quotes the key wherever it can."""
    error = {"message": ECHO, "type": KEY, "code": KEY, "param": KEY} | fields
    return status(number, {"error": error}, headers=HEADERS)


def completion(**choice: Any) -> Answer:
    """A good status with the key wherever it can be but in the text."""
    body = {"id": KEY, "model": KEY, "choices": [{"finish_reason": KEY} | choice], "system_fingerprint": KEY}
    return raw(json.dumps(body).encode(), headers=HEADERS)


FAILURES: dict[str, tuple[Answer, FailureKind]] = {
    "429": (echoing(429), K.RATE_LIMITED),
    "quota": (echoing(429, code="insufficient_quota"), K.QUOTA_EXCEEDED),
    "408": (echoing(408), K.TIMED_OUT),
    "silence": (answers.stall(), K.TIMED_OUT),
    "closed": (answers.closed(), K.UNREACHABLE),
    "500": (echoing(500), K.PROVIDER_ERROR),
    "page": (status(502, f"<title>{ECHO}</title>", headers=HEADERS), K.PROVIDER_ERROR),
    "text": (raw(ECHO.encode(), code=503, content_type="text/plain", headers=HEADERS), K.PROVIDER_ERROR),
    "no JSON": (raw(f"{{{ECHO}".encode(), headers=HEADERS), K.PROVIDER_ERROR),
    "error in a 200": (raw(json.dumps({"error": {"message": ECHO, "code": KEY}}).encode()), K.PROVIDER_ERROR),
    "no choices": (raw(json.dumps({"key": KEY, "headers": ECHO}).encode()), K.PROVIDER_ERROR),
    "not HTTP": (sending(f"{KEY} {ECHO}\r\n\r\n".encode()), K.PROVIDER_ERROR),
    "bad header": (sending(head("200 OK", f"x {KEY}: \x00{KEY}".encode()), GOOD), K.PROVIDER_ERROR),
    "breaks off": (sending(head("200 OK", b"content-length: 9999"), ECHO.encode()), K.PROVIDER_ERROR),
    "redirect": (
        raw(
            b"",
            code=307,
            headers=HEADERS | {"location": f"http://user:{KEY}@127.0.0.1:1/{KEY}?key={KEY}#token={KEY}"},
        ),
        K.PROVIDER_ERROR,
    ),
    "empty": (completion(message={"content": ""}), K.INVALID_OUTPUT),
    "refusal": (completion(message={"refusal": ECHO}), K.REFUSED),
    "400": (echoing(400), K.INVALID_REQUEST),
    "401": (echoing(401), K.UNAUTHORIZED),
    "huge": (completion(message={"content": "x" * 3_000_000}), K.TOO_LARGE),
}


def test_every_kind_of_failure_that_a_provider_causes_is_among_them() -> None:
    others = {K.WORKER_LOST, K.WORKER_SHUTDOWN, K.NOT_PICKED_UP, K.OPERATOR, K.UNEXPECTED}
    assert {kind for _, kind in FAILURES.values()} == set(K) - others


@pytest.mark.parametrize(
    "kept",
    [
        f"…{KEY[3:11]}…",
        f"x{quote(KEY, safe='')}",
        base64.b64encode(KEY.encode()),
        base64.b64encode(b"Bearer " + KEY.encode()),
        base64.b64encode(f"ab{KEY}".encode()),
    ],
)
def test_the_search_finds_a_secret_whole_in_pieces_and_encoded(kept: str | bytes) -> None:
    assert found_in(kept, [KEY])
    assert not found_in(kept, [DATABASE_PASSWORD])


def script(request: ProviderRequest) -> Answer:
    if request.prompt in FAILURES:
        return FAILURES[request.prompt][0]
    return completion(message={"content": "Hi"})


def with_password(url: str) -> str:
    """The server trusts everybody: it takes any password."""
    return url.replace("postgres@", f"postgres:{quote(DATABASE_PASSWORD, safe='')}@")


async def dumped(url: str) -> str:
    """Every table of the database, every column, as text."""
    engine = create_async_engine(url)
    rows: list[str] = []

    def read(connection: sa.Connection) -> None:
        for name in sa.inspect(connection).get_table_names():
            rows.extend(str(tuple(row)) for row in connection.exec_driver_sql(f'SELECT * FROM "{name}"'))

    async with engine.connect() as connection:
        await connection.run_sync(read)
    await engine.dispose()
    return "\n".join(rows)


async def tasq(stage: Stage, settings: dict[str, str | None], *arguments: str) -> str:
    process = ChildProcess("tasq", [executable("tasq"), *arguments], environment=stage.environment(settings))
    try:
        assert await process.wait(timeout_seconds=PATIENCE_SECONDS) is not None
        return process.output()
    finally:
        process.kill()


@pytest.mark.postgresql
async def test_whatever_a_provider_says_about_the_key_is_not_kept(
    dev_server: EmbeddedTemporal, tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    url = await postgres.create_database("secrets")
    await upgrade(url)
    async with ScriptedProvider(script) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        settings: dict[str, str | None] = {
            "OPENAI_API_KEY": KEY,
            "TASQ_DATABASE_URL": with_password(url),
            "TEMPORAL_API_KEY": TEMPORAL_KEY,
            "TEMPORAL_TLS": "false",
        }
        async with stage.worker("--log-level", "DEBUG", settings=settings) as worker:
            tasks = {
                name: await stage.start(
                    name, max_retries=0, attempt_timeout_seconds=2 if name == "silence" else 30
                )
                for name in [*FAILURES, "good"]
            }
            ends = await asyncio.gather(*(task.result() for task in tasks.values()), return_exceptions=True)
            shown = await asyncio.gather(
                tasq(stage, settings, "list", "--json"),
                tasq(stage, settings, "show", tasks["401"].id, "--json"),
                tasq(stage, settings, "show", tasks["redirect"].id),
                tasq(stage, settings, "watch", tasks["500"].id, "--json"),
            )
            said = worker.output()
        histories = {name: await task.fetch_history() for name, task in tasks.items()}
        exported = {f"history of {name!r}": history.to_json() for name, history in histories.items()}
        binary = {
            f"payloads of {name!r}": b"".join(event.SerializeToString() for event in history.events)
            for name, history in histories.items()
        }
    assert provider.requests[0].authorization == f"Bearer {KEY}"
    for name, end in zip(tasks, ends, strict=True):
        if name != "good":
            assert isinstance(end, WorkflowFailureError), name
            assert f" {FAILURES[name][1]}: " in str(end.cause), name
    ledger = await dumped(url)
    assert "rate_limited" in ledger and "rate_limited" in shown[0] and "unauthorized" in shown[1]
    assert "DEBUG" in said
    kept: dict[str, str | bytes] = {
        "ledger": ledger,
        **{f"worker: {line[:200]}": line for line in said.splitlines()},
        "errors": repr([(end, getattr(end, "cause", None)) for end in ends]),
        **{f"tasq {number}": text for number, text in enumerate(shown)},
        **exported,
        **binary,
    }
    assert {place: found for place, text in kept.items() if (found := found_in(text, SECRETS))} == {}


@pytest.mark.parametrize("reachable", [True, False])
async def test_credentials_in_the_provider_s_url_are_not_kept(reachable: bool, closed_port: int) -> None:
    def echo(request: ProviderRequest) -> Answer:
        return status(401, {"error": {"message": f"no: {request.authorization} {BASIC} {ECHO}"}})

    async with ScriptedProvider(echo) as provider:
        address = urlsplit(provider.base_url).netloc if reachable else f"127.0.0.1:{closed_port}"
        error = await error_of(f"http://user:{URL_PASSWORD}@{address}/v1", key=KEY)
    assert error.type == ("unauthorized" if reachable else "unreachable")
    assert found_in(f"{error} {error.details}", [*SECRETS, BASIC]) == []


WRONG_DATABASES = {
    "unreachable": "postgresql://tasq:{password}@127.0.0.1:{port}/ledger",
    "no such host": "postgresql://tasq:{password}@nowhere.invalid/ledger",
    "no such port": "postgresql://tasq:{password}@127.0.0.1:many/ledger",
    "no such option": "postgresql://tasq:{password}@127.0.0.1:{port}/ledger?sslmode={password}",
    "password as an option": "postgresql://tasq@127.0.0.1:{port}/ledger?password={password}",
    "no such database": "mysql://tasq:{password}@127.0.0.1/ledger",
    "no scheme": "tasq:{password}@127.0.0.1/ledger",
    "not quoted": "postgresql://tasq:" + DATABASE_PASSWORD + "@127.0.0.1:{port}/ledger",
}


def tasq_here(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], *arguments: str) -> str:
    """What `tasq` says, run in this process."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code in (2, 3)  # a wrong setting, or a database that cannot be reached
    return done.output


@pytest.mark.parametrize("case", WRONG_DATABASES)
def test_an_error_about_the_database_does_not_repeat_its_password(
    monkeypatch: pytest.MonkeyPatch, case: str, closed_port: int
) -> None:
    url = WRONG_DATABASES[case].format(password=quote(DATABASE_PASSWORD, safe=""), port=closed_port)
    for command in (["list"], ["show", "task-1"], ["db", "upgrade"]):
        said = tasq_here(monkeypatch, {"TASQ_DATABASE_URL": url}, *command)
        assert said.startswith("error: ")
        assert found_in(said, [DATABASE_PASSWORD]) == []


async def test_a_database_that_repeats_the_password_is_not_believed(
    dev_server: EmbeddedTemporal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        fields = f"SFATAL\0C28P01\0Mpassword authentication failed, got {DATABASE_PASSWORD}\0\0".encode()
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"postgresql://tasq:{quote(DATABASE_PASSWORD, safe='')}@127.0.0.1:{port}/ledger?sslmode=disable"
    async with server, ScriptedProvider() as provider:
        listed = await asyncio.to_thread(tasq_here, monkeypatch, {"TASQ_DATABASE_URL": url}, "list")
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.process("--log-level", "DEBUG", settings={"TASQ_DATABASE_URL": url}) as worker:
            assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 3, worker.output()
            said = worker.output()
    for text in (listed, said):
        assert "password authentication failed" in text
        assert found_in(text, [DATABASE_PASSWORD]) == []


def test_a_temporal_that_does_not_take_the_key_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    settings = {"TEMPORAL_API_KEY": TEMPORAL_KEY, "TEMPORAL_ADDRESS": f"127.0.0.1:{closed_port}"}
    said = tasq_here(monkeypatch, settings | {"TEMPORAL_CONFIG_FILE": os.devnull}, "watch", "task-1")
    assert said.startswith("error: cannot reach Temporal")
    assert found_in(said, SECRETS) == []
