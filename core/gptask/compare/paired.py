"""Paired tests: whether two systems differ on the same test examples by more than chance would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from gptask.metric import MeanMetric, Metric
from gptask.resampling import bootstrap, halves

RESAMPLES = 10_000
SEED = 12345  # fixed, so that a verdict is a function of the predictions alone
ALPHA = 0.05
POWER = 0.8
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
    seeds: tuple[int, int]  # runs of the candidate and of the baseline
    same: bool  # whether both said the same of every example

    @property
    def effect(self) -> float:
        """The difference in standard deviations of the groups' differences (Cohen's d_z)."""
        return self.value / (self.error * self.groups**0.5) if self.error else 0.0

    def detectable(self, tests: int = 1) -> float:
        """The true difference that is found in `POWER` of all test sets of this kind, at `ALPHA` over so many tests."""
        return self.error * (_quantile(1 - ALPHA / tests / 2, self.freedom) + _quantile(POWER, self.freedom))


def difference(
    metric: Metric,
    candidate: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    groups: np.ndarray,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two methods, each by the statistics (N, K) of one run or of several that differ only in seed.

    The interval is the paired bootstrap's (percentiles). The test is McNemar's for right and wrong answers, else
    approximate randomisation; groups (N,) are resampled and swapped whole. With several seeds, see `_over_seeds`.
    """
    ours, theirs = ([metric.aggregate(rows) for rows in side] for side in (candidate, baseline))
    observed = float(np.mean(ours) - np.mean(theirs))
    drawn = [
        np.concatenate(parts, axis=1)
        for parts in zip(*_drawn(metric, candidate, baseline, groups, resamples), strict=True)
    ]
    differences = drawn[0].mean(0) - drawn[1].mean(0)
    seeds, total = (len(candidate), len(baseline)), int(groups.max()) + 1
    same = seeds == (1, 1) and np.array_equal(candidate[0], baseline[0])
    error, freedom, shifted = float(np.nanstd(differences)), None, None
    if seeds == (1, 1):
        low, high = np.nanpercentile(differences, [100 * ALPHA / 2, 100 - 100 * ALPHA / 2])
        p, test = _p(metric, candidate[0], baseline[0], groups, resamples)
        shifted = _share(np.abs(differences - np.nanmean(differences)), abs(observed))
    else:
        error, freedom = _over_seeds(differences, [(ours, drawn[0]), (theirs, drawn[1])])
        reach = error * _quantile(1 - ALPHA / 2, freedom)
        low, high, test = observed - reach, observed + reach, "t over seeds and examples"
        p = 2 * _tail(abs(observed) / error, freedom) if error else float(observed == 0)
    kept = freedom if freedom is None or isfinite(freedom) else None
    return Difference(
        metric.name, observed, float(low), float(high), error, kept, p, test, shifted, len(groups), total, seeds, same
    )


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
    alone = len(groups) == groups.max() + 1
    if isinstance(metric, MeanMetric) and alone and np.isin([ours, theirs], (0, 1)).all():
        return mcnemar(int((ours > theirs).sum()), int((ours < theirs).sum())), "McNemar mid-p"
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
    by coin differ as much as the real ones."""
    both = np.concatenate([ours, theirs])
    observed = abs(metric.aggregate(ours) - metric.aggregate(theirs))
    found = []
    for kept in halves(groups, resamples, SEED):
        first, second = np.concatenate([kept, 1 - kept], 1), np.concatenate([1 - kept, kept], 1)
        found.append(np.abs(metric.resampled(both, first) - metric.resampled(both, second)))
    return _share(np.concatenate(found), observed)


def _share(values: np.ndarray, least: float) -> float:
    """Share of values that reach ``least``, that one counted with them, so that it is never 0."""
    return float((np.sum(values >= least - 1e-9) + 1) / (len(values) + 1))


def _over_seeds(differences: np.ndarray, sides: Iterable[tuple[Sequence[float], np.ndarray]]) -> tuple[float, float]:
    """Standard error of the difference between two means over seeds, and its degrees of freedom (Welch).

    Training and the choice of test examples both vary. The bootstrap of the means holds the examples' part; a side's
    values over its k seeds hold training's, and once more what seeds change from example to example, which the
    bootstrap has seen: that is taken off (what single runs vary more than their mean, over k - 1).
    """
    examples = float(np.nanvar(differences))
    added, inverse = 0.0, 0.0
    for values, drawn in sides:
        k = len(values)
        if k > 1:
            part = float(np.var(values, ddof=1)) / k
            twice = float(np.nanvar(drawn, axis=1).mean() - np.nanvar(drawn.mean(0))) / (k - 1)
            added += max(0.0, part - twice)
            inverse += part**2 / (k - 1)
    total = examples + added
    return total**0.5, total**2 / inverse if inverse else inf


def _quantile(share: float, freedom: float | None) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if freedom is None or not isfinite(freedom) else stdtrit(freedom, share))


def _tail(value: float, freedom: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(stdtr(freedom, -value) if isfinite(freedom) else ndtr(-value))


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979), in the order given."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected
