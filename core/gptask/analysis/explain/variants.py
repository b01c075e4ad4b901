"""An input without some of its words, encoded by the task and scored, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptask.analysis.explain.explanation import Word
from gptask.analysis.explain.faithfulness import Dropped
from gptask.analysis.explain.input_words import without_words
from gptask.analysis.explain.objectives import Objective, Reading
from gptask.analysis.explain.scoring import item_scores
from gptask.data.datamodule import encode
from gptask.errors import DataError
from gptask.plugins.types import Example
from gptask.runs.predictor import Predictor


class Variants:
    """The variants of one input, each of which is computed once.

    ``written_ids`` are the tokens of the text that was written behind it, which all variants are to write. Words that
    were cut off (``unread``) are missing from every variant, so that none of them moves into the place of another.
    """

    def __init__(
        self,
        predictor: Predictor,
        example: Example,
        words: Sequence[Word],
        written_ids: list[int] | None = None,
        unread: Dropped = frozenset(),
    ) -> None:
        self.predictor, self.example, self.words = predictor, example, words
        self.written_ids, self.unread = written_ids, unread
        self._readings: dict[Dropped, Reading | None] = {}

    def whole(self, items: Sequence[dict[str, Any]]) -> Reading:
        """The input itself, from its encoded items."""
        return self._reading(self.example, [*range(len(self.words))], [self._with_written(item) for item in items])

    def compute(self, dropped_sets: Iterable[Dropped]) -> None:
        """Encode and score the inputs without these words, those that are not known yet all together."""
        readings: dict[Dropped, Reading] = {}
        for dropped in {*dropped_sets} - self._readings.keys():
            self._readings[dropped] = None
            numbers = [number for number in range(len(self.words)) if number not in dropped | self.unread]
            if not numbers:  # nobody predicts an empty input
                continue
            example = without_words(self.predictor.task, self.example, self.words, dropped | self.unread)
            max_tokens = min(self.predictor.options.max_tokens, self.predictor.backbone.context)
            try:
                items = encode(self.predictor.task, example, self.predictor.backbone.tokenizer, max_tokens)
            except DataError:  # it is no input of the task any more
                continue
            readings[dropped] = self._unscored(example, numbers, [self._with_written(item) for item in items])
        scores = iter(item_scores(self.predictor, [item for r in readings.values() for item in r.items]))
        for dropped, reading in readings.items():
            reading.scores = [next(scores) for _ in reading.items]
            self._readings[dropped] = reading

    def quality(self, objective: Objective, dropped: Dropped) -> float | None:
        """See `Objective.quality`."""
        reading = self._readings[dropped]
        return None if reading is None else objective.quality(reading)

    def probability(self, objective: Objective, dropped: Dropped) -> float | None:
        """See `Objective.probability`."""
        reading = self._readings[dropped]
        return None if reading is None else objective.probability(reading)

    def value(self, objective: Objective, dropped: Dropped) -> float | None:
        """See `Objective.value`."""
        reading = self._readings[dropped]
        return None if reading is None else objective.value(reading)

    def _reading(self, example: Example, numbers: Sequence[int], items: list[dict[str, Any]]) -> Reading:
        reading = self._unscored(example, numbers, items)
        reading.scores = item_scores(self.predictor, items)
        return reading

    def _unscored(self, example: Example, numbers: Sequence[int], items: list[dict[str, Any]]) -> Reading:
        return Reading(self.predictor.task, self.predictor.backbone.tokenizer, example, numbers, items, [])

    def _with_written(self, item: dict[str, Any]) -> dict[str, Any]:
        """The item with the written text as its target, whose tokens are scored; without any target where none is."""
        target = self.written_ids
        return item | {"target": target, "learned": [], "length": len(item["ids"]) + len(target or [])}
