"""Which inputs a run has learned, by itself and in the runs that it began from: what proves that a row is new to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptask.analysis.compare.records import RunRecord, named_runs
from gptask.errors import UserError, damaged, real_path
from gptask.runs.config_file import read_config
from gptask.runs.manifest import MANIFEST, Manifest, read_manifest, read_splits
from gptask.runs.run import read_metrics, task_from_config
from gptask.runs.saved_model import RUN_ORIGIN


def is_learned(record: RunRecord) -> np.ndarray:
    """(N,) whether the run that made the predictions has learned the input of each row.

    Raises `UserError` where a run that it began from is missing, changed, or keeps no digests.
    """
    with damaged(f"{record.predictions.path}, a digest"):
        digests = np.asarray([int(digest, 16) - 2**63 for digest in record.predictions.digests], dtype=np.int64)
    return np.isin(digests, learned_inputs(record.folder))


def learned_inputs(folder: Path) -> np.ndarray:
    """The 64-bit digests (M,) of all inputs whose targets the model behind a finished run has learned.

    They are those of the run, of the other tasks that share its model, of the run that it evaluates or compresses, and
    of the one whose model is its backbone. Texts learned without a target (by language modelling) don't count.
    """
    pending, visited, digests = [real_path(folder)], set[Path](), [np.zeros(0, dtype=np.int64)]
    while pending:
        current = pending.pop()
        if current in visited:
            continue
        visited.add(current)
        config = read_config(current)
        pending += _tasks_beside(current, config)
        if not config.get("tasks"):
            manifest = read_manifest(current)
            if manifest.method != "evaluate" and task_from_config(config)[1].supervised:
                digests.append(_training_inputs(current))
            pending += _origins(current, config, manifest)
    return np.concatenate(digests)


def _tasks_beside(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The folders of the tasks of a run of several; none for a run of one task."""
    root = folder.parent if config.get("task_name") else folder
    names = read_config(root)["tasks"] if config.get("task_name") else config.get("tasks") or {}
    return [root / str(name) for name in names]


def _training_inputs(folder: Path) -> np.ndarray:
    splits = read_splits(folder)
    if "train" not in splits:
        raise UserError(
            f"{folder} keeps no digests of its training data, so nothing shows which rows it has learned: train again"
        )
    return splits["train"]


def _origins(folder: Path, config: dict[str, Any], manifest: Manifest) -> Iterator[Path]:
    """The runs that a run's model comes from: its parent, and the one whose model is its backbone.

    Raises `UserError` where one is missing, or is another run than it was.
    """
    if manifest.parent:
        name, expected = manifest.parent["folder"], manifest.parent["manifest"]
        manifests = [(path, path / MANIFEST) for path in named_runs(folder, name) if (path / MANIFEST).is_file()]
        same = [path for path, file in manifests if hashlib.sha256(file.read_bytes()).hexdigest() == expected]
        if not same:
            problem = "has changed since" if manifests else "is not there"
            raise UserError(
                f"{folder} comes from the run {name}, which {problem}, so nothing shows which rows it has learned: "
                f"{'evaluate it again' if manifests else 'put it back, or evaluate another run'}"
            )
        yield same[0]
    if str(read_metrics(folder).get("backbone")).startswith(RUN_ORIGIN):
        source = str((config.get("backbone") or {}).get("source"))
        backbone = next(named_runs(folder, source), None)
        if backbone is None:
            raise UserError(
                f"{folder} began from the run {source}, which is not there, so nothing shows which rows it has "
                "learned: put it back, or take another run"
            )
        yield backbone
