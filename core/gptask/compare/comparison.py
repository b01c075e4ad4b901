"""Runs side by side: which can be compared, how they differ from a baseline, and what may be said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptask.compare.methods import Method, methods
from gptask.compare.paired import ALPHA, RESAMPLES, Difference, difference, holm
from gptask.compare.records import Record
from gptask.data.examples import digest
from gptask.data.store import cache_folder
from gptask.errors import UserError, listing, nearest

VERSION = 1  # of the tests, in the key of kept ones


@dataclass
class Verdict:
    """What the test of a method against the baseline says in one metric."""

    difference: Difference
    higher_is_better: bool
    tests: int = 1  # how many were made, over pairs and tasks
    p: float = 1.0  # corrected for them

    @property
    def gain(self) -> float:
        """The difference, positive where the method is better."""
        return self.difference.value if self.higher_is_better else -self.difference.value

    @property
    def word(self) -> str:
        """``better``, ``worse``, ``same`` or ``open``."""
        if self.difference.same:
            return "same"
        return "open" if self.p >= ALPHA else "better" if self.gain > 0 else "worse"

    @property
    def subject(self) -> str:
        """What it is about: without several seeds on both sides nothing is known of the method."""
        return "this method" if min(self.difference.seeds) > 1 else "this model"

    @property
    def words(self) -> str:
        """A sentence."""
        found = self.difference
        if self.word == "same":
            return "the same answers"
        if self.word == "open":
            return (
                f"not enough data to tell (this test set detects differences above {found.detectable(self.tests):.2g})"
            )
        shown = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
        return f"{self.subject} is {self.word}: {shown}, p = {self.p:.2g}"


@dataclass
class Table:
    """The methods of one task on one test set."""

    task: str
    split: str
    test_hash: str
    methods: list[Method]
    baseline: Method
    main: str  # the metric that ranks
    verdicts: dict[str, dict[int, Verdict]] = field(default_factory=dict)  # metric -> number of the method
    note: str = ""  # why nothing was tested

    @property
    def first(self) -> Record:
        """A run that stands for all in what they have in common."""
        return self.methods[0].records[0]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics with their direction and signature."""
        return self.first.metrics

    def best(self, metric: str) -> int | None:
        """Number of the best method in a metric, None where none is."""
        direction = self.metrics[metric]["direction"]
        if direction == "none" or len(self.methods) < 2:
            return None
        return (max if direction == "higher" else min)(
            range(len(self.methods)), key=lambda number: self.methods[number].value(metric)
        )

    @property
    def facts(self) -> tuple[dict[str, str], list[str]]:
        """What is equal for all methods, and the names of what is not."""
        names = [name for name in self.methods[0].facts if any(method.facts[name] for method in self.methods)]
        values = {name: {method.facts[name] for method in self.methods} for name in names}
        equal = {name: found.pop() for name, found in values.items() if len(found) == 1}
        return equal, [name for name in names if name not in equal]

    @property
    def folder(self) -> Path:
        """The folder that all runs lie in."""
        parents = [record.folder.parent for method in self.methods for record in method.records]
        mixed = len({parent.is_absolute() for parent in parents}) > 1
        return Path(os.path.commonpath([parent.absolute() if mixed else parent for parent in parents]))


@dataclass
class Comparison:
    """Everything that was compared, and the runs that could not be."""

    tables: list[Table]
    problems: list[Record]


def compare(
    records: Sequence[Record],
    baseline: Path | None = None,
    metric: str | None = None,
    every: bool = False,
    apart: bool = False,
    tested: bool = True,
    grouped: bool = True,
) -> Comparison:
    """Compare runs with the baseline (the best one of each table by default), task by task.

    Tested is each task's main metric, or the one named, or ``every`` one that has a better and a worse. Runs that
    differ only in seed are ``grouped``. Raises `UserError` for runs that can't be ranked together, unless they are to
    be shown ``apart``.
    """
    sound = [record for record in records if not record.problem]
    tables = []
    for runs in _comparable(sound, apart):
        found = methods(runs) if grouped else [Method([record]) for record in runs]
        main = _main(runs[0], metric)
        tables.append(_table(found, main, baseline, runs))
    if baseline and not any(_holds(method, baseline) for table in tables for method in table.methods):
        problem = next((r.problem for r in records if _same(r.folder, baseline)), "it is not among the runs given")
        raise UserError(f"the baseline {baseline} can't be compared with: {problem}")
    for table in tables if tested else []:
        _test(table, list(table.metrics) if every else [table.main])
    _correct(tables)
    return Comparison(tables, [record for record in records if record.problem])


def _comparable(records: Sequence[Record], apart: bool) -> Iterator[list[Record]]:
    """Runs of one task on one test set, scored alike; several sets of a task are an error unless shown ``apart``."""
    tasks: dict[str, dict[tuple[Any, ...], list[Record]]] = {}
    for record in records:
        kinds = tuple((name, found["signature"]) for name, found in record.metrics.items())
        key = (record.result["split"], record.result["test_data_hash"], record.result.get("n"), kinds)
        tasks.setdefault(record.task, {}).setdefault(key, []).append(record)
    for task, sets in tasks.items():
        if len(sets) > 1 and not apart:
            raise UserError(_incomparable(task, sets))
        yield from sets.values()


def _incomparable(task: str, sets: dict[tuple[Any, ...], list[Record]]) -> str:
    """What differs between the runs of a task."""
    names = ("split", "test data", "n", "metrics")
    differing = [n for n, values in zip(names, zip(*sets, strict=True), strict=True) if len(set(values)) > 1]
    lines = []
    for (split, test_hash, n, kinds), runs in sets.items():
        told = {"split": split, "test data": test_hash, "n": n, "metrics": "; ".join(f"{m}: {s}" for m, s in kinds)}
        shown = ", ".join(f"{name} {told[name]}" for name in differing)
        lines.append(f"  {shown}: {listing((record.folder for record in runs), 3)}")
    return "\n".join(
        [
            f"runs of task '{task}' can't be ranked together, they differ in {listing(differing)}:",
            *lines[:8],
            "name runs on one test set (data.seed fixes what is cut from train), or --force shows them apart",
        ]
    )


def _main(record: Record, wanted: str | None) -> str:
    if wanted is None:
        return next(iter(record.metrics))
    if wanted not in record.metrics:
        known = record.metrics
        raise UserError(
            f"task '{record.task}' has no metric '{wanted}'; it has {listing(known)}.{nearest(wanted, known)}"
        )
    return wanted


def _table(found: list[Method], main: str, baseline: Path | None, runs: list[Record]) -> Table:
    first = runs[0]
    table = Table(first.task, first.result["split"], first.result["test_data_hash"], found, found[0], main)
    named = [method for method in found if baseline and _holds(method, baseline)]
    table.baseline = named[0] if named else found[table.best(main) or 0]
    return table


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _holds(method: Method, folder: Path) -> bool:
    return any(_same(record.folder, folder) for record in method.records)


def _test(table: Table, metrics: Sequence[str]) -> None:
    """Test all methods against the baseline, where the task's plugin is there to aggregate its metrics."""
    try:
        for name in metrics:
            table.first.metric(name)
    except UserError as error:
        table.note = f"not tested: {error}"
        return
    for name in metrics:
        if table.metrics[name]["direction"] != "none":
            table.verdicts[name] = dict(_verdicts(table, name))


def _verdicts(table: Table, metric: str) -> Iterator[tuple[int, Verdict]]:
    higher = table.metrics[metric]["direction"] == "higher"
    for number, method in enumerate(table.methods):
        if method is not table.baseline:
            yield number, Verdict(_difference(method, table.baseline, metric), higher)


def _difference(candidate: Method, baseline: Method, metric: str) -> Difference:
    """The difference of two methods, kept for the next time: it depends on nothing but the predictions."""
    first = baseline.records[0]
    sides = [[record.predictions_hash for record in side.records] for side in (candidate, baseline)]
    told = first.metrics[metric]["signature"], first.result.get("plugin")
    kept = cache_folder() / "tests" / f"{digest(repr([VERSION, RESAMPLES, metric, *told, sides]))}.json"
    if kept.is_file():
        values = json.loads(kept.read_text(encoding="utf-8"))
        return Difference(**values | {"seeds": tuple(values["seeds"])})
    like = first.predictions
    rows = [side.statistics(metric, like) for side in (candidate, baseline)]
    found = difference(first.metric(metric), rows[0], rows[1], like.groups)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _correct(tables: Sequence[Table]) -> None:
    """Holm's correction over pairs and tasks: of the main metrics together, of every other by its name."""
    families: dict[str, list[Verdict]] = {}
    for table in tables:
        for name, verdicts in table.verdicts.items():
            families.setdefault("" if name == table.main else name, []).extend(verdicts.values())
    for family in families.values():
        for verdict, p in zip(family, holm([verdict.difference.p for verdict in family]), strict=True):
            verdict.tests, verdict.p = len(family), p
