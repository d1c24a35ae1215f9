"""`tasq` and the stock worker with a codec."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from temporalio.client import Client

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.core.errors import WrongSetting
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tasquencer.temporal.converter import configured
from tests.cli.processes import finish
from tests.layer.own_converter import converter
from tests.support.answers import ok, rate_limited, status
from tests.support.encryption import ENCRYPTED, payloads_in
from tests.support.patience import eventually
from tests.support.provider import ScriptedProvider

OWN = "tests.layer.own_converter"


@pytest.fixture(scope="module")
async def environment(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The environment of `tasq`, while a worker with a codec serves its task queue."""
    folder = tmp_path_factory.mktemp("run")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="codec-tests")
    script = {"moons": [status(503), ok("Io.")], "waits": [rate_limited("3000")]}
    async with ScriptedProvider(script, then=ok("Io.")) as provider:
        model = AnsweringModel(
            "scripted", None, provider.base_url, {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        )
        variables = worker_environment(os.environ, dev_server, settings, model, provider.base_url, folder)
        variables |= {"TASQ_DATA_CONVERTER": f"{OWN}:make", "PYTHONPATH": str(Path.cwd())}
        async with running_worker(find_worker(Path.cwd()), variables):
            yield variables


async def test_the_stock_worker_and_the_command_take_a_codec(
    environment: dict[str, str], dev_server: EmbeddedTemporal
) -> None:
    ran = await finish(
        "run", "moons", "--id", "hidden", "--initial-interval", "100ms", environment=environment
    )
    assert (ran.code, ran.stdout) == (0, "Io.\n"), ran.stderr
    client = await Client.connect(dev_server.address, data_converter=converter)
    found: dict[str, Any] = {}
    async for event in client.get_workflow_handle("hidden").fetch_history_events():
        found |= dict(payloads_in(event))
    assert found
    plain = {path for path, payload in found.items() if payload.metadata["encoding"] != ENCRYPTED}
    assert plain == set()
    checked = await finish("ledger", "verify", "hidden", environment=environment)
    assert checked.code == 0, checked.stdout + checked.stderr
    watched = await finish("watch", "hidden", environment=environment)
    assert (watched.code, watched.stdout) == (0, "Io.\n"), watched.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("", "cannot decode a payload with the encoding 'binary/encrypted': set TASQ_DATA_CONVERTER="),
        (
            f"{OWN}:of_another_key",
            "the codec of TASQ_DATA_CONVERTER cannot decode a payload: ValueError: ",
        ),
    ],
)
@pytest.mark.parametrize("command", [["watch", "hidden-2"], ["retry-now", "hidden-2", "--yes"]])
async def test_the_command_says_what_it_cannot_decode(
    environment: dict[str, str], setting: str, said: str, command: list[str]
) -> None:
    started = await finish("run", "moons", "--id", "hidden-2", environment=environment)
    assert started.code in (0, 1)
    ran = await finish(*command, environment={**environment, "TASQ_DATA_CONVERTER": setting})
    assert (ran.code, ran.stdout) == (3, "")
    assert ran.stderr.startswith(f"error: {said}"), ran.stderr
    assert "Traceback" not in ran.stderr


async def test_what_only_needs_the_ledger_works_without_the_codec(environment: dict[str, str]) -> None:
    listed = await finish("list", "--json", environment={**environment, "TASQ_DATA_CONVERTER": ""})
    assert listed.code == 0, listed.stderr
    assert json.loads(listed.stdout)


async def test_a_pause_is_encoded_and_listed(
    environment: dict[str, str], dev_server: EmbeddedTemporal
) -> None:
    start = ("run", "waits", "--id", "hidden-3", "--detach")
    assert (await finish(*start, environment=environment)).code == 0

    async def listed(setting: str = f"{OWN}:make") -> tuple[JsonValue, str]:
        command = ("list", "--task", "hidden-3", "--state", "initialized")
        chosen = {**environment, "TASQ_DATA_CONVERTER": setting}
        as_json = await finish(*command, "--json", environment=chosen)
        table = await finish(*command, environment=chosen)
        assert (as_json.code, table.code) == (0, 0)
        return next((item["paused"] for item in json.loads(as_json.stdout)), None), table.stderr

    async def is_known() -> bool:
        return (await listed())[0] is False

    async def paused() -> Any:
        return (await listed())[0]

    await eventually(is_known, "the retry in the list")
    by_anna = ("--actor", "anna", "--reason", "too expensive")
    assert (await finish("pause", "hidden-3", *by_anna, environment=environment)).code == 0
    assert (await eventually(paused, "the pause in the list"))["reason"] == "too expensive"
    client = await Client.connect(dev_server.address, data_converter=converter)
    memo = (
        await client.get_workflow_handle("hidden-3").describe()
    ).raw_description.workflow_execution_info.memo
    assert {payload.metadata["encoding"] for payload in memo.fields.values()} == {ENCRYPTED}

    async def is_not_decoded() -> bool:
        unknown, problem = await listed(setting="")
        assert unknown is None
        return problem.startswith("pauses are unknown: cannot decode a payload with the encoding 'binary/enc")

    await eventually(is_not_decoded, "the reason why the pause is unknown, which the list waits for 2 s only")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nonsense", "must be module:attribute, found 'nonsense'"),
        ("no.such.module:it", "'no.such.module:it' cannot be used: ModuleNotFoundError"),
        (f"{OWN}:absent", "cannot be used: AttributeError"),
        (f"{OWN}:nothing", "must be a temporalio.converter.DataConverter, found str"),
    ],
)
async def test_a_setting_that_names_no_converter_is_refused(
    environment: dict[str, str], name: str, problem: str
) -> None:
    with pytest.raises(WrongSetting, match=problem.partition("'")[0]):
        configured({"TASQ_DATA_CONVERTER": name})
    ran = await finish("watch", "hidden", environment={**environment, "TASQ_DATA_CONVERTER": name})
    assert ran.code != 0
    assert ran.stderr.startswith("error: TASQ_DATA_CONVERTER: ") and problem in ran.stderr


def test_the_setting_may_name_a_converter_or_a_function() -> None:
    assert configured({}) is configured({"TASQ_DATA_CONVERTER": ""}) is None
    assert configured({"TASQ_DATA_CONVERTER": f"{OWN}:converter"}) is converter
    assert configured({"TASQ_DATA_CONVERTER": f"{OWN}:make"}) is converter
