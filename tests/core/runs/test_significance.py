"""Paired tests agree with scipy, statsmodels and sacreBLEU, and hold what they promise over many test sets."""

import numpy as np
import pytest
from gptask.plugins.metric import MeanMetric
from gptask.runs.significance import difference, holm, mcnemar, randomisation
from gptask_tasks.classification.metrics import MacroF1, Matthews


class Mean(MeanMetric):
    def statistics(self, prediction, reference):
        raise AssertionError


ACCURACY = Mean("accuracy")
ALONE = np.arange(300)


def answers(right, count=300, seed=0):
    return (np.random.default_rng(seed).random((count, 1)) < right).astype(float)


@pytest.mark.parametrize(("better", "worse"), [(0, 5), (3, 3), (12, 25), (100, 60), (1, 0)])
def test_mcnemar_is_the_exact_test_less_half_of_what_was_seen(better, worse):
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar as exact

    expected = exact([[10, better], [worse, 10]], exact=True).pvalue
    seen = binom.pmf(better, better + worse, 0.5)
    assert mcnemar(better, worse) == pytest.approx(expected - (seen / 2 if better == worse else seen))


def test_no_disagreement_tells_nothing():
    assert mcnemar(0, 0) == 1.0


def test_randomisation_agrees_with_scipys_permutation_test():
    from scipy.stats import permutation_test

    generator = np.random.default_rng(3)
    ours, theirs = generator.normal(0.15, 1, (80, 1)), generator.normal(0, 1, (80, 1))

    def gap(a, b, axis):
        return np.mean(a, axis) - np.mean(b, axis)

    sides = ours[:, 0], theirs[:, 0]
    expected = permutation_test(sides, gap, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=1)
    assert randomisation(ACCURACY, ours, theirs, np.arange(80)) == pytest.approx(expected.pvalue, abs=0.015)


def test_the_interval_agrees_with_scipys_paired_bootstrap():
    from scipy.stats import bootstrap

    ours, theirs = answers(0.9), answers(0.8, seed=1)

    def gap(a, b, axis):
        return 100 * (np.mean(a, axis) - np.mean(b, axis))

    sides = ours[:, 0], theirs[:, 0]
    expected = bootstrap(sides, gap, paired=True, method="percentile", n_resamples=9999, rng=1)
    found = difference(ACCURACY, [ours], [theirs], ALONE)
    low, high = expected.confidence_interval
    assert (found.low, found.high) == (pytest.approx(low, abs=0.4), pytest.approx(high, abs=0.4))
    assert found.error == pytest.approx(expected.standard_error, rel=0.03)
    assert found.test == "McNemar mid-p"


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_metrics_agree_with_sacrebleus_paired_tests(name, translation_run):
    import sacrebleu
    from gptask.analysis.compare.records import read
    from sacrebleu.significance import PairedTest

    records = [read(translation_run("a", 2, draw=1)), read(translation_run("b", 3, draw=2))]
    said = [[row["prediction"] for row in record.predictions.rows] for record in records]
    references = [[row["references"]["target"][0] for row in records[0].predictions.rows]]
    theirs = sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF()
    metric, like = records[0].metric(name), records[0].predictions
    rows = [record.predictions.statistics(name) for record in records]
    found = difference(metric, [rows[1]], [rows[0]], like.groups)

    def paired(kind):
        systems = [("base", said[0]), ("ours", said[1])]
        return PairedTest(systems, {name: theirs}, references, test_type=kind)()[1][next(iter(paired_names))]

    paired_names = {"BLEU": 1} if name == "bleu" else {"chrF2": 1}
    randomised, resampled = paired("ar"), paired("bs")
    assert found.value == pytest.approx(randomised[1].score - randomised[0].score, abs=1e-6)
    assert found.p == pytest.approx(randomised[1].p_value, abs=0.02)
    # sacreBLEU centres absolute differences, so its bootstrap looks at one tail only; ours at both
    assert found.p_bootstrap == pytest.approx(2 * resampled[1].p_value, abs=0.025)


def test_any_metric_can_be_tested():
    truth = np.random.default_rng(0).integers(0, 3, 300)
    noise = np.random.default_rng(1)

    def said(right):
        return np.stack([truth, np.where(noise.random(300) < right, truth, noise.integers(0, 3, 300))], 1).astype(float)

    for metric in (MacroF1("abc"), Matthews("abc")):
        found = difference(metric, [said(0.9)], [said(0.7)], ALONE)
        assert found.test == "approximate randomisation"
        assert found.p < 0.001
        assert found.low > 0
        found = difference(metric, [said(0.8)], [said(0.8)], ALONE)
        assert found.p > 0.05
        assert found.low < 0 < found.high


def test_questions_on_one_context_are_no_independent_witnesses():
    groups = np.repeat(np.arange(30), 10)
    ours = np.repeat(answers(0.9, 30), 10, axis=0)
    theirs = np.repeat(answers(0.6, 30, seed=1), 10, axis=0)
    together, apart = (difference(ACCURACY, [ours], [theirs], g) for g in (groups, ALONE))
    assert together.test == "approximate randomisation"
    assert together.p > 100 * apart.p
    assert together.error > 2.5 * apart.error
    assert (together.n, together.groups) == (300, 30)


def test_equal_answers_are_told_from_equal_scores():
    ours = answers(0.9)
    assert difference(ACCURACY, [ours], [ours], ALONE).same
    assert not difference(ACCURACY, [ours], [ours[::-1]], ALONE).same


def test_seeds_that_vary_widen_the_interval():
    ours = [answers(right, seed=n) for n, right in enumerate((0.80, 0.90, 0.99))]
    theirs = [answers(0.8, seed=10 + n) for n in range(3)]
    assert difference(ACCURACY, ours[2:], theirs[:1], ALONE).p < 0.001  # this model
    found = difference(ACCURACY, ours, theirs, ALONE)  # this method
    assert found.p > 0.05
    assert found.seeds == (3, 3)
    assert 2 <= found.freedom < 4
    assert found.low < 0 < found.value < found.high


def test_holm_agrees_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    ps = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert holm([]) == []


def test_holm_counts_tests_that_might_have_been_picked():
    assert holm([0.04, 0.01], more=3) == pytest.approx([0.16, 0.05])


def test_a_single_example_or_context_tells_nothing():
    one = np.ones((1, 1))
    for sides in (([one], [one * 0]), ([one, one], [one * 0, one * 0])):
        found = difference(ACCURACY, *sides, np.zeros(1, dtype=int))
        assert found.p >= 0.05
        assert (found.low, found.high, found.detectable()) == (-np.inf, np.inf, np.inf)
    found = difference(ACCURACY, [answers(0.9)], [answers(0.1)], np.zeros(300, dtype=int))
    assert (found.p, found.groups, found.detectable()) == (1.0, 1, np.inf)


def test_few_examples_can_show_no_difference():
    assert difference(ACCURACY, [np.ones((4, 1))], [np.eye(4)[:, :1]], np.arange(4)).detectable() == np.inf
    found = difference(ACCURACY, [answers(0.9)], [answers(0.9, seed=1)], ALONE)
    assert found.detectable(2) > found.detectable() > 0


def test_runs_that_hardly_differ_are_not_said_to_show_more_than_they_can():
    ours = np.ones((500, 1))
    theirs = ours.copy()
    theirs[0] = 0
    found = difference(ACCURACY, [ours], [theirs], np.arange(500))
    assert found.differing == 1
    # of 6.7 examples on average, all for one side, five come up in 80%, and five are the fewest that are significant
    assert found.detectable() == pytest.approx(100 * 6.72 / 500, rel=0.05)
    assert mcnemar(5, 0) < 0.05 < mcnemar(4, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_no_number_is_no_difference(odd):
    ours = np.full((50, 1), odd)
    for baseline in ([np.ones((50, 1))], [np.ones((50, 1)), np.zeros((50, 1))]):
        found = difference(ACCURACY, [ours], baseline, np.arange(50))
        assert found.p == 1.0
        assert not np.isfinite(found.value)


class Rounded(Mean):
    """A mean of zeros and ones that is no share of right answers."""

    def aggregate(self, rows):
        return float(round(rows.mean(), 1))


def test_zeros_and_ones_are_right_and_wrong_only_in_a_plain_mean():
    found = difference(Rounded("rounded"), [answers(0.9)], [answers(0.6, seed=1)], ALONE, 200)
    assert found.test == "approximate randomisation"


def test_p_is_not_bound_by_the_number_of_swaps():
    from scipy.stats import ttest_rel

    generator = np.random.default_rng(3)
    ours, theirs = generator.normal(1, 1, (80, 1)), generator.normal(0, 1, (80, 1))
    p = randomisation(ACCURACY, ours, theirs, np.arange(80))
    assert ttest_rel(ours[:, 0], theirs[:, 0]).pvalue < p < 1e-5
    one = np.where(np.arange(80)[:, None] < 12, 1.0, 0.0)  # twelve examples differ, all for one side
    assert 0.5**11 <= randomisation(ACCURACY, one, one * 0, np.arange(80), 200) < 1.3 * 0.5**11
