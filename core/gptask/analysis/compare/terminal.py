"""A comparison printed on a terminal of any width."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from gptask.analysis.compare.comparison import Comparison, ComparisonTable
from gptask.analysis.compare.render import DETAILS, details, folded, header, problems, rows, title
from gptask.analysis.console import VisibleConsole

ENDLESS = 10_000  # columns of a pipe or a file
MARK = " *"
TerminalReport = Sequence[Sequence[str]]


def show(comparison: Comparison) -> None:
    """Print every table, and the runs that can't be compared."""
    piped = not (sys.stdout.isatty() or "COLUMNS" in os.environ)
    console = VisibleConsole(width=ENDLESS if piped else None, highlight=False)
    for table in comparison.tables:
        console.print(Text(title(table), style="bold"))
        console.print(Text(f"all runs: {folded(table)}", style="dim"))
        _methods(console, table)
        if lines := list(details(table)):
            _details(console, lines)
    for line in problems(comparison.problems):
        console.print(Text(line, style="yellow"))


def _methods(console: Console, table: ComparisonTable) -> None:
    """One table if the terminal is wide enough; else several, with intervals below values, and the facts as text."""
    names, lines = header(table), list(rows(table, lambda text: text + MARK))
    grid = _grid(names, lines)
    if _width(console, grid) <= console.width:
        console.print(grid)
        return
    count, longest = 1 + len(table.metrics), max(console.width // 3, 10)
    stacked = [[line[0], *map(_stacked, line[1:count])] for line in lines]
    for part in _parts(console, names[:count], stacked, longest):
        console.print(part)
    for line in lines:
        facts = [f"{name}: {text}" for name, text in zip(names[count:], line[count:], strict=True) if text]
        console.print(Text(f"{line[0]}: {'; '.join(facts)}" if facts else line[0]))
    console.print()


def _parts(console: Console, names: Sequence[str], lines: TerminalReport, longest: int) -> Iterator[Grid]:
    """Tables of the first column and as many others as fit."""

    def part(start: int, end: int) -> Grid:
        return _grid([names[0], *names[start:end]], [[line[0], *line[start:end]] for line in lines], longest)

    start = 1
    while start < len(names):
        fitting = (end for end in range(len(names), start, -1) if _width(console, part(start, end)) <= console.width)
        end = next(fitting, start + 1)
        yield part(start, end)
        start = end


def _grid(names: Sequence[str], lines: TerminalReport, longest: int | None = None) -> Grid:
    """A table whose first column is at most ``longest`` wide."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        grid.add_column(name, overflow="fold", max_width=None if grid.columns else longest)
    for line in lines:
        grid.add_row(*(Text(text, style="bold" if MARK in text else "") for text in line))
    return grid


def _width(console: Console, grid: Grid) -> int:
    return console.measure(grid, options=console.options.update(width=ENDLESS)).maximum


def _stacked(cell: str) -> str:
    """A value with its interval, or its spread, on a line of its own."""
    value, _, rest = cell.removesuffix(MARK).partition(" ")
    return f"{value}{MARK if cell.endswith(MARK) else ''}\n{rest.strip('()')}"


def _details(console: Console, lines: TerminalReport) -> None:
    grid = _grid(DETAILS, lines)
    if _width(console, grid) <= console.width:
        console.print(grid)
        return
    for name, shown, p, test, words in lines:
        console.print(Text(f"{name}: {shown}, p = {p} (Holm), {test}: {words}"))
    console.print()
