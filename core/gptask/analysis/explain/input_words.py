"""The words of an input, and an input without some of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from gptask.analysis.explain.explanation import Word
from gptask.data.words import WORD
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Kind


class WordPlace(NamedTuple):
    """A word of an input by its number, with its characters ``start`` to ``end`` in the text that holds it."""

    number: int
    start: int
    end: int


def input_texts(task: Task, example: Example) -> dict[str, str]:
    """The texts that a user gives, by the name of their field (with a number for each of several in one field)."""
    texts: dict[str, str] = {}
    for field in task.inputs():
        value = example.get(field.name)
        if field.kind is Kind.TEXT and value is not None:
            texts[field.name] = value
        elif field.kind is Kind.TOKENS:
            texts[field.name] = " ".join(value or [])
        elif field.kind is Kind.TEXTS:
            texts |= {f"{field.name}[{n}]": text for n, text in enumerate(value or [])}
        elif field.kind is Kind.MESSAGES:
            texts |= {f"{field.name}[{n}]": turn["content"] for n, turn in enumerate(value or [])}
    return texts


def input_words(task: Task, example: Example) -> list[Word]:
    """The words of an input, in the order of its fields: divided as by `gptask.data.words`, Chinese by characters.

    Those of a field of tokens are its tokens.
    """
    token_fields = [field.name for field in task.inputs() if field.kind is Kind.TOKENS]
    words: list[Word] = []
    for name, text in input_texts(task, example).items():
        if name not in token_fields:
            words += [Word(name, match.start(), match.end(), match[0]) for match in WORD.finditer(text)]
            continue
        start = 0
        for token in example[name]:
            words.append(Word(name, start, start + len(token), token))
            start += len(token) + 1
    return words


def change_texts(
    task: Task, example: Example, words: Sequence[Word], change: Callable[[str, list[WordPlace]], str | None]
) -> Example:
    """The example with each of its texts replaced by what ``change`` makes of it and of the words in it.

    Each token of a field of tokens is a text; where it becomes None it is left out, and the numbers beside tokens
    (`Kind.INTEGERS`), which are positions of these, follow them.
    """
    places: dict[str, list[WordPlace]] = {}
    for number, word in enumerate(words):
        places.setdefault(word.field, []).append(WordPlace(number, word.start, word.end))
    changed = dict(example)
    for field in task.inputs():
        name, value = field.name, example.get(field.name)
        if field.kind is Kind.TEXT and value is not None:
            changed[name] = change(value, places.get(name, [])) or ""
        elif field.kind is Kind.TEXTS and value:
            changed[name] = [change(text, places.get(f"{name}[{n}]", [])) or "" for n, text in enumerate(value)]
        elif field.kind is Kind.MESSAGES and value:
            contents = [change(turn["content"], places.get(f"{name}[{n}]", [])) or "" for n, turn in enumerate(value)]
            changed[name] = [turn | {"content": content} for turn, content in zip(value, contents, strict=True)]
        elif field.kind is Kind.TOKENS and value:
            numbers = [place.number for place in places[name]]
            tokens = [
                change(token, [WordPlace(number, 0, len(token))]) for token, number in zip(value, numbers, strict=True)
            ]
            changed[name] = [token for token in tokens if token is not None]
            kept = [position for position, token in enumerate(tokens) if token is not None]
            new_positions = {old: new for new, old in enumerate(kept)}
            for other in (f.name for f in task.inputs() if f.kind is Kind.INTEGERS and example.get(f.name)):
                changed[other] = [new_positions[old] for old in example[other] if old in new_positions]
    return changed


def without_words(task: Task, example: Example, words: Sequence[Word], dropped: Collection[int]) -> Example:
    """The example as a user would write it without some of its words, which are named by their numbers.

    Of the two spaces around a word that goes, one goes too.
    """

    def shortened(text: str, places: list[WordPlace]) -> str | None:
        missing = [place for place in places if place.number in dropped]
        if not missing:
            return text
        pieces, position = "", 0
        for place in missing:
            pieces += text[position : place.start]
            position = place.end
            if not pieces or pieces[-1].isspace():
                position += len(text[position:]) - len(text[position:].lstrip(" "))
        return (pieces + text[position:]).rstrip(" ") or None

    return change_texts(task, example, words, shortened)
