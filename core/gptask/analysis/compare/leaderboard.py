"""The best run of each task, backbone and tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import inf
from pathlib import Path

from gptask.analysis.compare.comparison import ComparisonTable, compare
from gptask.analysis.compare.records import RunRecord
from gptask.analysis.compare.render import ARROWS, cell, html_grid, page, title
from gptask.analysis.compare.seed_groups import SeedGroup
from gptask.errors import UserError
from gptask.runs.atomic_write import write_text
from gptask.runs.markdown import code_span, escaped
from gptask.runs.markdown import table as grid
from gptask.runs.reproduce import reproduce_command


def write(records: Sequence[RunRecord], folder: Path, metric: str | None = None) -> tuple[list[Path], list[RunRecord]]:
    """Write ``leaderboard.md`` and ``leaderboard.html`` into a folder; return both, and the runs left out.

    ``metric`` ranks instead of each task's main one. Raises `UserError` as `compare` does, and if the disk is full.
    """
    comparison = compare(records, metric=metric, apart=True, tested=False)
    parts = [(title(table), header(table), list(rows(table))) for table in comparison.tables]
    quoted = [
        (escaped(name), names, [[*map(escaped, line[:-1]), code_span(line[-1])] for line in lines])
        for name, names, lines in parts
    ]
    text = "\n\n".join(f"## {name}\n\n{grid(names, lines)}" for name, names, lines in quoted)
    body = "".join(f"<h2>{escape(name)}</h2>{html_grid(names, lines)}" for name, names, lines in parts)
    paths = [folder / "leaderboard.md", folder / "leaderboard.html"]
    try:
        write_text(paths[0], f"# Leaderboard\n\n{text}\n")
        write_text(paths[1], page("Leaderboard", body))
    except OSError as error:
        raise UserError(f"{folder} can't be written to: {error.strerror}") from error
    return paths, comparison.problems


def header(table: ComparisonTable) -> list[str]:
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


def rows(table: ComparisonTable) -> Iterator[list[str]]:
    """The best method of each backbone and tuning, best first."""
    best: dict[tuple[str, str], SeedGroup] = {}
    sign = {"lower": 1, "none": 0, "higher": -1}[table.metrics[table.main]["direction"]]
    ranked = sorted(table.methods, key=lambda method: _rank(sign * method.value(table.main)))
    counts: dict[tuple[str, str], int] = {}
    for method in ranked:
        key = method.facts["backbone"], method.facts["tuning"].split(" ")[0]
        best.setdefault(key, method)
        counts[key] = counts.get(key, 0) + len(method.records)
    for (backbone, tuning), method in best.items():
        facts, first = method.facts, method.records[0]
        value = cell(table, method, table.main)
        line = [backbone, tuning, value, str(counts[backbone, tuning]), facts["seconds"], facts["trainable"]]
        yield [*line, str(first.folder), reproduce_command(first.config)]


def _rank(value: float) -> float:
    """A number to sort by; nan comes last."""
    return value if value == value else inf
