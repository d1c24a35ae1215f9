"""Settings from the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasquencer.ai.provider import settings as provider
from tasquencer.ai.provider.client import client_from, output_limit_field
from tasquencer.settings import Settings, clean, problems_in
from tasquencer.temporal import settings as temporal

NAMES = ["TASQ_DATABASE_URL", "TASQ_MODEL", "TASQ_TASK_QUEUE"]
KEY = "sk-proj-s3cret_key-1"
LOCAL = "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize("end", ["", " ", "\r\n"])
def test_every_setting_is_read_from_its_variable(end: str) -> None:
    environment = {
        "TASQ_DATABASE_URL": f"sqlite://{end}",
        "TASQ_MODEL": f"m{end}",
        "TASQ_TASK_QUEUE": f"{end}q",
    }

    assert Settings.from_environment(environment) == Settings("sqlite://", "m", "q")


@pytest.mark.parametrize("environment", [{}, dict.fromkeys(NAMES, ""), dict.fromkeys(NAMES, " \n")])
def test_an_unset_or_empty_variable_means_the_default(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    settings = Settings.from_environment(environment)

    assert (settings.model, settings.task_queue) == ("gpt-5-mini", "ai-agent")
    assert settings.database_url.startswith(f"sqlite:///{tmp_path}")
    assert settings.database_url.endswith("tasquencer/ledger.db")


def test_only_settings_are_cleaned() -> None:
    environment = {"TASQ_MODEL": " ", "OPENAI_ORG_ID": "", "https_proxy": "", "PATH": " x ", "EMPTY": ""}
    clean(environment)
    assert environment == {"PATH": " x ", "EMPTY": ""}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("TASQ_CONCURRENT_CALLS", "many", "must be a whole number, not 'many'"),
        ("TASQ_CONCURRENT_CALLS", "0", "must be at least 1 and at most 1e+06, not '0'"),
        ("TASQ_CALLS_PER_SECOND", "nan", "must be at least 0.001 and at most 1e+06, not 'nan'"),
        ("TASQ_GRACE_PERIOD", "-1", "must be at least 0"),
        ("TASQ_GRACE_PERIOD", "inf", "must be at least 0"),
        ("TASQ_HEARTBEAT_INTERVAL", "5s", "must be a number, not '5s'"),
        ("TASQ_RECONCILE_EVERY", "never", "must be a number, not 'never'"),
        ("TASQ_LOG_LEVEL", "LOUD", "must be one of DEBUG, INFO, WARNING, ERROR, not 'LOUD'"),
        ("TASQ_VERSIONING", "on", "must be one of pinned, auto-upgrade, not 'on'"),
        ("TASQ_METRICS_ADDRESS", "9464", "must be host:port, without http://, not '9464'"),
        ("TASQ_METRICS_ADDRESS", "http://0.0.0.0:9464", "must be host:port"),
        ("TASQ_TASK_QUEUE", '"ai-agent"', "is in quotes: remove them"),
        ("TASQ_MODEL", "gpt\x1b[2J", "must not contain control characters"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, problem: str) -> None:
    (found,) = problems_in({name: value})
    assert found.name == name
    assert found.problem.startswith(problem)


def test_right_settings_have_no_problems() -> None:
    right = {
        "TASQ_CONCURRENT_CALLS": "100",
        "TASQ_CALLS_PER_SECOND": "0.5",
        "TASQ_LOG_LEVEL": "debug",
        "TASQ_METRICS_ADDRESS": "[::1]:9464",
        "TASQ_VERSIONING": "auto-upgrade",
        "TASQ_TASK_QUEUE": "my queue",
    }
    assert not problems_in(right)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (f'"{KEY}"', "is in quotes"),
        (f"'{KEY}'", "is in quotes"),
        (f"\u201c{KEY}\u201d", "is in quotes"),
        (f"Bearer {KEY}", 'starts with "Bearer"'),
        (f"bearer\t{KEY}", 'starts with "Bearer"'),
        (f"Authorization: Bearer {KEY}", 'starts with "Bearer"'),
        (f"{KEY}\n{KEY}", "has a space or a line break that no key has, at position 21 of 41"),
        (f"{KEY}\u2013x", "has a character that no key has, at position 21 of 22"),
        ("${OPENAI_API_KEY}", "has a character that no key has, at position 1"),
        ("<your key>", "has a character that no key has, at position 1"),
    ],
)
def test_a_key_that_no_provider_gives_is_refused_without_being_shown(key: str, problem: str) -> None:
    (found,) = provider.problems_in({"OPENAI_API_KEY": key, "SSL_CERT_FILE": ""})
    assert found.name == "OPENAI_API_KEY"
    assert found.problem.startswith(problem)
    assert "s3cret" not in str(found)


def test_a_key_may_have_white_space_around_it() -> None:
    assert not provider.problems_in({"OPENAI_API_KEY": f" {KEY}\r\n", "OPENAI_BASE_URL": LOCAL})
    assert client_from({"OPENAI_API_KEY": f" {KEY}\n", "OPENAI_BASE_URL": LOCAL}).api_key == KEY


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://models.example.org/v1/chat/completions", "ends in '/chat/completions'"),
        ("https://models.example.org/v1/chat/completions/?api-version=1", "ends in '/chat/completions/'"),
        ("https://models.example.org/v1/responses", "ends in '/responses'"),
        ('"https://models.example.org/v1"', "expected a URL"),
        ("models.example.org", "expected a URL"),
        ("https://models.example.org/v1 # mine", "expected a URL"),
    ],
)
def test_a_base_url_that_cannot_work_is_refused(url: str, problem: str) -> None:
    (found,) = provider.problems_in({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url})
    assert (found.name, found.problem.startswith(problem)) == ("OPENAI_BASE_URL", True), found.problem


def test_the_query_of_a_base_url_goes_with_each_request() -> None:
    host = "https://mine.cognitiveservices.azure.com"
    client = client_from(
        {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{host}/openai/deployments/gpt?api-version=2025-01-01",
        }
    )
    assert str(client.base_url) == f"{host}/openai/deployments/gpt/"
    assert client.default_query == {"api-version": "2025-01-01"}
    assert client.default_headers["api-key"] == KEY
    assert output_limit_field(client.base_url, "my-deployment") == "max_completion_tokens"
    assert "api-key" not in client_from({"OPENAI_API_KEY": KEY}).default_headers


def test_empty_settings_of_the_openai_client_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, " ")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    client = client_from(os.environ)
    assert str(client.base_url) == "https://api.openai.com/v1/"
    assert (client.organization, client.project) == (None, None)
    sent = {name.lower() for name, value in client.default_headers.items() if isinstance(value, str)}
    assert not sent & {"openai-organization", "openai-project"}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "a SOCKS proxy needs the package socksio"),
        ("all_proxy", "socks5h://127.0.0.1:1080", "a SOCKS proxy needs the package socksio"),
        ("HTTPS_PROXY", "ftp://proxy", "expected a proxy such as"),
        ("HTTP_PROXY", "http://[::1", "expected a proxy such as"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "cannot read '/nowhere/ca.pem': No such file or directory"),
        ("SSL_CERT_FILE", __file__, f"'{__file__}' has no certificates in PEM format"),
        ("SSL_CERT_DIR", "/nowhere", "there is no folder '/nowhere'"),
    ],
)
def test_a_wrong_proxy_or_authority_is_one_line(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (found,) = provider.problems_in({"OPENAI_API_KEY": KEY, name: value})
    assert (found.name, found.problem.startswith(problem)) == (name, True), found.problem


def test_a_machine_without_authorities_is_called_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    monkeypatch.setattr(provider, "_authority_folder", lambda: tmp_path / "none")
    (found,) = provider.problems_in({"OPENAI_API_KEY": KEY})
    assert found.name == "SSL_CERT_FILE" and "has no certificate authorities" in found.problem
    assert not provider.problems_in({"OPENAI_BASE_URL": LOCAL})  # needs none


def test_temporal_s_settings_are_checked_without_a_server(tmp_path: Path) -> None:
    nowhere = {"TEMPORAL_CONFIG_FILE": "/dev/null"}
    assert not temporal.problems_in(
        nowhere | {"TEMPORAL_ADDRESS": " localhost:7233\n", "TEMPORAL_PROFILE": ""}
    )
    found = temporal.problems_in(
        {
            "TEMPORAL_ADDRESS": "localhost",
            "TEMPORAL_API_KEY": "Bearer x",
            "TEMPORAL_TLS_CLIENT_KEY_PATH": "/nowhere",
        }
    )
    assert [one.name for one in found] == [
        "TEMPORAL_ADDRESS",
        "TEMPORAL_API_KEY",
        "TEMPORAL_TLS_CLIENT_KEY_PATH",
    ]
    (unknown,) = temporal.problems_in(nowhere | {"TEMPORAL_PROFILE": "nope"})
    assert unknown.name == "TEMPORAL_PROFILE" and "nope" in unknown.problem
