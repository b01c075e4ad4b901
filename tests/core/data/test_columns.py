"""Which cell is which field, what a label is called, and what is wrong with a row."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gptask import Field, Kind
from gptask.config.schemas import Files
from gptask.data.columns import Columns
from gptask.data.rows import Row, TableCells
from gptask.errors import DataError, UserError

from tests.support.stub_tasks import TaskWithFields

TEXT, LABEL = Field("text"), Field("label", Kind.LABEL, target=True)


def example(value: object, *fields: Field, **options: object) -> dict:
    return Columns(TaskWithFields(*fields or (TEXT, LABEL)), Files(**options)).example(Row(1, value))


def error(value: object, *fields: Field, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        example(value, *fields, **options)
    return str(caught.value)


def test_fields_are_found_under_their_own_names() -> None:
    assert example({"text": "good", "label": "pos", "more": 1}) == {"text": "good", "label": "pos"}


def test_a_column_is_a_name_a_position_or_a_dotted_path() -> None:
    expected = {"text": "good", "label": "pos"}
    assert example({"review": "good", "stars": "pos"}, columns={"text": "review", "label": "stars"}) == expected
    assert example(["x", "good", "pos"], columns={"text": 1, "label": "2"}) == expected
    assert example({"review": "good", "stars": "pos"}, columns={"text": 0, "label": 1}) == expected
    nested = {"meta": {"body": {"en": "good"}}, "label": "pos"}
    assert example(nested, columns={"text": "meta.body.en"}) == expected


def test_a_dotted_name_comes_before_a_path_and_a_path_goes_into_lists() -> None:
    assert example({"a.b": "good", "label": "x"}, columns={"text": "a.b"})["text"] == "good"
    answers = Field("answers", Kind.TEXTS)
    squad = {"answers": [{"text": "one", "start": 1}, {"text": "two", "start": 5}]}
    hub = {"answers": {"text": ["one", "two"], "start": [1, 5]}}
    for row in (squad, hub):
        assert example(row, answers, columns={"answers": "answers.text"}) == {"answers": ["one", "two"]}


def test_a_task_that_converts_a_row_to_nothing_is_an_error_that_names_the_hook() -> None:
    class Forgetful(TaskWithFields):
        def convert_row(self, row: object) -> None:
            """Return nothing."""

    with pytest.raises(TypeError, match=r"Task\.convert_row\(\) must return the cells of a row, got None"):
        Columns(Forgetful(TEXT), Files()).example(Row(1, {"text": "good"}))


def test_a_number_that_names_a_column_comes_before_a_position() -> None:
    assert example({"1": "good", "0": "pos"}, columns={"text": 1, "label": 0}) == {"text": "good", "label": "pos"}


def test_a_missing_column_is_an_error_with_the_columns_and_the_nearest_name() -> None:
    message = error({"txt": "good", "stars": 5}, columns={"label": "stars"})
    assert "no column 'text' for text; there are: txt, stars. Did you mean 'txt'?" in message
    assert "data.columns.text=<column>" in message


def test_long_column_names_are_cut_in_the_message() -> None:
    message = error(TableCells({"word " * 200: "x", "1": "y"}))
    assert len(message) < 300
    assert "data.header=false" in message


def test_only_a_table_gets_the_hint_at_its_header() -> None:
    message = error({"txt": "good", "label": "x"})
    assert message.endswith("Did you mean 'txt'? Set data.columns.text=<column>.")
    assert "header" not in message


def test_a_missing_position_is_an_error_with_the_number_of_cells() -> None:
    assert "the row has 2 cells without names; set data.columns.text=<position from 0>" in error(
        ["a", "b"], columns={"text": 2}
    )
    assert "set data.columns.text=<position from 0>" in error(["a", "b"])
    for row in (["a,b"], TableCells({"text,label": "a,b"})):
        assert "The row has a single cell: is data.format or data.delimiter right?" in error(row)


def test_an_unknown_field_in_columns_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data.columns.txt: the task has no field 'txt'; it has label, text. Did you"):
        example({}, columns={"txt": "a"})


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"text": " \t", "label": "x"}, (), "the text is empty"),
        ({"text": "good", "label": ""}, (), "the label is empty"),
        ({"text": None, "label": "x"}, (), "the text is null"),
        ({"text": {"a": 1}, "label": "x"}, (), "the text must be text, got"),
        ({"text": "good", "label": ["a", "b"]}, (), r"the label must be label, got .*'a', 'b'"),
        ({"text": "half \ud800", "label": "x"}, (), "half a surrogate pair"),
        ({"target": ["", " "]}, (Field("target", Kind.TEXTS),), "the target is empty"),
        ({"target": []}, (Field("target", Kind.TEXTS),), "the target is empty"),
        ({"start": ["x"]}, (Field("start", Kind.INTEGERS),), "the start must be integers"),
        ({"score": "high"}, (Field("score", Kind.NUMBER),), "the score must be number, got 'high'"),
        ({"score": "nan"}, (Field("score", Kind.NUMBER),), "the score must be number, got 'nan'"),
        ({"score": float("inf")}, (Field("score", Kind.NUMBER),), "the score must be number, got 'inf'"),
    ],
)
def test_a_cell_of_another_kind_or_without_content_is_an_error(row: dict, fields: tuple, message: str) -> None:
    assert re.search(message, error(row, *fields))


def test_the_error_of_a_bad_row_is_raised() -> None:
    assert error(DataError("broken JSON")) == "broken JSON"


def test_cells_are_converted_to_the_kind_of_their_field() -> None:
    fields = [Field("t", Kind.TEXTS), Field("n", Kind.NUMBER), Field("i", Kind.INTEGERS), TEXT]
    row = {"t": "one", "n": "2.5", "i": "7", "text": ["Two", "sentences."]}
    assert example(row, *fields) == {"t": ["one"], "n": 2.5, "i": [7], "text": "Two sentences."}


def test_an_optional_field_may_be_absent_unless_a_column_is_set_for_it() -> None:
    fields = [TEXT, Field("starts", Kind.INTEGERS, required=False), Field("note", required=False)]
    assert example({"text": "a"}, *fields) == {"text": "a", "starts": [], "note": None}
    assert "no column 'begin' for starts" in error({"text": "a"}, *fields, columns={"starts": "begin"})


def test_a_blank_field_may_be_empty_but_not_absent() -> None:
    answers = Field("answers", Kind.TEXTS, blank=True)
    assert example({"answers": []}, answers) == example({"answers": ""}, answers) == {"answers": []}
    assert "no column 'answers'" in error({"answer": []}, answers)


def test_a_plain_line_is_the_only_required_field() -> None:
    assert example("good", TEXT, Field("note", required=False)) == {"text": "good", "note": None}
    assert "can't be split into text, label; set data.pattern or" in error("good")


def test_an_id_is_read_and_required_only_if_a_column_is_set_for_it() -> None:
    row = {"text": "good", "label": "x", "id": 0, "key": "k1"}
    assert example(row)["id"] == "0"
    assert example(row, columns={"id": "key"})["id"] == "k1"
    assert "no column 'uid' for id" in error(row, columns={"id": "uid"})
    task, options = TaskWithFields(TEXT, LABEL), Files(columns={"id": "uid"})
    assert Columns(task, options, [TEXT]).example(Row(1, row)) == {"text": "good"}  # prediction input needs none


NAMES = {"0": "negative", "1": "positive"}


@pytest.mark.parametrize(
    "labels",
    [
        {0: "negative", 1: "positive"},
        {"0": "negative", "1": "positive"},
        ["negative", "positive"],
        "names.txt",
        "map.tsv",
        "names.json",
        "map.json",
    ],
)
def test_label_names_are_a_map_a_list_or_a_file(write_file: Callable, tmp_path: Path, labels: object) -> None:
    write_file("names.txt", "negative\r\npositive\r\n\n")
    write_file("map.tsv", "1\tpositive\n0\t negative\n")
    write_file("names.json", '["negative", "positive"]')
    write_file("map.json", '{"0": "negative", "1": "positive"}')
    columns = Columns(TaskWithFields(TEXT, LABEL), Files(labels=labels, root=str(tmp_path)))
    assert columns.names == NAMES
    for raw in (1, "1", " 1 ", 1.0, True, "positive"):
        assert columns.label(raw) == "positive"


def test_label_ids_may_start_at_another_number() -> None:
    assert example({"text": "a", "label": 4}, labels=["World", "Sports", "Business", "Sci/Tech"], label_start=1) == {
        "text": "a",
        "label": "Sci/Tech",
    }


def test_an_unknown_label_is_an_error_with_the_known_ones() -> None:
    message = error({"text": "a", "label": 2}, labels=["negative", "positive"])
    assert "label '2' is not in data.labels: 0, 1 (ids counted from 1? data.label_start=1)" in message
    assert "label 'meh' is not in data.labels: 0, 1" in error({"text": "a", "label": "meh"}, labels=["neg", "pos"])


def test_a_label_that_is_both_an_id_and_a_name_is_an_id() -> None:
    columns = Columns(TaskWithFields(TEXT, LABEL), Files(labels={"1": "2", "2": "1", "x": "3"}))
    assert [columns.label(raw) for raw in ("1", "2", "x", "3")] == ["2", "1", "3", "3"]


def test_label_names_of_another_form_are_an_error(write_file: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.labels must be a map, a list or a file"):
        example({}, labels=3)
    with pytest.raises(UserError, match="no such file"):
        example({}, labels="nowhere.txt")
    with pytest.raises(UserError, match=r"names.json is not valid JSON"):
        example({}, labels=write_file("names.json", "[1,"))


@pytest.mark.parametrize(
    ("raw", "separator", "expected"),
    [
        ("0,1", ",", ["negative", "positive"]),
        (" 1 , 0 ", ",", ["positive", "negative"]),
        ("0|1", "|", ["negative", "positive"]),
        ("0 1", " ", ["negative", "positive"]),
        ("0 1", "", ["negative", "positive"]),
        ([0, "positive"], ",", ["negative", "positive"]),
        (1, ",", ["positive"]),
        ("", ",", []),
        ([], ",", []),
    ],
)
def test_a_row_may_have_several_labels(raw: object, separator: str, expected: list) -> None:
    labels = Field("labels", Kind.LABELS, target=True)
    options = {"labels": NAMES, "label_separator": separator}
    assert example({"text": "a", "labels": raw}, TEXT, labels, **options)["labels"] == expected


TAGGED = (Field("tokens", Kind.TOKENS), Field("tags", Kind.TAGS, target=True))


def test_tokens_and_tags_are_lists_or_texts() -> None:
    assert example({"tokens": ["New York", "!"], "tags": [1, 0]}, *TAGGED, labels=["O", "B-LOC"]) == {
        "tokens": ["New York", "!"],
        "tags": ["B-LOC", "O"],
    }
    assert example({"tokens": "It's  fine!", "tags": "O B-X"}, *TAGGED) == {
        "tokens": ["It's", "fine!"],
        "tags": ["O", "B-X"],
    }
    assert example("It's fine!", TAGGED[0]) == {"tokens": ["It", "'s", "fine", "!"]}, (
        "without tags, punctuation is split off"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tokens, tags must have the same length, got 2 tokens, 1 tags"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "token 2 of 2 is empty"),
        ({"tokens": ["a", "b"], "tags": ["O", ""]}, "tag 2 of 2 is empty"),
        ({"tokens": [], "tags": []}, "the tokens is empty"),
        ({"tokens": [["a"]], "tags": ["O"]}, "the tokens must be tokens, got"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "the tokens must be tokens, got"),
    ],
)
def test_tokens_and_tags_that_do_not_match_are_an_error(row: dict, message: str) -> None:
    assert message in error(row, *TAGGED)
