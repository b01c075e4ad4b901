"""Explains the predictions of one run, an input at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from gptask.analysis.explain.attention_rollout import attention_maps, rollout
from gptask.analysis.explain.explanation import AttributionMap, Explanation, Word
from gptask.analysis.explain.faithfulness import (
    Dropped,
    cut_orders,
    importance_order,
    insertion_minus_deletion,
    random_order,
)
from gptask.analysis.explain.input_words import input_texts, input_words
from gptask.analysis.explain.integrated_gradients import integrated_gradients, mean_embedding
from gptask.analysis.explain.objectives import Objective, Reading
from gptask.analysis.explain.scoring import are_tags, needed_positions, values_of_embeddings
from gptask.analysis.explain.targets import (
    check_against,
    class_targets,
    span_targets,
    tag_targets,
    written_targets,
)
from gptask.analysis.explain.variants import Variants
from gptask.config.explain_options import ExplainMethod
from gptask.data.datamodule import collate
from gptask.errors import DataError, UserError
from gptask.plugins.types import Prediction
from gptask.runs.predictor import InputRow, Predictor

MAX_DELETED = 100  # words of an input up to which each is deleted in turn, though the method does not need it


@dataclass
class Attribution:
    """What a method finds for one objective: a number for each word (W,), and how gradients were integrated."""

    by_word: list[float]
    steps: int | None = None
    error: float | None = None


@dataclass
class Explainer:
    """A run's predictor, and how its predictions are explained; see `gptask.config.explain_options.Explain`.

    With ``with_attention`` an explanation has the attention of every head between the words of the input.
    """

    predictor: Predictor
    method: ExplainMethod = ExplainMethod.ig
    against: str | None = None
    steps: int | None = None
    places: int = 16
    other_classes: int = 2
    with_attention: bool = False

    def check(self) -> None:
        """Raise `UserError` for a class to compare with that the run does not have."""
        check_against(self.against, None if self.predictor.head.decodes else self.predictor.task.score_labels() or None)

    def explain(self, entry: InputRow, reference: Any = None) -> Explanation:
        """Explain what is predicted for a row; raises `DataError` for one that can't be used.

        ``reference`` is what the prediction should be; a class is explained beside the predicted one.
        """
        task = self.predictor.task
        chunk = self.predictor.encode([entry])
        if (error := chunk.errors.get(0)) is not None:
            assert isinstance(error, DataError)
            raise error
        example = chunk.examples[0]
        if not chunk.items:  # a blank row
            return Explanation(str(entry.row.number), {}, [], None, [])
        with torch.inference_mode():
            outputs = self.predictor.predict_batch(chunk.items)
        prediction = task.prediction(example, outputs)
        words, written = input_words(task, example), list[Word]()
        tokenizer = self.predictor.backbone.tokenizer
        written_ids: list[int] | None = None
        if self.predictor.head.decodes:
            written_ids = tokenizer(self._written_text(outputs[0]), add_special_tokens=False)["input_ids"]
        variants = Variants(self.predictor, example, words, written_ids)
        reading = variants.whole(chunk.items)
        if written_ids is None:
            objectives = self._targets(prediction, reading, reference)
        else:
            written, objectives = written_targets(str(prediction.value), written_ids, tokenizer, self.places)
        read = {number for shares in reading.shares for number in np.flatnonzero(shares.any(0)).tolist()}
        variants.unread = frozenset(range(len(words))) - read
        explanation = Explanation(
            example["id"],
            input_texts(task, example),
            words,
            prediction.value,
            self._maps(objectives, reading, variants, sorted(read)),
            prediction.probabilities or {},
            prediction.score,
            reference,
            written,
        )
        if self.with_attention:
            ids_1T = self._ids(reading, 0)
            shares_TW = self._padded(reading.shares[0], ids_1T.shape[1])
            explanation.attention = attention_maps(self.predictor.backbone, ids_1T, shares_TW)
        return explanation

    @cached_property
    def _neutral_C(self) -> torch.Tensor:
        return mean_embedding(self.predictor.backbone)

    def _written_text(self, output: Any) -> str:
        """The text that a head wrote, as it stands behind the prompt; raises `UserError` for an output without one."""
        text = getattr(output, "text", None)
        if not isinstance(text, str):
            head = self.predictor.head
            raise UserError(
                f"{type(head).__name__}, the head of task {type(self.predictor.task).__name__}, decodes, but its "
                f"outputs ({type(output).__name__}) have no `text` to explain: its author returns objects with one, "
                "such as gptask's GeneratedText"
            )
        return text

    def _targets(self, prediction: Prediction, reading: Reading, reference: Any) -> list[Objective]:
        scores, names = reading.scores, self.predictor.task.score_labels()
        if scores[0].ndim == 1 or are_tags(scores[0]):
            names = names or self._names(prediction, scores[0].shape[-1])
            check_against(self.against, names)
            if scores[0].ndim > 1:
                return tag_targets(reading, names, self.against, self.places)
            if len(scores) > 1:
                raise UserError(
                    f"task {type(self.predictor.task).__name__} scores the classes of an input in {len(scores)} parts, "
                    "and nothing says which of them decides: explain shorter inputs, or raise data.max_tokens"
                )
            return class_targets(prediction, scores[0].numpy(), names, self.against, reference, self.other_classes)
        check_against(self.against, None)
        return span_targets(reading, prediction)

    @staticmethod
    def _names(prediction: Prediction, count: int) -> list[str]:
        """The names of the classes by a prediction's table, numbers where it has none of all classes."""
        names = [*(prediction.probabilities or {})]
        return names if len(names) == count else [*map(str, range(count))]

    def _maps(
        self, objectives: Sequence[Objective], reading: Reading, variants: Variants, read: Sequence[int]
    ) -> list[AttributionMap]:
        every_word = self.method is ExplainMethod.occlusion or len(read) <= MAX_DELETED
        deletions = {number: frozenset([number]) for number in read if every_word}
        variants.compute(deletions.values())
        maps = []
        for objective, found in zip(objectives, self._attributions(objectives, reading, variants, read), strict=True):
            attributions = [found.by_word[number] if number in read else None for number in range(len(reading.words))]
            free = [number for number in read if number not in objective.protected]
            order, by_chance = importance_order(attributions, free), random_order(variants.words, free)
            variants.compute(dropped for cut in (order, by_chance) for part in cut_orders(cut) for dropped in part)
            quality = partial(variants.quality, objective)
            without = [
                variants.probability(objective, deletions[number]) if number in deletions else None
                for number in range(len(reading.words))
            ]
            maps.append(
                AttributionMap(
                    objective.target,
                    objective.probability(reading) or 0.0,
                    attributions,
                    objective.place,
                    objective.against,
                    without if deletions else None,
                    found.steps,
                    found.error,
                    insertion_minus_deletion(order, quality),
                    insertion_minus_deletion(by_chance, quality),
                )
            )
        return maps

    def _attributions(
        self, objectives: Sequence[Objective], reading: Reading, variants: Variants, read: Sequence[int]
    ) -> list[Attribution]:
        if self.method is ExplainMethod.occlusion:
            return [self._occlusion(objective, reading, variants, read) for objective in objectives]
        by_item: dict[int, list[int]] = {}
        for number, objective in enumerate(objectives):
            place = objective.place_in(reading)
            by_item.setdefault(place[0] if place else 0, []).append(number)
        found: dict[int, Attribution] = {}
        explain_item = self._gradients if self.method is ExplainMethod.ig else self._rollout
        for item, numbers in by_item.items():
            found |= dict(zip(numbers, explain_item([objectives[n] for n in numbers], reading, item), strict=True))
        return [found[number] for number in range(len(objectives))]

    def _occlusion(
        self, objective: Objective, reading: Reading, variants: Variants, read: Sequence[int]
    ) -> Attribution:
        """How much the target loses with each word (Zeiler & Fergus 2014; Li et al. 2016, arXiv 1612.08220)."""
        whole, by_word = objective.value(reading) or 0.0, [0.0] * len(reading.words)
        for number in read:
            without: Dropped = frozenset([number])
            if (value := variants.value(objective, without)) is not None:
                by_word[number] = whole - value
        return Attribution(by_word)

    def _gradients(self, objectives: Sequence[Objective], reading: Reading, item: int) -> list[Attribution]:
        indexed = [(objective, objective.index(reading, item)) for objective in objectives]
        pairs = [(objective, index) for objective, index in indexed if index is not None]
        encoded, ids = reading.items[item], self._ids(reading, item)[0].tolist()
        shares = self._padded(reading.shares[item], len(ids))
        values, is_input = partial(values_of_embeddings, self.predictor, encoded, pairs), shares.sum(1) > 0
        tokens = integrated_gradients(self.predictor.backbone, values, ids, is_input, self._neutral_C, self.steps)
        parts_MW = tokens.parts @ shares
        return [
            Attribution(parts_W.tolist(), tokens.steps, float(error))
            for parts_W, error in zip(parts_MW, tokens.errors, strict=True)
        ]

    def _rollout(self, objectives: Sequence[Objective], reading: Reading, item: int) -> list[Attribution]:
        ids_1T = self._ids(reading, item)
        flow_TT = rollout(self.predictor.backbone, ids_1T)
        shares = self._padded(reading.shares[item], ids_1T.shape[1])
        batch = collate([reading.items[item]])
        needed_BT = needed_positions(self.predictor, batch)
        needed = [*range(len(flow_TT))] if needed_BT is None else torch.nonzero(needed_BT[0])[:, 0].tolist()
        return [
            Attribution((flow_TT[objective.read_positions(reading, item) or needed].mean(0) @ shares).tolist())
            for objective in objectives
        ]

    def _ids(self, reading: Reading, item: int) -> torch.Tensor:
        """The token ids (1, T) of an item with the written text."""
        encoded = reading.items[item]
        return torch.tensor([encoded["ids"] + (encoded["target"] or [])], device=self.predictor.backbone.device)

    @staticmethod
    def _padded(shares: np.ndarray, length: int) -> np.ndarray:
        """The shares with rows of 0 for the tokens of the written text."""
        return np.pad(shares, ((0, length - len(shares)), (0, 0)))
