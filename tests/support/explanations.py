"""Explanations as the methods of `gptask explain` leave them, of made-up numbers."""

import re
from typing import Any

import numpy as np
from gptask.analysis.explain.explanation import AttentionMaps, AttributionMap, Explanation, Faithfulness, Word

FAITHFUL = Faithfulness("ig", 0.46, 0.04, 0.42, 0.31, 0.5, 100, True, "Words that ig calls strong matter.")
RANDOM = Faithfulness("attention", 0.05, 0.04, 0.01, -0.03, 0.05, 100, False, "It finds no more than random orders.")


def words_of(text: str, field: str = "text") -> list[Word]:
    """The words between spaces; each Chinese character is one."""
    pattern = r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+"
    return [Word(field, match.start(), match.end(), match[0]) for match in re.finditer(pattern, text)]


def classified(text: str, id: str = "a", seed: int = 0, **entries: Any) -> Explanation:
    """A text that is called negative with 90%; its words' values are random, the third one's is the largest.

    The last word was not read.
    """
    words = words_of(text)
    values = np.random.default_rng(seed).uniform(-0.5, 0.5, len(words)).round(4).tolist()
    values[2:3] = [0.9][: len(values[2:3])]
    read: list[float | None] = [*values[:-1], None] if len(values) > 3 else values

    def mapped(target: str, probability: float, sign: int) -> AttributionMap:
        signed = [None if value is None else sign * value for value in read]
        without = [None if value is None else probability - value * probability / 2 for value in signed]
        return AttributionMap(target, probability, signed, without=without, steps=32, completeness_error=0.021,
                              faithfulness=0.5, random=0.03)  # fmt: skip

    defaults = {
        "prediction": "negative",
        "maps": [mapped("negative", 0.9, 1), mapped("positive", 0.1, -1)],
        "probabilities": {"negative": 0.9, "positive": 0.1},
        "score": 0.9,
        "reference": "positive",
    }
    return Explanation(id, {"text": text}, words, **(defaults | entries))


def translated() -> Explanation:
    """A text in two fields with a written answer of three words, each explained."""
    source, written = "Drei Kinder stehen dort", "Three children stand"
    words = [*words_of("German", "language"), *words_of(source, "source")]
    answer = words_of(written, "prediction")
    maps = []
    for place, word in enumerate(answer):
        values: list[float | None] = [0.01 * (n == place + 1) + 0.001 for n in range(len(words))]
        maps.append(AttributionMap(word.text, 0.5 + place / 10, values, place=place))
    return Explanation("t", {"language": "German", "source": source}, words, written, maps, written=answer)


def attended(text: str, layers: int = 3, heads: int = 2) -> Explanation:
    """A text with maps of heads: each word reads the one before it by layer 0, head 1, else all up to itself."""
    size = len(words_of(text))
    weights = np.tril(np.full((layers, heads, size, size), 40, dtype=np.uint8))
    weights[0, 1] = np.eye(size, k=-1, dtype=np.uint8) * 255
    return classified(text, attention=AttentionMaps(weights))
