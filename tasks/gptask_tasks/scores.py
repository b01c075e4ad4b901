"""Published scores for the tasks that write or score texts; ``field`` names the field of an example's references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from gptask import (
    WORDS_SIGNATURE,
    AdditiveMetric,
    Example,
    MeanMetric,
    Prediction,
    normalized_words,
    space_characters,
)

from gptask_tasks.text import reference_texts, sentences


class WordTokenizer:
    """A tokenizer for rouge-score that knows every script; on ASCII it equals rouge-score's own, with its stemmer."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words, the ASCII ones stemmed."""
        return [
            stem
            for word in normalized_words(text)
            for stem in (self.ascii.tokenize(word) if word.isascii() else [word])
        ]


class Rouge(MeanMetric):
    """ROUGE F1 (Lin 2004) by Google's rouge-score, best over the references, in percent."""

    def __init__(self, kind: str, field: str) -> None:
        from importlib.metadata import version

        self.field = field
        unit = f"{WORDS_SIGNATURE}; ASCII words stemmed"
        super().__init__(kind, f"rouge-score {version('rouge-score')}; {kind}; F1; {unit}; best reference")

    @cached_property
    def scorer(self) -> Any:
        """Google's scorer, loaded for statistics only: a comparison aggregates those of finished runs."""
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self.name], tokenizer=WordTokenizer())

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the F1 of one text."""
        references, text = reference_texts(reference, self.field), str(prediction.value)
        if self.name == "rougeLsum":
            references, text = [sentences(r) for r in references], sentences(text)
        return [self.scorer.score_multi(references, text)[self.name].fmeasure]


class CorpusScore(AdditiveMetric):
    """A sacreBLEU metric; its statistics are sacreBLEU's own counts, so that it can be resampled.

    ``by_characters`` puts spaces around the characters of scripts without spaces, for data in any language.
    """

    def __init__(self, name: str, scorer: Any, field: str, by_characters: bool = False) -> None:
        self.name, self.scorer, self.field, self.by_characters = name, scorer, field, by_characters
        self.reference_counts: set[int] = set()  # different numbers of references of the examples so far

    @property
    def signature(self) -> str:  # type: ignore[override]
        """sacreBLEU's signature, with the number of references of an example (``var`` where that varies)."""
        self.scorer.num_refs = next(iter(self.reference_counts)) if len(self.reference_counts) == 1 else -1
        return f"{self.scorer.get_signature()}{'; ' + WORDS_SIGNATURE if self.by_characters else ''}"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return sacreBLEU's counts of one segment (matches and totals per n-gram order, lengths)."""
        texts = [str(prediction.value), *reference_texts(reference, self.field)]
        text, *references = map(space_characters, texts) if self.by_characters else texts
        self.reference_counts.add(len(references))
        counts: list[float] = self.scorer._extract_corpus_statistics([text], [[one] for one in references])[0]
        return counts

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the corpus score from the summed counts."""
        return float(self.scorer._compute_score_from_stats(rows.sum(0).tolist()).score)


class Likelihood(AdditiveMetric):
    """How well a model predicts given texts, whatever it generates itself.

    `Prediction.extra` has the nats, tokens and UTF-8 bytes of each text, all zero where there was nothing to predict.
    """

    COUNTS = ("nats", "tokens", "bytes")
    FORMS: ClassVar[dict[str, Callable[[float, float, float], float]]] = {
        "nats_per_token": lambda nats, tokens, size: nats / tokens,
        "perplexity": lambda nats, tokens, size: math.exp(min(nats / tokens, 700)),
        "bits_per_byte": lambda nats, tokens, size: nats / size / math.log(2),
    }
    higher_is_better, range = False, (0.0, math.inf)

    def __init__(self, name: str, signature: str) -> None:
        self.name, self.signature = name, signature

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the nats, tokens and bytes of one example."""
        return [prediction.extra.get(name, 0) for name in self.COUNTS]

    def aggregate(self, rows: np.ndarray) -> float:
        """Compute the value from the sums."""
        nats, tokens, size = rows.sum(0)
        return float(self.FORMS[self.name](nats, max(tokens, 1), max(size, 1)))
