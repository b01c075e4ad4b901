"""The verdict of a significance test: which method is better, or that the data do not tell."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from gptask.runs.significance import ALPHA, Difference


@dataclass
class Verdict:
    """What the test of a method against the baseline shows in one metric."""

    difference: Difference
    higher_is_better: bool
    range_width: float  # of the metric's range
    test_count: int = 1  # how many tests p is corrected for: those made, or that could have been chosen, over all tasks
    p: float = 1.0  # corrected

    @property
    def gain(self) -> float:
        """The difference, positive where the method is better."""
        return self.difference.value if self.higher_is_better else -self.difference.value

    @property
    def word(self) -> str:
        """``better``, ``worse``, ``same``, ``inconclusive``, or ``none`` where a value is not a number."""
        if self.difference.same:
            return "same"
        if not isfinite(self.gain):
            return "none"
        return "inconclusive" if self.p >= ALPHA else "better" if self.gain > 0 else "worse"

    @property
    def subject(self) -> str:
        """What the verdict is about: the method if both sides have several seeds, else this one model."""
        return "this method" if min(self.difference.seeds) > 1 else "this model"

    @property
    def sentence(self) -> str:
        """The verdict as a sentence."""
        if self.word == "same":
            return "equal on every example"
        if self.word == "none":
            return "no number to compare"
        if self.word == "inconclusive":
            if self.difference.error == 0 and self.difference.groups > 1:
                return "not enough data to tell (the difference is the same in every resample)"
            detectable = self.difference.detectable(self.test_count)
            if detectable < self.range_width:
                return f"not enough data to tell (this test set detects differences above {detectable:.2g})"
            return "not enough data to tell (this test set is too small to detect any difference)"
        return f"{self.subject} is {self.word}: {self.value_with_interval}, p = {self.p:.2g}"

    @property
    def value_with_interval(self) -> str:
        """The difference with its interval, unless it is the same in every resample."""
        places = decimal_places(self.range_width) + 1
        if self.difference.error == 0 and self.difference.groups > 1:
            return f"{self.difference.value:+.{places}f} in every resample"
        numbers = (self.difference.value, self.difference.low, self.difference.high)
        value, low, high = (f"{number:+.{places}f}" for number in numbers)
        return f"{value} ({low} to {high})"


def decimal_places(width: float) -> int:
    """Decimal places for a metric whose range is ``width`` wide."""
    return 1 if 50 <= width < inf else 3
