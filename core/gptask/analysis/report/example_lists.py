"""Lists of examples worth reading: the worst, the most surprising, a sample of all, those that flip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.disagreements import Disagreements
from gptask.analysis.report.example_cards import ExampleCard, card
from gptask.analysis.report.report_run import ReportRun

CAP = 200  # cards of a list
FLIPS = 300  # cards of all lists of flips together


@dataclass
class Listing:
    """Cards with a heading and a line that says which ones they are."""

    key: str
    title: str
    note: str
    cards: list[ExampleCard]

    @property
    def labels(self) -> list[str]:
        """What the cards can be filtered by."""
        return sorted({label for card in self.cards for label in card.labels})

    @property
    def states(self) -> list[str]:
        """Right, wrong, or both."""
        return sorted({answer.state for card in self.cards for answer in card.answers if answer.state})


def listings(entries: Sequence[ReportRun]) -> Iterator[Listing]:
    """The lists there is something for, the runs' examples one run after the other."""
    cap = max(CAP // len(entries), 10)
    judged = all(entry.judge and next(iter(entry.alone), entry.judge) == entry.judge for entry in entries)
    sure = [entry for entry in entries if entry.confidence is not None]
    if judged and len(sure) == len(entries):  # one list: by a metric of 0 and 1 all wrong ones are equally bad
        title = "Worst and most surprising: wrong, the most confident first"
        yield _listing("worst", title, cap, [(entry, _surprising(entry)) for entry in entries], "wrong predictions")
    else:
        ranked = [(entry, _worst(entry)) for entry in entries if entry.alone]
        names = ", ".join(sorted({next(iter(entry.alone)) for entry, _ in ranked}))
        yield _listing("worst", f"Worst, by {names} of the example alone", cap, ranked, "candidates")
        title = "Most surprising: confident, and wrong or among the lowest quarter"
        yield _listing("surprising", title, cap, [(entry, _surprising(entry)) for entry in sure], "candidates")
    whole = all(len(entry.rows) <= cap for entry in entries)
    title = "All examples" if whole else "A sample of all, evenly spaced"
    yield _listing("all", title, cap, [(entry, _spaced(entry, cap)) for entry in entries], "examples", everything=True)


def flipped(found: Iterable[Disagreements]) -> list[tuple[Disagreements, Listing]]:
    """The examples each pair of runs is apart on."""
    pairs = list(found)
    cap = max(FLIPS // max(sum(not some.reason for some in pairs), 1), 10)
    return [(some, _flip_listing(some, cap)) for some in pairs]


def _flip_listing(found: Disagreements, cap: int) -> Listing:
    cards = [
        card(
            [(found.first, a), (found.other, b)],
            "better" if gain > 0 else "worse",
            "" if found.judged else found.metric,
        )
        for (a, b), gain in list(zip(found.pairs, found.gains, strict=True))[:cap]
    ]
    note = _count(len(cards), len(found.pairs), "examples that differ")
    return Listing(f"flips{found.other.number}", f"{found.first.tag} against {found.other.tag}", note, cards)


def _listing(
    key: str,
    title: str,
    cap: int,
    ranked: Sequence[tuple[ReportRun, np.ndarray]],
    noun: str,
    everything: bool = False,
) -> Listing:
    cards = [card([(entry, int(place))]) for entry, places in ranked for place in places[:cap]]
    total = sum(len(entry.rows) if everything else len(places) for entry, places in ranked)
    return Listing(key, title, _count(len(cards), total, noun), cards)


def _count(shown: int, total: int, noun: str) -> str:
    if shown == total:
        return f"All {total:,} {noun}." if total else f"No {noun}."
    return f"{shown:,} of {total:,} {noun}; the others are in predictions.jsonl."


def _worst(entry: ReportRun) -> np.ndarray:
    """Wrong examples, or the lower half where no metric tells right from wrong."""
    if entry.right is not None:
        return entry.worst[~entry.right[entry.worst]]
    return entry.worst[: (len(entry.worst) + 1) // 2]


def _surprising(entry: ReportRun) -> np.ndarray:
    """The wrong ones, or the quarter with the lowest values, by falling confidence."""
    assert entry.confidence is not None
    if entry.right is not None:
        places = np.flatnonzero(~entry.right)
    else:
        places = entry.worst[: (len(entry.worst) + 3) // 4] if entry.alone else np.arange(0)
    return places[np.argsort(-entry.confidence[places], kind="stable")]


def _spaced(entry: ReportRun, cap: int) -> np.ndarray:
    count = len(entry.rows)
    return np.unique(np.linspace(0, count - 1, min(cap, count)).round().astype(int))
