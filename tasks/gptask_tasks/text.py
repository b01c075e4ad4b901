"""Text helpers shared by the built-in tasks."""

from __future__ import annotations

import regex
from gptask import Example, is_blank

SENTENCE_END = regex.compile(r"(?<=\p{Sentence_Terminal})\s+|(?<=(?![.!?])\p{Sentence_Terminal})(?=\S)")


def sentences(text: str) -> str:
    """Put each sentence on a line of its own, as ROUGE-Lsum wants it.

    It ends with ``.``, ``!`` or ``?`` and a space, or with another script's mark, such as ``。`` or ``।``.
    """
    return str(SENTENCE_END.sub("\n", text.strip()))


def reference_texts(example: Example, field: str) -> list[str]:
    """Return the references of an example that say something; one empty text where none does."""
    return [text for text in example[field] or [] if text is not None and not is_blank(text)] or [""]


def published_start(example: Example, number: int, starts: list[int]) -> int:
    """Return which of the occurrences ``starts`` of an answer its offset in ``answer_start`` means: the nearest.

    Where the numbers of offsets and answers differ, as after a blank answer was dropped, an offset that fits counts.
    """
    offsets, answers = example.get("answer_start") or [], example["answers"]
    fitting = [offset for offset in offsets if offset in starts]
    if len(offsets) != len(answers) and fitting:
        return int(fitting[0])
    published = offsets[number] if number < len(offsets) else 0
    return min(starts, key=lambda start: abs(start - published))
