"""Which cell is which field, what a label is called, and what is wrong with a row."""

import re

import numpy as np
import pandas as pd
import pytest
from gptask import Field, Kind
from gptask.config.schemas import Files
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import EMPTY_VALUES, Columns
from gptask.data.rows import Row, TableCells
from gptask.errors import DataError, UserError
from gptask_tasks.classification import Classification

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
        ({"text": {"a": 1}, "label": "x"}, (), "the text must be a text, got"),
        ({"text": "good", "label": ["a", "b"]}, (), r"the label must be one label, got .*'a', 'b'"),
        ({"text": "half \ud800", "label": "x"}, (), "half a surrogate pair"),
        ({"target": ["", " "]}, (Field("target", Kind.TEXTS),), "the target is empty"),
        ({"target": []}, (Field("target", Kind.TEXTS),), "the target is empty"),
        ({"target": [None, "\ufeff"]}, (Field("target", Kind.TEXTS),), "the target is empty"),
        ({"start": ["x"]}, (Field("start", Kind.INTEGERS),), "the start must be whole numbers"),
        ({"score": "high"}, (Field("score", Kind.NUMBER),), "the score must be a number, got 'high'"),
        ({"score": "nan"}, (Field("score", Kind.NUMBER),), "the score must be a number, got 'nan'"),
        ({"score": float("inf")}, (Field("score", Kind.NUMBER),), "the score must be a number, got 'inf'"),
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
    assert example({"answers": [None, " "]}, answers) == example({"answers": ["\u200b"]}, answers) == {"answers": []}
    assert example({"answers": []}, answers) == example({"answers": ""}, answers) == {"answers": []}
    assert "no column 'answers'" in error({"answer": []}, answers)


@pytest.mark.parametrize("blank", ["", " \t", "\u200b", None, float("nan")])
def test_blank_members_of_a_list_of_texts_are_left_out(blank: object) -> None:
    for field in (Field("answers", Kind.TEXTS), Field("answers", Kind.TEXTS, blank=True)):
        assert example({"answers": ["Oslo", blank, " a b "]}, field) == {"answers": ["Oslo", " a b "]}


def test_a_plain_line_is_the_only_required_field() -> None:
    assert example("good", TEXT, Field("note", required=False)) == {"text": "good", "note": None}
    assert "can't be split into text, label; set data.pattern or" in error("good")


def test_the_mend_of_a_missing_column_fits_training_or_prediction() -> None:
    task, row = Classification(prompt="{title}: {text}"), Row(1, {"text": "good", "label": "x"})
    training, prediction = (Columns(task, Files(), fields) for fields in (None, task.inputs()))
    with pytest.raises(DataError, match=r"Set data.columns.title=<column>, or correct the prompt \(\{\{ \}\} are"):
        training.example(row)
    with pytest.raises(DataError, match=r"or add the column: the model was trained with it\.$"):
        prediction.example(Row(1, {"text": "good"}))  # JSON: nothing is wrong with a single cell
    with pytest.raises(DataError, match=r"or give a file for each \(\{field: file\}\)"):
        training.example(Row(1, "good"))
    with pytest.raises(DataError, match="or give a table or JSON lines with these columns"):
        prediction.example(Row(1, "good"))


@pytest.mark.parametrize("field", [Field("summary", Kind.TEXTS), Field("labels", Kind.LABELS)])
def test_a_field_of_several_values_may_be_read_from_several_columns_as_the_message_says(field: Field) -> None:
    assert f"Set data.columns.{field.name}=<column>, or [<column>,<column>]." in error({"a": "1", "b": "0"}, field)


def test_an_id_is_read_and_required_only_if_a_column_is_set_for_it() -> None:
    row = {"text": "good", "label": "x", "id": 0, "key": "k1"}
    assert example(row)["id"] == "0"
    assert example(row, columns={"id": "key"})["id"] == "k1"
    assert "no column 'uid' for id" in error(row, columns={"id": "uid"})
    task, options = TaskWithFields(TEXT, LABEL), Files(columns={"id": "uid"})
    assert Columns(task, options, [TEXT]).example(Row(1, row)) == {"text": "good"}  # prediction input needs none


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
        ({"tokens": [["a"]], "tags": ["O"]}, "the tokens must be a text or a list of words, got"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "the tokens must be a text or a list of words, got"),
    ],
)
def test_tokens_and_tags_that_do_not_match_are_an_error(row: dict, message: str) -> None:
    assert message in error(row, *TAGGED)


# --- missing values -----------------------------------------------------------------------------------------------

NULLS = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]


@pytest.mark.parametrize("null", NULLS, ids=repr)
@pytest.mark.parametrize("kind", list(Kind))
def test_a_missing_value_is_null_in_a_field_of_every_kind(null: object, kind: Kind) -> None:
    assert error({"f": null}, Field("f", kind)) == "the f is null"
    optional = example({"text": "a", "f": null, "id": null}, TEXT, Field("f", kind, required=False))
    assert optional == {"text": "a", "f": [] if kind in EMPTY_VALUES else None}


@pytest.mark.parametrize("kind", [Kind.INTEGERS, Kind.NUMBER])
def test_an_empty_cell_of_a_table_is_no_number(kind: Kind) -> None:
    assert error({"f": " "}, Field("f", kind)) == "the f is null"
    assert not example({"text": "a", "f": ""}, TEXT, Field("f", kind, required=False))["f"]


def test_a_task_that_converts_rows_sees_missing_values_as_none() -> None:
    class Filling(TaskWithFields):
        def convert_row(self, row: dict) -> dict:
            return row | {"text": row["text"] or "nothing"}

    assert Columns(Filling(TEXT), Files()).example(Row(1, {"text": float("nan")})) == {"text": "nothing"}


# --- paths and several columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [
        "{'text': array(['Oslo', 'Oslo, Norway'], dtype=object), 'answer_start': array([5, 5], dtype=int32)}",
        '{"text": ["Oslo", "Oslo, Norway"], "answer_start": [5, 5]}',
        "[{'text': 'Oslo', 'answer_start': 5}, {'text': 'Oslo, Norway', 'answer_start': 5}]",
        {"text": np.array(["Oslo", "Oslo, Norway"]), "answer_start": np.array([5, 5])},
    ],
    ids=["printed by pandas", "JSON", "list of objects", "arrays"],
)
def test_a_path_goes_into_an_object_that_a_cell_holds_as_text(cell: object) -> None:
    fields = (Field("answers", Kind.TEXTS), Field("answer_start", Kind.INTEGERS))
    paths = {"answers": "answers.text", "answer_start": "answers.answer_start"}
    expected = {"answers": ["Oslo", "Oslo, Norway"], "answer_start": [5, 5]}
    assert example({"answers": cell}, *fields, columns=paths) == expected
    message = error({"answers": cell}, *fields)
    assert "the answers must be a text or a list of texts, got" in message
    assert "it has the members text, answer_start: name one by a path, data.columns.answers=answers.text" in message


LABELS = Field("labels", Kind.LABELS, target=True)
FLAGS = {"labels": ["toxic", "insult", "threat"]}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((0, 1, 0), ["insult"]),
        (("1", "0", "1"), ["toxic", "threat"]),
        (("", "", ""), []),
        ((1.0, None, float("nan")), ["toxic"]),
        ((True, "FALSE", "yes"), ["toxic", "threat"]),
        ((np.int64(1), np.bool_(False), "0.0"), ["toxic"]),
    ],
)
def test_labels_may_have_a_column_each(cells: tuple, expected: list) -> None:
    row = {"text": "a", "toxic": cells[0], "insult": cells[1], "threat": cells[2]}
    assert example(row, TEXT, LABELS, columns=FLAGS)["labels"] == expected
    named = {"toxic": "A", "insult": "B", "threat": "C"}
    renamed = [named[name] for name in expected]
    assert example(row, TEXT, LABELS, columns=FLAGS, labels=named)["labels"] == renamed
    positions = {"text": 0, "labels": [1, 2, 3]}
    assert example(["a", *cells], TEXT, LABELS, columns=positions, labels=["A", "B", "C"])["labels"] == renamed


def test_a_label_column_named_by_position_beside_names_has_the_name_of_its_header() -> None:
    row = {"text": "a", "toxic": 0, "insult": 1}
    assert example(row, TEXT, LABELS, columns={"labels": ["toxic", 2]})["labels"] == ["insult"]


def test_a_label_column_with_something_else_is_an_error_that_names_it() -> None:
    row = {"text": "a", "toxic": 1, "insult": "0.7", "threat": 0}
    assert "the label 'insult' has '0.7'; expected 0, 1, true, false or nothing" in error(
        row, TEXT, LABELS, columns=FLAGS
    )
    assert "no column 'insult' for labels; there are: text, toxic, threat" in error(
        {"text": "a", "toxic": 1, "threat": 0}, TEXT, LABELS, columns=FLAGS
    )
    assert "3 labels, but their names are needed: set data.labels=[<name>, ...]" in error(
        ["a", 1, 0, 1], TEXT, LABELS, columns={"text": 0, "labels": [1, 2, 3]}
    )
    with pytest.raises(UserError, match=r"data\.columns\.label=\[a, b\]: label is label, and takes one column"):
        example({}, columns={"label": ["a", "b"]})


def test_the_columns_of_labels_mark_a_header() -> None:
    columns = Columns(TaskWithFields(TEXT, LABELS), Files(columns={"text": 0, **FLAGS}))
    assert columns.header_names == ["text", "labels", "toxic", "insult", "threat"]


# --- several columns of one field -----------------------------------------------------------------------------------

SUMMARY = Field("summary", Kind.TEXTS, target=True)
SUMMARIES = {"summary": ["summary1", "summary2", "summary3"]}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["one", "two", "three"], ["one", "two", "three"]),
        (["", "two", None], ["two"]),
        (["one", float("nan"), " "], ["one"]),
        ([["one", ""], "two", []], ["one", "two"]),
        ([1, "two", None], ["1", "two"]),
    ],
)
def test_several_columns_are_the_texts_of_one_field_without_blank_ones(cells: list, expected: list) -> None:
    row = dict(zip(SUMMARIES["summary"], cells, strict=True))
    assert example(row, SUMMARY, columns=SUMMARIES) == {"summary": expected}
    assert example(["x", *cells], SUMMARY, columns={"summary": [1, 2, "3"]}) == {"summary": expected}


def test_a_field_of_several_columns_may_not_be_blank_altogether_nor_lack_a_column() -> None:
    row = {"summary1": "", "summary2": None, "summary3": " "}
    assert error(row, SUMMARY, columns=SUMMARIES) == "the summary is empty"
    message = error({"summary1": "one", "summry2": "two"}, SUMMARY, columns=SUMMARIES)
    assert "no column 'summary2' for summary; there are: summary1, summry2. Did you mean 'summry2'?" in message


def test_a_task_that_converts_rows_gets_the_texts_of_several_columns() -> None:
    class Converts(TaskWithFields):
        def convert_row(self, row: dict) -> dict:
            return {"summary": [text.upper() for text in row["summary"]]}

    columns = Columns(Converts(SUMMARY), Files(columns={"summary": ["a", "b"]}))
    assert columns.example(Row(1, {"a": "one", "b": ""})) == {"summary": ["ONE"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"]}, r"data\.columns\.text=\[a, b\]: text is text, and takes one column; several columns are "
         r"for references \(texts\) or labels\. A prompt may name more: task\.prompt='\{a\} \.\.\.'"),
        ({"label": ["a", "b"]}, "label is label, and takes one column"),
        ({"id": ["a", "b"]}, "id takes one column"),
        ({"text": []}, r"data\.columns\.text=\[\]: expected a column's name or position, or a list of them"),
        ({"text": {"a": 1}}, "expected a column's name or position"),
        ({"text": [["a"]]}, "expected a column's name or position"),
    ],
)  # fmt: skip
def test_several_columns_are_refused_where_one_is_needed(columns: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        example({}, columns=columns)


def test_a_column_that_is_null_is_that_of_the_field() -> None:
    assert example({"text": "good", "label": "pos"}, columns={"text": None, "id": None})["text"] == "good"


def test_a_field_that_a_row_lacks_is_read_from_the_columns_of_the_training() -> None:
    trained = {"columns": {"text": "context", "label": "stars", "id": "key"}, "test_columns": {"text": "dialogue"}}
    assert trained_columns(trained) == {"text": ["context", "dialogue"], "label": ["stars"]}
    assert trained_columns({"columns": {"text": 0, "summary": ["a", "b"]}}) == {}
    assert trained_columns({"columns": {"sentence": "Sentence #"}}) == {"sentence": ["Sentence #"]}
    columns = Columns(TaskWithFields(TEXT, LABEL), Files(), [TEXT], trained_columns=trained_columns(trained))
    for name in ("text", "context", "dialogue"):
        assert columns.example(Row(1, {name: "good", "other": "x"})) == {"text": "good"}
    both = {"text": "own", "context": "trained"}
    with pytest.raises(DataError, match=r"the text may be in 'text', 'context': .* Set data\.columns\.text=<column>"):
        columns.example(Row(1, both))
    told = Columns(TaskWithFields(TEXT), Files(columns={"text": "text"}), trained_columns=trained_columns(trained))
    assert told.example(Row(1, both)) == {"text": "own"}
    with pytest.raises(DataError, match="no column 'text' for text; there are: other"):
        columns.example(Row(1, {"other": "x"}))
    named = Columns(TaskWithFields(TEXT), Files(columns={"text": "contxt"}), trained_columns=trained_columns(trained))
    with pytest.raises(DataError, match=r"no column 'contxt' for text; there are: context\. Did you mean 'context'"):
        named.example(Row(1, {"context": "good"}))


@pytest.mark.parametrize("kind", [Kind.NUMBER, Kind.INTEGERS])
@pytest.mark.parametrize("cell", [10**400, "x", {}])
def test_a_cell_of_another_kind_names_its_field(kind, cell):
    columns = Columns(TaskWithFields(Field("size", kind)), Files())
    with pytest.raises(DataError, match="the size must be") as caught:
        columns.example(Row(1, {"size": cell}))
    assert caught.value.field == "size"
