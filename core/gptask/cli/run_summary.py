"""A finished run on the terminal: metrics with intervals, the run folder, a few predictions."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptask.data.messages import told
from gptask.runs.config_file import CORE_COLUMNS, PREDICTION_COLUMNS
from gptask.runs.folder import main_process


def show_run(folder: Path) -> None:
    """Print what a run folder's metrics.json and predictions.jsonl say."""
    if not main_process():
        return
    console = Console()
    result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table(title=f"{result['task']}: {result['split']}, n = {result['n']}")
    for column in ("metric", "value", "95% interval", ""):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in result["metrics"].items():
        low, high = metric["interval"]
        arrow = {"higher": "↑", "lower": "↓"}.get(metric["direction"], "")
        table.add_row(name, f"{metric['value']:.2f}", f"{low:.2f} to {high:.2f}", arrow)
    console.print(table)
    with (folder / "predictions.jsonl").open(encoding="utf-8") as lines:
        for line in islice(lines, 3):
            row = json.loads(line)
            inputs = [value for name, value in row.items() if name not in CORE_COLUMNS | PREDICTION_COLUMNS]
            text = " | ".join(told(value) or str(value) for value in inputs)
            console.print(Text(f"  {_short(text)}", style="dim"))
            truth = [f"   (truth: {_short(_plain(value))})" for value in row["references"].values()][:1]
            console.print(Text("".join([f"    → {_short(_plain(row['prediction']))}", *truth])))
    console.print(f"\nrun folder: {folder}", soft_wrap=True, highlight=False, markup=False)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(text: str, limit: int = 110) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
