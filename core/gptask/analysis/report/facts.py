"""Facts about runs, side by side: task, data, backbone, tuning, cost, and the version of the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.compare.seed_groups import engine_of, overlap_of
from gptask.analysis.report.report_run import ReportRun

Fact = Callable[[dict[str, Any], dict[str, Any]], Any]  # from the contents of config.yaml and metrics.json


@dataclass
class FactRow:
    """A row of a table with a value for each run."""

    name: str
    values: list[str]

    @property
    def same(self) -> bool:
        """Whether all runs have the same value."""
        return len(set(self.values)) == 1


def run_facts(runs: Sequence[ReportRun]) -> list[FactRow]:
    """The facts about task, data, backbone, tuning and cost."""
    return _fact_rows(runs, FACTS)


def code_facts(runs: Sequence[ReportRun]) -> list[FactRow]:
    """The commit and the versions of the code that ran."""
    return _fact_rows(runs, CODE_FACTS)


def _fact_rows(runs: Sequence[ReportRun], facts: dict[str, Fact]) -> list[FactRow]:
    """A row for each fact that at least one run has."""
    rows = []
    for name, fact in facts.items():
        values = [fact(run.record.config, run.record.result) for run in runs]
        rows.append(FactRow(name, ["" if value is None else str(value) for value in values]))
    return [row for row in rows if any(row.values)]


def _group_summary(config: dict[str, Any], group: str) -> str:
    """The kind chosen in a config group, with the values that identify it best."""
    values = config.get(group)
    if not isinstance(values, dict):
        return ""
    kind = str(values.get("kind", "")).removesuffix("_schema")
    details = [str(values[key]) for key in ("source", "path", "name", "train", "test", "rank") if values.get(key)]
    return ": ".join(filter(None, (kind, ", ".join(details))))


def _number_format(config: dict[str, Any]) -> str | None:
    """The number format of the weights, where an option sets it."""
    return "q8_0 (OpenVINO)" if engine_of(config.get("engine") or {}) == "openvino" else config.get("dtype")


def _number(value: Any, unit: str = "", digits: int = 0) -> str | None:
    return f"{value:,.{digits}f}{unit}" if isinstance(value, int | float) else None


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min {rest:02} s"


def _kept(backbone: Any) -> str | None:
    keep = backbone.get("keep") if isinstance(backbone, dict) else None
    return f"{len(keep)}: {', '.join(map(str, keep))}" if isinstance(keep, list) else None


def _parent(against: Any) -> str | None:
    if not isinstance(against, dict):
        return None
    return ": ".join(str(against[name]) for name in ("folder", "conclusion") if against.get(name))


def _trainable(result: dict[str, Any]) -> str | None:
    trainable, total = result.get("trainable_parameters"), result.get("parameters")
    if not isinstance(trainable, int):
        return None
    return f"{trainable:,} of {total:,}" if isinstance(total, int) else f"{trainable:,}"


def _versions(result: dict[str, Any]) -> str:
    versions = result.get("versions")
    return ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, dict) else ""


FACTS: dict[str, Fact] = {
    "task": lambda config, result: result.get("task"),
    "plugin": lambda config, result: result.get("plugin"),
    "data": lambda config, result: _group_summary(config, "data"),
    "split": lambda config, result: result.get("split"),
    "examples": lambda config, result: _number(result.get("n")),
    "examples seen before": lambda config, result: overlap_of([result]) or None,
    "test data hash": lambda config, result: result.get("test_data_hash"),
    "backbone": lambda config, result: _group_summary(config, "backbone"),
    "layers kept": lambda config, result: _kept(config.get("backbone")),
    "made smaller from": lambda config, result: _parent(result.get("against_parent")),
    "weights from": lambda config, result: result.get("backbone"),
    "weights hash": lambda config, result: result.get("weights_hash"),
    "number format": lambda config, result: _number_format(config),
    "tuning": lambda config, result: _group_summary(config, "tuning"),
    "trainable parameters": lambda config, result: _trainable(result),
    "seed": lambda config, result: result.get("seed"),
    "total time": lambda config, result: _duration(result.get("wall_seconds")),
    "training time": lambda config, result: _duration(result.get("fit_seconds")),
    "training speed": lambda config, result: _number(result.get("train_tokens_per_second"), " tokens/s"),
    "peak memory": lambda config, result: _number(result.get("peak_memory_mb"), " MB"),
}
CODE_FACTS: dict[str, Fact] = {
    "git commit": lambda config, result: result.get("git_commit"),
    "versions": lambda config, result: _versions(result),
}
