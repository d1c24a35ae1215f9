"""The benchmarks start, their short forms run, and what they find reaches the page."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import (
    ActivityTaskStartedEventAttributes,
    HistoryEvent,
    MarkerRecordedEventAttributes,
)

from benchmarks.attempts import Cost, billed_actions, table
from benchmarks.figures import markdown, milliseconds, percentile, save
from benchmarks.page import PAGE, filled, tables_in
from benchmarks.suite import PARTS, Part

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module",
    [
        *(part.module for part in PARTS),
        *("benchmarks.suite", "benchmarks.page", "benchmarks.reconcile", "benchmarks.comeback"),
    ],
)
def test_a_benchmark_explains_its_options(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{module}.__main__" if module in ("benchmarks", "benchmarks.peers") else module
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main()
    assert end.value.code == 0
    assert f"python -m {module}" in capsys.readouterr().out


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_the_suite_gives_a_benchmark_is_an_option_of_it(
    part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = part.module
    name = f"{module}.__main__" if module in ("benchmarks", "benchmarks.peers") else module
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    described = capsys.readouterr().out
    given = ["--json", "--quick", *(option for option in part.options if option.startswith("--"))]
    assert [option for option in given if option not in described] == []


@pytest.mark.parametrize(
    ("module", "options", "table"),
    [
        pytest.param("benchmarks.attempts", [], "attempt-costs", marks=pytest.mark.slow),
        ("benchmarks.ledger", ["--no-postgresql"], "ledger"),
        ("benchmarks.batch", [], "batch-growth"),
        ("benchmarks.queries", ["--no-postgresql", "--no-commands"], "queries"),
    ],
)
def test_the_quick_form_runs_and_writes_its_table(
    module: str, options: list[str], table: str, tmp_path: Path
) -> None:
    file = tmp_path / "results" / "measured.json"
    command = [sys.executable, "-m", module, "--quick", *options, "--json", str(file)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert written["tables"][table] in done.stdout
    assert "load" in written["facts"]


def test_a_result_takes_the_place_of_the_last_one_on_the_page(tmp_path: Path) -> None:
    table = markdown(["", "tasks/s"], [["ours", "12"]])
    save(tmp_path / "one.json", {"machine": "this one", "load": "5 rounds"}, {"a": table}, {})
    page = "before\n<!-- table: a -->\nold\n<!-- end -->\nbetween\n<!-- table: b -->\nold\n<!-- end -->\n"
    new = filled(page, tables_in(tmp_path))
    assert f"\n{table}\n\n<sub>machine this one; load 5 rounds</sub>\n" in new
    assert new.count("old") == 1
    assert filled(new, tables_in(tmp_path)) == new


def test_the_page_has_a_place_for_the_table_of_each_benchmark() -> None:
    places = set(re.findall(r"<!-- table: (\S+) -->", (TOP / PAGE).read_text()))
    others = {part.name for part in PARTS} - {"comparisons", "latency"}
    assert places == others | {"A", "B", "C", "D", "L", "agents", "batch-growth", "batch-sent"}


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (50, 2),  # two of four are 2 or less
        (75, 3),
        (99, 4),
        (0, 1),
    ],
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.00123, "1.23 ms"), (0.0123, "12.3 ms"), (0.123, "123 ms"), (1.234, "1.23 s")]
)
def test_a_time_is_shown_with_three_digits(seconds: float, shown: str) -> None:
    assert milliseconds(seconds) == shown


def test_the_local_activities_of_a_workflow_task_are_one_billed_action() -> None:
    def marker(workflow_task: int, name: str = "core_local_activity") -> HistoryEvent:
        attributes = MarkerRecordedEventAttributes(
            marker_name=name, workflow_task_completed_event_id=workflow_task
        )
        return HistoryEvent(
            event_type=EventType.EVENT_TYPE_MARKER_RECORDED, marker_recorded_event_attributes=attributes
        )

    started = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    assert billed_actions([started, marker(4), marker(4), marker(9), marker(9, "core_patch")]) == 3


def test_each_native_retry_is_a_billed_action() -> None:
    third = HistoryEvent(
        event_type=EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED,
        activity_task_started_event_attributes=ActivityTaskStartedEventAttributes(attempt=3),
    )
    timer = HistoryEvent(event_type=EventType.EVENT_TYPE_TIMER_STARTED)
    assert billed_actions([third, timer]) == 4


def test_a_cost_shows_the_first_try_and_each_further_one() -> None:
    cost = Cost(
        "task",
        pushed=True,
        events={0: 14, 2: 40},
        actions={0: 4, 2: 12},
        history_bytes={0: 3600, 2: 9000},
        cpu_seconds={0: [0.02, 0.01, 0.03], 2: [0.06, 0.06, 0.06]},
        heartbeats=0.5,
    )
    cells = [cell.strip() for cell in table([cost]).splitlines()[-1].strip("|").split("|")]
    assert cells == [
        *("`AiAgentTask`", "pushed", "14 + 13", "4 + 4", "0.5"),
        *("20.0 ms + 20.0 ms", "3.6 kB + 2.7 kB"),
    ]
