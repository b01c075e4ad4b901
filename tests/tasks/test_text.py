"""Sentences, references and offsets of answers."""

from typing import Any

import pytest
from gptask_tasks.text import published_start, reference_texts, sentences


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("一。二！三？", ["一。", "二！", "三？"]),
        ("यह घर है। वह आया।", ["यह घर है।", "वह आया।"]),
        ("كيف حالك؟ بخير.", ["كيف حالك؟", "بخير."]),
        ("3.5 metres", ["3.5 metres"]),
        ("", [""]),
    ],
)
def test_each_sentence_gets_a_line(text: str, lines: list[str]) -> None:
    assert sentences(text).split("\n") == lines


@pytest.mark.parametrize("blank", ["", " ", "\u200b", None])
def test_blank_references_say_nothing(blank: Any) -> None:
    assert reference_texts({"answers": [blank, "Oslo", blank]}, "answers") == ["Oslo"]
    assert reference_texts({"answers": [blank]}, "answers") == reference_texts({"answers": []}, "answers") == [""]


@pytest.mark.parametrize(
    ("answers", "offsets", "start"),
    [
        (["Oslo"], [30], 30),
        (["Oslo"], [28], 30),  # the nearest, where an offset is a little wrong
        (["Oslo", "in Oslo"], [30, 27], 30),
        (["Oslo"], [0, 30], 30),  # a blank answer in front of it was dropped
        (["Oslo"], [], 8),
    ],
)
def test_an_offset_chooses_among_the_occurrences_of_an_answer(
    answers: list[str], offsets: list[int], start: int
) -> None:
    assert published_start({"answers": answers, "answer_start": offsets}, 0, [8, 30]) == start
