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


def shares(right: int, n: int) -> np.ndarray:
    return np.array([[1.0]] * right + [[0.0]] * (n - right))


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    found = score(Equal("accuracy"), shares(200, 400), resamples=4000)
    half = 100 * 1.96 * math.sqrt(0.5 * 0.5 / 400)  # 4.9 points
    assert found.value == 50.0
    assert found.low == pytest.approx(50 - half, abs=0.4)
    assert found.high == pytest.approx(50 + half, abs=0.4)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    rows = np.random.default_rng(0).normal(0.3, 0.1, (900, 1))
    found = score(Equal("mean", scale=1.0), rows, resamples=4000)
    half = 1.96 * rows.std() / 30
    assert (found.low, found.high) == (
        pytest.approx(found.value - half, abs=half / 10),
        pytest.approx(found.value + half, abs=half / 10),
    )


def test_questions_on_one_context_widen_the_interval() -> None:
    rows = np.repeat(shares(30, 60), 10, axis=0)
    apart, together = (score(Equal("accuracy"), rows, groups) for groups in (None, np.repeat(np.arange(60), 10)))
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_sums_resample_like_whole_sets() -> None:
    class Sums(AdditiveMetric):
        statistics, aggregate = Ratio.statistics, Ratio.aggregate

    rows = np.array([[1.0, 4.0], [2.0, 3.0], [5.0, 1.0]])
    counts = np.array([[1, 1, 1], [0, 3, 0], [2, 0, 1]])
    expected = [8 / 8, 6 / 9, 7 / 9]
    for metric in (Ratio(), Sums()):
        np.testing.assert_allclose(metric.resampled(rows, counts), expected)


def test_the_interval_of_a_ratio_resamples_pairs() -> None:
    rows = np.array([[k, 2.0 * k] for k in range(1, 50)])
    found = score(Ratio(), rows)
    assert found.value == 0.5
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5)), "each pair has the same ratio"


@pytest.mark.parametrize(("right", "value"), [(0, 0.0), (30, 100.0)])
def test_examples_that_agree_leave_no_doubt(right: int, value: float) -> None:
    found = score(Equal("accuracy"), shares(right, 30))
    assert (found.low, found.value, found.high) == (value, value, value)


def test_the_interval_is_a_function_of_the_predictions() -> None:
    np.random.seed(1)
    one = score(Equal("accuracy"), shares(20, 50))
    np.random.seed(2)
    assert score(Equal("accuracy"), shares(20, 50)) == one
    assert score(Equal("accuracy"), shares(20, 50), seed=1) != one


def test_more_examples_make_it_narrower() -> None:
    few, many = (score(Equal("accuracy"), shares(n // 2, n)) for n in (50, 5000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.25)


def test_every_metric_is_scored_and_its_statistics_kept() -> None:
    said, true = [Prediction(1), Prediction(3)], [{"y": 1}, {"y": 1}]
    scores, kept = score_all([Equal("accuracy", "exact"), Ratio()], said, true)
    assert [(s.name, s.value, s.n) for s in scores] == [("accuracy", 50.0, 2), ("ratio", 2.0, 2)]
    assert kept == [{"accuracy": [1.0], "ratio": [1.0, 1.0]}, {"accuracy": [0.0], "ratio": [3.0, 1.0]}]


def test_a_score_is_strict_json() -> None:
    found = [score(m, np.ones((3, 2))).to_dict() for m in (Equal("accuracy", "exact"), Ratio())]
    json.dumps(found, allow_nan=False)
    assert found[0] == {
        "value": 100.0,
        "interval": [100.0, 100.0],
        "n": 3,
        "direction": "higher",
        "range": [0.0, 100.0],
        "signature": "exact",
    }
    assert (found[1]["direction"], found[1]["range"]) == ("none", [0.0, None])


@pytest.mark.filterwarnings("error")
def test_a_metric_that_is_no_number_has_no_interval():
    class Undefined(MeanMetric):
        def statistics(self, prediction, reference):
            raise AssertionError

    found = score(Undefined("m"), np.full((5, 1), np.nan))
    assert np.isnan([found.value, found.low, found.high]).all()
