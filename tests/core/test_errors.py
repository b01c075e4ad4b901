"""The parts that messages are made of."""

import json
import logging
import sys
import unicodedata

import pytest
from gptask.errors import DataError, UserError, VisibleFormatter, aligned, damaged, visible


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
