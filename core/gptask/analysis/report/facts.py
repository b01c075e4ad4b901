"""What a run was: task, data, backbone, tuning, cost, code; side by side for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.report.report_run import ReportRun


@dataclass
class FactRow:
    """A line of a table with a value for each run; ``same`` where all are equal."""

    name: str
    values: list[str]

    @property
    def same(self) -> bool:
        """Whether one cell says it for all runs."""
        return len(set(self.values)) == 1


def facts(entries: Sequence[ReportRun]) -> list[FactRow]:
    """The header's table; facts that no run has are left out."""
    rows = [FactRow(name, [_fact(entry, say) for entry in entries]) for name, say in FACTS.items()]
    return [row for row in rows if any(row.values)]


def _fact(entry: ReportRun, say: Callable[[dict[str, Any], dict[str, Any]], Any]) -> str:
    value = say(entry.record.config, entry.record.result)
    return "" if value is None else str(value)


def _kind(config: dict[str, Any], group: str) -> str:
    """A group's choice with the values that name it best."""
    values = config.get(group)
    if not isinstance(values, dict):
        return ""
    kind = str(values.get("kind", "")).removesuffix("_schema")
    more = [str(values[key]) for key in ("source", "path", "name", "train", "test", "rank") if values.get(key)]
    return ": ".join(filter(None, (kind, ", ".join(more))))


def _number(value: Any, unit: str = "", digits: int = 0) -> str | None:
    return f"{value:,.{digits}f}{unit}" if isinstance(value, int | float) else None


def _seconds(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min {seconds:02} s"


def _learning(result: dict[str, Any]) -> str | None:
    learning, every = result.get("trainable_parameters"), result.get("parameters")
    if not isinstance(learning, int):
        return None
    return f"{learning:,} of {every:,}" if isinstance(every, int) else f"{learning:,}"


def _versions(result: dict[str, Any]) -> str:
    versions = result.get("versions")
    return ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, dict) else ""


FACTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "task": lambda config, result: result.get("task"),
    "plugin": lambda config, result: result.get("plugin"),
    "data": lambda config, result: _kind(config, "data"),
    "split": lambda config, result: result.get("split"),
    "examples": lambda config, result: _number(result.get("n")),
    "test data hash": lambda config, result: result.get("test_data_hash"),
    "backbone": lambda config, result: _kind(config, "backbone"),
    "weights": lambda config, result: result.get("backbone"),
    "weights hash": lambda config, result: result.get("weights_hash"),
    "tuning": lambda config, result: _kind(config, "tuning"),
    "parameters that learn": lambda config, result: _learning(result),
    "seed": lambda config, result: result.get("seed"),
    "time": lambda config, result: _seconds(result.get("wall_seconds")),
    "time of training": lambda config, result: _seconds(result.get("fit_seconds")),
    "training speed": lambda config, result: _number(result.get("train_tokens_per_second"), " tokens/s"),
    "peak memory": lambda config, result: _number(result.get("peak_memory_mb"), " MB"),
}
ORIGIN: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "git commit": lambda config, result: result.get("git_commit"),
    "versions": lambda config, result: _versions(result),
}


def origin(entries: Sequence[ReportRun]) -> list[FactRow]:
    """What the code was that ran."""
    rows = [FactRow(name, [_fact(entry, say) for entry in entries]) for name, say in ORIGIN.items()]
    return [row for row in rows if any(row.values)]
