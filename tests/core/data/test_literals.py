"""Lists and objects that are written as text: JSON, Python's literals, and what numpy and pandas print."""

import ast
import json
import random

import numpy as np
import pandas as pd
import pytest
from gptask.data.literals import parse_container
from gptask.errors import DataError

VALUES = [
    [],
    ["toxic", "threat"],
    ["it's", 'say "no"', "a, b", "c]", "d 'e' f", "line\nbreak", "back\\slash", "中文", "😀"],
    [0, 1, -2, 2.5],
    [True, False],
    [["a", "b"], ["c"]],
    {"text": ["Oslo"], "answer_start": [5]},
    [{"role": "user", "content": "a 'b' c"}, {"role": "assistant", "content": "{x}"}],
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_json_and_python_literals_are_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1), repr(value), f"  {value!r}\n"):
        assert parse_container(text) == value
    assert ast.literal_eval(repr(value)) == value


@pytest.mark.parametrize(
    "array",
    [
        np.array(["toxic", "threat"]),
        np.array(["it's", 'say "no"', "a b"], dtype=object),
        np.array([0, 1, 0]),
        np.array([0.0, 1.0, -2.5]),
        np.array([True, False]),
        np.array([[0, 1], [1, 0]]),
        np.array([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]),
        np.array([f"word {number}" for number in range(40)]),
    ],
    ids=str,
)
def test_arrays_as_numpy_prints_them_are_read(array: np.ndarray) -> None:
    assert parse_container(str(array)) == array.tolist()
    assert parse_container(repr(array)) == array.tolist()
    assert parse_container(str(list(array))) == array.tolist()


def test_an_object_as_pandas_writes_it_to_a_table_is_read() -> None:
    answers = {"text": np.array(["Saint Bernadette"], dtype=object), "answer_start": np.array([515], dtype=np.int32)}
    cell = pd.DataFrame({"answers": [answers]}).to_csv(index=False).splitlines()[1].strip('"')
    assert parse_container(cell) == {"text": ["Saint Bernadette"], "answer_start": [515]}


def test_missing_values_are_none_and_tuples_and_sets_are_lists() -> None:
    assert parse_container("[nan, None, NaN]") == [None, None, None]
    assert parse_container("[null, 1]") == [None, 1]
    assert parse_container("('a', 'b')") == parse_container("{'a', 'b'}") == ["a", "b"]
    assert parse_container("[u'a' ,'b']") == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "[", "()", "( )", "[sic]", "[sic] he said", "[1] and [2]", "(laughs)", "{misc}", "'a'", "3", "true",
        "[a, b]", "[1 - 2]", "[__import__('os').system('x')]", "[x for x in 'ab']", "[f'{1}']", "[b'a']", "[1, ...]",
        "array", "array(", "[lambda: 1]", "{**{}}", "[*[1]]", "[01]",
    ],
)  # fmt: skip
def test_other_texts_are_no_list(text: str) -> None:
    assert parse_container(text) is None


@pytest.mark.parametrize("text", ["['a', 'b' ... 'z']", "['it's', 'b']", "[{'role': user}]"])
def test_a_broken_list_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="a list written as text is neither JSON nor a Python literal"):
        parse_container(text)


def test_deep_and_long_texts_are_bounded() -> None:
    assert parse_container("[" * 50_000 + "]" * 50_000) is None
    assert parse_container("(" * 50_000 + ")" * 50_000) is None
    assert parse_container("[x" + " 1" * 150_000 + "]") is None
    assert parse_container(json.dumps(["a"] * 100_000)) == ["a"] * 100_000


def test_random_lists_are_read_in_every_written_form() -> None:
    generator = random.Random(1)
    for _ in range(200):
        length = generator.randrange(1, 5)
        words = ["".join(generator.choices("'\"a1, \\.[]{}()…\n", k=generator.randrange(6))) for _ in range(length)]
        for text in (repr(words), json.dumps(words), str(np.array(words, dtype=object))):
            assert parse_container(text) == words
