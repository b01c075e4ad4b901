"""Methods: runs that differ in nothing but their seed."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptask.analysis.compare.records import PredictionsTable, RunRecord

NOT_THE_METHOD = {"seed", "folder", "outputs", "resume", "probe", "logger", "adjusted", "command", "run"}


@dataclass
class SeedGroup:
    """One or several runs."""

    records: list[RunRecord]

    @property
    def name(self) -> str:
        """The first run's folder, and how many seeds more."""
        return self.below(Path())

    def below(self, folder: Path) -> str:
        """The name without a folder that all runs lie in."""
        first, more = self.records[0].folder, len(self.records) - 1
        name = str(first) if folder == Path() else os.path.relpath(first, folder)
        return f"{name}{f' (+{more} seeds)' if more else ''}"

    def values(self, metric: str) -> list[float]:
        """A metric of each run."""
        return [record.metrics[metric]["value"] for record in self.records]

    def value(self, metric: str) -> float:
        """Its mean over the seeds."""
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float | None:
        """Its standard deviation over the seeds, None for one."""
        return statistics.stdev(self.values(metric)) if len(self.records) > 1 else None

    def interval(self, metric: str) -> list[float] | None:
        """The 95% interval of a single run."""
        return self.records[0].metrics[metric]["interval"] if len(self.records) == 1 else None

    def statistics(self, metric: str, like: PredictionsTable) -> list[np.ndarray]:
        """Statistics (N, K) of each run, in the order of other predictions on the same examples."""
        return [record.statistics(metric, like) for record in self.records]

    @cached_property
    def facts(self) -> dict[str, str]:
        """What a table says of the runs besides their metrics."""
        first, every = self.records[0], self.records
        model = first.parent or first
        config = model.config
        seconds = [r.result.get("wall_seconds") for r in every]
        return {
            "seed": ", ".join(str(r.result.get("seed", "?")) for r in every),
            "data": data_of(first.config.get("data") or {}),
            "backbone": backbone_of(config.get("backbone") or {}),
            "tuning": tuning_of(config),
            "trainable": _number(model.result.get("trainable_parameters")),
            "seconds": _mean(seconds),
            "tokens/s": _mean([r.result.get("train_tokens_per_second") for r in every]),
            "MB": _mean([r.result.get("peak_memory_mb") for r in every]),
        }


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(statistics.fmean(known)) if known else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def options(found: Sequence[SeedGroup]) -> list[str]:
    """For each method the options in which it differs from others, where no fact shows it."""
    flat = [dict(_leaves(_own(method.records[0]))) for method in found]
    shown = {name for name in ("data", "backbone", "tuning") if len({method.facts[name] for method in found}) > 1}
    names = sorted({name for values in flat for name in values if name.partition(".")[0] not in shown})
    differing = [name for name in names if len({repr(values.get(name)) for values in flat}) > 1]
    return [", ".join(f"{name}={values[name]}" for name in differing if name in values) for values in flat]


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def seed_groups(records: Sequence[RunRecord]) -> list[SeedGroup]:
    """Group runs by what they did, in the order of their first one."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(_identity(record), []).append(record)
    return [method for runs in found.values() for method in _seeds(runs)]


def _own(record: RunRecord) -> dict[str, Any]:
    """A run's config without what does not make the method."""
    config = {key: value for key, value in record.config.items() if key not in NOT_THE_METHOD}
    chosen = record.config.get("adjusted") or {}  # by validation, so it follows from the seed
    return config | {"task": {key: value for key, value in config["task"].items() if key not in chosen}}


def _seeds(runs: list[RunRecord]) -> list[SeedGroup]:
    """One method, unless a seed occurs twice: then nothing tells what those runs differ in, and each stands alone."""
    seeds = [record.result.get("seed") for record in runs]
    return [SeedGroup(runs)] if len(set(seeds)) == len(seeds) else [SeedGroup([record]) for record in runs]


def _identity(record: RunRecord) -> str:
    """What a run did, its seed apart: its config (and that of the run it evaluates), and the code's version."""
    configs = [_own(record), *([_own(record.parent)] if record.parent else [])]
    if record.parent:
        configs[0].pop("parent")
    return json.dumps([configs, record.result.get("versions", {}).get("gptask")], sort_keys=True, default=str)


def data_of(data: dict[str, Any]) -> str:
    """The data in a few words."""
    kind = str(data.get("kind", "")).removesuffix("_schema")
    given = data.get("path") or data.get("test") or data.get("train")
    names = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    shown = kind if given is None else "+".join(Path(str(name)).name for name in names)
    limits = data.get("limit")
    given = limits.items() if isinstance(limits, dict) else []
    return " ".join([shown, *(f"{split}≤{count}" for split, count in given if count is not None)])


def backbone_of(backbone: dict[str, Any]) -> str:
    """The backbone in a few words."""
    if backbone.get("kind") == "scratch":
        return f"scratch {backbone.get('n_layer')}×{backbone.get('n_embd')}"
    source = str(backbone.get("source", "?"))
    return Path(source).name if "/" in source and Path(source).exists() else source


def tuning_of(config: dict[str, Any]) -> str:
    """The tuning in a few words."""
    if config.get("parent"):
        return "?"  # an evaluation of a run that is gone
    tuning = config.get("tuning") if "optimizer" in config else None
    if not tuning:
        return "none"
    kind = str(tuning.get("kind", "")).removesuffix("_schema")
    told = {name: tuning[name] for name in ("rank", "top", "lr") if tuning.get(name) is not None}
    return " ".join([kind, *(f"{name}={value}" for name, value in told.items())])
