"""How often the paired tests find a difference over many test sets, with and without a true difference.

    python tests/core/analysis/compare/simulation.py [trials]

The script prints the table of docs/compare-and-report.md. Each kind draws two systems' statistics on a test set of n
examples; ``gap`` is the true difference of their metric, 0 for no difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import sacrebleu
from gptask.plugins.metric import MeanMetric, Metric
from gptask.runs.significance import ALPHA, difference
from gptask_tasks.classification.metrics import MacroF1
from gptask_tasks.scores import CorpusScore

RESAMPLES = 400
Sides = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
Draw = Callable[[np.random.Generator, int, float], Sides]


class Mean(MeanMetric):
    """A mean of the drawn statistics."""

    def statistics(self, prediction: object, reference: object) -> list[float]:
        """Not needed: statistics are drawn."""
        return []


def accuracy(generator: np.random.Generator, n: int, gap: float) -> Sides:
    """Right and wrong answers; the systems disagree on one of eight."""
    correct, disagree = generator.random((n, 1)) < 0.85, generator.random((n, 1)) < 0.125
    first = generator.random((n, 1)) < 0.5 + gap / 100 / 0.25  # of those, where the first one is right
    return [np.where(disagree, first, correct) * 1.0], [np.where(disagree, ~first, correct) * 1.0], np.arange(n)


def overlap(generator: np.random.Generator, n: int, gap: float) -> Sides:
    """F1 of answers, five questions on each context, which has an effect of its own."""
    groups = np.arange(n) // 5
    baseline = generator.beta(2, 1, (n, 1))
    shared = generator.normal(0, 0.1, (groups[-1] + 1, 1))[groups]
    return [baseline + gap / 100 + shared + generator.normal(0, 0.2, (n, 1))], [baseline], groups


def macro(generator: np.random.Generator, n: int, gap: float) -> Sides:
    """Pairs of true and predicted labels; four classes, so that macro-F1 is nearly the share of right ones."""
    true = generator.integers(0, 4, n)
    hits = accuracy(generator, n, gap)[:2]
    wrong = (true + generator.integers(1, 4, n)) % 4
    candidate, baseline = (np.stack([true, np.where(side[0][:, 0] > 0, true, wrong)], 1).astype(float) for side in hits)
    return [candidate], [baseline], np.arange(n)


def bleu(generator: np.random.Generator, n: int, gap: float) -> Sides:
    """sacreBLEU's counts of segments of 8 to 20 words; a gap shifts the share of matches."""
    length = generator.integers(8, 21, n)
    ease = generator.normal(0, 0.08, n)
    sides = []
    for shift in (gap * BLEU_SLOPE, 0.0):
        totals = np.stack([length - order for order in range(4)], 1)
        share = np.clip(np.array([0.6, 0.4, 0.28, 0.2]) + ease[:, None] + shift, 0.02, 0.98)
        matches = generator.binomial(totals, share)
        sides.append(np.concatenate([np.stack([length, length], 1), matches, totals], 1).astype(float))
    return [sides[0]], [sides[1]], np.arange(n)


BLEU_SLOPE = 0.0094  # shift of the shares that is worth a point of BLEU, on a million segments


def seeds(generator: np.random.Generator, n: int, gap: float) -> Sides:
    """Accuracy of three seeds of two methods; methods, seeds and the two together have effects on examples."""
    ease = generator.normal(1.5, 1.5, n)
    sides = []
    for shift in (gap / 100 * SEEDS_SLOPE, 0.0):
        method = ease + shift + generator.normal(0, 0.5, n)
        runs = [method + generator.normal(0, 0.1) + generator.normal(0, 1, n) for _ in range(3)]
        sides.append([(run > 0).astype(float)[:, None] for run in runs])
    return sides[0], sides[1], np.arange(n)


SEEDS_SLOPE = 6.75  # shift of the ease that is worth a share of 1 of right answers, on a million examples

KINDS: dict[str, tuple[str, Metric, Draw]] = {
    "accuracy": ("McNemar mid-p", Mean("accuracy"), accuracy),
    "f1": ("approximate randomisation, contexts together", Mean("f1"), overlap),
    "f1_macro": ("approximate randomisation", MacroF1("abcd"), macro),
    "bleu": ("approximate randomisation", CorpusScore("bleu", sacrebleu.BLEU(), "target"), bleu),
    "seeds": ("t over 3 seeds and examples", Mean("accuracy"), seeds),
}


def rejected(kind: str, n: int, gap: float, trials: int, seed: int = 1) -> float:
    """The share of test sets on which the test finds a difference at 5%, without a correction."""
    _, metric, draw = KINDS[kind]
    generator = np.random.default_rng(seed)
    rejections = 0
    for _ in range(trials):
        candidate, baseline, groups = draw(generator, n, gap)
        rejections += difference(metric, candidate, baseline, groups, RESAMPLES).p < ALPHA
    return rejections / trials


def stated(kind: str, n: int, trials: int = 100) -> float:
    """The mean detectable difference that the test states when there is no difference."""
    _, metric, draw = KINDS[kind]
    generator = np.random.default_rng(2)
    sides = (draw(generator, n, 0.0) for _ in range(trials))
    return float(np.mean([difference(metric, *statistics, RESAMPLES).detectable() for statistics in sides]))


def table(trials: int) -> str:
    """The table of docs/compare-and-report.md."""
    lines = ["| metric | test | n | found where there is none | stated detectable difference | found |"]
    lines.append("|" + "---|" * 6)
    for kind, (test, *_) in KINDS.items():
        for n in (500, 2000):
            gap = stated(kind, n)
            size, power = rejected(kind, n, 0.0, trials), rejected(kind, n, gap, trials)
            lines.append(f"| {kind} | {test} | {n} | {100 * size:.1f}% | {gap:.2f} | {100 * power:.1f}% |")
            sys.stderr.write(f"{lines[-1]}\n")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(int(sys.argv[1]) if sys.argv[1:] else 5000) + "\n")
