"""Files of tests share a server when one process runs them: none may take the task id of another."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path


def test_no_two_files_start_a_task_of_the_same_id() -> None:
    files: dict[str, set[str]] = defaultdict(set)
    for file in Path(__file__).parents[1].rglob("*.py"):
        for task_id in re.findall(r'"--id", "([^"]+)"', file.read_text()):
            files[task_id].add(file.name)
    assert len(files) > 20
    assert {task_id: names for task_id, names in files.items() if len(names) > 1} == {}
