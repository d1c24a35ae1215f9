"""Links lead somewhere, and the documentation is complete: names, settings, words that it refers to."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.readme.documents import DOCS, PAGES, ROOT, anchors

GENERATED = {DOCS / "reference/cli.md"}
"""Its headings are those of the commands: `make docs` checks links to them."""

PACKAGES = ["tasquencer", "tasquencer.ai", "tasquencer.temporal", "tasquencer.sql", "tasquencer.testing"]


def sources() -> list[Path]:
    """The text files of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    endings = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".example", ".ini", ".in", ""}
    files = [ROOT / name for name in listed.stdout.splitlines()]
    return [file for file in files if file.suffix in endings and file.is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and target not in GENERATED and anchor not in anchors(target)
        ):
            broken.append(link)
    assert broken == []


def test_every_page_that_is_named_is_in_the_repository() -> None:
    missing = []
    for file in sources():
        for name in re.findall(r"(?<![\w/.-])[\w./-]*\w\.md\b", file.read_text()):
            places = [ROOT, DOCS, file.parent, file.parents[1], ROOT / "starter"]
            if not any((place / name.lstrip("/")).exists() for place in places):
                missing.append(f"{file.relative_to(ROOT)}: {name}")
    assert missing == []


def test_a_section_is_named_only_of_a_standard() -> None:
    others = [
        f"{file.relative_to(ROOT)}: {before} \N{SECTION SIGN}"
        for file in sources()
        for before in re.findall(r"(\S+ \S+) \N{SECTION SIGN}", file.read_text())
        if not re.fullmatch(r"\W*RFC \d+", before)
    ]
    assert others == []


def test_every_invariant_that_is_named_is_explained() -> None:
    explained = set(
        re.findall(r"^## (I\d+) ", (DOCS / "concepts/invariants.md").read_text(), flags=re.MULTILINE)
    )
    named = {
        name for file in sources() for name in re.findall(r"(?<![\w.`-])I\d{1,2}(?![\w.-])", file.read_text())
    }
    assert explained == {f"I{number}" for number in range(1, 14)}
    assert named <= explained


def test_every_decision_that_is_named_exists() -> None:
    numbers = {int(page.name[:4]) for page in (DOCS / "decisions").glob("0*.md")}
    named = {
        int(number)
        for file in sources()
        for number in re.findall(r"\b[Dd]ecision\s(\d+)\b", file.read_text())
    }
    assert named <= numbers


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(package: str) -> None:
    """A name without a place on a page stands at its end, see docs/hooks/public_names.py."""
    page = DOCS / f"reference/api/{package.rpartition('.')[2]}.md"
    assert f"<!-- the other names of {package} -->" in page.read_text()
    described = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", page.read_text(), flags=re.MULTILINE)
    assert set(described) <= set(importlib.import_module(package).__all__)


def test_the_settings_that_are_listed_are_the_ones_that_are_read() -> None:
    listed = set(re.findall(r"TASQ_[A-Z_]+", (DOCS / "reference/settings.md").read_text()))
    folders = [ROOT / name for name in ("src", "activities", "workflows")]
    files = [ROOT / "worker.py", ROOT / "docker-compose.yml"]
    files += [file for folder in folders for file in folder.rglob("*.py")]
    read = {name for file in files for name in re.findall(r"TASQ_[A-Z]+(?:_[A-Z]+)*", file.read_text())}
    assert listed == read


def test_the_start_page_leads_to_what_people_look_for() -> None:
    start = (DOCS / "index.md").read_text()
    wanted = ["guides/existing-applications.md", "guides/costs.md", "guides/operations.md"]
    wanted += [f"reference/api/{page.name}" for page in (DOCS / "reference/api").glob("*.md")]
    assert [page for page in wanted if f"]({page})" not in start] == []
