"""How runs were configured, what differs between them, and how to make them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptask.analysis.report.facts import FactRow
from gptask.analysis.report.report_run import ReportRun
from gptask.errors import UserError


def differences(entries: Sequence[ReportRun]) -> list[FactRow]:
    """The keys of the configuration that are not the same in all runs; empty where a run lacks one."""
    flat = [_flat(entry.record.config) for entry in entries]
    names = dict.fromkeys(name for values in flat for name in values)
    rows = [FactRow(name, [values.get(name, "") for values in flat]) for name in names]
    return [row for row in rows if not row.same]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` as ``{"a.b": "1"}``."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found[f"{prefix}{name}"] = text
    return found


def reproduce(entry: ReportRun) -> str:
    """The command that makes the run again, or why there is none."""
    from gptask.runs.reproduce import reproduce_command

    try:
        return reproduce_command(entry.record.config)
    except UserError as error:
        return f"# {error}"


def text(entry: ReportRun) -> str:
    """The whole config.yaml."""
    try:
        return (entry.record.folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{entry.record.folder / 'config.yaml'} can't be read: {error}") from error
