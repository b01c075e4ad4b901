"""What `gptask explain` finds out about an input, and about the method that it used, as JSON lines.

A file has a line for each input, then one with the method's `Faithfulness` (``{"faithfulness": {...}}``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gptask.runs.atomic_write import json_text

DIGITS = 5  # of the numbers in a file


@dataclass(frozen=True)
class Word:
    """Characters ``start`` to ``end`` (exclusive) of the text in a field."""

    field: str
    start: int
    end: int
    text: str


@dataclass
class AttributionMap:
    """How much each word of the input speaks for one target; its lists have an entry for each word.

    ``target`` is a class or a tag, ``start`` or ``end`` of a span, or a word that was written. ``place`` is, of a tag,
    the number of its word among the input's; of the start or the end of a span the number of the word that holds it;
    of a written word its number among the written ones; None of a class and of a span that is no part of a text. With
    ``against``, the map tells why the target and not that one.

    ``attributions`` are parts of the target's log-odds, in nats (of a written text's log-probability; with ``against``
    of the difference of both log-probabilities), and by ``attention`` shares of 1; None for a word that the model did
    not read (it was cut off). ``without`` is the target's
    probability after a word is deleted; None for a word whose deletion deletes the target itself. All of it is None
    where it was not computed. ``completeness_error`` is the part of the difference to the baseline that the
    attributions miss, after so many ``steps``. ``faithfulness`` is insertion − deletion by this map, ``random`` that of
    random orders on the same input; None where the input has fewer than two words.
    """

    target: str
    probability: float
    attributions: list[float | None]
    place: int | None = None
    against: str | None = None
    without: list[float | None] | None = None
    steps: int | None = None
    completeness_error: float | None = None
    faithfulness: float | None = None
    random: float | None = None


@dataclass
class AttentionMaps:
    """The attention that each word pays to each other one, in every head: L layers, H heads, W words.

    ``weights`` (L, H, W, W) are shares of 0 to 255 for 0 to 1: the row is the word that reads, the column the one that
    is read. What goes to the tokens of no word (the prompt's own) is missing from a row.
    """

    weights: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """The weights' bytes in base64, row by row, with their shape."""
        return {
            "shape": list(self.weights.shape),
            "weights": base64.b64encode(self.weights.astype(np.uint8).tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AttentionMaps:
        """The maps that `to_json` wrote."""
        weights = np.frombuffer(base64.b64decode(values["weights"]), dtype=np.uint8)
        return cls(weights.reshape(values["shape"]))


@dataclass
class Explanation:
    """One input: its ``fields`` as texts, the words in them, what is predicted and why.

    ``probabilities`` are those of all classes, empty for tags, spans and written texts. ``maps`` has one map for each
    target: the classes that matter (the predicted one first), the tagged words, both ends of a span, the written words.
    ``written`` are the words of a written text, with ``field`` = ``prediction``. ``reference`` is what the prediction
    is compared with, where that is known.
    """

    id: str
    fields: dict[str, str]
    words: list[Word]
    prediction: Any
    maps: list[AttributionMap]
    probabilities: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    reference: Any = None
    written: list[Word] = field(default_factory=list)
    attention: AttentionMaps | None = None

    def to_json(self) -> str:
        """A line of JSON."""
        values = asdict(self) | {"attention": self.attention.to_json() if self.attention else None}
        return json_text(_rounded({name: value for name, value in values.items() if value not in (None, [], {})}))

    @classmethod
    def from_json(cls, line: str) -> Explanation:
        """The explanation in a line."""
        values = json.loads(line)
        values["words"] = [Word(**word) for word in values.get("words", [])]
        values["written"] = [Word(**word) for word in values.get("written", [])]
        values["maps"] = [AttributionMap(**entry) for entry in values.get("maps", [])]
        values["attention"] = AttentionMaps.from_json(values["attention"]) if "attention" in values else None
        return cls(**{"prediction": None} | values)


@dataclass
class Faithfulness:
    """How faithful a method's maps are over a file of ``n`` inputs: insertion − deletion (Petsiuk et al. 2018).

    ``value`` is the mean of the method's maps, ``random`` that of random orders of the words; ``difference`` with its
    95% interval (None where there are too few inputs) is the paired one. ``is_better`` is false where the method is no
    better than random; ``sentence`` says which.
    """

    method: str
    value: float
    random: float
    difference: float
    low: float | None
    high: float | None
    n: int
    is_better: bool
    sentence: str

    def to_json(self) -> str:
        """A line of JSON."""
        return json_text({"faithfulness": _rounded(asdict(self))})

    @classmethod
    def from_json(cls, line: str) -> Faithfulness:
        """The summary in a line."""
        return cls(**json.loads(line)["faithfulness"])


def read_lines(lines: Iterable[str]) -> Iterator[Explanation | Faithfulness]:
    """Read the lines of a file that `gptask explain` wrote."""
    for line in lines:
        yield (Faithfulness if line.startswith('{"faithfulness"') else Explanation).from_json(line)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(member) for name, member in value.items()}
    return [_rounded(member) for member in value] if isinstance(value, list | tuple) else value
