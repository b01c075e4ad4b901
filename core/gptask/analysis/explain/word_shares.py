"""Which words of an input each token of an encoded item belongs to.

The item may hold any part of the input's texts: cut off, in windows, repeated, in a template other than that of
`Task.render`. So its tokens are decoded, and their text is aligned with the rendered prompt, in which the texts' places
are known.

Shapes: T tokens of an encoded item, W words of an input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np

from gptask.analysis.explain.explanation import Word
from gptask.analysis.explain.input_words import WordPlace, change_texts, input_texts
from gptask.data.words import WORD
from gptask.model.generation.stream import StreamedText, special_ids
from gptask.plugins.task import Task
from gptask.plugins.types import Example

OPEN, MIDDLE, CLOSE = "\U000f8a01", "\U000f8a02", "\U000f8a03"  # private characters around a text and before its number
MARKED = re.compile(rf"{OPEN}(\d+){MIDDLE}(.*?){CLOSE}", re.DOTALL)
MIN_REPEATED_WORDS = 3  # fewer stand in a prompt by chance


def word_shares(task: Task, example: Example, words: Sequence[Word], ids: Sequence[int], tokenizer: Any) -> np.ndarray:
    """How much of each token belongs to each word: shares (T, W), whose rows sum to 1 or, for a token of the prompt's
    own text, to 0.

    A token of several words (such as Chinese characters) is shared by their characters. A word may occur repeatedly.
    """
    decoded, starts = token_starts(ids, tokenizer)
    prompt, words_in_prompt = _located_prompt(task, example, words)
    words_in_text = [words_in_prompt[position] if position >= 0 else -1 for position in aligned(decoded, prompt)]
    shares = np.zeros((len(ids), len(words)), dtype=np.float32)
    ends, control_ids = [*starts[1:], len(decoded)], special_ids(tokenizer)
    for token in range(len(ids) - 1, -1, -1):
        for word in words_in_text[starts[token] : ends[token]]:
            if word >= 0:
                shares[token, word] += 1
        if starts[token] == ends[token] and token + 1 < len(ids) and ids[token] not in control_ids:
            shares[token] = shares[token + 1]  # bytes of a character that the next token goes on with
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    return shares


def token_starts(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[int]]:
    """The text of token ids without control tokens, and where each token begins in it."""
    text = StreamedText(tokenizer, [])
    decoded = "".join([*(text.add(token) for token in ids), text.rest()])
    return decoded, [min(start, len(decoded)) for start in text.starts]


def _located_prompt(task: Task, example: Example, words: Sequence[Word]) -> tuple[str, list[int]]:
    """A text that holds the example's texts, and the number of the word at each of its characters, -1 where none is.

    It is the rendered prompt; where the task changes texts as it renders them, it is the texts alone.
    """
    numbers_of_texts: list[list[int]] = []

    def mark(text: str, places: list[WordPlace]) -> str:
        numbers_of_texts.append(_numbers(text, places))
        return f"{OPEN}{len(numbers_of_texts) - 1}{MIDDLE}{text}{CLOSE}"

    marked, prompt, numbers, position = task.render(change_texts(task, example, words, mark))[0], "", list[int](), 0
    for match in MARKED.finditer(marked):
        literal = marked[position : match.start()]
        prompt += literal + match[2]
        numbers += [-1] * len(literal) + numbers_of_texts[int(match[1])]
        position = match.end()
    prompt, numbers = prompt + marked[position:], numbers + [-1] * len(marked[position:])
    if prompt == task.render(example)[0] and len(numbers) == len(prompt):
        return prompt, numbers
    prompt, numbers = "", []
    for name, text in input_texts(task, example).items():
        places = [WordPlace(number, word.start, word.end) for number, word in enumerate(words) if word.field == name]
        prompt, numbers = f"{prompt}{text}\n", [*numbers, *_numbers(text, places), -1]
    return prompt, numbers


def _numbers(text: str, places: Sequence[WordPlace]) -> list[int]:
    """The number of the word at each character of a text, -1 between words."""
    numbers = [-1] * len(text)
    for place in places:
        numbers[place.start : place.end] = [place.number] * (place.end - place.start)
    return numbers


def aligned(text: str, source: str) -> list[int]:
    """For each character of a text, where it stands in a source of which the text holds parts; -1: nowhere.

    They are compared word by word, without spaces, as `difflib` does: the longest part first. What is left of the text
    repeats the source where `MIN_REPEATED_WORDS` in a row do.
    """
    if text == source:
        return [*range(len(text))]
    text_words, source_words = [*WORD.finditer(text)], [*WORD.finditer(source)]
    strings, source_strings = [match[0] for match in text_words], [match[0] for match in source_words]
    partners = [-1] * len(strings)
    runs, min_size = [range(len(strings))], 1
    while runs:
        gaps: list[range] = []
        for run in runs:
            blocks = SequenceMatcher(None, strings[run.start : run.stop], source_strings, False).get_matching_blocks()
            blocks = blocks if max(block.size for block in blocks) >= min_size else []
            for block in blocks:
                start = run.start + block.a
                partners[start : start + block.size] = range(block.b, block.b + block.size)
            gaps += _gaps(partners, run) if blocks else []
        min_size = max(1, min(MIN_REPEATED_WORDS, len(source_strings)))
        runs = [gap for gap in gaps if len(gap) >= min_size]
    positions = [-1] * len(text)
    for match, partner in zip(text_words, partners, strict=True):
        if partner >= 0:
            start = source_words[partner].start()
            positions[match.start() : match.end()] = range(start, start + len(match[0]))
    return positions


def _gaps(partners: Sequence[int], run: range) -> list[range]:
    """The parts of a run of words that have no partners."""
    edges = [run.start - 1, *(number for number in run if partners[number] >= 0), run.stop]
    return [range(left + 1, right) for left, right in pairwise(edges) if right > left + 1]
