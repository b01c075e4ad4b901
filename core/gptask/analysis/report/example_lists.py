"""Lists of examples worth reading: the worst, the most surprising, a sample of all, and flips between runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.disagreements import Disagreements
from gptask.analysis.report.example_cards import ExampleCard, example_card
from gptask.analysis.report.report_run import ReportRun

MAX_CARDS = 200  # of one list, over all runs
MAX_FLIPS = 300  # cards of all lists of flips together


@dataclass
class ExampleList:
    """Cards with a heading and a note that says which examples they are."""

    key: str
    title: str
    note: str
    cards: list[ExampleCard]

    @property
    def labels(self) -> list[str]:
        """The labels that the cards can be filtered by."""
        return sorted({label for card in self.cards for label in card.labels})

    @property
    def states(self) -> list[str]:
        """Right, wrong, or both."""
        return sorted({answer.state for card in self.cards for answer in card.answers if answer.state})


def example_lists(runs: Sequence[ReportRun]) -> Iterator[ExampleList]:
    """The lists that the runs have examples for; each holds the examples of one run after those of another."""
    limit = max(MAX_CARDS // len(runs), 10)
    main_metric_judges = all(
        run.correctness_metric and next(iter(run.example_scores), run.correctness_metric) == run.correctness_metric
        for run in runs
    )
    with_confidence = [run for run in runs if run.confidence is not None]
    surprising = [(run, surprising_rows(run)) for run in with_confidence]
    if main_metric_judges and len(with_confidence) == len(runs):  # one list: all wrong examples are equally bad
        title = "Worst and most surprising: wrong predictions, the most confident first"
        yield _example_list("worst", title, limit, surprising, "wrong predictions")
    else:
        worst = [(run, worst_rows(run)) for run in runs if run.example_scores]
        metrics = " or ".join(sorted({next(iter(run.example_scores)) for run, _ in worst}))
        title = f"Worst by {metrics}, computed for each example alone"
        yield _example_list("worst", title, limit, worst, "wrong or low-scoring examples")
        title = "Most surprising: wrong or in the lowest quarter, the most confident first"
        yield _example_list("surprising", title, limit, surprising, "wrong or low-scoring examples")
    complete = all(len(run.rows) <= limit for run in runs)
    title = "All examples" if complete else "An evenly spaced sample of all examples"
    sample = [(run, _evenly_spaced(run, limit)) for run in runs]
    yield _example_list("all", title, limit, sample, "examples", total=sum(len(run.rows) for run in runs))


def flip_lists(disagreements: Iterable[Disagreements]) -> list[tuple[Disagreements, ExampleList]]:
    """Each pair of runs with the examples on which they disagree; the pairs share a limit on cards."""
    pairs = list(disagreements)
    limit = max(MAX_FLIPS // max(sum(not pair.reason for pair in pairs), 1), 10)
    return [(pair, _flip_list(pair, limit)) for pair in pairs]


def _flip_list(pair: Disagreements, limit: int) -> ExampleList:
    shown_metric = "" if pair.by_correctness else pair.metric
    cards = [
        example_card([(pair.first, a), (pair.other, b)], "better" if gain > 0 else "worse", shown_metric)
        for (a, b), gain in list(zip(pair.row_pairs, pair.gains, strict=True))[:limit]
    ]
    note = _count_note(len(cards), len(pair.row_pairs), "examples that differ")
    return ExampleList(f"flips{pair.other.number}", f"{pair.first.letter} against {pair.other.letter}", note, cards)


def _example_list(
    key: str,
    title: str,
    limit: int,
    ranked: Sequence[tuple[ReportRun, np.ndarray]],
    noun: str,
    total: int | None = None,
) -> ExampleList:
    """At most ``limit`` cards for each run from its row numbers (M,); ``total`` counts them all unless it is given."""
    cards = [example_card([(run, int(row))]) for run, rows in ranked for row in rows[:limit]]
    count = sum(len(rows) for _, rows in ranked) if total is None else total
    return ExampleList(key, title, _count_note(len(cards), count, noun), cards)


def _count_note(shown: int, total: int, noun: str) -> str:
    if shown == total:
        return f"All {total:,} {noun}." if total else f"No {noun}."
    return f"{shown:,} of {total:,} {noun}; the others are in predictions.jsonl."


def worst_rows(run: ReportRun) -> np.ndarray:
    """The row numbers of wrong examples, or of the lower half if no metric tells right from wrong."""
    rows = run.worst_first
    if run.right is None:
        return rows[: (len(rows) + 1) // 2]
    wrong_rows: np.ndarray = rows[~run.right[rows]]
    return wrong_rows


def surprising_rows(run: ReportRun) -> np.ndarray:
    """The row numbers of wrong examples, or of the quarter with the lowest values, by falling confidence."""
    assert run.confidence is not None
    if run.right is not None:
        rows = np.flatnonzero(~run.right)
    else:
        rows = run.worst_first[: (len(run.worst_first) + 3) // 4] if run.example_scores else np.arange(0)
    ranked: np.ndarray = rows[np.argsort(-run.confidence[rows], kind="stable")]
    return ranked


def _evenly_spaced(run: ReportRun, limit: int) -> np.ndarray:
    count = len(run.rows)
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
