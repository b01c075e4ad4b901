"""The clause of the plugin contract that is about metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptask.model.generation.generate import GeneratedText
from gptask.plugins.metric import Metric
from gptask.plugins.types import Example, Prediction
from gptask.testing.expectations import LEARNED_SHARE, expect
from gptask.testing.trial import Trial
from gptask.training.baseline import baseline_metric


def metrics_rank(trial: Trial) -> None:
    """Right predictions (of the memorized batch) score better than the same ones assigned to other examples.

    A metric that ignores the example (such as the likelihood of a text) must rank them above untrained predictions.
    """
    from gptask.model.heads import GenerationHead

    right, examples = trial.predictions, trial.examples
    swapped = right[1:] + right[:1] if trial.task.supervised else trial.untrained
    empty = []
    if isinstance(trial.parts.head, GenerationHead):
        empty = [trial.task.prediction(example, [GeneratedText("", 0.0)]) for example in examples]
    *_, losses = trial.trained
    learned = losses[-1] <= LEARNED_SHARE * losses[0]  # if not, overfits_one_batch reports it
    baselines: list[Any] = [trial.task.baseline_prediction(example, tuple(examples)) for example in examples]
    found = sorted({type(prediction).__name__ for prediction in baselines})
    expect(
        found in (["NoneType"], ["Prediction"]),
        f"baseline_prediction() must return a Prediction, or always None; got {found}",
    )
    if baselines[0] and (compared_metric := baseline_metric(trial.task)):
        _checked_value(compared_metric, baselines, examples)
    for metric in trial.task.metrics():
        wrong = trial.untrained if _ignores_examples(metric, right, examples) else swapped
        right_value, wrong_value = (_checked_value(metric, predictions, examples) for predictions in (right, wrong))
        if empty:
            _checked_value(metric, empty, examples)
        better = {True: right_value > wrong_value, False: right_value < wrong_value, None: True}
        expect(
            better[metric.higher_is_better] or not learned,
            f"{metric.name} gives {right_value:.4f} to right predictions and {wrong_value:.4f} to wrong ones, with "
            f"higher_is_better={metric.higher_is_better}; look at statistics(), aggregate() and Task.prediction()",
        )


def _ignores_examples(metric: Metric, predictions: Sequence[Prediction], examples: Sequence[Example]) -> bool:
    """Whether the statistics differ between predictions, but not between the examples they are compared with."""
    table = [[list(metric.statistics(prediction, example)) for example in examples] for prediction in predictions]
    return table[0] != table[-1] and all(row == [row[0]] * len(row) for row in table)


def _checked_value(metric: Metric, predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
    """Return a metric's value after checks of its statistics, its range and its resamples."""
    name, pairs = metric.name, zip(predictions, examples, strict=True)
    statistics = [list(map(float, metric.statistics(prediction, example))) for prediction, example in pairs]
    lengths = sorted(set(map(len, statistics)))
    expect(len(lengths) == 1, f"{name}.statistics() must give equally many numbers for every example, got {lengths}")
    rows = np.asarray(statistics)
    expect(np.isfinite(rows).all(), f"{name}.statistics() must be finite, got {statistics}")
    resamples = [rows, *(rows[[number] * len(rows)] for number in range(len(rows)))]
    values = [float(metric.aggregate(resample)) for resample in resamples]
    low, high = metric.range
    in_range = all(math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6 for value in values)
    expect(in_range, f"{name} must lie in its range {metric.range} for every resample of the examples, got {values}")
    counts = np.vstack([np.ones(len(rows)), len(rows) * np.eye(len(rows))])  # of the same resamples
    resampled = np.asarray(metric.resampled(rows, counts), dtype=float)
    same = resampled.shape == (len(counts),) and np.allclose(resampled, values, atol=1e-4)
    expect(same, f"{name}.resampled() must give what aggregate() gives of each resample, {values}; got {resampled}")
    outcomes = metric.outcomes(rows)
    expect(
        outcomes is None
        or (np.isin(outcomes, (0, 1)).all() and math.isclose(outcomes.mean() * metric.scale, values[0], abs_tol=1e-4)),
        f"{name}.outcomes() must be zeros and ones whose mean times {metric.scale:g} is {values[0]}, got {outcomes}",
    )
    return values[0]
