"""The table of a run against the run it comes from: ``against_parent`` of metrics.json in words."""

from __future__ import annotations

from typing import Any

from gptask.plugins.metric import value_text

HEAD = ["measure", "run", "parent", "the run against its parent"]
MEASURES = {
    "export_mb": "MB of weights on disk, by export",
    "memory_mb": "MB of weights in memory",
    "examples_per_second": "examples/s",
    "tokens_per_second": "tokens/s written",
}


def parent_rows(against: dict[str, Any]) -> list[list[str]]:
    """A row for each metric, with the verdict of its paired test, and for each measure; none where nothing was tested.

    ``against`` is the entry of metrics.json.
    """
    rows = [
        [name, value_text(entry["run"]), value_text(entry["parent"]), entry["sentence"]]
        for name, entry in against.get("metrics", {}).items()
    ]
    for name, title in MEASURES.items():
        if entry := against.get(name):
            run, parent = entry["run"], entry["parent"]
            rows.append([title, f"{run:,.1f}", f"{parent:,.1f}", f"{run / parent:.2f} times" if parent else ""])
    return rows
