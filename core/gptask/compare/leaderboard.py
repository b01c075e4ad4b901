"""The best run of each task, backbone and tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from gptask.compare.command import command
from gptask.compare.comparison import Table, compare
from gptask.compare.formats import ARROWS, cell, html_grid, page, title
from gptask.compare.methods import Method
from gptask.compare.records import Record
from gptask.markdown import code
from gptask.markdown import table as grid
from gptask.run import write_text


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write ``leaderboard.md`` and ``leaderboard.html`` into a folder; return both."""
    tables = compare(records, apart=True, tested=False).tables
    parts = [(title(table), header(table), list(rows(table))) for table in tables]
    text = "\n\n".join(f"## {name}\n\n{grid(names, lines)}" for name, names, lines in parts)
    body = "".join(f"<h2>{escape(name)}</h2>{html_grid(names, lines)}" for name, names, lines in parts)
    paths = [folder / "leaderboard.md", folder / "leaderboard.html"]
    write_text(paths[0], f"# Leaderboard\n\n{text}\n")
    write_text(paths[1], page("Leaderboard", body))
    return paths


def header(table: Table) -> list[str]:
    """Column names."""
    return [
        "backbone",
        "tuning",
        f"{table.main} {ARROWS[table.metrics[table.main]['direction']]}".strip(),
        "runs",
        "seconds",
        "trainable",
        "run",
        "command",
    ]


def rows(table: Table) -> Iterator[list[str]]:
    """The best method of each backbone and tuning, best first."""
    best: dict[tuple[str, str], Method] = {}
    sign = -1 if table.metrics[table.main]["direction"] == "lower" else 1
    ranked = sorted(table.methods, key=lambda method: -sign * method.value(table.main))
    counts: dict[tuple[str, str], int] = {}
    for method in ranked:
        place = method.facts["backbone"], method.facts["tuning"].split(" ")[0]
        best.setdefault(place, method)
        counts[place] = counts.get(place, 0) + len(method.records)
    for (backbone, tuning), method in best.items():
        facts, first = method.facts, method.records[0]
        value = cell(method, table.main)
        line = [backbone, tuning, value, str(counts[backbone, tuning]), facts["seconds"], facts["trainable"]]
        yield [*line, str(first.folder), code(command(first.config))]
