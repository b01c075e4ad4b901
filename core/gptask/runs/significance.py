"""Paired tests: whether two systems differ on the same test examples by more than chance would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, isfinite, log2, nan

import numpy as np

from gptask.plugins.metric import MeanMetric, Metric
from gptask.plugins.resampling import bootstrap, swap_masks

RESAMPLES = 10_000
SEED = 12345  # fixed, so that a verdict is a function of the predictions alone
ALPHA = 0.05
POWER = 0.8
MCNEMAR = "McNemar mid-p"
KEPT = 20_000_000  # counts of a test set that are kept in memory, eight bytes each


@dataclass
class Difference:
    """A candidate's value less a baseline's, in the metric's units, on N examples in G groups."""

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
        """Whether no example tells the two apart."""
        return not self.differing

    @property
    def effect(self) -> float:
        """The difference in standard deviations of the groups' differences (Cohen's d_z)."""
        return self.value / (self.error * self.groups**0.5) if self.error else self.value * inf

    def detectable(self, tests: int = 1) -> float:
        """The true difference that is found in `POWER` of all test sets of this kind, at `ALPHA` over so many tests.

        Two runs must also differ on enough groups: even if all speak for one side, too few could be chance. Infinite
        where the test set has not so many.
        """
        reach = _quantile(1 - ALPHA / tests / 2, self.freedom) + _quantile(POWER, self.freedom)
        if self.seeds == (1, 1):
            least = ceil(log2((1 if self.test == MCNEMAR else 2) * tests / ALPHA))
            if least > self.groups:
                return inf
            reach = max(reach, _mean_reaching(least) / max(self.differing, 1) ** 0.5)
        return self.error * reach if self.groups > 1 else inf


def difference(
    metric: Metric,
    candidate: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    groups: np.ndarray,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two methods, each by the statistics (N, K) of one run or of several that differ only in seed.

    The interval is the paired bootstrap's (percentiles). The test is McNemar's for right and wrong answers, else
    approximate randomisation; groups (N,) are resampled and swapped whole. With several seeds, see `_over_seeds`. Where
    the metric is not a number, neither is the difference, and p is 1.
    """
    with np.errstate(all="ignore"):
        ours, theirs = ([metric.aggregate(rows) for rows in side] for side in (candidate, baseline))
        observed, total = float(np.mean(ours) - np.mean(theirs)), int(groups.max()) + 1
        if not isfinite(observed):
            found = _Tested(nan, nan, nan, None, 1.0, "none", None)
        else:
            drawn = [
                np.concatenate(parts, 1)
                for parts in zip(*_drawn(metric, candidate, baseline, groups, resamples), strict=True)
            ]
            if len(candidate) == len(baseline) == 1:
                found = _pair(metric, candidate[0], baseline[0], groups, observed, drawn[0][0] - drawn[1][0])
            else:
                found = _over_seeds(observed, total, [(ours, drawn[0]), (theirs, drawn[1])])
    if total < 2:  # nothing can be resampled
        found.low, found.high = -inf, inf
    differing = len(np.unique(groups[_unequal([*baseline, *candidate])]))
    return Difference(
        metric=metric.name, value=observed, **vars(found), n=len(groups), groups=total, differing=differing,
        seeds=(len(candidate), len(baseline)),
    )  # fmt: skip


@dataclass
class _Tested:
    """The middle fields of a `Difference`."""

    low: float
    high: float
    error: float
    freedom: float | None
    p: float
    test: str
    p_bootstrap: float | None


def _pair(
    metric: Metric, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray, observed: float, drawn: np.ndarray
) -> _Tested:
    """Two runs, whose differences on R resamples are ``drawn`` (R,)."""
    low, high = np.nanpercentile(drawn, [100 * ALPHA / 2, 100 - 100 * ALPHA / 2])
    p, test = _p(metric, ours, theirs, groups, len(drawn))
    shifted = _share(np.abs(drawn - np.nanmean(drawn)), abs(observed))
    return _Tested(float(low), float(high), float(np.nanstd(drawn)), None, p, test, shifted)


def _unequal(sides: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) whether any run's statistics of an example are others than the first one's."""
    first = sides[0]
    return np.any([((rows != first) & ~(np.isnan(rows) & np.isnan(first))).any(1) for rows in sides[1:]], axis=0)


def _drawn(
    metric: Metric, candidate: Sequence[np.ndarray], baseline: Sequence[np.ndarray], groups: np.ndarray, resamples: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Values of either side's runs (S, R) on the same resamples."""
    kept = resamples * len(groups) <= KEPT
    for counts in _kept(tuple(groups.tolist()), resamples) if kept else bootstrap(groups, resamples, SEED):
        ours, theirs = (np.stack([metric.resampled(rows, counts) for rows in side]) for side in (candidate, baseline))
        yield ours, theirs


@lru_cache(maxsize=1)
def _kept(groups: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """A test set's resamples, which take longer to draw than to use: a hundred runs are tested on the same."""
    return list(bootstrap(np.asarray(groups), resamples, SEED))


def _p(metric: Metric, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray, resamples: int) -> tuple[float, str]:
    alone, mean = len(groups) == groups.max() + 1, type(metric).aggregate is MeanMetric.aggregate
    if mean and alone and np.isin([ours, theirs], (0, 1)).all():
        return mcnemar(int((ours > theirs).sum()), int((ours < theirs).sum())), MCNEMAR
    return randomisation(metric, ours, theirs, groups, resamples), "approximate randomisation"


def mcnemar(better: int, worse: int) -> float:
    """Two-sided mid-p of McNemar's test from the counts of examples that only one system got right.

    Source: Fagerland, Lydersen & Laake 2013 (BMC Medical Research Methodology 13:91), which finds it close to its
    nominal size where the exact test is too careful.
    """
    from scipy.special import bdtr

    few, total = min(better, worse), better + worse
    if not total:
        return 1.0
    below = float(bdtr(few, total, 0.5))
    at = below - (float(bdtr(few - 1, total, 0.5)) if few else 0.0)
    return 1 - at / 2 if better == worse else 2 * below - at


def randomisation(
    metric: Metric, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES
) -> float:
    """Two-sided p of approximate randomisation (Riezler & Maxwell 2005): how often systems whose answers are swapped
    by coin differ as much as the real ones.

    Where none of so many does, it is the normal tail by what the swaps vary, so that a correction for hundreds of tests
    is not bound by the number of swaps; but no less than the groups that differ allow.
    """
    both = np.concatenate([ours, theirs])
    observed = abs(metric.aggregate(ours) - metric.aggregate(theirs))
    found = []
    for kept in swap_masks(groups, resamples, SEED):
        first, second = np.concatenate([kept, 1 - kept], 1), np.concatenate([1 - kept, kept], 1)
        found.append(np.abs(metric.resampled(both, first) - metric.resampled(both, second)))
    values = np.concatenate(found)
    p, deviation = _share(values, observed), float(np.mean(values**2)) ** 0.5
    if p * (resamples + 1) > 1.5 or not deviation > 0:
        return p
    least = 0.5 ** (len(np.unique(groups[_unequal([theirs, ours])])) - 1)
    return min(p, max(least, 2 * _tail(observed / deviation, inf)))


def _share(values: np.ndarray, least: float) -> float:
    """Share of values that reach ``least``, that one counted with them, so that it is never 0; what is not a number
    counts as one that does."""
    return float((np.sum(~(values < least - 1e-9)) + 1) / (len(values) + 1))


def _over_seeds(observed: float, groups: int, sides: Sequence[tuple[Sequence[float], np.ndarray]]) -> _Tested:
    """A t test of the difference between two means over seeds (Welch).

    Training and the choice of test examples both vary. The bootstrap of the means holds the examples' part; a side's
    values over its k seeds hold training's, and once more what seeds change from example to example, which the
    bootstrap has seen: that is taken off (what single runs vary more than their mean, over k - 1).
    """
    few = max(groups - 1, 1)
    examples = float(np.nanvar(sides[0][1].mean(0) - sides[1][1].mean(0))) * groups / few
    added, inverse = 0.0, examples**2 / few
    for values, drawn in sides:
        k = len(values)
        if k > 1:
            part = float(np.var(values, ddof=1)) / k
            twice = float(np.nanvar(drawn, axis=1).mean() - np.nanvar(drawn.mean(0))) / (k - 1)
            added += max(0.0, part - twice)
            inverse += part**2 / (k - 1)
    total = examples + added
    error, freedom = total**0.5, total**2 / inverse if inverse else inf
    reach = error * _quantile(1 - ALPHA / 2, freedom)
    p = 2 * _tail(abs(observed) / error, freedom) if error else float(observed == 0)
    p = max(p, 0.5 ** (groups - 1))  # what the signs of so few groups can tell
    kept = freedom if isfinite(freedom) else None
    return _Tested(observed - reach, observed + reach, error, kept, p, "t over seeds and examples", None)


def _mean_reaching(count: int) -> float:
    """The mean of a Poisson distribution that reaches ``count`` with probability `POWER`."""
    from scipy.special import gammaincinv

    return float(gammaincinv(count, POWER))


def _quantile(share: float, freedom: float | None) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if freedom is None or not isfinite(freedom) else stdtrit(freedom, share))


def _tail(value: float, freedom: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(stdtr(freedom, -value) if isfinite(freedom) else ndtr(-value))


def holm(ps: Sequence[float], more: int = 0) -> list[float]:
    """p values corrected for being several (Holm 1979), in the order given; ``more`` tests might as well have been
    picked, and count as if they came last."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) + more - rank) * ps[place]))
        corrected[place] = highest
    return corrected
