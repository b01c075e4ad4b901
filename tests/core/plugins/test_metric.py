import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from gptask.plugins.metric import (
    AdditiveMetric,
    MeanMetric,
    Metric,
    Score,
    interval_text,
    score,
    score_all,
    value_text,
)
from gptask.plugins.resampling import bootstrap
from gptask.plugins.types import Example, Prediction
from gptask_tasks.classification.metrics import Calibration
from statsmodels.stats.proportion import proportion_confint


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


def width(result: Score) -> float:
    assert result.interval is not None
    return result.interval[1] - result.interval[0]


def test_the_interval_of_a_proportion_is_the_binomial_one() -> None:
    result = score(Equal("accuracy"), outcomes(200, 400), resamples=4000)
    half_width = 100 * 1.96 * math.sqrt(0.5 * 0.5 / 400)  # 4.9 points
    assert result.value == 50.0
    assert result.interval == pytest.approx((50 - half_width, 50 + half_width), abs=0.1)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (20, 20), (1, 1), (3, 10), (900, 1000)])
def test_the_interval_of_a_share_is_wilsons(right: int, n: int) -> None:
    result = score(Equal("accuracy"), outcomes(right, n))
    low, high = proportion_confint(right, n, method="wilson")
    assert result.interval == pytest.approx((100 * low, 100 * high), abs=1e-4)
    assert (result.interval_method, result.interval_note) == ("wilson", None)


def test_the_interval_of_100_for_20_examples_is_not_100_to_100() -> None:
    written = score(Equal("accuracy"), outcomes(20, 20)).to_dict()
    assert written["interval"] == [pytest.approx(83.887, abs=0.001), 100.0]  # 1 / (1 + 1.96² / 20)
    assert written["interval_method"] == "wilson"
    assert "wilson" not in written["signature"]


def test_the_scale_of_a_share_holds_for_its_interval() -> None:
    assert score(Equal("accuracy", scale=1.0), outcomes(20, 20)).interval == pytest.approx((0.83887, 1), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "groups", "note"),
    [
        (outcomes(20, 20), np.repeat(np.arange(10), 2), "all examples alike, n = 20"),
        (np.full((20, 1), 0.25), None, "all examples alike, n = 20"),
        (outcomes(3, 5), np.zeros(5, int), "a single group of examples, n = 5"),
    ],
)
def test_there_is_no_interval_where_all_resamples_are_equal(
    rows: np.ndarray, groups: np.ndarray | None, note: str
) -> None:
    result = score(Equal("accuracy"), rows, groups)
    assert (result.interval, result.interval_method, result.interval_note) == (None, None, note)
    assert result.to_dict()["interval"] is None
    assert interval_text(result.to_dict()) == note


def test_groups_and_graded_answers_have_the_bootstraps_interval() -> None:
    for rows, groups in ((outcomes(9, 20), np.repeat(np.arange(10), 2)), (np.linspace(0, 1, 20)[:, None], None)):
        result = score(Equal("accuracy"), rows, groups)
        assert result.interval_method == "bootstrap"
        assert result.interval is not None
        assert result.interval[0] < result.value < result.interval[1]


def test_no_interval_of_calibration_error_leaves_out_its_value() -> None:
    generator, outside = np.random.default_rng(0), 0
    for seed in range(60):  # of calibrated predictions, whose error resampling raises
        confidence = generator.beta(4, 1.2, 100) / 2 + 0.5
        rows = np.stack([confidence, generator.random(100) < confidence], 1).astype(float)
        draws = np.concatenate([Calibration().resampled(rows, c) for c in bootstrap(np.arange(100), 300, seed)])
        result = score(Calibration(), rows, resamples=300, seed=seed)
        outside += result.value < np.percentile(draws, 2.5)
        assert result.interval is not None
        assert 0 <= result.interval[0] <= result.value <= result.interval[1]
    assert outside, "the plain percentiles leave some out"


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    rows = np.random.default_rng(0).normal(0.3, 0.1, (900, 1))
    result = score(Equal("mean", scale=1.0), rows, resamples=4000)
    half_width = 1.96 * rows.std() / 30
    expected = (result.value - half_width, result.value + half_width)
    assert result.interval == pytest.approx(expected, abs=half_width / 10)


def test_groups_of_examples_widen_the_interval() -> None:
    rows = np.repeat(outcomes(30, 60), 10, axis=0)
    single, grouped = (score(Equal("accuracy"), rows, groups) for groups in (None, np.repeat(np.arange(60), 10)))
    assert width(grouped) > 2.5 * width(single)


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
    assert result.interval is None, "each pair has the same ratio"


def test_the_interval_does_not_depend_on_the_global_random_state() -> None:
    np.random.seed(1)
    rows = np.linspace(0, 1, 50)[:, None] ** 2
    first = score(Equal("accuracy"), rows)
    np.random.seed(2)
    assert score(Equal("accuracy"), rows) == first
    assert score(Equal("accuracy"), rows, seed=1) != first


def test_more_examples_narrow_the_interval() -> None:
    small, large = (score(Equal("accuracy"), outcomes(n // 2, n)) for n in (50, 5000))
    assert width(small) / width(large) == pytest.approx(10, rel=0.25)


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
        "interval": [43.8503, 100.0],
        "interval_method": "wilson",
        "interval_note": None,
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
    assert np.isnan(result.value)
    assert (result.interval, result.interval_note) == (None, "the value is not a number")
    assert value_text(result.value) == value_text(None) == "not a number"
