"""The main metrics of several tasks on one scale, 0 worst to 100 best."""

import math
from types import SimpleNamespace

import pytest
from gptask.training.task_runtime import normalized_score

INFINITE = math.inf


@pytest.mark.parametrize(
    ("limits", "higher", "value", "expected"),
    [
        ((0, 100), True, 70, 70),
        ((0, 100), False, 70, 30),
        ((-100, 100), True, 0, 50),
        ((0, INFINITE), False, 1, 50),  # a loss
        ((1, INFINITE), False, 1, 100),  # a perplexity
        ((0, INFINITE), True, 3, 75),
        ((-INFINITE, 0), True, -1, 50),
        ((-INFINITE, INFINITE), True, 0, 50),
    ],
)
def test_a_score_is_normalized_by_range_and_direction(limits, higher, value, expected):
    metric = SimpleNamespace(range=limits, higher_is_better=higher)
    assert normalized_score(metric, value) == pytest.approx(expected)
    better = value + (0.1 if higher else -0.1)
    if limits[0] <= better <= limits[1]:
        assert normalized_score(metric, better) > normalized_score(metric, value)


@pytest.mark.parametrize("value", [math.nan, INFINITE, -INFINITE])
@pytest.mark.parametrize("limits", [(0, 100), (0, INFINITE), (-INFINITE, INFINITE)])
def test_a_value_that_is_not_finite_is_the_worst(value, limits):
    for higher in (True, False):
        assert normalized_score(SimpleNamespace(range=limits, higher_is_better=higher), value) == 0
