"""A cell as the value of a field: lists written as text, numbers in their spellings, and what is no such value."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from gptask import DataError, Field, Kind
from gptask.config.schemas import Files
from gptask.data.cells import plain_cell
from gptask.data.columns import Columns
from gptask.data.rows import Row

from tests.support.stub_tasks import TaskWithFields


def value(cell: object, kind: Kind) -> object:
    return Columns(TaskWithFields(Field("f", kind)), Files()).example(Row(1, {"f": cell}))["f"]


def error(cell: object, kind: Kind) -> str:
    with pytest.raises(DataError) as caught:
        value(cell, kind)
    return str(caught.value)


LISTS_AS_TEXT = ["['New York', 'Oslo']", '["New York", "Oslo"]', "['New York' 'Oslo']", "('New York', 'Oslo')"]


@pytest.mark.parametrize("kind", [Kind.TEXTS, Kind.TOKENS])
@pytest.mark.parametrize("cell", [*LISTS_AS_TEXT, np.array(["New York", "Oslo"]), ("New York", "Oslo")], ids=str)
def test_a_list_in_any_form_is_a_list(cell: object, kind: Kind) -> None:
    assert value(cell, kind) == ["New York", "Oslo"]


@pytest.mark.parametrize(
    "cell", [*LISTS_AS_TEXT, "[sic] he said", "[]", "{}", "[1]", "nan", "None", "NULL", "NA", "true"]
)
def test_a_text_stays_a_text(cell: str) -> None:
    assert value(cell, Kind.TEXT) == cell


@pytest.mark.parametrize(
    "cell",
    ["[sic] he said", "(laughs)", "nan", "None", '{"name": "Ann"}', "{}", "[laughs]", "(1, 2)", "{3}", "((1, 2), 3)"],
)
def test_one_reference_stays_a_text(cell: str) -> None:
    assert value(cell, Kind.TEXTS) == [cell]


def test_references_that_are_null_or_blank_are_left_out() -> None:
    assert value(["Oslo", None, float("nan"), " ", "\ufeff", "Bergen"], Kind.TEXTS) == ["Oslo", "Bergen"]
    assert value("['Oslo', nan]", Kind.TEXTS) == ["Oslo"]
    for cell in ([], [None], "[]", "[nan]", [pd.NA]):
        assert error(cell, Kind.TEXTS) == "the f is empty"


@pytest.mark.parametrize(
    "cell",
    ["{'text': 'Oslo'}", '{"text": ["Oslo"]}', "[{'text': 'Oslo'}]", {"text": "Oslo"}, [{"text": "Oslo"}]],
    ids=str,
)
def test_an_object_is_no_reference(cell: object) -> None:
    message = error(cell, Kind.TEXTS)
    assert message.startswith("the f must be a text or a list of texts, got")
    assert message.endswith("; it has the members text: name one by a path, data.columns.f=f.text")


def test_scalars_are_texts_as_json_writes_them() -> None:
    assert [value(cell, Kind.TEXT) for cell in (True, False, 3, 1.5)] == ["true", "false", "3", "1.5"]
    assert value([True, 42], Kind.TEXTS) == ["true", "42"]
    assert value(["a", None, "b"], Kind.TEXT) == "a b"
    assert value("Zoë".encode(), Kind.TEXT) == "Zoë"
    assert "the f must be a text, got" in error(b"\xff", Kind.TEXT)


@pytest.mark.parametrize(
    "cell", ["[0, 5]", "[0 5]", "(0, 5)", [0, 5], ["0", "5.0"], [0.0, 5.0], np.array([0, 5]), "[0., 5.]"]
)
def test_whole_numbers_in_any_spelling(cell: object) -> None:
    assert value(cell, Kind.INTEGERS) == [0, 5]


@pytest.mark.parametrize(("cell", "expected"), [("7", [7]), (7, [7]), ("7.0", [7]), ("-1", [-1]), ("[]", []), ([], [])])
def test_one_whole_number_or_none(cell: object, expected: list) -> None:
    assert value(cell, Kind.INTEGERS) == expected


@pytest.mark.parametrize(
    "cell", ["2.5", 2.5, True, "1,2", "1 2", "x", [1, None], "[1, nan]", [float("inf")], "1_000", [[1]]]
)
def test_anything_else_is_no_whole_number(cell: object) -> None:
    assert "the f must be whole numbers, such as 3 or [3, 7], got" in error(cell, Kind.INTEGERS)


@pytest.mark.parametrize("cell", ["2.5", 2.5, " 2.5 ", Decimal("2.5"), np.float32(2.5), "25e-1"])
def test_a_number_in_any_spelling(cell: object) -> None:
    assert value(cell, Kind.NUMBER) == 2.5


@pytest.mark.parametrize("cell", ["2,5", "1_000", True, [2.5], "high", "nan", float("inf"), {"a": 1}])
def test_anything_else_is_no_number(cell: object) -> None:
    assert "the f must be a number, got" in error(cell, Kind.NUMBER)
    assert "; decimals are written with a point" in error("2,5", Kind.NUMBER)


@pytest.mark.parametrize("cell", ["[1]", "[sic]", "( )"])
def test_a_sentence_with_brackets_is_no_list_of_words(cell: str) -> None:
    assert "".join(value(cell, Kind.TOKENS)) == cell.replace(" ", "")


def test_a_word_of_invisible_characters_is_a_word() -> None:
    assert value(["heart", "\ufe0f", "\u200b"], Kind.TOKENS) == ["heart", "\ufe0f", "\u200b"], "as in WNUT 2017"


def test_a_word_that_is_null_is_an_error_with_its_place() -> None:
    # pandas reads the words "null" and "NA" as missing values
    assert error(["a", None, "b"], Kind.TOKENS) == "token 2 of 3 is null"
    assert error(["a", float("nan")], Kind.TOKENS) == "token 2 of 2 is null"
    assert error("[]", Kind.TOKENS) == "the f is empty"


TURNS = [{"role": "user", "content": "hi 'you'"}, {"role": "assistant", "content": "[1]"}]


@pytest.mark.parametrize("cell", [json.dumps(TURNS), repr(TURNS), str(np.array(TURNS)), np.array(TURNS)], ids=str)
def test_messages_written_as_text_are_messages(cell: object) -> None:
    assert value(cell, Kind.MESSAGES) == TURNS


@pytest.mark.parametrize("cell", ["[1, 2]", '[{"a": 1}]', '{"role": "user"}', "[sic]", "['a', 'b']", "nan"])
def test_a_prompt_that_looks_like_json_is_a_prompt(cell: str) -> None:
    assert value(cell, Kind.MESSAGES) == [{"role": "user", "content": cell}]


def test_messages_that_are_cut_off_are_an_error() -> None:
    assert error("[]", Kind.MESSAGES) == "the f is empty"
    assert "neither JSON nor a Python literal" in error("[{'role': 'user', 'content': 'it's'}]", Kind.MESSAGES)


def test_plain_cells_stay_what_they_are() -> None:
    cells = ["nan", 0, False, 1.5, [float("nan")], {"a": None}, None]
    assert [plain_cell(cell) for cell in cells][:4] == cells[:4]
    assert plain_cell(cells[4]) is cells[4]
    assert plain_cell(np.bool_(True)) is True
    assert plain_cell(Decimal("nan")) is plain_cell(np.datetime64("NaT")) is None


@pytest.mark.parametrize(
    "cell", [2**63, -(2**63) - 1, 1e30, str(2**70), "9" * 5000, [1, 2**64], "[18446744073709551616]"]
)
def test_a_whole_number_of_more_than_64_bits_is_refused(cell: object) -> None:
    assert "a whole number of more than 64 bits: " in error(cell, Kind.INTEGERS)


def test_whole_numbers_of_64_bits_are_stored() -> None:
    assert value([2**63 - 1, str(-(2**63))], Kind.INTEGERS) == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("cell", [float("inf"), [float("-inf")], np.float32("inf")])
@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.TEXTS, Kind.LABEL, Kind.LABELS, Kind.TAGS, Kind.NUMBER])
def test_a_number_that_is_not_finite_is_no_text_and_no_label(cell: object, kind: Kind) -> None:
    assert "must be" in error(cell, kind)


def test_a_list_written_as_text_that_is_nested_deeply_is_no_list() -> None:
    text = f"{'[' * 900}'a'{']' * 900}"
    assert value(text, Kind.TEXT) == text
    assert "must be" in error(text, Kind.INTEGERS)
