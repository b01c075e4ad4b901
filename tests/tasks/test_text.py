"""Splitting texts into characters and sentences."""

import pytest
from gptask_tasks.text import characters, sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("北京。", ["北", "京"]),
        ("GPT模型, it's", ["gpt", "模", "型", "it", "s"]),
        ("2020年ＮＢＡ决赛", ["2020", "年", "nba", "决", "赛"]),
        ("snake_case é1", ["snake", "case", "é1"]),
        ("\U00020000好", ["\U00020000", "好"]),
        ("……", []),
    ],
)
def test_chinese_is_split_into_characters_and_other_scripts_into_words(text: str, parts: list[str]) -> None:
    assert characters(text) == parts


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("一。二！三？", ["一。", "二！", "三？"]),
        ("3.5 metres", ["3.5 metres"]),
        ("", [""]),
    ],
)
def test_each_sentence_gets_a_line(text: str, lines: list[str]) -> None:
    assert sentences(text).split("\n") == lines
