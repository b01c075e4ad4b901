"""Seed groups: runs that differ in their seed alone, compared as one method."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptask.analysis.compare.records import PredictionsTable, RunRecord

IGNORED_KEYS = {"seed", "folder", "outputs", "resume", "probe", "logger", "engine", "tuned_options", "command", "run"}
IGNORED_KEYS |= {"started_from"}


@dataclass
class SeedGroup:
    """Runs of one method, each with another seed."""

    records: list[RunRecord]

    @property
    def name(self) -> str:
        """The first run's folder, and the number of further seeds."""
        return self.below(Path())

    def below(self, folder: Path) -> str:
        """The name relative to a folder that holds all runs."""
        first, further = self.records[0].folder, len(self.records) - 1
        name = str(first) if folder == Path() else os.path.relpath(first, folder)
        return f"{name} (+{further} {'seed' if further == 1 else 'seeds'})" if further else name

    def values(self, metric: str) -> list[float]:
        """The metric's value in each run, nan where it is not a finite number."""
        values = [record.metrics[metric]["value"] for record in self.records]
        return [math.nan if value is None else value for value in values]

    def value(self, metric: str) -> float:
        """The metric's mean over the seeds."""
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float | None:
        """The metric's standard deviation over the seeds, None for a single run."""
        return float(np.std(self.values(metric), ddof=1)) if len(self.records) > 1 else None

    def interval(self, metric: str) -> list[float] | None:
        """The 95% interval of a single run, None for several and where the run has none."""
        return self.records[0].metrics[metric]["interval"] if len(self.records) == 1 else None

    def statistics(self, metric: str, like: PredictionsTable) -> list[np.ndarray]:
        """Statistics (N, K) of each run, in the order of other predictions on the same examples."""
        return [record.statistics(metric, like) for record in self.records]

    @cached_property
    def facts(self) -> dict[str, str]:
        """The columns of a table besides the metrics."""
        first = self.records[0]
        model = first.parent or first
        config = model.config
        results = [record.result for record in self.records]
        return {
            "seed": ", ".join(str(result.get("seed", "?")) for result in results),
            "data": data_of(first.config.get("data") or {}),
            "backbone": backbone_of(config.get("backbone") or {}),
            "tuning": tuning_of(config),
            "trainable": _number(model.result.get("trainable_parameters")),
            "seconds": _mean([result.get("wall_seconds") for result in results]),
            "tokens/s": _mean([result.get("train_tokens_per_second") for result in results]),
            "MB": _mean([result.get("peak_memory_mb") for result in results]),
            "overlap": overlap_of(results),
        }


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(statistics.fmean(known)) if known else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def options(groups: Sequence[SeedGroup]) -> list[str]:
    """For each group the options in which it differs from the others, unless a column shows the difference."""
    configs = [group.records[0].config for group in groups]
    flat = [dict(_leaves(_method_config(group.records[0]))) for group in groups]
    for values, config in zip(flat, configs, strict=True):
        values["engine"] = engine_of(config.get("engine") or {})
    shown = {name for name in ("data", "backbone", "tuning") if len({group.facts[name] for group in groups}) > 1}
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
    """Group runs by method, in the order of each group's first run."""
    runs_by_method: dict[str, list[RunRecord]] = {}
    for record in records:
        runs_by_method.setdefault(_method_key(record), []).append(record)
    return [group for runs in runs_by_method.values() for group in _split_equal_seeds(runs)]


def _method_config(record: RunRecord) -> dict[str, Any]:
    """A run's config without the keys that do not define its method."""
    config = {key: value for key, value in record.config.items() if key not in IGNORED_KEYS}
    if isinstance(data := config.get("data"), dict):
        config["data"] = {key: value for key, value in data.items() if key != "seed"}  # the run's, unless it is set
    if (engine := engine_of(record.config.get("engine") or {})) == "openvino":  # it rounds the weights
        config["engine"] = engine
    tuned = record.config.get("tuned_options") or {}  # on validation, so these values follow from the seed
    if isinstance(config.get("keep"), int):  # which layers stay follows from the run, and so from its seed
        for group, chosen in (("backbone", "keep"), ("tuning", "top")):
            config[group] = {key: value for key, value in (config.get(group) or {}).items() if key != chosen}
    return config | {"task": {key: value for key, value in config["task"].items() if key not in tuned}}


def _split_equal_seeds(runs: list[RunRecord]) -> list[SeedGroup]:
    """One group, or one group per run if a seed occurs twice, since such runs differ in something unknown."""
    seeds = [record.result.get("seed") for record in runs]
    return [SeedGroup(runs)] if len(set(seeds)) == len(seeds) else [SeedGroup([record]) for record in runs]


def _method_key(record: RunRecord) -> str:
    """The method as text: the config without the seed (and that of an evaluated run), and gptask's version."""
    configs = [_method_config(record), *([_method_config(record.parent)] if record.parent else [])]
    if record.parent:
        configs[0].pop("parent")
    return json.dumps([configs, record.result.get("versions", {}).get("gptask")], sort_keys=True, default=str)


def data_of(data: dict[str, Any]) -> str:
    """The data in a few words."""
    kind = str(data.get("kind", "")).removesuffix("_schema")
    source = data.get("path") or data.get("test") or data.get("train")
    names = list(source.values()) if isinstance(source, dict) else source if isinstance(source, list) else [source]
    text = kind if source is None else "+".join(Path(str(name)).name for name in names)
    limits = data.get("limit")
    counts = limits.items() if isinstance(limits, dict) else []
    half = [f"half {data['half']}"] if data.get("half") else []
    return " ".join([text, *(f"{split}≤{count}" for split, count in counts if count is not None), *half])


def overlap_of(results: Sequence[dict[str, Any]]) -> str:
    """How many test examples the model was trained or selected on, from metrics.json of runs; empty for none."""
    texts = []
    for split in ("train", "validation"):
        counts = sorted({(result.get("overlap") or {}).get(split, 0) for result in results})
        texts += [f"{split} {' to '.join(map(str, sorted({counts[0], counts[-1]})))}"] if any(counts) else []
    return ", ".join(texts)


def backbone_of(backbone: dict[str, Any]) -> str:
    """The backbone in a few words."""
    if backbone.get("kind") == "scratch":
        return f"scratch {backbone.get('n_layer')}×{backbone.get('n_embd')}"
    source = str(backbone.get("source", "?"))
    name = Path(source).name if "/" in source and Path(source).exists() else source
    return f"{name}, {len(keep)} layers" if isinstance(keep := backbone.get("keep"), list) else name


def engine_of(engine: dict[str, Any]) -> str:
    """The engine as `GPTASK_ENGINE` names it."""
    components = [f"{name}=off" for name, value in engine.items() if value is False]
    return ",".join([str(engine.get("kind", "fast")).removesuffix("_schema"), *components])


def tuning_of(config: dict[str, Any]) -> str:
    """The tuning in a few words."""
    if config.get("parent"):
        return "?"  # an evaluation of a run that is gone
    tuning = config.get("tuning") if "optimizer" in config else None
    if not tuning:
        return "none"
    kind = str(tuning.get("kind", "")).removesuffix("_schema")
    values = {name: tuning[name] for name in ("rank", "top", "lr") if tuning.get(name) is not None}
    return " ".join([kind, *(f"{name}={value}" for name, value in values.items())])
