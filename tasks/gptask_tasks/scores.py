"""Published scores of texts against references, for the tasks that write; ``field`` holds an example's references."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from gptask import AdditiveMetric, MeanMetric, Prediction
from gptask.task import Example

from gptask_tasks.text import characters, sentences


class Characters:
    """Tokenizer for rouge-score: Chinese by characters."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text."""
        return characters(text)


class Rouge(MeanMetric):
    """ROUGE F1 (Lin 2004) by Google's rouge-score, best over the references, in percent."""

    def __init__(self, kind: str, language: str, field: str) -> None:
        from importlib.metadata import version

        self.chinese, self.field = language == "zh", field
        split = "characters" if self.chinese else "stemmed words"
        super().__init__(kind, f"rouge-score {version('rouge-score')}; {kind}; F1; {split}; best reference")

    @cached_property
    def scorer(self) -> Any:
        """Google's scorer, loaded for statistics only: a comparison aggregates those that are there."""
        from rouge_score.rouge_scorer import RougeScorer

        tokenizer = Characters() if self.chinese else None
        return RougeScorer([self.name], use_stemmer=not self.chinese, tokenizer=tokenizer)

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """F1 of one text."""
        references, text = reference[self.field], str(prediction.value)
        if self.name == "rougeLsum":
            references, text = [sentences(r) for r in references], sentences(text)
        return [self.scorer.score_multi(references, text)[self.name].fmeasure]


class Corpus(AdditiveMetric):
    """A sacreBLEU metric: statistics are its own sufficient counts, so that they can be resampled."""

    def __init__(self, name: str, scorer: Any, field: str) -> None:
        self.name, self.scorer, self.field = name, scorer, field
        self.counted: set[int] = set()  # numbers of references seen

    @property
    def signature(self) -> str:  # type: ignore[override]
        """sacreBLEU's own, which tells how many references an example has had (``var`` where that varies)."""
        self.scorer.num_refs = next(iter(self.counted)) if len(self.counted) == 1 else -1
        return str(self.scorer.get_signature())

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """sacreBLEU's counts of one segment (matches and totals per n-gram order, lengths)."""
        references = [[text] for text in reference[self.field]]
        self.counted.add(len(references))
        return self.scorer._extract_corpus_statistics([str(prediction.value)], references)[0]

    def aggregate(self, rows: np.ndarray) -> float:
        """The corpus score from the summed counts."""
        return float(self.scorer._compute_score_from_stats(rows.sum(0).tolist()).score)
