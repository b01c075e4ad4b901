"""Which runs can be compared, how they differ from a baseline, and what the tests conclude."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from math import inf, isfinite
from pathlib import Path
from typing import Any

from gptask.analysis.compare.records import WAY_OUT, RunRecord
from gptask.analysis.compare.seed_groups import SeedGroup, seed_groups
from gptask.data.cache import cache_folder, digest, replacing, usable
from gptask.errors import UserError, WriteError, listing, nearest, real_path
from gptask.plugins.metric import Metric
from gptask.plugins.resampling import bootstrap
from gptask.runs.significance import RESAMPLES, Difference, difference, holm
from gptask.runs.verdict import Verdict


@dataclass
class ComparisonTable:
    """The methods (groups of seeds) of one task on one test set."""

    task: str
    split: str
    test_hash: str
    methods: list[SeedGroup]
    baseline: SeedGroup
    named: bool  # whether the user named the baseline
    main: str  # the metric that ranks the methods
    verdicts: dict[str, dict[int, Verdict]] = field(default_factory=dict)  # metric -> index of the method
    note: str = ""  # why no test was run

    @property
    def first(self) -> RunRecord:
        """The first run; all runs share its task, test set and metrics."""
        return self.methods[0].records[0]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics with their direction and signature."""
        return self.first.metrics

    def width(self, metric: str) -> float:
        """The width of a metric's range."""
        low, high = self.metrics[metric]["range"]
        return inf if low is None or high is None else high - low

    def best(self, metric: str) -> list[int]:
        """Indices of the methods with the best value; empty for a metric without direction and for a single method."""
        direction = self.metrics[metric]["direction"]
        values = [method.value(metric) for method in self.methods]
        finite = [value for value in values if isfinite(value)]
        if direction == "none" or len(self.methods) < 2 or not finite:
            return []
        best = max(finite) if direction == "higher" else min(finite)
        return [index for index, value in enumerate(values) if value == best]

    @property
    def facts(self) -> tuple[dict[str, str], list[str]]:
        """The facts that are equal for all methods, and the names of those that differ."""
        names = [name for name in self.methods[0].facts if any(method.facts[name] for method in self.methods)]
        values = {name: {method.facts[name] for method in self.methods} for name in names}
        equal = {name: distinct.pop() for name, distinct in values.items() if len(distinct) == 1}
        return equal, [name for name in names if name not in equal]

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all runs."""
        parents = [record.folder.parent for method in self.methods for record in method.records]
        mixed = len({parent.is_absolute() for parent in parents}) > 1
        return Path(os.path.commonpath([parent.absolute() if mixed else parent for parent in parents]))


@dataclass
class Comparison:
    """The tables of compared runs, and the runs that can't be compared."""

    tables: list[ComparisonTable]
    problems: list[RunRecord]


def compare(
    records: Sequence[RunRecord],
    baseline: Path | None = None,
    metric: str | None = None,
    every: bool = False,
    apart: bool = False,
    tested: bool = True,
    grouped: bool = True,
) -> Comparison:
    """Compare runs with the baseline (by default the best run of each table), task by task.

    The test covers each task's main metric, the ``metric`` named, or ``every`` metric with a direction. Runs that
    differ only in seed are ``grouped``. Raises `UserError` for damaged runs, all of them, before any is compared; where
    no run is left; and for runs that can't be ranked together, unless ``apart`` shows them in tables of their own.
    """
    sound = _sound(records)
    tables = []
    for runs in _comparable(sound, apart):
        groups = seed_groups(runs) if grouped else [SeedGroup([record]) for record in runs]
        tables.append(_table(groups, _main_metric(runs[0], metric), baseline, runs))
    if baseline and not any(_holds(method, baseline) for table in tables for method in table.methods):
        problem = next(
            (r.problem for r in records if _same_folder(r.folder, baseline)), "it is not among the compared runs"
        )
        raise UserError(f"the baseline {baseline} can't be compared with: {problem}")
    for table in tables if tested else []:
        _test(table, list(table.metrics) if every else [table.main])
    _correct(tables)
    return Comparison(tables, [record for record in records if record.problem])


def _sound(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that can be compared: of the others, those that are damaged are an error, as is there being no run."""
    sound = [record for record in records if not record.problem]
    damaged = [record for record in records if record.damaged]
    if sound and not damaged:
        return sound
    count = f"{len(damaged)} of {len(records)} runs"
    lines = [f"damaged: {count}. {WAY_OUT}:" if damaged else "no run can be compared:"]
    raise UserError("\n".join([*lines, *(f"  {record.folder}: {record.problem}" for record in damaged or records)]))


def _comparable(records: Sequence[RunRecord], apart: bool) -> Iterator[list[RunRecord]]:
    """Runs of one task, test set and set of metrics; several such sets of a task are an error unless ``apart``."""
    tasks: dict[str, dict[tuple[Any, ...], list[RunRecord]]] = {}
    for record in records:
        signatures = tuple((name, entry["signature"]) for name, entry in record.metrics.items())
        key = (record.result["split"], record.result["test_data_hash"], record.result.get("n"), signatures)
        tasks.setdefault(record.task, {}).setdefault(key, []).append(record)
    for task, sets in tasks.items():
        if len(sets) > 1 and not apart:
            raise UserError(_difference_of_sets(task, sets))
        yield from sets.values()


def _difference_of_sets(task: str, sets: dict[tuple[Any, ...], list[RunRecord]]) -> str:
    """The message that says in what the runs of a task differ."""
    names = ("split", "test data", "n", "metrics")
    differing = [n for n, values in zip(names, zip(*sets, strict=True), strict=True) if len(set(values)) > 1]
    lines = []
    for (split, test_hash, n, signatures), runs in sets.items():
        metrics = "; ".join(f"{name}: {signature}" for name, signature in signatures)
        values = {"split": split, "test data": test_hash, "n": n, "metrics": metrics}
        text = ", ".join(f"{name} {values[name]}" for name in differing)
        lines.append(f"  {text}: {listing((record.folder for record in runs), 3)}")
    return "\n".join(
        [
            f"runs of task '{task}' can't be ranked together, they differ in {listing(differing)}:",
            *lines[:8],
            "name runs on one test set (data.seed fixes what is cut from train), or --force shows them apart",
        ]
    )


def _main_metric(record: RunRecord, wanted: str | None) -> str:
    if wanted is None:
        return next(iter(record.metrics))
    if wanted not in record.metrics:
        known = record.metrics
        raise UserError(
            f"task '{record.task}' has no metric '{wanted}'; it has {listing(known)}.{nearest(wanted, known)}"
        )
    return wanted


def _table(groups: list[SeedGroup], main: str, baseline: Path | None, runs: list[RunRecord]) -> ComparisonTable:
    first = runs[0]
    named = [group for group in groups if baseline and _holds(group, baseline)]
    test_set = first.task, first.result["split"], first.result["test_data_hash"]
    table = ComparisonTable(*test_set, groups, [*named, *groups][0], bool(named), main)
    if not named and (best := table.best(main)):
        table.baseline = groups[best[0]]
    return table


def _same_folder(a: Path, b: Path) -> bool:
    return real_path(a) == real_path(b)


def _holds(group: SeedGroup, folder: Path) -> bool:
    return any(_same_folder(record.folder, folder) for record in group.records)


def _test(table: ComparisonTable, metrics: Sequence[str]) -> None:
    """Test all methods against the baseline; without the task's plugin, which aggregates its metrics, note why not."""
    try:
        for name in metrics:
            table.baseline.records[0].metric(name)
    except UserError as error:
        table.note = f"not tested: {error}"
        return
    for name in metrics:
        if table.metrics[name]["direction"] != "none" and len(table.methods) > 1:
            for record in (record for method in table.methods for record in method.records):
                record.check_statistics(name)
            table.verdicts[name] = dict(_verdicts(table, name))


def _verdicts(table: ComparisonTable, metric: str) -> Iterator[tuple[int, Verdict]]:
    higher = table.metrics[metric]["direction"] == "higher"
    for number, method in enumerate(table.methods):
        if method is not table.baseline:
            yield number, Verdict(_difference(method, table.baseline, metric), higher, table.width(metric))


def _difference(candidate: SeedGroup, baseline: SeedGroup, metric: str) -> Difference:
    """The difference of two methods, cached: it depends on predictions, options and code alone."""
    first = baseline.records[0]
    sides = [[record.predictions_hash for record in side.records] for side in (candidate, baseline)]
    key = [RESAMPLES, metric, first.config["task"], _code_hash(type(first.metric(metric))), sides]
    cached = cache_folder() / "verdicts" / f"{digest(repr(key))}.json"
    if usable(cached):
        with suppress(ValueError, TypeError, KeyError):  # written by another version
            values = json.loads(cached.read_text(encoding="utf-8"))
            return Difference(**values | {"seeds": tuple(values["seeds"])})
    like = first.predictions
    rows = [side.statistics(metric, like) for side in (candidate, baseline)]
    if len({table.shape for side in rows for table in side}) > 1:
        raise UserError(
            f"'{metric}' has other statistics in {candidate.name} than in {baseline.name}: the options differ"
        )
    result = difference(first.metric(metric), rows[0], rows[1], like.groups)
    with suppress(OSError, WriteError), replacing(cached) as part:  # a cache that can't be written only costs time
        part.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


@cache
def _code_hash(metric: type[Metric]) -> str:
    """A hash of the modules that compute a verdict, so that an edit is never answered from the cache."""
    modules = {cls.__module__ for cls in metric.__mro__ if issubclass(cls, Metric)} | {
        Difference.__module__,
        bootstrap.__module__,
    }
    files = [getattr(sys.modules[name], "__file__", None) for name in sorted(modules)]
    return digest("".join(Path(file).read_text(encoding="utf-8") if file else os.urandom(16).hex() for file in files))


def _correct(tables: Sequence[ComparisonTable]) -> None:
    """Holm's correction over pairs and tasks: one family of all main metrics, and one for each other metric.

    With the best run as baseline every pair counts, since any pair might have been the one that is tested.
    """
    families: dict[str, list[tuple[ComparisonTable, list[Verdict]]]] = {}
    for table in tables:
        for name, verdicts in table.verdicts.items():
            families.setdefault("" if name == table.main else name, []).append((table, list(verdicts.values())))
    for family in families.values():
        tested = [verdict for _, verdicts in family for verdict in verdicts]
        untested = sum(len(pairs) * (len(pairs) - 1) // 2 for table, pairs in family if not table.named)
        for verdict, p in zip(tested, holm([verdict.difference.p for verdict in tested], untested), strict=True):
            verdict.test_count, verdict.p = len(tested) + untested, p
