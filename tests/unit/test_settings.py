"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasquencer.settings import Settings

NAMES = ["TASQ_DATABASE_URL", "TASQ_MODEL", "TASQ_TASK_QUEUE"]


def test_every_setting_is_read_from_its_variable() -> None:
    environment = {"TASQ_DATABASE_URL": "sqlite://", "TASQ_MODEL": "m", "TASQ_TASK_QUEUE": "q"}

    assert Settings.from_environment(environment) == Settings("sqlite://", "m", "q")


@pytest.mark.parametrize("environment", [{}, dict.fromkeys(NAMES, "")])
def test_an_unset_or_empty_variable_means_the_default(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    settings = Settings.from_environment(environment)

    assert (settings.model, settings.task_queue) == ("gpt-5-mini", "ai-agent")
    assert settings.database_url.startswith(f"sqlite:///{tmp_path}")
    assert settings.database_url.endswith("tasquencer/ledger.db")
