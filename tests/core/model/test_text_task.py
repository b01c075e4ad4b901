from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from gptask import DataError, Field, Kind, UserError
from gptask.model.generation.generate import GeneratedText
from gptask.model.text_task import GenerativeTask
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.types import Example


@dataclass
class Count(GenerativeTask):
    """Write a number in words."""

    PROMPTS: ClassVar[dict[str, str]] = {"en": "{number} is", "zh": "{number}是"}

    def fields(self) -> list[Field]:
        return [Field("number", Kind.NUMBER), Field("word", target=True)]

    def target(self, example: Example) -> str | None:
        return example["word"]

    def metrics(self) -> list[Any]:
        return []

    def sample(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("{number} is", "one", " one"),
        ("{number} is ", "one", "one"),
        ("{number}\\n", "one", "one"),
        ("{number}是", "one", "one"),
        ("{number}：", "one", "one"),
        ("{number} is", "一", "一"),
        ("{number} is", " one \n", " one"),
        ("{number} is", "하나", " 하나"),  # Korean has spaces
        ("{number} is", "หนึ่ง", "หนึ่ง"),
        ("{number} is", None, None),
    ],
)
def test_a_space_precedes_the_target_only_where_one_is_written(
    prompt: str, word: str | None, expected: str | None
) -> None:
    assert Count(prompt=prompt).render({"number": 1, "word": word})[1] == expected


def test_a_field_of_value_zero_is_written_and_a_missing_one_is_empty() -> None:
    assert Count().render({"number": 0.0, "word": None})[0] == "0.0 is"
    assert Count().render({"number": None, "word": None})[0] == " is"


@pytest.mark.parametrize(
    "rest", ["note:d", "note!r", "note:>{width}", "oc.env:HOME", "number:.1f", "note:>1000000000", "note!r:{width}"]
)
def test_a_format_behind_a_name_is_refused(rest: str) -> None:
    with pytest.raises(UserError, match=r"has a format behind its name.*write \{\{ \}\} for literal"):
        Count(prompt=f"{{number}} {{{rest}}}").validate()
    with pytest.raises(ValueError, match="has a format"):  # of an author's template too
        Count().fill_template(f"{{{rest}}}", {"number": 1})


def test_a_placeholder_reaches_no_attribute_and_no_element() -> None:
    task = Count(prompt="{number} {note.__class__} {note[0]}")
    task.validate()  # they are names of columns, which the data must have
    with pytest.raises(KeyError):
        task.fill_template("{number.__class__}", {"number": 1})


def test_literal_braces_are_possible() -> None:
    task = Count(prompt="{{n: {number}}}")
    task.validate()
    assert task.render({"number": 1, "word": None})[0] == "{n: 1}"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("num_beams", 0, "at least 1"),
        ("temperature", -0.1, "0 or more"),
        ("top_k", -1, "0 or more"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
    ],
)
def test_generation_options_out_of_range_are_refused(option: str, value: float, expected: str) -> None:
    with pytest.raises(UserError, match=f"task.generation.{option}={value} must be {expected}"):
        Count(generation=GenerationOptions(**{option: value})).validate()


def test_beams_and_sampling_exclude_each_other() -> None:
    with pytest.raises(UserError, match="beams and sampling exclude each other"):
        Count(generation=GenerationOptions(num_beams=2, temperature=0.5)).validate()


def test_an_empty_target_is_refused() -> None:
    Count().check({"number": 1, "word": "one"})
    with pytest.raises(DataError, match="the word is empty"):
        Count().check({"number": 1, "word": " \n"})


def test_a_prediction_is_the_text_with_its_probability() -> None:
    prediction = Count().prediction({"number": 1}, [GeneratedText(" one ", 0.25)])
    assert (prediction.value, prediction.score) == ("one", 0.25)


def test_tasks_do_not_share_generation_options() -> None:
    Count().generation.stop.append("x")
    assert Count().generation.stop == []


def test_a_literal_line_break_in_a_stop_text_is_one() -> None:
    assert GenerationOptions(stop=["\\n", "\\n\\n", "Q:"]).stop == ["\n", "\n\n", "Q:"]
