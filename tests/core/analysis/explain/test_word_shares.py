"""Which words the tokens of an item belong to: cut, repeated, in windows, in a chat template, in Chinese."""

import numpy as np
import pytest
from gptask.analysis.explain.input_words import input_words
from gptask.analysis.explain.word_shares import aligned, word_shares
from gptask.data.datamodule import encode
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import Context, TokenTagging

SENTIMENT = Sentiment(labels=["bad", "good"])
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    import transformers

    loaded = transformers.AutoTokenizer.from_pretrained(tiny_model("llama"))
    return text_tokenizer(loaded)


def readings(task, example, tokenizer, max_tokens=200):
    """Of each item, pairs of a token's text and the words that it belongs to."""
    words = input_words(task, example)
    example = {field.name: None for field in task.targets()} | example
    for item in encode(task, example, tokenizer, max_tokens):
        shares = word_shares(task, example, words, item["ids"], tokenizer)
        assert set(np.round(shares.sum(1), 5).tolist()) <= {0.0, 1.0}
        yield [
            (tokenizer.decode([token]), [words[number].text for number in np.flatnonzero(row)])
            for token, row in zip(item["ids"], shares, strict=True)
        ]


def joined(reading):
    """Each word of a reading once for each run of its tokens."""
    runs = []
    for _, words in reading:
        for word in words:
            if not runs or runs[-1] != word:
                runs.append(word)
    return runs


def test_the_prompt_s_own_text_belongs_to_no_word(tokenizer):
    (reading,) = readings(SENTIMENT, {"text": "Review: it is Sentiment"}, tokenizer)
    assert joined(reading) == ["Review", ":", "it", "is", "Sentiment"]
    assert sum(not words for _, words in reading) >= 4


def test_a_text_that_is_read_twice_and_one_that_is_cut(tokenizer):
    twice = Sentiment(labels=["bad", "good"], readings=2)
    (reading,) = readings(twice, {"text": "the lazy dog"}, tokenizer)
    assert joined(reading) == ["the", "lazy", "dog"] * 2
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    (reading,) = readings(SENTIMENT, {"text": " ".join(words * 3)}, tokenizer, max_tokens=40)
    assert joined(reading) == (words * 3)[: len(joined(reading))]
    assert len(words) > len(joined(reading)) / 3 > 1


def test_characters_share_a_token_and_tokens_share_a_character(tokenizer):
    (reading,) = readings(SENTIMENT, {"text": "很好 dog"}, tokenizer)
    assert joined(reading) == ["很", "好", "dog"]
    assert sum(words == ["很"] for _, words in reading) > 1  # its bytes


@pytest.mark.parametrize("context", Context)
def test_the_words_of_a_tagged_sentence(context, tokenizer):
    task = TokenTagging(types=["PER"], plain=False, context=context)
    words = ["the", "lazy", "dog", "jumps"]
    (reading,) = readings(task, {"tokens": words, "predicate": [1]}, tokenizer)
    assert joined(reading) == words * (2 if context is Context.repeat else 1)
    (reading,) = readings(task, {"tokens": list("很好很好"), "predicate": None}, tokenizer)
    assert joined(reading) == list("很好很好") * (2 if context is Context.repeat else 1)


def test_windows_over_a_context_with_the_question_around_them(tokenizer):
    task = QuestionAnswering(answer=AnswerForm.span, stride=8)
    context = (
        "the quick brown fox jumps over the lazy dog. this film is very good, the dog is bad and over it jumps a fox"
    )
    found = list(readings(task, {"context": context, "question": "is it good?"}, tokenizer, max_tokens=70))
    assert len(found) > 1
    for reading in found:
        assert joined(reading)[:4] == ["is", "it", "good", "?"] == joined(reading)[-4:]
    assert {word for reading in found for word in joined(reading)} >= {"quick", "lazy", "film", "very", "bad", "a"}


def test_a_conversation_in_its_template(tokenizer):
    tokenizer.raw.chat_template = CHATML
    turns = [{"role": "user", "content": "user is good"}, {"role": "assistant", "content": "it is"}]
    (reading,) = readings(TextGeneration(), {"messages": [*turns, {"role": "user", "content": "why?"}]}, tokenizer)
    assert joined(reading) == ["user", "is", "good", "it", "is", "why", "?"]


@pytest.mark.parametrize(
    ("text", "source", "held"),
    [
        ("a b c", "a b c", "a b c"),
        ("x a b y", "a b", "a b"),
        ("b c", "a b c d", "b c"),
        ("a b c a b c", "a b c", "a b c a b c"),
        ("no word", "of it", ""),
        ("", "a", ""),
    ],
)
def test_alignment(text, source, held):
    positions = aligned(text, source)
    assert "".join(c for c, p in zip(text, positions, strict=True) if p >= 0 and c != " ") == held.replace(" ", "")
    assert all(text[n] == source[p] for n, p in enumerate(positions) if p >= 0)
