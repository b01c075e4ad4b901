"""The plugin keeps gptask's contract; its options, its predictions and its metrics work."""

import numpy as np
import pytest
from gptask import DataError, UserError
from gptask.testing import check_task
from scipy import stats
from similarity import Loss, Similarity
from similarity.metrics import Pearson, Spearman

PAIR = {"first": "A cat sleeps.", "second": "A cat is asleep.", "score": 4.0}


class WordTokenizer:
    """A tokenizer for which a token is a word."""

    eos_token_id = -1

    def __call__(self, text):
        return {"input_ids": [hash(word) for word in text.split()]}


@pytest.mark.parametrize(
    "task",
    [Similarity(), Similarity(loss=Loss.huber), Similarity(both_orders=True), Similarity(language="zh", low=-1.0)],
    ids=["defaults", "huber", "both_orders", "zh"],
)
def test_contract(task):
    assert "overfits_one_batch" in check_task(task)


def test_a_pair_is_read_in_both_orders_and_the_mean_counts():
    task = Similarity(both_orders=True)
    first, second = task.encode(PAIR, WordTokenizer(), 100)
    (swapped,) = Similarity().encode(PAIR | {"first": PAIR["second"], "second": PAIR["first"]}, WordTokenizer(), 100)
    assert (first.label, second.label) == (0.8, 0.8)
    assert first.ids != second.ids == swapped.ids
    assert task.prediction(PAIR, [0.2, 0.6]).value == pytest.approx(2.0)


def test_predictions_stay_on_the_scale():
    task = Similarity(low=1.0, high=4.0)
    assert [task.prediction(PAIR, [share]).value for share in (-0.1, 0.5, 1.2)] == [1.0, 2.5, 4.0]


def test_a_scale_without_extent_and_a_score_outside_it_are_refused():
    with pytest.raises(UserError, match=r"task.low=5 must lie below task.high=5"):
        Similarity(low=5.0).validate()
    with pytest.raises(UserError, match="finite"):
        Similarity(high=float("inf")).validate()
    with pytest.raises(DataError, match=r"the score 4 lies outside 0 to 1; task.low and task.high set the scale"):
        Similarity(high=1.0).check(PAIR)


@pytest.mark.parametrize(("metric", "reference"), [(Pearson(), stats.pearsonr), (Spearman(), stats.spearmanr)])
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy_in_every_resample(metric, reference, ties):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(30, 2)) @ [[1, 0.7], [0, 1]]
    rows = rows.round() if ties else rows
    counts = generator.multinomial(30, np.full(30, 1 / 30), size=20)
    expected = [100 * reference(*np.repeat(rows, times, axis=0).T).statistic for times in counts]
    np.testing.assert_allclose(metric.resampled(rows, counts), expected)
    assert metric.aggregate(rows) == pytest.approx(100 * reference(*rows.T).statistic)


@pytest.mark.parametrize("metric", [Pearson(), Spearman()])
def test_a_constant_side_has_correlation_zero(metric):
    rows = np.array([[0.1, 4.0], [0.3, 2.0], [0.3, 1.0]])
    one_example, one_prediction, both_differ = [7, 0, 0], [0, 3, 4], [1, 1, 0]
    counts = np.array([one_example, one_prediction, [0, 0, 1], both_differ])
    np.testing.assert_allclose(metric.resampled(rows, counts), [0, 0, 0, -100])
