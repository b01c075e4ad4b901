import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from gptask.plugins.metric import AdditiveMetric, MeanMetric, Metric, score, score_all
from gptask.plugins.types import Example, Prediction


class Equal(MeanMetric):
    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [prediction.value == reference["y"]]


class Ratio(Metric):
    name, higher_is_better, range = "ratio", None, (0.0, math.inf)

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [prediction.value, reference["y"]]

    def aggregate(self, rows: np.ndarray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum())


def outcomes(right: int, n: int) -> np.ndarray:
    return np.array([[1.0]] * right + [[0.0]] * (n - right))


def test_the_interval_of_a_proportion_is_the_binomial_one() -> None:
    result = score(Equal("accuracy"), outcomes(200, 400), resamples=4000)
    half_width = 100 * 1.96 * math.sqrt(0.5 * 0.5 / 400)  # 4.9 points
    assert result.value == 50.0
    assert result.low == pytest.approx(50 - half_width, abs=0.4)
    assert result.high == pytest.approx(50 + half_width, abs=0.4)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    rows = np.random.default_rng(0).normal(0.3, 0.1, (900, 1))
    result = score(Equal("mean", scale=1.0), rows, resamples=4000)
    half_width = 1.96 * rows.std() / 30
    assert (result.low, result.high) == (
        pytest.approx(result.value - half_width, abs=half_width / 10),
        pytest.approx(result.value + half_width, abs=half_width / 10),
    )


def test_groups_of_examples_widen_the_interval() -> None:
    rows = np.repeat(outcomes(30, 60), 10, axis=0)
    single, grouped = (score(Equal("accuracy"), rows, groups) for groups in (None, np.repeat(np.arange(60), 10)))
    assert grouped.high - grouped.low > 2.5 * (single.high - single.low)


def test_an_additive_metric_resamples_like_repeated_rows() -> None:
    class Sums(AdditiveMetric):
        statistics, aggregate = Ratio.statistics, Ratio.aggregate

    rows = np.array([[1.0, 4.0], [2.0, 3.0], [5.0, 1.0]])
    counts = np.array([[1, 1, 1], [0, 3, 0], [2, 0, 1]])
    expected = [8 / 8, 6 / 9, 7 / 9]
    for metric in (Ratio(), Sums()):
        np.testing.assert_allclose(metric.resampled(rows, counts), expected)


def test_numerator_and_denominator_are_resampled_together() -> None:
    rows = np.array([[k, 2.0 * k] for k in range(1, 50)])
    result = score(Ratio(), rows)
    assert result.value == 0.5
    assert (result.low, result.high) == (pytest.approx(0.5), pytest.approx(0.5)), "each pair has the same ratio"


@pytest.mark.parametrize(("right", "value"), [(0, 0.0), (30, 100.0)])
def test_equal_scores_give_an_interval_of_zero_width(right: int, value: float) -> None:
    result = score(Equal("accuracy"), outcomes(right, 30))
    assert (result.low, result.value, result.high) == (value, value, value)


def test_the_interval_does_not_depend_on_the_global_random_state() -> None:
    np.random.seed(1)
    first = score(Equal("accuracy"), outcomes(20, 50))
    np.random.seed(2)
    assert score(Equal("accuracy"), outcomes(20, 50)) == first
    assert score(Equal("accuracy"), outcomes(20, 50), seed=1) != first


def test_more_examples_narrow_the_interval() -> None:
    small, large = (score(Equal("accuracy"), outcomes(n // 2, n)) for n in (50, 5000))
    assert (small.high - small.low) / (large.high - large.low) == pytest.approx(10, rel=0.25)


def test_score_all_returns_every_score_and_the_statistics_per_example() -> None:
    predictions, references = [Prediction(1), Prediction(3)], [{"y": 1}, {"y": 1}]
    scores, statistics = score_all([Equal("accuracy", "exact"), Ratio()], predictions, references)
    assert [(s.name, s.value, s.n) for s in scores] == [("accuracy", 50.0, 2), ("ratio", 2.0, 2)]
    assert statistics == [{"accuracy": [1.0], "ratio": [1.0, 1.0]}, {"accuracy": [0.0], "ratio": [3.0, 1.0]}]


def test_a_score_is_valid_strict_json() -> None:
    fields = [score(metric, np.ones((3, 2))).to_dict() for metric in (Equal("accuracy", "exact"), Ratio())]
    json.dumps(fields, allow_nan=False)
    assert fields[0] == {
        "value": 100.0,
        "interval": [100.0, 100.0],
        "n": 3,
        "direction": "higher",
        "range": [0.0, 100.0],
        "signature": "exact",
    }
    assert (fields[1]["direction"], fields[1]["range"]) == ("none", [0.0, None])


@pytest.mark.filterwarnings("error")
def test_a_metric_that_is_nan_has_no_interval():
    class Undefined(MeanMetric):
        def statistics(self, prediction, reference):
            raise AssertionError

    result = score(Undefined("m"), np.full((5, 1), np.nan))
    assert np.isnan([result.value, result.low, result.high]).all()
