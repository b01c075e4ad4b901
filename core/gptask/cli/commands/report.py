"""`gptask report`: one HTML page on finished runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gptask.cli.arguments import Parser
from gptask.errors import UserError
from gptask.runs.atomic_write import write_text

RUNS = 12  # side by side on a page at most


def report(arguments: Sequence[str]) -> int:
    """Write the page and print its path."""
    from gptask.analysis.compare import records
    from gptask.analysis.report.page import page

    options = _parser().parse_args(arguments)
    found = records.find(options.runs, options.task, options.latest)
    if len(found) > RUNS:
        raise UserError(f"{len(found)} runs are too many for one page, {RUNS} at most: name some, or use --latest 2")
    path = _place(options.output, [record.folder for record in found])
    _write(path, page(found))
    sys.stdout.write(f"{path}\n")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "report",
        description="Write one HTML page on a run, or on several side by side (each against the oldest). It holds all "
        "it needs: metrics with intervals, learning curves, calibration, slices, examples, flips, how to reproduce.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of run folders, or glob pattern")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the run, or above all the runs")
    parser.add_argument("--task", help="only the runs of this task")
    parser.add_argument("--latest", type=int, metavar="N", help="only the last N runs of each task")
    return parser


def _place(output: str | None, folders: Sequence[Path]) -> Path:
    """The file to write: in the run's folder, or in the one above all runs (here, where that is the root)."""
    if output:
        path = Path(output).expanduser()
        return path / "report.html" if path.is_dir() else path
    above = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    if above == Path(above.anchor):
        return Path("report.html")
    here = Path.cwd()
    return (above.relative_to(here) if above.is_relative_to(here) else above) / "report.html"


def _write(path: Path, text: str) -> None:
    """Write the page whole or not at all; half a surrogate pair from a data file becomes a question mark."""
    try:
        write_text(path, text.encode("utf-8", errors="replace").decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}; choose another place: --output FILE") from error
