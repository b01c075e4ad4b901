"""The parts that messages are made of."""

import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from gptask.errors import (
    DataError,
    UserError,
    VisibleFormatter,
    WriteError,
    aligned,
    damaged,
    real_path,
    user_path,
    visible,
    write_failure,
    writing,
)


def test_a_table_is_aligned_at_the_left_and_at_the_right() -> None:
    assert aligned([["label", "train"], ["a", "1,000"], ["bcdefg", "2"]]) == [
        "label   train",
        "a       1,000",
        "bcdefg      2",
    ]
    assert aligned([["a", "b"], ["cc", ""]], left=2) == ["a   b", "cc"]


def test_what_a_parser_raises_names_the_file_the_cause_and_its_class() -> None:
    message = r"a\.json can't be read, .*Expecting value.*\(JSONDecodeError\)"
    with pytest.raises(DataError, match=message) as caught, damaged("a.json", DataError):
        json.loads("?")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@pytest.mark.parametrize("error", [UserError("own words"), MemoryError(), KeyboardInterrupt()])
def test_errors_with_words_of_their_own_and_those_of_the_machine_pass_a_parser(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, damaged("a.json"):
        raise error
    assert caught.value is error


def _fail(error: Exception, cause: Exception | None = None, context: Exception | None = None) -> Exception:
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
        (OSError(27, "x"), "File too large (a limit of the file system, or of the shell: ulimit -f)"),
        (OSError(5, "x", "a.csv"), "Input/output error"),
        (PermissionError(13, "x"), "Permission denied"),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device",
        ),
        (Exception("I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (ValueError("(sqlite3.OperationalError) database or disk is full [SQL: ...]"), "database or disk is full"),
        (_fail(ValueError("optuna's"), cause=ValueError("disk I/O error")), "disk I/O error"),
        (
            _fail(RuntimeError("unexpected pos 704 vs 598"), context=OSError(28, "No space left on device")),
            "No space left on device",
        ),
        (
            _fail(RuntimeError("basic_ios::clear: iostream error"), context=RuntimeError("unexpected pos 1 vs 0")),
            "a disk that is full or refuses more (the library does not say which)",
        ),
        (FileNotFoundError(2, "No such file"), None),
        (ValueError("os error 28 in the user's text"), None),
        (Exception("(os error 2)"), None),
        (_fail(ZeroDivisionError(), context=PermissionError(13, "handled before")), None),
    ],
)
def test_a_refusal_to_write_is_recognised_in_the_words_of_every_library(error: Exception, reason: str | None) -> None:
    assert write_failure(error) == reason


def test_what_can_not_be_written_is_named_with_the_ways_out() -> None:
    message = r"^Disk quota exceeded while writing out/run\. Make room\. Resume it\.$"
    inner, outer = writing("out/run", lambda: "Make room."), writing("the run", lambda: "Resume it.")
    with pytest.raises(WriteError, match=message), outer, inner:
        raise OSError(122, "Disk quota exceeded")
    with pytest.raises(WriteError, match=r"^Permission denied while writing a/b\.$"), writing("a"):
        raise PermissionError(13, "Permission denied", "a/b")
    for error in (UserError("mine"), KeyError("a defect"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, writing("a"):
            raise error
        assert caught.value is error


def test_no_character_that_moves_a_terminal_passes_and_every_other_one_stays() -> None:
    characters = [*map(chr, range(0x11000))]
    escaped = {character for character in characters if visible(character) != character}
    controls = {c for c in characters if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}
    kinds = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    assert escaped == controls | {c for c in characters if unicodedata.bidirectional(c) in kinds}
    assert visible("\x1b]0;x\x07 \x9b2J\u202e\ud800\r") == r"\u001b]0;x\u0007 \u009b2J\u202e\ud800\u000d"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_visible_json_is_the_same_json(ascii_only: bool) -> None:
    value = {"a\x9b": "\x1b[31m\x7f \u2066 很\\u001b", "b": "\n\t\r\b"}
    assert json.loads(visible(json.dumps(value, ensure_ascii=ascii_only))) == value


def test_a_text_in_pieces_is_escaped_as_a_whole() -> None:
    text = "a\x1b[31mred\x1b]8;;http://x\x1b\\\r"
    assert "".join(map(visible, text)) == visible(text)


def test_log_lines_and_their_stack_traces_are_visible() -> None:
    try:
        raise ValueError("bad \x1b[2J cell")
    except ValueError:
        record = logging.LogRecord("gptask", logging.INFO, "", 0, "%s\n%s", ("a\x1b", "b\x9b"), sys.exc_info())
    text = VisibleFormatter("%(message)s").format(record)
    assert text.startswith("a\\u001b\nb\\u009b\nTraceback")
    assert text.endswith("ValueError: bad \\u001b[2J cell")


def test_a_user_without_a_home_is_named() -> None:
    assert user_path("a/b") == Path("a/b")
    with pytest.raises(UserError, match="no such file or folder: ~nobody-at-all/x"):
        user_path("~nobody-at-all/x")


def test_links_that_lead_to_each_other_have_a_real_path(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert real_path(tmp_path / "a").parent == real_path(tmp_path)
    (tmp_path / "c").symlink_to("d")
    assert real_path(tmp_path / "c") == (tmp_path / "d").resolve()
