"""The parts that messages are made of."""

import json

import pytest
from gptask.errors import DataError, UserError, aligned, damaged


def test_a_table_is_aligned_at_the_left_and_at_the_right() -> None:
    assert aligned([["label", "train"], ["a", "1,000"], ["bcdefg", "2"]]) == [
        "label   train",
        "a       1,000",
        "bcdefg      2",
    ]
    assert aligned([["a", "b"], ["cc", ""]], left=2) == ["a   b", "cc"]


def test_what_a_parser_raises_names_the_file_the_cause_and_its_class() -> None:
    with pytest.raises(DataError, match=r"a\.json can't be read, .*Expecting value.*\(JSONDecodeError\)") as caught:
        with damaged("a.json", DataError):
            json.loads("?")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@pytest.mark.parametrize("error", [UserError("own words"), MemoryError(), KeyboardInterrupt()])
def test_errors_with_words_of_their_own_and_those_of_the_machine_pass_a_parser(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, damaged("a.json"):
        raise error
    assert caught.value is error
