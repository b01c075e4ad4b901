"""Published scores for the tasks that write or read texts; ``field`` holds an example's references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from gptask import AdditiveMetric, Example, MeanMetric, Prediction

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


class CorpusScore(AdditiveMetric):
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


class Likelihood(AdditiveMetric):
    """How well given texts are predicted, whatever is written: from the nats, tokens and UTF-8 bytes that
    `Prediction.extra` has of each, all zero where there was nothing to predict."""

    COUNTS = ("nats", "tokens", "bytes")
    FORMS = {
        "nats_per_token": lambda nats, tokens, size: nats / tokens,
        "perplexity": lambda nats, tokens, size: math.exp(min(nats / tokens, 700)),
        "bits_per_byte": lambda nats, tokens, size: nats / size / math.log(2),
    }
    higher_is_better, range = False, (0.0, math.inf)

    def __init__(self, name: str, signature: str) -> None:
        self.name, self.signature = name, signature

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Nats, tokens and bytes of one example."""
        return [prediction.extra.get(name, 0) for name in self.COUNTS]

    def aggregate(self, rows: np.ndarray) -> float:
        """From the sums."""
        nats, tokens, size = rows.sum(0)
        return float(self.FORMS[self.name](nats, max(tokens, 1), max(size, 1)))
