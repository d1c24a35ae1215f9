"""Reading, checking and staging the lines of a batch."""

from __future__ import annotations

import io
import json

import pytest

from tasquencer.batch.rows import merged
from tasquencer.cli import batch_input, lines
from tasquencer.cli.batch_input import CheckedLines, StagedRows, check_lines


def checked(text: bytes, **defaults: object) -> tuple[CheckedLines, StagedRows, bytes]:
    rows, aside = StagedRows(defaults), io.BytesIO()  # type: ignore[arg-type]
    return check_lines(io.BytesIO(text), defaults, rows, set_aside=aside), rows, aside.getvalue()  # type: ignore[arg-type]


def test_blank_lines_count_but_are_no_rows() -> None:
    found, rows, _ = checked(b'\xef\xbb\xbf{"prompt": "a"}\n\n  \r\n{"prompt": "b"}')
    assert (found.lines, found.wrong) == (4, 0)
    (page,) = rows.pages()
    assert [(row.position, row.row_id) for row in page] == [(0, "line-1"), (1, "line-4")]


def test_wrong_lines_are_told_and_set_aside_as_they_are() -> None:
    found, rows, aside = checked(b'{"id": "a", "prompt": "x"}\n{oops\n{"id": "a", "prompt": "y"}')
    assert [problem.line for problem in found.problems] == [2, 3]
    assert str(found.problems[1]) == "line 3: id: 'a' is already on line 1"
    assert aside == b'{oops\n{"id": "a", "prompt": "y"}\n'
    assert rows.count == 1


def test_only_the_first_problems_are_kept() -> None:
    found, _, _ = checked(b"{}\n" * 100)
    assert (found.wrong, len(found.problems)) == (100, batch_input.MOST_PROBLEMS)


def test_a_line_that_never_ends_is_refused_without_reading_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "LONGEST_LINE", 100)
    long = b'{"prompt": "' + b"x" * 1000 + b'"}\n'
    found, rows, aside = checked(long + b'{"prompt": "b"}\n')
    assert [str(problem) for problem in found.problems] == ["line 1: is longer than 100 bytes"]
    assert aside == long
    assert (found.lines, rows.count) == (2, 1)


def test_the_digest_is_that_of_the_content_not_of_its_writing() -> None:
    def digest(text: bytes, **defaults: object) -> str:
        return checked(text, **defaults)[1].digest

    one = digest(b'{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "y"}\n')
    assert digest(b'{"prompt":"x","id":"a"}\r\n\n{"id":"b","prompt":"y"}') == one
    assert digest(b'{"id": "b", "prompt": "y"}\n{"id": "a", "prompt": "x"}\n') != one
    assert digest(b'{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "y"}\n', model="m") != one


def test_pages_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "_PAGE_ROWS", 3)
    monkeypatch.setattr(batch_input, "_PAGE_BYTES", 500)
    prompts = ["a", "b", "c", "d", "x" * 600, "e"]
    _, rows, _ = checked(b"\n".join(json.dumps({"prompt": prompt}).encode() for prompt in prompts))
    pages = [[row.request["prompt"][:1] for row in page] for page in rows.pages()]
    assert pages == [["a", "b", "c"], ["d"], ["x"], ["e"]]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_on_any_system(end: bytes) -> None:
    text = end.join([b'{"prompt": "a"}', b"", b"{oops", b'{"prompt": "b\\r"}', b""])
    found, rows, aside = checked(text)
    assert (found.lines, found.wrong, [problem.line for problem in found.problems]) == (4, 1, [3])
    assert [row.row_id for page in rows.pages() for row in page] == ["line-1", "line-4"]
    assert aside == b"{oops" + end


def test_a_line_end_may_fall_between_two_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"one\r\n\r\rtwo\nthree\r"
    for size in range(1, len(text) + 1):
        monkeypatch.setattr(lines, "_CHUNK", size)
        found = list(lines.lines_in(io.BytesIO(text), 100))
        assert [(line.number, line.content) for line in found] == [
            (1, b"one"),
            (2, b""),
            (3, b""),
            (4, b"two"),
            (5, b"three"),
        ], size
        assert b"".join(line.content + line.end for line in found) == text


def test_a_line_separator_of_unicode_ends_no_line() -> None:
    found, rows, _ = checked('{"prompt": "a\u2028b\x85c"}\n'.encode())
    assert (found.lines, found.wrong, rows.count) == (1, 0, 1)


def test_null_means_not_given() -> None:
    line = {
        "id": None,
        "prompt": "a",
        "model": None,
        "system": None,
        "max_retries": None,
        "retry": {"jitter": None},
    }
    found, rows, _ = checked(json.dumps(line).encode(), model="m", system="s", retry={"jitter": 0.5})
    assert (found.wrong, rows.count) == (0, 1), found.problems
    ((row,),) = rows.pages()
    assert row.row_id == "line-1"
    whole = merged({"model": "m", "system": "s", "retry": {"jitter": 0.5}}, row.request)
    assert whole == {"prompt": "a", "model": "m", "system": "s", "retry": {"jitter": 0.5}}
