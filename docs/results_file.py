"""docs/results.json: the record of figures. Tables are rendered from it (figures.py), record.py adds to it.

An entry of ``results`` is what one command reached on a test set, one of ``speed`` is a comparison measured in rounds,
one of ``bounds`` is a figure with the bound that it is to keep, one of ``compression`` is a model made smaller.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

FILE = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Machine:
    """A computer, with the best GFLOP/s of a square matrix product on it; None where that was not measured."""

    processor: str
    cores: int
    bf16_peak_gflops: int | None = None
    fp32_peak_gflops: int | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value with its 95% bootstrap interval; without the latter where it is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low or 0) > (self.high or 0):
            raise ValueError(f"{self.low} to {self.high} is no interval")


@dataclass(frozen=True)
class Entry:
    """What every figure names: how to get it again, and on what it was measured."""

    id: str
    command: str
    commit: str
    date: str  # as 2026-11-27
    machine: Machine
    seed: int | None

    def __post_init__(self) -> None:
        date.fromisoformat(self.date)
        if not re.fullmatch("[0-9a-f]{40}", self.commit):
            raise ValueError(f"{self.commit!r} is not the full hash of a commit")


@dataclass(frozen=True)
class Result(Entry):
    """What a command reached on the test set."""

    task: str
    data: str  # name of the data set, for people
    metrics: dict[str, Score]
    main_metric: str
    n: int  # test examples
    wall_seconds: float | None  # of the whole command; None where other work ran beside it
    note: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.main_metric not in self.metrics:
            raise ValueError(f"the main metric {self.main_metric} is not among the metrics")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its value in each round."""

    name: str
    values: list[float]
    quality: float | None = None  # higher is better
    matrix_peak_share: float | None = None  # share of the machine's matrix peak, 1.0 is all of it
    note: str = ""

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Speed(Entry):
    """A comparison whose sides took turns."""

    measure: str
    unit: str
    lower_is_better: bool
    sides: list[Side]  # the first is gptask's

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sides) < 2 or len({len(side.values) for side in self.sides}) > 1 or not self.sides[0].values:
            raise ValueError("a comparison has two or more sides with a value in every round")

    def ratio(self, side: Side) -> float:
        """How many times as good as ``side`` gptask is: the median of the rounds' ratios, above 1 is better."""
        rounds = zip(self.sides[0].values, side.values, strict=True)
        return statistics.median(theirs / ours if self.lower_is_better else ours / theirs for ours, theirs in rounds)

    def is_worse(self, side: Side) -> bool:
        """Whether gptask's quality is below that of ``side``, so that the ratio does not count."""
        quality = self.sides[0].quality
        return quality is not None and side.quality is not None and quality < side.quality


@dataclass(frozen=True)
class Bound(Entry):
    """A figure and the bound that it is to keep, both with their units, for people."""

    measure: str
    value: str
    bound: str
    is_met: bool


@dataclass(frozen=True)
class Compressed(Entry):
    """A model made smaller, or the run that it comes from, whose ``verdict`` is empty and whose ``speed`` is 1."""

    data: str  # name of the data set, for people
    model: str  # such as "18 layers"
    metric: str
    score: Score
    n: int  # test examples
    verdict: str  # of the paired test against the run that it comes from
    disk_mb: float  # of the weights that export writes
    memory_mb: float  # of the weights
    examples_per_second: float
    tokens_per_second: float | None  # that it writes
    speed: float  # times that of the run it comes from, measured in turns


@dataclass
class Record:
    """The whole file: entries by id."""

    results: dict[str, Result] = field(default_factory=dict)
    speed: dict[str, Speed] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    compression: dict[str, Compressed] = field(default_factory=dict)

    def add(self, entry: Result | Speed | Bound | Compressed) -> bool:
        """Add an entry; return whether it replaces one of the same id."""
        kinds: dict[type, dict[str, Any]] = {Result: self.results, Speed: self.speed, Bound: self.bounds}
        kinds[Compressed] = self.compression
        entries = kinds[type(entry)]
        replaces = entry.id in entries
        entries[entry.id] = entry
        return replaces


def load(file: Path = FILE) -> Record:
    """Read the record; raises ValueError, which names the entry, where it does not fit the dataclasses."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if set(values) != {f.name for f in fields(Record)}:
        raise ValueError(f"{file}: expected {', '.join(f.name for f in fields(Record))}, got {', '.join(values)}")
    return Record(
        _entries(values["results"], result_from, file),
        _entries(values["speed"], speed_from, file),
        _entries(values["bounds"], bound_from, file),
        _entries(values["compression"], compressed_from, file),
    )


def save(record: Record, file: Path = FILE) -> None:
    """Write the record, sorted by id."""
    values = {
        name: [asdict(entry) for _, entry in sorted(getattr(record, name).items())]
        for name in (f.name for f in fields(Record))
    }
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def result_from(values: Mapping[str, Any]) -> Result:
    """A result from plain values."""
    metrics = {name: Score(**score) for name, score in values["metrics"].items()}
    return Result(**{**values, "machine": Machine(**values["machine"]), "metrics": metrics})


def speed_from(values: Mapping[str, Any]) -> Speed:
    """A comparison from plain values."""
    sides = [Side(**side) for side in values["sides"]]
    return Speed(**{**values, "machine": Machine(**values["machine"]), "sides": sides})


def bound_from(values: Mapping[str, Any]) -> Bound:
    """A figure with its bound from plain values."""
    return Bound(**{**values, "machine": Machine(**values["machine"])})


def compressed_from(values: Mapping[str, Any]) -> Compressed:
    """A model made smaller from plain values."""
    return Compressed(**{**values, "machine": Machine(**values["machine"]), "score": Score(**values["score"])})


EntryType = TypeVar("EntryType", Result, Speed, Bound, Compressed)


def _entries(
    items: list[dict[str, Any]], build: Callable[[Mapping[str, Any]], EntryType], file: Path
) -> dict[str, EntryType]:
    entries: dict[str, EntryType] = {}
    for values in items:
        try:
            entry = build(values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}: entry {values.get('id')!r}: {error}") from error
        if entry.id in entries:
            raise ValueError(f"{file}: the id {entry.id!r} is there twice")
        entries[entry.id] = entry
    return entries
