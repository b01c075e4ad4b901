"""What a label is called, and the labels of lists, separated texts, vectors and objects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptask.config.schemas import Files
from gptask.data.labels import LabelReader, canonical_label, label_names
from gptask.errors import DataError, UserError

NAMES = {"0": "negative", "1": "positive"}
THREE = ["toxic", "insult", "threat"]


def reader(labels: Any = None, **options: Any) -> LabelReader:
    return LabelReader(Files(labels=labels, **options))


def error(read: Callable[[Any], Any], cell: object) -> str:
    with pytest.raises(DataError) as caught:
        read(cell)
    return str(caught.value)


# --- spelling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spellings", "label"),
    [
        ([True, "True", "true", "TRUE", " tRue ", np.bool_(True)], "true"),
        ([False, "False", "FALSE"], "false"),
        ([1, "1", 1.0, "1.0", " 1 ", "1.", "1.00", np.int64(1), np.float32(1)], "1"),
        ([-1, "-1.0"], "-1"),
        ([0, -0.0, "-0.0", "0.0"], "0"),
        ([4.5, "4.5"], "4.5"),
        (["01"], "01"),
        (["+1"], "+1"),
        (["1.0.0"], "1.0.0"),
        (["Truecolor"], "Truecolor"),
        (["1.50"], "1.50"),
        (["True \n"], "true"),
    ],
)
def test_a_label_has_one_spelling(spellings: list, label: str) -> None:
    assert {reader().label(spelling) for spelling in spellings} == {label}
    assert canonical_label(label) == label


@pytest.mark.parametrize(
    "labels", [{0: "negative", 1: "positive"}, ["negative", "positive"], {"0.0": "negative", "1.0": "positive"}]
)
@pytest.mark.parametrize("cell", [True, "True", "TRUE", 1, 1.0, "1.0", np.bool_(True)])
def test_numeric_keys_serve_a_file_with_booleans(labels: Any, cell: object) -> None:
    assert reader(labels).label(cell) == "positive"


@pytest.mark.parametrize("labels", [{True: "spam", False: "ham"}, {"True": "spam", "False": "ham"}, {"TRUE": "spam"}])
def test_boolean_keys_accept_each_spelling_and_no_numbers(labels: Any) -> None:
    for cell in (True, "true", "True", "TRUE"):
        assert reader(labels).label(cell) == "spam"
    assert "label '1' is not in data.labels" in error(reader(labels).label, 1)


def test_booleans_and_numbers_may_have_names_of_their_own() -> None:
    both = reader({"true": "yes", "false": "no", "1": "one", "0": "none at all"})
    assert [both.label(cell) for cell in (True, "1.0", "FALSE", 0.0)] == ["yes", "one", "no", "none at all"]


def test_a_label_named_twice_or_by_no_text_is_an_error() -> None:
    with pytest.raises(UserError, match=r"names the label '1' twice: a, b \(spelled '1\.0'\)"):
        reader({"1": "a", "1.0": "b"})
    for name in (None, float("nan"), ["a"], {"a": 1}):
        with pytest.raises(UserError, match=r"data\.labels gives '0' the name .*; expected a text, null in quotes"):
            reader({0: name})


@pytest.mark.parametrize("labels", [{False: "neg", True: "pos"}, {0: False, 1: True}])
@pytest.mark.parametrize("cell", ["yes", "no", "On"])
def test_booleans_that_yaml_makes_of_yes_and_no_are_hinted_at(labels: Any, cell: str) -> None:
    message = error(reader(labels).label, cell)
    assert f"label '{cell}' is not in data.labels" in message
    assert "YAML reads yes, no, on and off without quotes as true and false: put quotes around them" in message


# --- missing values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["nan", "NaN", "NAN", "null", "NULL", "<NA>", "NaT", "#N/A", ["nan"]])
def test_a_word_for_a_missing_value_is_no_label(cell: object) -> None:
    for read in (reader().label, reader().labels, reader().tags):
        message = error(read, cell)
        assert "stands for a missing value: leave out such rows (data.on_bad=skip)" in message
        assert "name it with all others in data.labels" in message


@pytest.mark.parametrize("cell", ["None", "NA", "N/A", "none", "Nan Goldin", "Na"])
def test_a_word_that_may_be_a_class_is_one(cell: str) -> None:
    assert reader().label(cell) == cell


@pytest.mark.parametrize("labels", [{"nan": "not a number", "0": "zero"}, {"NaN": "NaN"}, ["nan", "null"]])
def test_data_labels_may_name_such_a_word(labels: Any) -> None:
    names = label_names(Files(labels=labels))
    for key, name in names.items():
        assert reader(labels).label(key) == name


@pytest.mark.parametrize("null", [None, float("nan")])
def test_a_null_among_labels_is_an_error_with_its_place(null: object) -> None:
    assert error(reader().labels, ["a", null, "b"]) == "label 2 of 3 is null"
    assert error(reader().tags, ["O", null]) == "tag 2 of 2 is null"
    assert error(reader().labels, "['a', None]") == "label 2 of 2 is null"


# --- names --------------------------------------------------------------------------------------------------------


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
        '{"0": "negative", "1": "pos\\u0069tive"}',
        "{0: negative, 1: positive}",
        "[negative, positive]",
    ],
)
def test_label_names_are_a_map_a_list_or_a_file(write_file: Callable, tmp_path: Path, labels: object) -> None:
    write_file("names.txt", "negative\r\npositive\r\n\n")
    write_file("map.tsv", "1\tpositive\n0\t negative\n")
    write_file("names.json", '["negative", "positive"]')
    write_file("map.json", '{"0": "negative", "1": "positive"}')
    names = reader(labels, root=str(tmp_path))
    assert names.names == NAMES
    for raw in (1, "1", " 1 ", 1.0, True, "positive"):
        assert names.label(raw) == "positive"


def test_a_map_as_text_holds_texts_alone() -> None:
    assert reader("{no: nein, null: nichts, 1: yes, Grün: on}").names == {
        "no": "nein",
        "null": "nichts",
        "1": "yes",
        "Grün": "on",
    }
    with pytest.raises(UserError, match=r'data\.labels=\{"a: b\} is neither JSON nor YAML'):
        reader('{"a: b}')


def test_label_ids_may_start_at_another_number() -> None:
    assert reader(["World", "Sports", "Business", "Sci/Tech"], label_start=1).label(4) == "Sci/Tech"


def test_an_unknown_label_is_an_error_with_the_known_ones() -> None:
    message = error(reader(["negative", "positive"]).label, 2)
    assert "label '2' is not in data.labels: 0, 1 (ids counted from 1? data.label_start=1)" in message
    assert "label 'meh\\u200b' is not in data.labels: 0, 1" in error(reader(["neg", "pos"]).label, "meh\u200b")


def test_a_label_that_is_both_an_id_and_a_name_is_an_id() -> None:
    names = reader({"1": "2", "2": "1", "x": "3"})
    assert [names.label(raw) for raw in ("1", "2", "x", "3")] == ["2", "1", "3", "3"]


def test_numbers_that_name_other_numbers_are_not_taken_for_ids_unseen() -> None:
    stars = [1, 2, 3, 4, 5]
    assert [reader(stars).label(raw) for raw in range(5)] == ["1", "2", "3", "4", "5"]
    assert [reader(stars, label_start=1).label(raw) for raw in stars] == ["1", "2", "3", "4", "5"]
    with pytest.raises(UserError, match=r"label 5 is a name .* where 1, 2, 3, 4 are .* data\.label_start=1") as caught:
        reader(stars).label("5")
    assert not isinstance(caught.value, DataError), "on_bad=skip must not hide it"


def test_label_names_of_another_form_are_an_error(write_file: Callable) -> None:
    with pytest.raises(UserError, match=r"data.labels must be a map, a list or a file"):
        reader(3)
    with pytest.raises(UserError, match="no such file"):
        reader("nowhere.txt")
    with pytest.raises(UserError, match=r"names.json can't be read, its content is damaged"):
        reader(write_file("names.json", "[1,"))


def test_numbers_are_no_booleans_and_the_message_says_what_to_name() -> None:
    assert "the file has numbers: name 0 and 1 in place of" in error(reader({"true": "a", "false": "b"}).label, "1")


# --- one label in a cell ------------------------------------------------------------------------------------------


def test_a_list_of_one_is_one_label() -> None:
    for cell in (["a"], "['a']", '["a"]', "['a' ]"):
        assert reader().label(cell) == "a"
    assert reader(THREE).label([1]) == "insult"
    for cell in ("[UNK]", "(other)", "{misc}", "[", "[sic] yes"):
        assert reader().label(cell) == cell


@pytest.mark.parametrize("cell", [["a", "b"], [], "['a', 'b']", "[0, 1, 0]", {"a": 1}, "{'a': 1}", [["a"]]])
def test_several_labels_or_none_are_not_one(cell: object) -> None:
    with pytest.raises(TypeError):
        reader().label(cell)


# --- several labels in a cell -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "separator", "expected"),
    [
        ("0,2", ",", ["toxic", "threat"]),
        (" 1 , 0 ", ",", ["insult", "toxic"]),
        ("0|1", "|", ["toxic", "insult"]),
        ("0 1", " ", ["toxic", "insult"]),
        ("0 1", "", ["toxic", "insult"]),
        ([0, "insult"], ",", ["toxic", "insult"]),
        ([0, "insult", "0", 1.0], ",", ["toxic", "insult"]),
        (1, ",", ["insult"]),
        ("", ",", []),
        ([], ",", []),
        ("[]", ",", []),
        ("['toxic', 'threat']", ",", ["toxic", "threat"]),
        ('["toxic", "threat"]', ",", ["toxic", "threat"]),
        ("['toxic' 'threat']", ",", ["toxic", "threat"]),
        ("{'toxic', 'threat'}", ",", ["toxic", "threat"]),
        ("[0 2]", ",", ["toxic", "threat"]),
    ],
)
def test_a_row_may_have_several_labels(raw: object, separator: str, expected: list) -> None:
    assert reader(THREE, label_separator=separator).labels(raw) == expected


def test_a_bracket_may_be_part_of_a_label() -> None:
    assert reader().labels("[UNK]") == ["[UNK]"]
    assert reader().labels("[a] x, b") == ["[a] x", "b"]


@pytest.mark.parametrize(
    "cell", ["[toxic, threat]", "['toxic', 'threat'", "['toxic'", "['toxic' ... 'threat']", "{a, b}", '{"a": 1']
)
def test_a_list_that_can_not_be_read_is_never_a_label(cell: str) -> None:
    assert "a list w" in error(reader().labels, cell)
    if "'" in cell:
        assert "a list written as text is neither JSON nor a Python literal" in error(reader().label, cell)


# --- vectors ------------------------------------------------------------------------------------------------------

VECTORS = [
    [0, 1, 0],
    "0,1,0",
    " 0, 1, 0",
    "[0, 1, 0]",
    "[0 1 0]",
    "[0. 1. 0.]",
    "0 1 0",
    "0.0 1.0 0.0",
    "[False, True, False]",
    [0.0, 1.0, 0.0],
    ["0", "1", "0"],
    [False, True, False],
    "[np.int64(0), np.int64(1), np.int64(0)]",
]


@pytest.mark.parametrize("cell", VECTORS, ids=str)
def test_a_vector_of_zeros_and_ones_is_read_by_data_labels(cell: object) -> None:
    for labels in (THREE, {"a": "toxic", "b": "insult", "c": "threat"}, {2: "threat", 0: "toxic", 1: "insult"}):
        assert reader(labels).labels(cell) == ["insult"]
    assert reader(THREE, label_start=1).labels(cell) == ["insult"]
    assert "a vector of 0 and 1 for 3 labels, but their names are needed: set data.labels=[<name>, ...]" in error(
        reader().labels, cell
    )
    assert "a vector of 0 and 1 for 3 labels, but data.labels has 4" in error(reader([*THREE, "more"]).labels, cell)


def test_all_zeros_are_no_label_and_all_ones_every_label() -> None:
    assert reader(THREE).labels([0, 0, 0]) == []
    assert reader(THREE).labels("1,1,1") == THREE


def test_with_two_labels_a_vector_must_not_look_like_ids() -> None:
    ids = reader(["toxic", "insult"])
    assert [ids.labels(cell) for cell in ([0, 0], "1,1", [True, False], [1], "0", [])] == [
        [], ["toxic", "insult"], ["toxic"], ["insult"], ["toxic"], [],
    ]  # fmt: skip
    message = error(ids.labels, "0,1")
    assert "[0, 1] may be a vector or the ids of both labels" in message
    assert "data.labels={toxic: toxic, insult: insult}" in message
    names = reader({"toxic": "toxic", "insult": "insult"})
    assert [names.labels(cell) for cell in ([0, 1], "1,0")] == [["insult"], ["toxic"]]


def test_ids_that_are_no_vector_stay_ids() -> None:
    many = reader([f"l{number}" for number in range(28)])
    assert many.labels("0,1") == ["l0", "l1"]
    assert many.labels("1,27") == ["l1", "l27"]
    assert reader().labels([0, 1]) == ["0", "1"]
    assert reader().labels("yes,no") == ["yes", "no"]


def test_an_object_of_zeros_and_ones_sets_its_labels() -> None:
    for cell in ({"toxic": 1, "insult": 0}, "{'toxic': True, 'insult': False}", '{"toxic": "1", "insult": null}'):
        assert reader().labels(cell) == ["toxic"]
    assert "the label 'toxic' has '2'; expected 0, 1, true, false or nothing" in error(reader().labels, {"toxic": 2})


# --- tags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [["O", "B-X"], "O B-X", "['O', 'B-X']", '["O", "B-X"]', "['O' 'B-X']", "O, B-X", np.array(["O", "B-X"]).tolist()],
    ids=str,
)
def test_tags_are_lists_or_texts(cell: object) -> None:
    assert reader().tags(cell) == ["O", "B-X"]


def test_marks_may_be_tags() -> None:
    for cell in ("( NN )", "[ NN ]", "( )", "NN , CC"):
        assert reader().tags(cell) == cell.split()
    assert "a list without quotes: '[O, B-X]'" in error(reader().tags, "[O, B-X]")


# --- labels that no parser takes ------------------------------------------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "labels", ["[" * 3000 + "]" * 3000, "[" * 3000, "{a: " * 2000, "[&a [*a]]", "[\x01]", "{[1]: a}"]
)
def test_labels_that_are_neither_json_nor_yaml_are_refused(labels: str) -> None:
    refusals = r"data\.labels(=.* is neither JSON nor YAML: |: line 1 (is nested deeper|has a YAML alias))"
    with pytest.raises(UserError, match=refusals) as caught:
        label_names(Files(labels=labels))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content", [DEEP, DEEP + "]" * 100_000, f"[{'9' * 5000}]", b"\xff\xfe[\0", b'["\xff"]', "{", "", '["a" "b"]']
)
def test_a_damaged_file_of_labels_is_named(write_file: Callable, content: str | bytes) -> None:
    name = write_file("labels.json", content)
    with pytest.raises(
        UserError, match=r"data\.labels: .*labels\.json can't be read, its content is damaged: .*Error\)"
    ):
        label_names(Files(labels=name))


@pytest.mark.parametrize("labels", [{"\ud800": "a"}, {"a": "\udfff"}, ["\ud800"], '["\\ud800"]'])
def test_labels_with_half_a_surrogate_pair_are_refused(labels: Any) -> None:
    with pytest.raises(UserError, match=r"data\.labels holds .*, half a surrogate pair"):
        label_names(Files(labels=labels))


def test_a_label_that_is_no_finite_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.labels gives 'a' the name inf"):
        label_names(Files(labels='{"a": 1e999}'))


def test_digits_that_are_no_number_are_names_of_labels() -> None:
    for digits in ("²", "9" * 5000):
        names = reader({digits: digits, "1": "1"})
        assert names.name(digits) == digits
        assert names.labels([digits]) == [digits]
        assert names.labels({digits: 1, "1": 0}) == [digits]
