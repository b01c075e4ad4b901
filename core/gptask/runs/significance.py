"""Paired tests: whether two systems differ on the same test examples by more than chance would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, isfinite, log2, nan

import numpy as np

from gptask.plugins.metric import Metric
from gptask.plugins.resampling import bootstrap, percentile_interval, swap_masks

RESAMPLES = 10_000
SEED = 12345  # fixed, so that a verdict is a function of the predictions alone
ALPHA = 0.05
POWER = 0.8
MCNEMAR = "McNemar mid-p"
MAX_CACHED_COUNTS = 20_000_000  # counts (resamples x examples) of a test set that stay in memory, eight bytes each


@dataclass
class Difference:
    """A candidate's value minus a baseline's, in the metric's units, on N examples in G groups."""

    metric: str
    value: float
    low: float  # 95% interval
    high: float
    error: float  # standard error
    freedom: float | None  # degrees of freedom, None for a normal distribution
    p: float  # two-sided, not corrected
    test: str
    p_bootstrap: float | None
    n: int
    groups: int
    differing: int  # groups whose statistics are not equal
    seeds: tuple[int, int]  # runs of the candidate and of the baseline

    @property
    def same(self) -> bool:
        """Whether the statistics are equal on every example."""
        return not self.differing

    @property
    def effect(self) -> float:
        """The difference in standard deviations of the groups' differences (Cohen's d_z)."""
        return self.value / (self.error * self.groups**0.5) if self.error else self.value * inf

    def detectable(self, tests: int = 1) -> float:
        """The true difference that `POWER` of all such test sets find, at `ALPHA` corrected for ``tests`` tests.

        Two single runs must also differ on enough groups: even if all favour one side, a few may do so by chance.
        Infinite where the test set has fewer groups than that, and where no resample says how much it varies.
        """
        standard_errors = _quantile(1 - ALPHA / tests / 2, self.freedom) + _quantile(POWER, self.freedom)
        if self.seeds == (1, 1):
            min_differing = ceil(log2((1 if self.test == MCNEMAR else 2) * tests / ALPHA))
            if min_differing > self.groups:
                return inf
            expected_differing = _poisson_mean_reaching(min_differing)
            standard_errors = max(standard_errors, expected_differing / max(self.differing, 1) ** 0.5)
        return self.error * standard_errors if self.groups > 1 and self.error > 0 else inf


def difference(
    metric: Metric,
    candidate: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    groups: np.ndarray,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two methods, each by the statistics (N, K) of one run or of several that differ only in seed.

    The interval is the paired bootstrap's. The test is McNemar's for right and wrong answers, else
    approximate randomisation; groups (N,) are resampled and swapped as units. `_test_over_seeds` tests several seeds.
    Where the metric is not a number, neither is the difference, and p is 1.
    """
    with np.errstate(all="ignore"):
        candidate_values = [metric.aggregate(rows) for rows in candidate]
        baseline_values = [metric.aggregate(rows) for rows in baseline]
        observed, group_count = float(np.mean(candidate_values) - np.mean(baseline_values)), int(groups.max()) + 1
        if not isfinite(observed):
            result = _TestResult(nan, nan, nan, None, 1.0, "none", None)
        else:
            blocks = zip(*_resampled_values(metric, candidate, baseline, groups, resamples), strict=True)
            candidate_draws, baseline_draws = (np.concatenate(block, 1) for block in blocks)
            if len(candidate) == len(baseline) == 1:
                draws = candidate_draws[0] - baseline_draws[0]
                result = _test_single_runs(metric, candidate[0], baseline[0], groups, observed, draws)
            else:
                sides = [(candidate_values, candidate_draws), (baseline_values, baseline_draws)]
                result = _test_over_seeds(observed, group_count, sides)
    if group_count < 2:  # nothing can be resampled
        result.low, result.high = -inf, inf
    differing = len(np.unique(groups[_differing_examples([*baseline, *candidate])]))
    return Difference(
        metric=metric.name, value=observed, **vars(result), n=len(groups), groups=group_count, differing=differing,
        seeds=(len(candidate), len(baseline)),
    )  # fmt: skip


@dataclass
class _TestResult:
    """The fields of a `Difference` that a test decides."""

    low: float
    high: float
    error: float
    freedom: float | None
    p: float
    test: str
    p_bootstrap: float | None


def _differing_examples(runs: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) whether any run's statistics of an example differ from the first run's."""
    first = runs[0]
    differs = [((rows != first) & ~(np.isnan(rows) & np.isnan(first))).any(1) for rows in runs[1:]]
    any_differs: np.ndarray = np.any(differs, axis=0)
    return any_differs


# --- resampling -------------------------------------------------------------------------------------------------


def _resampled_values(
    metric: Metric, candidate: Sequence[np.ndarray], baseline: Sequence[np.ndarray], groups: np.ndarray, resamples: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Values (S, R) of each side's S runs on the same R resamples, block by block."""
    blocks: Iterable[np.ndarray] = bootstrap(groups, resamples, SEED)
    if resamples * len(groups) <= MAX_CACHED_COUNTS:
        blocks = _cached_resamples(tuple(groups.tolist()), resamples)
    for counts in blocks:
        candidate_block = np.stack([metric.resampled(rows, counts) for rows in candidate])
        yield candidate_block, np.stack([metric.resampled(rows, counts) for rows in baseline])


@lru_cache(maxsize=1)
def _cached_resamples(groups: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """A test set's resamples, for all the runs that are tested on it: drawing them takes longer than using them."""
    return list(bootstrap(np.asarray(groups), resamples, SEED))


# --- two single runs --------------------------------------------------------------------------------------------


def _test_single_runs(
    metric: Metric, candidate: np.ndarray, baseline: np.ndarray, groups: np.ndarray, observed: float, draws: np.ndarray
) -> _TestResult:
    """Test two runs' statistics (N, K) against each other; ``draws`` (R,) are their differences on R resamples."""
    interval = percentile_interval(draws, observed)
    low, high = interval or (observed, observed)
    right, baseline_right = metric.outcomes(candidate), metric.outcomes(baseline)
    if right is not None and baseline_right is not None and len(groups) == groups.max() + 1:
        p, test = mcnemar(int((right > baseline_right).sum()), int((right < baseline_right).sum())), MCNEMAR
    else:
        p, test = randomisation(metric, candidate, baseline, groups, len(draws)), "approximate randomisation"
    p_bootstrap = _share_reaching(np.abs(draws - np.nanmean(draws)), abs(observed))
    error = float(np.nanstd(draws)) if interval else 0.0
    return _TestResult(low, high, error, None, p, test, p_bootstrap)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided mid-p of McNemar's test from the counts of examples that only one system got right.

    Source: Fagerland, Lydersen & Laake 2013 (BMC Medical Research Methodology 13:91), which finds it close to its
    nominal size where the exact test is too conservative.
    """
    from scipy.special import bdtr

    smaller, total = min(better, worse), better + worse
    if not total:
        return 1.0
    at_most = float(bdtr(smaller, total, 0.5))
    exactly = at_most - (float(bdtr(smaller - 1, total, 0.5)) if smaller else 0.0)
    return 1 - exactly / 2 if better == worse else 2 * at_most - exactly


def randomisation(
    metric: Metric, candidate: np.ndarray, baseline: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES
) -> float:
    """Two-sided p of approximate randomisation: how often two systems with randomly swapped answers differ as much.

    Where no swap differs as much, p is the tail of a normal distribution with the deviation of the swaps, so that a
    correction for hundreds of tests is not limited by the number of swaps; the number of differing groups bounds p from
    below. Source: Riezler & Maxwell 2005.
    """
    both = np.concatenate([candidate, baseline])
    observed = abs(metric.aggregate(candidate) - metric.aggregate(baseline))
    blocks = []
    for stays in swap_masks(groups, resamples, SEED):
        first, second = np.concatenate([stays, 1 - stays], 1), np.concatenate([1 - stays, stays], 1)
        blocks.append(np.abs(metric.resampled(both, first) - metric.resampled(both, second)))
    gaps = np.concatenate(blocks)
    p, deviation = _share_reaching(gaps, observed), float(np.mean(gaps**2)) ** 0.5
    if p * (resamples + 1) > 1.5 or not deviation > 0:
        return p
    smallest_p = 0.5 ** (len(np.unique(groups[_differing_examples([baseline, candidate])])) - 1)
    return min(p, max(smallest_p, 2 * _upper_tail(observed / deviation, inf)))


def _share_reaching(values: np.ndarray, limit: float) -> float:
    """Share of ``values`` of at least ``limit``, with ``limit`` itself counted among them, so that it is never 0.

    A value that is not a number counts as one that reaches it.
    """
    return float((np.sum(~(values < limit - 1e-9)) + 1) / (len(values) + 1))


# --- several seeds ----------------------------------------------------------------------------------------------


def _test_over_seeds(observed: float, groups: int, sides: Sequence[tuple[Sequence[float], np.ndarray]]) -> _TestResult:
    """A t test of the difference between two means over seeds (Welch); each side has S values and their draws (S, R).

    Training and the choice of test examples both vary. The bootstrap of the means measures the variance due to the
    examples. The variance of a side's values over its S seeds measures training, but includes the variance that seeds
    cause from example to example, which the bootstrap has measured already. That part is subtracted: how much more
    single runs vary than their mean, over S - 1. The degrees of freedom are Welch and Satterthwaite's.
    """
    example_freedom = max(groups - 1, 1)
    example_variance = float(np.nanvar(sides[0][1].mean(0) - sides[1][1].mean(0))) * groups / example_freedom
    seed_variance, freedom_divisor = 0.0, example_variance**2 / example_freedom
    for values, draws in sides:
        seeds = len(values)
        if seeds > 1:
            variance_of_mean = float(np.var(values, ddof=1)) / seeds
            counted_twice = float(np.nanvar(draws, axis=1).mean() - np.nanvar(draws.mean(0))) / (seeds - 1)
            seed_variance += max(0.0, variance_of_mean - counted_twice)
            freedom_divisor += variance_of_mean**2 / (seeds - 1)
    variance = example_variance + seed_variance
    error, freedom = variance**0.5, variance**2 / freedom_divisor if freedom_divisor else inf
    margin = error * _quantile(1 - ALPHA / 2, freedom)
    p = 2 * _upper_tail(abs(observed) / error, freedom) if error else float(observed == 0)
    p = max(p, 0.5 ** (groups - 1))  # the smallest p that the signs of so few groups allow
    finite_freedom = freedom if isfinite(freedom) else None
    test = "t over seeds and examples"
    return _TestResult(observed - margin, observed + margin, error, finite_freedom, p, test, None)


# --- distributions and corrections ------------------------------------------------------------------------------


def _poisson_mean_reaching(count: int) -> float:
    """The mean of the Poisson distribution that reaches ``count`` with probability `POWER`."""
    from scipy.special import gammaincinv

    return float(gammaincinv(count, POWER))


def _quantile(share: float, freedom: float | None) -> float:
    """Quantile of the t distribution, of the normal distribution for None or infinite degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if freedom is None or not isfinite(freedom) else stdtrit(freedom, share))


def _upper_tail(value: float, freedom: float) -> float:
    """Probability of more than ``value`` in the t distribution, in the normal one for infinite degrees of freedom."""
    from scipy.special import ndtr, stdtr

    return float(stdtr(freedom, -value) if isfinite(freedom) else ndtr(-value))


def holm(p_values: Sequence[float], more: int = 0) -> list[float]:
    """P values corrected for the number of tests (Holm 1979), in the order given.

    ``more`` is the number of other tests that could have been chosen instead: they count as if their p were larger.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) + more - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
