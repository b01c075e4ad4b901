"""How runs were configured, in which options they differ, and the commands that repeat them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptask.analysis.report.facts import FactRow
from gptask.analysis.report.report_run import ReportRun
from gptask.errors import UserError
from gptask.runs.reproduce import reproduce_command


def config_differences(runs: Sequence[ReportRun]) -> list[FactRow]:
    """The config keys whose values differ between the runs; the value is empty for a run without the key."""
    flat_configs = [_flatten(run.record.config) for run in runs]
    names = dict.fromkeys(name for config in flat_configs for name in config)
    rows = [FactRow(name, [config.get(name, "") for config in flat_configs]) for name in names]
    return [row for row in rows if not row.same]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` as ``{"a.b": "1"}``."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[f"{prefix}{name}"] = text
    return flat


def reproduce(run: ReportRun) -> str:
    """The command that repeats the run, or a comment that says why there is none."""
    try:
        return reproduce_command(run.record.config)
    except UserError as error:
        return f"# {error}"


def config_text(run: ReportRun) -> str:
    """The text of config.yaml; raises `UserError` if it can't be read."""
    path = run.record.folder / "config.yaml"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
