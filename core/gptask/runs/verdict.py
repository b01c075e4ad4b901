"""What may be said of a difference."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from gptask.runs.significance import ALPHA, Difference


@dataclass
class Verdict:
    """What the test of a method against the baseline says in one metric."""

    difference: Difference
    higher_is_better: bool
    width: float  # of the metric's range
    tests: int = 1  # how many were made, or could have been picked from, over pairs and tasks
    p: float = 1.0  # corrected for them

    @property
    def gain(self) -> float:
        """The difference, positive where the method is better."""
        return self.difference.value if self.higher_is_better else -self.difference.value

    @property
    def word(self) -> str:
        """``better``, ``worse``, ``same``, ``inconclusive``, or ``none`` where there is no number."""
        if self.difference.same:
            return "same"
        if not isfinite(self.gain):
            return "none"
        return "inconclusive" if self.p >= ALPHA else "better" if self.gain > 0 else "worse"

    @property
    def subject(self) -> str:
        """What it is about: without several seeds on both sides nothing is known of the method."""
        return "this method" if min(self.difference.seeds) > 1 else "this model"

    @property
    def words(self) -> str:
        """A sentence."""
        found = self.difference
        if self.word == "same":
            return "equal on every example"
        if self.word == "none":
            return "no number to compare"
        if self.word == "inconclusive":
            least = found.detectable(self.tests)
            what = f"detects differences above {least:.2g}" if least < self.width else "is too small to detect any"
            return f"not enough data to tell (this test set {what})"
        return f"{self.subject} is {self.word}: {self.shown}, p = {self.p:.2g}"

    @property
    def shown(self) -> str:
        """The difference with its interval."""
        found, places = self.difference, digits(self.width) + 1
        value, low, high = (f"{x:+.{places}f}" for x in (found.value, found.low, found.high))
        return f"{value} ({low} to {high})"


def digits(width: float) -> int:
    """Digits behind the point of a metric whose range is so wide."""
    return 1 if 50 <= width < inf else 3
