"""`gptask report`: one HTML page on finished runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gptask.analysis.compare import records
from gptask.analysis.report.page import report_page
from gptask.cli.arguments import VerbParser
from gptask.cli.output import write_error, write_out
from gptask.errors import UserError, user_path
from gptask.runs.atomic_write import write_text

MAX_RUNS = 12  # columns of a page


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its path; return the exit code."""
    options = _parser().parse_args(arguments)
    runs = records.find_runs(options.runs, options.task, options.latest)
    if len(runs) > MAX_RUNS:
        raise UserError(f"{len(runs)} runs are too many for one page, {MAX_RUNS} at most: name some, or use --latest 2")
    path = _page_path(options.output, [run.folder for run in runs])
    html = (
        report_page(runs, path.parent).encode("utf-8", errors="replace").decode("utf-8")
    )  # half a surrogate pair from a data file: ?
    try:
        write_text(path, html)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}; choose another place: --output FILE") from error
    write_out(f"{path}\n")
    left_out = [run for run in runs if run.problem]
    write_error("".join(f"gptask: not shown: {run.folder}: {run.problem}\n" for run in left_out))
    return 2 if any(run.named for run in left_out) else 0


def _parser() -> VerbParser:
    parser = VerbParser(
        "report",
        description="Write one HTML page on a run, or on several side by side (each against the first by folder name). "
        "The page is one file: metrics with intervals, learning curves, calibration, slices, examples, flips, "
        "how to reproduce.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of run folders, or glob pattern")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the run, or above all the runs")
    parser.add_argument("--task", help="only the runs of this task")
    parser.add_argument("--latest", type=int, metavar="N", help="only the last N runs of each task")
    return parser


def _page_path(output: str | None, folders: Sequence[Path]) -> Path:
    """The file to write: in the run's folder or the one above all runs, never in the root of the file system."""
    if output:
        path = user_path(output)
        return path / "report.html" if path.is_dir() else path
    above = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    if above == Path(above.anchor):
        return Path("report.html")
    here = Path.cwd()
    return (above.relative_to(here) if above.is_relative_to(here) else above) / "report.html"
