"""How faithful an order of an input's words is to the model: insertion − deletion (Petsiuk et al. 2018, arXiv
1806.07421).

Words are deleted from the input, the most important first, and inserted into one that has none. The sooner the
target's probability falls and rises, the better the order. The value is the mean probability over the cuts with the
first words inserted, less that with the first words deleted: near 0 for random orders, at most 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from statistics import fmean

import numpy as np

from gptask.analysis.explain.explanation import Explanation, Faithfulness, Word
from gptask.plugins.resampling import bootstrap, percentile_interval

CUTS = 10  # parts into which an order is cut
RESAMPLES, SEED = 2000, 13
METHODS = {"ig": "integrated gradients", "occlusion": "leave-one-out", "attention": "attention rollout"}
Dropped = frozenset[int]  # numbers of the words that a variant lacks


def importance_order(attributions: Sequence[float | None], free: Collection[int]) -> list[int]:
    """The words that may go, the most important first."""
    return sorted(free, key=lambda number: -(attributions[number] or 0.0))


def random_order(words: Sequence[Word], free: Collection[int]) -> list[int]:
    """A random order of the words that may go, the same for the same words."""
    generator = np.random.default_rng(zlib.crc32(" ".join(word.text for word in words).encode("utf-8", "replace")))
    order = generator.permutation(len(words)).tolist()
    return [number for number in order if number in free]


def cut_orders(order: Sequence[int]) -> tuple[list[Dropped], list[Dropped]]:
    """What the variants with the first words inserted lack, and those with the first words deleted, at each cut."""
    cuts = sorted({round(len(order) * part / CUTS) for part in range(1, CUTS)} - {0, len(order)})
    return [frozenset(order[cut:]) for cut in cuts], [frozenset(order[:cut]) for cut in cuts]


def insertion_minus_deletion(order: Sequence[int], quality: Callable[[Dropped], float | None]) -> float | None:
    """The value of an order by the target's ``quality`` in each variant; None for fewer than two words."""
    inserted, deleted = ([q for d in part if (q := quality(d)) is not None] for part in cut_orders(order))
    return fmean(inserted) - fmean(deleted) if inserted and deleted else None


def summarize(method: str, explanations: Sequence[Explanation]) -> Faithfulness | None:
    """The paired comparison of a method with random orders over a file, with a bootstrap interval of the difference.

    An input counts once: with the map of what is predicted for it as a whole, or with the mean of those of its places.
    None where no input has a map that was measured.
    """
    pairs = np.array([pair for explanation in explanations if (pair := _mean_pair(explanation))])
    if not len(pairs):
        return None
    differences_N = pairs[:, 0] - pairs[:, 1]
    value, at_random, difference = (float(numbers.mean()) for numbers in (*pairs.T, differences_N))
    counts = np.concatenate([*bootstrap(np.arange(len(pairs)), RESAMPLES, SEED)])
    interval = percentile_interval(counts @ differences_N / len(pairs), difference)
    low, high = interval or (None, None)
    is_better = low is not None and low > 0
    sentence = _sentence(METHODS[method], value, at_random, difference, interval, len(pairs))
    return Faithfulness(method, value, at_random, difference, low, high, len(pairs), is_better, sentence)


def _mean_pair(explanation: Explanation) -> tuple[float, float] | None:
    maps = explanation.maps if all(entry.place is not None for entry in explanation.maps) else explanation.maps[:1]
    measured = [(entry.faithfulness, entry.random) for entry in maps if None not in (entry.faithfulness, entry.random)]
    if not measured:
        return None
    values, at_random = zip(*measured, strict=True)
    return fmean(values), fmean(at_random)


def _sentence(
    name: str, value: float, at_random: float, difference: float, interval: tuple[float, float] | None, n: int
) -> str:
    measured = f"insertion − deletion is {value:.2f} by {name} and {at_random:.2f} in random order"
    if interval is None:
        return (
            f"{measured}; {n} {'input is' if n == 1 else 'inputs are'} too few for a verdict: explain a file of them."
        )
    verdict = f"{measured}, a difference of {difference:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f}) on {n} inputs"
    if interval[0] > 0:
        return f"{verdict}: the words it marks matter to this run."
    return f"{verdict}: it is no better than random on this run, so its maps are no reasons."
