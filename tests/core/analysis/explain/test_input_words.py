"""The words of an input, in any script, and inputs without some of them."""

import pytest
from gptask.analysis.explain.input_words import input_words, without_words
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging

SENTIMENT = Sentiment(labels=["bad", "good"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It isn't well-made, but 3.5 stars!", ["It", "is", "n't", "well-made", ",", "but", "3.5", "stars", "!"]),
        ("天气很好 today", ["天", "气", "很", "好", "today"]),
        ("", []),
    ],
)
def test_words_have_their_places(text, words):
    found = input_words(SENTIMENT, {"text": text})
    assert [word.text for word in found] == words
    assert [text[word.start : word.end] for word in found] == words


def test_tokens_and_turns_are_words_of_their_fields():
    tagging = input_words(TokenTagging(types=["PER"]), {"tokens": ["New York", "is", "大"], "predicate": None})
    assert [(word.text, word.start, word.end) for word in tagging] == [
        ("New York", 0, 8),
        ("is", 9, 11),
        ("大", 12, 13),
    ]
    turns = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hi"}]
    chat = input_words(TextGeneration(), {"messages": turns})
    assert [(word.field, word.text) for word in chat] == [
        ("messages[0]", "hi"), ("messages[0]", "there"), ("messages[1]", "hi"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "dropped", "rest"),
    [
        ("a good film", {1}, "a film"),
        ("a good film", {0}, "good film"),
        ("a good film", {2}, "a good"),
        ("a good film", {0, 2}, "good"),
        ("it isn't bad, really", {2, 4}, "it is bad really"),
        ("天气很好", {1}, "天很好"),
        ("one\ntwo", {0}, "\ntwo"),
        ("a good film", set(), "a good film"),
    ],
)
def test_a_word_goes_with_one_of_its_spaces(text, dropped, rest):
    example = {"text": text}
    assert without_words(SENTIMENT, example, input_words(SENTIMENT, example), dropped) == {"text": rest}
    assert example == {"text": text}


def test_a_token_goes_and_positions_follow():
    task, example = TokenTagging(types=["PER"]), {"tokens": ["the", "lazy", "dog", "jumps"], "predicate": [0, 3]}
    shorter = without_words(task, example, input_words(task, example), {0, 1})
    assert shorter == {"tokens": ["dog", "jumps"], "predicate": [1]}


def test_each_field_loses_its_own_words():
    task, example = QuestionAnswering(), {"context": "the dog runs", "question": "the dog?", "answers": None}
    words = input_words(task, example)
    number = next(n for n, word in enumerate(words) if (word.field, word.text) == ("question", "dog"))
    assert without_words(task, example, words, {number}) == example | {"question": "the ?"}
