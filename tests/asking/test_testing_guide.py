"""The test in docs/guides/testing.md runs as pasted, also without the OpenAI client reaching anybody."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.patience import PATIENCE_SECONDS
from tests.support.tasks import executable

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/testing.md"
PATIENTLY = f"test_server_startup_timeout=datetime.timedelta(seconds={PATIENCE_SECONDS})"


def test_the_test_of_the_guide_passes(tmp_path: Path) -> None:
    (test, *_) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    here = f"test_server_existing_path={executable('temporal-test-server')!r}, {PATIENTLY}, plugins="
    assert test.count("plugins=") == 1
    (tmp_path / "test_urgent.py").write_text(f"import datetime\n{test.replace('plugins=', here)}")

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", tmp_path, "-c", "/dev/null", "test_urgent.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},  # no key, no address
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
