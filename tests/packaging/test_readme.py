"""The README's task and its test run as pasted with the wheel, without the checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.packaging.installed import ROOT, Installed
from tests.readme.documents import blocks_of


async def test_the_readme_s_test_passes_on_the_wheel(installed: Installed, tmp_path: Path) -> None:
    for block in blocks_of(ROOT / "README.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.code)
    (tmp_path / "test_place.py").write_text(
        "import tasquencer\n\n\ndef test_it_is_the_wheel():\n"
        f"    assert tasquencer.__file__.startswith({str(installed.folder)!r})\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTEST_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    program = ["-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    run = await installed.run(tmp_path, program=program, environment=kept)
    assert "2 passed" in run.stdout, run.stdout[-5000:]
