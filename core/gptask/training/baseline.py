"""Baselines of the main metric: what scores without learning, and what a linear model of words reaches."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gptask.plugins.metric import Metric, score
from gptask.plugins.resampling import number_groups
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Kind, Prediction
from gptask.runs.significance import difference
from gptask.runs.verdict import Verdict

log = logging.getLogger("gptask")
LINEAR_MODEL = "TF-IDF + logistic regression"
MAX_LINEAR_EXAMPLES = 20_000  # that the linear model learns from, drawn at random: so it takes seconds
MAX_TUNED_EXAMPLES = 5_000  # up to which validation chooses the linear model's regularisation
STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation, C; the middle one where none is chosen
THRESHOLDS = np.arange(0.1, 0.65, 0.05)  # of a label's probability, for texts with any number of labels


def baseline_metric(task: Task) -> Metric | None:
    """The metric that baselines are scored by: the first one that ranks and needs no annotated predictions."""
    ranking = (metric for metric in task.metrics() if metric.higher_is_better is not None and not metric.final)
    return next(ranking, None)


def baseline_scores(
    task: Task, metric: Metric, rows: np.ndarray, examples: Sequence[Example], splits: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
    """The baselines of a run by name: score, and the verdict of the paired test of the run against each.

    ``rows`` (N, K) are the run's statistics of ``metric`` on N test ``examples``. ``splits`` are train and validation.
    `Task.baseline_prediction` is one baseline, and for labels a linear model of the words in the inputs is another.
    """
    groups = number_groups([example.get("group", number) for number, example in enumerate(examples)])
    results = {}
    for name, predictions in _baselines(task, metric, examples, splits):
        statistics = [metric.statistics(p, example) for p, example in zip(predictions, examples, strict=True)]
        baseline_rows = np.asarray(statistics, dtype=float)
        tested, (low, high) = difference(metric, [rows], [baseline_rows], groups), metric.range
        verdict = Verdict(tested, metric.higher_is_better is not False, high - low, p=tested.p)
        results[name] = {
            "metric": metric.name,
            "score": score(metric, baseline_rows, groups).to_dict(),
            "verdict": {"word": verdict.word, "p": tested.p, "sentence": verdict.sentence},
        }
        if verdict.word in ("worse", "same") or (verdict.word == "inconclusive" and name == task.baseline_name):
            log.warning("the run is not better in %s than the baseline '%s': %s", metric.name, name, verdict.sentence)
    return results


def _baselines(
    task: Task, metric: Metric, examples: Sequence[Example], splits: Mapping[str, Sequence[Example]]
) -> Iterator[tuple[str, list[Prediction]]]:
    """The names of the baselines and their predictions of the examples."""
    predictions = [task.baseline_prediction(example, splits["train"]) for example in examples]
    if all(prediction is not None for prediction in predictions):
        yield task.baseline_name, [prediction for prediction in predictions if prediction is not None]
    targets = task.targets()
    texts = [field.name for field in task.inputs() if field.kind is Kind.TEXT]
    if len(targets) == 1 and targets[0].kind in (Kind.LABEL, Kind.LABELS) and texts:
        start = time.perf_counter()
        model = LinearModel(texts, targets[0].name, targets[0].kind is Kind.LABELS)
        name = LINEAR_MODEL + model.fit(metric, splits)
        yield name, model.predict(examples)
        log.info("the baseline '%s' took %.1f s", name, time.perf_counter() - start)


class LinearModel:
    """Logistic regression on TF-IDF features of word pairs and of letters, by scikit-learn.

    Letters (2 to 4 of them) stand for the words of Chinese and other scripts without spaces. Validation chooses the
    regularisation, and the threshold where a text may have any number of labels.
    """

    def __init__(self, inputs: Sequence[str], target: str, many: bool) -> None:
        self.inputs, self.target, self.many = inputs, target, many
        self.threshold = 0.5

    def fit(self, metric: Metric, splits: Mapping[str, Sequence[Example]]) -> str:
        """Learn from train; return what is special about it, for its name."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_union
        from sklearn.preprocessing import MultiLabelBinarizer

        train, validation = splits["train"], splits["validation"]
        chosen = np.random.default_rng(0).permutation(len(train))[:MAX_LINEAR_EXAMPLES]
        rows = [train[int(number)] for number in np.sort(chosen)]
        least = 1 if len(rows) < 500 else 2  # examples that a feature occurs in
        self.features: Any = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=least, token_pattern=r"(?u)\b\w+\b"),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=least),
        )
        features, truth = self.features.fit_transform(self._texts(rows)), [row[self.target] for row in rows]
        self.labels = sorted({label for labels in truth for label in labels} if self.many else set(truth))
        if self.many:
            truth = MultiLabelBinarizer(classes=self.labels).fit_transform(truth)
        candidates: list[tuple[float, int, Any, float]] = []
        tunes = len(rows) <= MAX_TUNED_EXAMPLES and len(validation)
        for strength in STRENGTHS if tunes else STRENGTHS[1:2]:
            regression: Any = LogisticRegression(C=strength, max_iter=1000)
            self.model = OneVsRestClassifier(regression) if self.many else regression
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has not converged, or a label is on every text
                if len(self.labels) > 1:
                    self.model.fit(features, truth)
            for threshold in THRESHOLDS if self.many and len(validation) else [0.5]:
                self.threshold = float(threshold)
                candidates.append((self._goodness(metric, validation), -len(candidates), self.model, self.threshold))
        _, _, self.model, self.threshold = max(candidates, key=lambda candidate: candidate[:2])
        return f" on {len(rows):,} of {len(train):,} examples" if len(rows) < len(train) else ""

    def _goodness(self, metric: Metric, validation: Sequence[Example]) -> float:
        if not len(validation):
            return 0.0
        pairs = zip(self.predict(validation), validation, strict=True)
        value = metric.aggregate(np.asarray([metric.statistics(p, example) for p, example in pairs], dtype=float))
        return -value if metric.higher_is_better is False else value

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Predict examples."""
        if len(self.labels) < 2:
            only = self.labels[0] if self.labels else ""
            return [Prediction(self.labels if self.many else only, 1.0, dict.fromkeys(self.labels, 1.0))] * len(
                examples
            )
        predictions = []
        for probabilities in self.model.predict_proba(self.features.transform(self._texts(examples))):
            by_label = dict(zip(self.labels, probabilities.tolist(), strict=True))
            label = max(by_label, key=by_label.__getitem__)
            likely = [label for label, probability in by_label.items() if probability >= self.threshold]
            predictions.append(Prediction(likely if self.many else label, by_label[label], by_label))
        return predictions

    def _texts(self, examples: Sequence[Example]) -> list[str]:
        return ["\n".join(example[name] or "" for name in self.inputs) for example in examples]
