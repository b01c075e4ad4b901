"""What is explained of a prediction: log-probabilities among the scores of an input's items.

An objective finds its scores in each variant of the input, in which words are missing and others have moved.

Shapes: B rows, T positions, W words, K classes or tags, N tokens of a written text.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptask.analysis.explain.explanation import Word
from gptask.analysis.explain.input_words import input_words
from gptask.analysis.explain.word_shares import word_shares
from gptask.plugins.task import Task
from gptask.plugins.types import Example

if TYPE_CHECKING:
    from torch import Tensor

Index = tuple[Any, ...]  # into the scores of one item
MIN_LOG = -30.0  # of a probability that float32 can't tell from 0


@dataclass
class Reading:
    """An input, or what is left of it without some words, as the task encodes it, with the scores of its items.

    ``numbers`` are those of its words among the whole input's. ``scores`` has a tensor of log-probabilities for each
    item: of classes (K,), of tags (W, K), of the ends of a span (T, 2), or of the tokens of a written text (N,).
    """

    task: Task
    tokenizer: Any
    example: Example
    numbers: Sequence[int]
    items: list[dict[str, Any]]
    scores: list[Tensor]

    @cached_property
    def words(self) -> list[Word]:
        """The words that are there."""
        return input_words(self.task, self.example)

    @cached_property
    def shares(self) -> list[np.ndarray]:
        """Of each item, how much of each token belongs to each word that is there (T, W)."""
        encoded = (item["ids"] for item in self.items)
        return [word_shares(self.task, self.example, self.words, ids, self.tokenizer) for ids in encoded]

    def tokens_of(self, item: int, number: int) -> list[int]:
        """The positions in an item of the tokens of a word, by its number in the whole input; none if it is gone."""
        if number not in self.numbers:
            return []
        tokens: list[int] = np.flatnonzero(self.shares[item][:, self.numbers.index(number)]).tolist()
        return tokens


@dataclass(frozen=True)
class Objective(ABC):
    """One target (see `AttributionMap`), and the number of the class that it is compared with, if any."""

    target: str
    place: int | None = None
    against: str | None = None
    rejected: int | None = None

    @abstractmethod
    def index(self, reading: Reading, item: int) -> Index | None:
        """Where the target's score stands among those of an item; None: it is not there."""

    @abstractmethod
    def read_positions(self, reading: Reading, item: int) -> list[int]:
        """The positions of an item whose states the target's score comes from; empty: those that the head needs."""

    @property
    def protected(self) -> frozenset[int]:
        """The words of the input without which there is no such target."""
        return frozenset() if self.place is None else frozenset([self.place])

    def log_probabilities(self, scores: Tensor, index: Index) -> Tensor:
        """The target's log-probability (B,) by the scores of B items."""
        chosen = scores[(slice(None), *index)]
        return chosen.sum(1) if chosen.ndim > 1 else chosen

    def attributed(self, scores: Tensor, index: Index) -> Tensor:
        """What is attributed (B,): the log-odds of the target, or the difference of its log-probability to that of the
        rejected class."""
        chosen_B = self.log_probabilities(scores, index)
        if self.rejected is not None:
            return chosen_B - scores[(slice(None), *index[:-1], self.rejected)]
        return chosen_B - self.log_probability_of_others(scores, index)

    def log_probability_of_others(self, scores: Tensor, index: Index) -> Tensor:
        """The log-probability (B,) that the target is another one: of the scores along the last index."""
        row_BK = scores[(slice(None), *index[:-1])]
        others_BK = row_BK.index_fill(1, torch.tensor(index[-1], device=scores.device), -math.inf)
        return others_BK.logsumexp(1).clamp(min=MIN_LOG)

    def place_in(self, reading: Reading) -> tuple[int, Index] | None:
        """The item in which the target is likeliest, and the index there; None where no item has it."""
        indices = {item: self.index(reading, item) for item in range(len(reading.items))}
        places = [(item, index) for item, index in indices.items() if index is not None]
        return max(places, key=lambda place: self._of(self.log_probabilities, reading, place), default=None)

    def probability(self, reading: Reading) -> float | None:
        """The target's probability in a variant of the input; None where it has no such target."""
        place = self.place_in(reading)
        return None if place is None else math.exp(self._of(self.log_probabilities, reading, place))

    def value(self, reading: Reading) -> float | None:
        """What is attributed, in a variant of the input."""
        place = self.place_in(reading)
        return None if place is None else self._of(self.attributed, reading, place)

    def quality(self, reading: Reading) -> float | None:
        """The probability whose fall or rise shows how faithful a map is: with a rejected class, of the two alone."""
        if self.rejected is None:
            return self.probability(reading)
        value = self.value(reading)
        return None if value is None else 1 / (1 + math.exp(-value))

    def _of(self, function: Any, reading: Reading, place: tuple[int, Index]) -> float:
        return float(function(reading.scores[place[0]][None], place[1])[0])


@dataclass(frozen=True)
class ClassObjective(Objective):
    """A class of the whole input, by its number; ``is_exclusive`` where an input has one class only."""

    number: int = 0
    is_exclusive: bool = True

    def index(self, reading: Reading, item: int) -> Index:
        """See `Objective`."""
        return (self.number,)

    def log_probability_of_others(self, scores: Tensor, index: Index) -> Tensor:
        """See `Objective`; where an input may have several classes, that it does not have this one."""
        if self.is_exclusive:
            return super().log_probability_of_others(scores, index)
        return (-torch.expm1(scores[:, self.number])).log().clamp(min=MIN_LOG)

    def read_positions(self, reading: Reading, item: int) -> list[int]:
        """See `Objective`."""
        return []


@dataclass(frozen=True)
class TagObjective(Objective):
    """The tag of the word at ``place``, by its number."""

    number: int = 0

    def index(self, reading: Reading, item: int) -> Index | None:
        """See `Objective`; an item scores the words that it holds, in their order."""
        if self.place is None or not reading.tokens_of(item, self.place):
            return None
        held = np.flatnonzero(reading.shares[item].any(0))
        return int(np.searchsorted(held, reading.numbers.index(self.place))), self.number

    def read_positions(self, reading: Reading, item: int) -> list[int]:
        """See `Objective`."""
        return reading.tokens_of(item, self.place or 0)[-1:]


@dataclass(frozen=True)
class EdgeObjective(Objective):
    """The start (``edge`` 0) or the end (1) of a span: a token of the word at ``place``, counted from that side.

    Without a word it is the last token of the item.
    """

    edge: int = 0
    token: int = 0

    def log_probability_of_others(self, scores: Tensor, index: Index) -> Tensor:
        """See `Objective`: that the span starts, or ends, at another position."""
        return super().log_probability_of_others(scores[:, :, self.edge], index[:1])

    def index(self, reading: Reading, item: int) -> Index | None:
        """See `Objective`; of a word that occurs repeatedly it is the likeliest token."""
        last = len(reading.items[item]["ids"]) - 1
        if self.place is None:
            return last, self.edge
        column = reading.scores[item][:, self.edge]
        tokens = [token for token in reading.tokens_of(item, self.place) if math.isfinite(column[token])]
        tokens = tokens[::-1] if self.edge else tokens
        return (tokens[min(self.token, len(tokens) - 1)], self.edge) if tokens else None

    def read_positions(self, reading: Reading, item: int) -> list[int]:
        """See `Objective`."""
        index = self.index(reading, item)
        return [] if index is None else [index[0]]


@dataclass(frozen=True)
class WrittenObjective(Objective):
    """Tokens ``start`` to ``end`` of a written text; ``is_whole`` of all of it, whose probability is a token's mean."""

    start: int = 0
    end: int = 0
    is_whole: bool = False

    @property
    def protected(self) -> frozenset[int]:
        """See `Objective`: ``place`` is a written word's."""
        return frozenset()

    def attributed(self, scores: Tensor, index: Index) -> Tensor:
        """See `Objective`: the log-probability, which those of a text's words add up to."""
        return self.log_probabilities(scores, index)

    def index(self, reading: Reading, item: int) -> Index:
        """See `Objective`."""
        return (slice(self.start, self.end),)

    def read_positions(self, reading: Reading, item: int) -> list[int]:
        """See `Objective`."""
        first = len(reading.items[item]["ids"]) - 1
        return [*range(first + self.start, first + self.end)]

    def probability(self, reading: Reading) -> float | None:
        """See `Objective`; of a whole text the geometric mean over its tokens."""
        probability = super().probability(reading)
        return probability ** (1 / (self.end - self.start)) if probability and self.is_whole else probability
