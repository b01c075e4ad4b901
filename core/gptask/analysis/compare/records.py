"""Run folders as records: what finished runs left, and which folders are damaged or unfinished. No torch."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.yaml_text import read_yaml
from gptask.errors import UserError, damaged, listing, nearest, real_path, user_path
from gptask.plugins.metric import Metric
from gptask.plugins.task import Task
from gptask.runs.manifest import MANIFEST, Manifest, read_manifest, way_to_finish
from gptask.runs.run import task_from_config
from gptask.runs.validation import Kinds, problem_of_config, problem_of_result, wrong_entry

WAY_OUT = "Restore them from a copy, run them again, or leave them out"  # of damaged runs
MARKS = (MANIFEST, "config.yaml", "metrics.json", "train.log")  # any of them makes a folder a run folder


PREDICTION: Kinds = {"id": (str, int), "digest": str, "group": str, "statistics": dict}


@dataclass
class PredictionsTable:
    """predictions.jsonl: N test examples in their order, with each metric's statistics."""

    path: Path
    rows: list[dict[str, Any]]

    @cached_property
    def digests(self) -> list[str]:
        """Digests of the inputs."""
        return [row["digest"] for row in self.rows]

    @cached_property
    def keys(self) -> list[tuple[str, str]]:
        """Id and input digest."""
        return [(str(row["id"]), row["digest"]) for row in self.rows]

    @cached_property
    def groups(self) -> np.ndarray:
        """(N,) group numbers: examples of one group share a context, or are duplicates."""
        return np.unique([row["group"] for row in self.rows], return_inverse=True)[1]

    def statistics(self, metric: str) -> np.ndarray:
        """(N, K) numbers of a metric; raises `UserError` where a line has none, or another number of them."""
        try:
            return np.asarray([row["statistics"][metric] for row in self.rows], dtype=float).reshape(len(self.rows), -1)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.path} lacks the statistics of '{metric}' in some lines") from error

    def reordered(self, order: Sequence[int]) -> PredictionsTable:
        """The rows at these numbers, in this order."""
        return PredictionsTable(self.path, [self.rows[number] for number in order])


@dataclass
class RunRecord:
    """One run folder. ``problem`` says why it can't be compared; then only the folder is sure to be there."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)  # metrics.json
    manifest: Manifest | None = None  # of a finished run whose files are as the run wrote them
    problem: str = ""
    named: bool = False  # by the user, who did not only name a folder above it

    @property
    def damaged(self) -> bool:
        """Whether the folder holds something else than its run wrote."""
        return self.problem.startswith("damaged")

    @property
    def task(self) -> str:
        """The task's entry-point name, empty where even that is not known."""
        return str(self.result.get("task") or self.config.get("plugin", {}).get("name", ""))

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The entries of metrics.json by metric, the main one first."""
        metrics: dict[str, dict[str, Any]] = self.result.get("metrics", {})
        return metrics

    @cached_property
    def parent(self) -> RunRecord | None:
        """The run that was evaluated, if it still exists undamaged; its path may be relative to any folder above."""
        parent = next(map(read_run, named_runs(self.folder, self.config.get("parent") or "")), None)
        return parent if parent and parent.manifest else None

    @cached_property
    def predictions(self) -> PredictionsTable:
        """The predictions file; raises `UserError` for one that does not fit metrics.json."""
        path = self.folder / "predictions.jsonl"
        rows = list(_lines(path))
        if len(rows) != self.result["n"]:
            raise UserError(f"{path} has {len(rows)} lines, not {self.result['n']}")
        return PredictionsTable(path, rows)

    def statistics(self, metric: str, like: PredictionsTable | None = None) -> np.ndarray:
        """(N, K) numbers of a metric, in the order of other predictions on the same examples.

        Raises `UserError` where a line has none, and for other examples.
        """
        return (self.predictions if like is None else self._aligned(like)).statistics(metric)

    def check_statistics(self, metric: str) -> None:
        """Raise `UserError` for statistics that the installed plugin's metric can't aggregate."""
        computed, rows = self.metric(metric), self.statistics(metric)
        with np.errstate(all="ignore"), damaged(f"the statistics of '{metric}' in {self.predictions.path}"):
            computed.aggregate(rows)

    def _aligned(self, like: PredictionsTable) -> PredictionsTable:
        predictions = self.predictions
        if predictions.digests == like.digests:
            return predictions
        row_numbers = {key: number for number, key in enumerate(predictions.keys)}
        missing = sum(key not in row_numbers for key in like.keys)
        if missing or len(row_numbers) != len(like.rows):
            raise UserError(
                f"{self.folder} and the run it is compared with have {len(like.rows) - missing} test examples in "
                f"common (of {len(predictions.rows)} and {len(like.rows)}): a paired test needs the same"
            )
        return predictions.reordered([row_numbers[key] for key in like.keys])

    @property
    def predictions_hash(self) -> str:
        """SHA-256 of the predictions of a run that can be compared."""
        assert self.manifest, self.problem
        return self.manifest.files["predictions.jsonl"].sha256

    @property
    def curves_source(self) -> tuple[Path, str | None]:
        """The folder whose metrics.csv holds the training's curves, and the task's name in it if it has several."""
        task = self.config.get("task_name")
        return (self.folder.parent if task else self.folder), task

    @property
    def plugin(self) -> Task:
        """The task with the run's options; raises `UserError` where its plugin is not installed or has changed."""
        return _task(json.dumps({key: self.config[key] for key in ("plugin", "task")}))

    def metric(self, name: str) -> Metric:
        """A metric of the run's task."""
        if name not in self._metrics:
            raise UserError(f"{self.folder}: the installed plugin of '{self.task}' has no metric '{name}'")
        return self._metrics[name]

    @cached_property
    def _metrics(self) -> dict[str, Metric]:
        return {metric.name: metric for metric in self.plugin.metrics()}


def named_runs(folder: Path, name: str) -> Iterator[Path]:
    """The run folders that a run in ``folder`` may call ``name``, which is relative to any folder above, or to here."""
    with suppress(UserError):  # the home folder of somebody who is unknown here
        path = user_path(name)
        for base in (*folder.absolute().parents, Path()) if name else ():
            if (base / path / "config.yaml").is_file():
                yield base / path


@lru_cache(maxsize=256)
def _task(values: str) -> Task:
    return task_from_config(json.loads(values))[1]


def find_runs(patterns: Iterable[str], task: str | None = None, latest: int | None = None) -> list[RunRecord]:
    """The runs at or below some folders or glob patterns, each once, oldest first.

    ``latest`` limits how many runs of each task are kept. Raises `UserError` for a pattern or a task without runs.
    """
    folders: dict[Path, Path] = {}
    named: set[Path] = set()
    for pattern in patterns:
        run_folders = [folder for path in _matching_folders(pattern) for folder in _run_folders(path)]
        if not run_folders:
            raise UserError(f"no run folder at or below {pattern} (a run folder holds config.yaml and metrics.json)")
        folders |= {real_path(folder): folder for folder in run_folders}
        named |= {real_path(folder) for folder in run_folders if folder == user_path(pattern)}
    records = sorted(map(read_run, folders.values()), key=lambda record: (record.folder.name, str(record.folder)))
    for record in records:
        record.named = real_path(record.folder) in named
    tasks = {record.task for record in records if record.task}
    if task is not None:
        if task not in tasks:
            raise UserError(
                f"no run of task '{task}'; tasks with runs: {listing(sorted(tasks))}.{nearest(task, tasks)}"
            )
        records = [record for record in records if record.task == task]
    return _latest(records, latest) if latest is not None else records


def read_run(folder: Path) -> RunRecord:
    """The record of a run folder; ``problem`` says what is wrong with it."""

    record = RunRecord(folder)
    try:
        if not (folder / "config.yaml").is_file():
            raise UserError("config.yaml is missing")
        config = read_yaml(folder / "config.yaml")
        record.problem = problem_of_config(config)
        if record.damaged:
            record.problem = _unfinished(folder) or record.problem
        else:
            record.config = config
            record.problem = record.problem or _unfinished(folder) or _read_result(record)
    except Exception as error:  # of the parsers, for a damaged file
        record.problem = _unfinished(folder) or f"damaged: {' '.join(str(error).split())[:200]}"
    return record


def _unfinished(folder: Path) -> str:
    """Why there is no manifest, and how to get one; empty if there is one."""
    if (folder / MANIFEST).is_file():
        return ""
    if (folder / "pruned.json").is_file():
        return "pruned: a sweep stopped it early"
    return f"unfinished: no {MANIFEST}; {way_to_finish(folder)}"


def _read_result(record: RunRecord) -> str:
    """Read a finished run's metrics.json; return why the run can't be compared, empty if it can."""
    manifest = read_manifest(record.folder)
    if problems := manifest.problems("config.yaml", "metrics.json", "predictions.jsonl"):
        return f"damaged: {listing(problems)}"
    result = json.loads((record.folder / "metrics.json").read_text(encoding="utf-8"))
    record.manifest, record.result = manifest, result if isinstance(result, dict) else {}
    return problem_of_result(result)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                with damaged(f"{path}, line {number}"):
                    row = json.loads(line)
                if wrong := wrong_entry(row, PREDICTION):
                    raise UserError(f"{path}, line {number} is not a prediction of a gptask run ({wrong})")
                yield row
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _matching_folders(pattern: str) -> list[Path]:
    """The folder itself, or the folders that a glob pattern matches."""
    path = user_path(pattern)
    if path.is_dir():
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_dir()]


def _run_folders(folder: Path) -> Iterator[Path]:
    """Run folders at or below a folder, and folders that can't be read; a run of several tasks yields one per task."""
    unreadable: list[OSError] = []
    for path, below, files in os.walk(folder, onerror=unreadable.append):
        if any(mark in files for mark in MARKS):
            tasks = [Path(path) / name for name in sorted(below) if _is_task(Path(path) / name)]
            below.clear()
            yield from tasks or [Path(path)]
        below[:] = sorted(name for name in below if not name.startswith("."))
    yield from (Path(error.filename) for error in unreadable)


def _is_task(folder: Path) -> bool:
    """Whether a folder within a run folder is that of one of its tasks."""
    return any((folder / name).is_file() for name in (MANIFEST, "metrics.json"))


def _latest(records: Sequence[RunRecord], count: int) -> list[RunRecord]:
    """The most recently written ``count`` runs of each task."""
    if count < 1:
        raise UserError(f"--latest {count} must be at least 1")
    tasks: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=_last_written):
        tasks.setdefault(record.task, []).append(record)
    latest = {id(record) for runs in tasks.values() for record in runs[-count:]}
    return [record for record in records if id(record) in latest]


def _last_written(record: RunRecord) -> float:
    """The time the run ended or last wrote; a report in its folder does not count."""
    paths = [record.folder / name for name in ("metrics.json", "train.log", "config.yaml")]
    return next((path.stat().st_mtime for path in paths if path.is_file()), 0.0)
