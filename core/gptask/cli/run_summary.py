"""A finished run on the terminal: metrics with intervals, three predictions, the run folder."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from gptask.analysis.console import VisibleConsole
from gptask.data.messages import format_message
from gptask.plugins.metric import interval_text, value_text
from gptask.plugins.types import CORE_COLUMNS, PREDICTION_COLUMNS
from gptask.runs.cards.parent_table import HEAD, parent_rows
from gptask.runs.folder import is_main_process
from gptask.runs.manifest import read_manifest

EXAMPLES = 3  # predictions shown


def show_run(folder: Path) -> None:
    """Print the metrics and the first predictions of a run folder."""
    if not is_main_process():
        return
    read_manifest(folder).verify("metrics.json", "predictions.jsonl")
    console = VisibleConsole()
    result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    console.print(_metrics_table(result))
    if baselines := result.get("baselines"):
        console.print(_baselines_table(baselines))
    if rows := parent_rows(against := result.get("against_parent") or {}):
        console.print(_parent_table(rows, against["folder"]))
        console.print(f"{against['conclusion']}\n", soft_wrap=True, highlight=False)
    with (folder / "predictions.jsonl").open(encoding="utf-8") as lines:
        for line in islice(lines, EXAMPLES):
            prediction = json.loads(line)
            inputs = [prediction[name] for name in prediction if name not in CORE_COLUMNS | PREDICTION_COLUMNS]
            text = _joined([format_message(value) or str(value) for value in inputs if value != []])
            references = [f"   (truth: {_short(value)})" for value in prediction["references"].values()][:1]
            console.print(Text(f"  {text}", style="dim"))
            console.print(Text("".join([f"    → {_short(prediction['prediction'])}", *references])))
    console.print(f"\nrun folder: {folder}", soft_wrap=True, highlight=False)


def _metrics_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['task']}: {result['split']}, n = {result['n']}")
    for column in ("metric", "value", "95% interval", ""):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in result["metrics"].items():
        arrow = {"higher": "↑", "lower": "↓"}.get(metric["direction"], "")
        table.add_row(name, value_text(metric["value"]), interval_text(metric), arrow)
    return table


def _baselines_table(baselines: dict[str, Any]) -> Table:
    table = Table("baseline", title="the same test examples without this model")
    for column in ("metric", "value", "95% interval", "the run against it, paired"):
        table.add_column(column, justify="right" if column in ("value", "95% interval") else "left")
    for name, baseline in baselines.items():
        score = baseline["score"]
        value, interval = value_text(score["value"]), interval_text(score)
        table.add_row(name, baseline["metric"], value, interval, baseline["verdict"]["sentence"])
    return table


def _parent_table(rows: list[list[str]], parent: str) -> Table:
    table = Table(title=f"the run against its parent, {parent}, on the same test examples")
    for column in HEAD:
        table.add_column(column, justify="right" if column in ("run", "parent") else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _joined(texts: list[str], limit: int = 110) -> str:
    """The inputs of an example on one line of about ``limit`` characters; the longest are cut, so that all are seen."""
    lengths, width = [len(" ".join(text.split())) for text in texts], limit
    while sum(min(length, width) for length in lengths) > limit and width > 1:
        width -= 1
    return " | ".join(_short(text, width) for text in texts)


def _short(value: object, limit: int = 110) -> str:
    """A value on one line, cut to ``limit`` characters; of a list its members, or that there are none."""
    text = " ".join((", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
