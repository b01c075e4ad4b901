"""Paired tests agree with scipy, statsmodels and sacreBLEU."""

import numpy as np
import pytest
from gptask.plugins.metric import MeanMetric
from gptask.runs.significance import difference, holm, mcnemar, randomisation
from gptask_tasks.classification.metrics import Calibration, MacroF1, Matthews, MicroF1


class Mean(MeanMetric):
    def statistics(self, prediction, reference):
        raise AssertionError


ACCURACY = Mean("accuracy")
UNGROUPED = np.arange(300)


def answers(right, count=300, seed=0):
    return (np.random.default_rng(seed).random((count, 1)) < right).astype(float)


@pytest.mark.parametrize(("better", "worse"), [(0, 5), (3, 3), (12, 25), (100, 60), (1, 0)])
def test_mcnemar_is_the_exact_test_minus_half_of_the_observed_probability(better, worse):
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar as exact

    expected = exact([[10, better], [worse, 10]], exact=True).pvalue
    observed = binom.pmf(better, better + worse, 0.5)
    assert mcnemar(better, worse) == pytest.approx(expected - (observed / 2 if better == worse else observed))


def test_p_is_1_without_disagreement():
    assert mcnemar(0, 0) == 1.0


def test_randomisation_agrees_with_scipys_permutation_test():
    from scipy.stats import permutation_test

    generator = np.random.default_rng(3)
    candidate, baseline = generator.normal(0.15, 1, (80, 1)), generator.normal(0, 1, (80, 1))

    def gap(a, b, axis):
        return np.mean(a, axis) - np.mean(b, axis)

    sides = candidate[:, 0], baseline[:, 0]
    expected = permutation_test(sides, gap, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=1)
    assert randomisation(ACCURACY, candidate, baseline, np.arange(80)) == pytest.approx(expected.pvalue, abs=0.015)


def test_the_interval_agrees_with_scipys_paired_bootstrap():
    from scipy.stats import bootstrap

    candidate, baseline = answers(0.9), answers(0.8, seed=1)

    def gap(a, b, axis):
        return 100 * (np.mean(a, axis) - np.mean(b, axis))

    sides = candidate[:, 0], baseline[:, 0]
    expected = bootstrap(sides, gap, paired=True, method="percentile", n_resamples=9999, rng=1)
    result = difference(ACCURACY, [candidate], [baseline], UNGROUPED)
    low, high = expected.confidence_interval
    assert (result.low, result.high) == (pytest.approx(low, abs=0.4), pytest.approx(high, abs=0.4))
    assert result.error == pytest.approx(expected.standard_error, rel=0.03)
    assert result.test == "McNemar mid-p"


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_metrics_agree_with_sacrebleus_paired_tests(name, translation_run):
    import sacrebleu
    from gptask.analysis.compare.records import read_run
    from sacrebleu.significance import PairedTest

    records = [read_run(translation_run("a", 2, draw=1)), read_run(translation_run("b", 3, draw=2))]
    predictions = [[row["prediction"] for row in record.predictions.rows] for record in records]
    references = [[row["references"]["target"][0] for row in records[0].predictions.rows]]
    peer_metric = sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF()
    metric, groups = records[0].metric(name), records[0].predictions.groups
    rows = [record.predictions.statistics(name) for record in records]
    result = difference(metric, [rows[1]], [rows[0]], groups)

    def paired(kind):
        systems = [("base", predictions[0]), ("candidate", predictions[1])]
        return PairedTest(systems, {name: peer_metric}, references, test_type=kind)()[1][next(iter(paired_names))]

    paired_names = {"BLEU": 1} if name == "bleu" else {"chrF2": 1}
    randomised, resampled = paired("ar"), paired("bs")
    assert result.value == pytest.approx(randomised[1].score - randomised[0].score, abs=1e-6)
    assert result.p == pytest.approx(randomised[1].p_value, abs=0.02)
    # sacreBLEU centres absolute differences, so its bootstrap looks at one tail only; ours at both
    assert result.p_bootstrap == pytest.approx(2 * resampled[1].p_value, abs=0.025)


def test_any_metric_can_be_tested():
    truth = np.random.default_rng(0).integers(0, 3, 300)
    noise = np.random.default_rng(1)

    def labels_with_accuracy(right):
        return np.stack([truth, np.where(noise.random(300) < right, truth, noise.integers(0, 3, 300))], 1).astype(float)

    for metric in (MacroF1("abc"), Matthews("abc")):
        result = difference(metric, [labels_with_accuracy(0.9)], [labels_with_accuracy(0.7)], UNGROUPED)
        assert result.test == "approximate randomisation"
        assert result.p < 0.001
        assert result.low > 0
        result = difference(metric, [labels_with_accuracy(0.8)], [labels_with_accuracy(0.8)], UNGROUPED)
        assert result.p > 0.05
        assert result.low < 0 < result.high


def test_examples_of_one_group_are_resampled_together():
    groups = np.repeat(np.arange(30), 10)
    candidate = np.repeat(answers(0.9, 30), 10, axis=0)
    baseline = np.repeat(answers(0.6, 30, seed=1), 10, axis=0)
    together, apart = (difference(ACCURACY, [candidate], [baseline], g) for g in (groups, UNGROUPED))
    assert together.test == "approximate randomisation"
    assert together.p > 100 * apart.p
    assert together.error > 2.5 * apart.error
    assert (together.n, together.groups) == (300, 30)


def test_accuracy_and_micro_f1_of_single_labels_are_the_same_number_and_get_the_same_test():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 300)
    runs = [np.where(generator.random(300) < right, truth, 2) for right in (0.9, 0.8)]
    sides = [np.stack([truth, predicted], 1).astype(float) for predicted in runs]
    micro = difference(MicroF1("abc"), [sides[0]], [sides[1]], UNGROUPED)
    right = [(truth == predicted)[:, None].astype(float) for predicted in runs]
    accuracy = difference(ACCURACY, [right[0]], [right[1]], UNGROUPED)
    assert micro.test == accuracy.test == "McNemar mid-p"
    assert (micro.p, micro.value, micro.low) == pytest.approx((accuracy.p, accuracy.value, accuracy.low))


def test_a_difference_without_spread_detects_nothing():
    constant = [np.stack([np.repeat([0.0, 1.0], 50), np.full(100, answer)], 1) for answer in (0.0, 1.0)]
    result = difference(Matthews("ab"), [constant[0]], [constant[1]], np.arange(100))
    assert (result.value, result.error, result.p, result.detectable()) == (0, 0, 1, np.inf)


def test_the_interval_of_a_biased_metric_holds_its_difference():
    generator = np.random.default_rng(5)
    confidence = generator.beta(4, 1.2, (2, 200)) / 2 + 0.5
    sides = [np.stack([c, generator.random(200) < c], 1).astype(float) for c in confidence]
    result = difference(Calibration(), [sides[0]], [sides[1]], np.arange(200), resamples=500)
    assert result.low <= result.value <= result.high


def test_equal_scores_with_different_answers_are_not_the_same():
    candidate = answers(0.9)
    assert difference(ACCURACY, [candidate], [candidate], UNGROUPED).same
    assert not difference(ACCURACY, [candidate], [candidate[::-1]], UNGROUPED).same


def test_seeds_that_vary_widen_the_interval():
    candidate = [answers(right, seed=n) for n, right in enumerate((0.80, 0.90, 0.99))]
    baseline = [answers(0.8, seed=10 + n) for n in range(3)]
    assert difference(ACCURACY, candidate[2:], baseline[:1], UNGROUPED).p < 0.001  # this model
    result = difference(ACCURACY, candidate, baseline, UNGROUPED)  # this method
    assert result.p > 0.05
    assert result.seeds == (3, 3)
    assert 2 <= result.freedom < 4
    assert result.low < 0 < result.value < result.high


def test_holm_agrees_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    ps = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert holm([]) == []


def test_holm_counts_tests_that_could_have_been_chosen():
    assert holm([0.04, 0.01], more=3) == pytest.approx([0.16, 0.05])


def test_a_single_example_or_group_is_never_significant():
    one = np.ones((1, 1))
    for sides in (([one], [one * 0]), ([one, one], [one * 0, one * 0])):
        result = difference(ACCURACY, *sides, np.zeros(1, dtype=int))
        assert result.p >= 0.05
        assert (result.low, result.high, result.detectable()) == (-np.inf, np.inf, np.inf)
    result = difference(ACCURACY, [answers(0.9)], [answers(0.1)], np.zeros(300, dtype=int))
    assert (result.p, result.groups, result.detectable()) == (1.0, 1, np.inf)


def test_few_examples_detect_no_difference():
    assert difference(ACCURACY, [np.ones((4, 1))], [np.eye(4)[:, :1]], np.arange(4)).detectable() == np.inf
    result = difference(ACCURACY, [answers(0.9)], [answers(0.9, seed=1)], UNGROUPED)
    assert result.detectable(2) > result.detectable() > 0


def test_runs_that_hardly_differ_have_a_larger_detectable_difference():
    candidate = np.ones((500, 1))
    baseline = candidate.copy()
    baseline[0] = 0
    result = difference(ACCURACY, [candidate], [baseline], np.arange(500))
    assert result.differing == 1
    # of 6.7 examples on average, all for one side, five come up in 80%, and five are the fewest that are significant
    assert result.detectable() == pytest.approx(100 * 6.72 / 500, rel=0.05)
    assert mcnemar(5, 0) < 0.05 < mcnemar(4, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_values_that_are_no_numbers_have_no_difference(odd):
    candidate = np.full((50, 1), odd)
    for baseline in ([np.ones((50, 1))], [np.ones((50, 1)), np.zeros((50, 1))]):
        result = difference(ACCURACY, [candidate], baseline, np.arange(50))
        assert result.p == 1.0
        assert not np.isfinite(result.value)


class Rounded(Mean):
    """A mean of zeros and ones that is no share of right answers."""

    def aggregate(self, rows):
        return float(round(rows.mean(), 1))


def test_mcnemar_is_for_plain_means_only():
    result = difference(Rounded("rounded"), [answers(0.9)], [answers(0.6, seed=1)], UNGROUPED, 200)
    assert result.test == "approximate randomisation"


def test_p_is_not_limited_by_the_number_of_swaps():
    from scipy.stats import ttest_rel

    generator = np.random.default_rng(3)
    candidate, baseline = generator.normal(1, 1, (80, 1)), generator.normal(0, 1, (80, 1))
    p = randomisation(ACCURACY, candidate, baseline, np.arange(80))
    assert ttest_rel(candidate[:, 0], baseline[:, 0]).pvalue < p < 1e-5
    one = np.where(np.arange(80)[:, None] < 12, 1.0, 0.0)  # twelve examples differ, all for one side
    assert 0.5**11 <= randomisation(ACCURACY, one, one * 0, np.arange(80), 200) < 1.3 * 0.5**11
