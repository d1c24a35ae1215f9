"""The files of a batch appear whole, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tasquencer.cli.batch_output import BatchFiles, replacing
from tasquencer.cli.errors import CommandFailed


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("old")
    with replacing(file) as to:
        to.write(b"new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_what_was_there_stays_if_something_happens(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as to:
        to.write(b"half of the")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_place_that_takes_nothing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="cannot write '/dev/full"), replacing(Path("/dev/full/x")) as to:
        to.write(b"x")


def test_failures_go_beside_the_results_unless_they_have_a_place_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    assert BatchFiles.of(out, None) == BatchFiles(out, tmp_path / "r.failed.jsonl")
    assert BatchFiles.of(out, tmp_path / "f.jsonl") == BatchFiles(out, tmp_path / "f.jsonl")
    assert BatchFiles.of(None, None) == BatchFiles.of(Path("-"), None) == BatchFiles(None, None)
    with pytest.raises(CommandFailed, match="is the input, too"):
        BatchFiles.of(out, None, source=tmp_path / "r.failed.jsonl")


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_file_is_for_its_owner_and_a_replaced_one_keeps_its_mode(tmp_path: Path) -> None:
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    old.write_text("old")
    old.chmod(0o640)
    umask = os.umask(0o000)
    try:
        for file in (new, old):
            with replacing(file) as to:
                (beside,) = (path for path in tmp_path.iterdir() if path.suffix == ".tmp")
                assert mode(beside) & 0o007 == 0
                to.write(b"x")
    finally:
        os.umask(umask)
    assert (mode(new), mode(old)) == (0o600, 0o640)
