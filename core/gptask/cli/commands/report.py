"""`gptask report`: one HTML page on finished runs, and their labels that are likely wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gptask.analysis.compare import records
from gptask.analysis.report.label_issues import find_label_issues
from gptask.analysis.report.page import report_page
from gptask.analysis.report.report_run import report_runs
from gptask.cli.arguments import VerbParser
from gptask.cli.output import write_error, write_out
from gptask.errors import UserError, real_path, user_path
from gptask.runs.atomic_write import json_text, write_text

MAX_RUNS = 12  # columns of a page


def main(arguments: Sequence[str]) -> int:
    """Write the page, and the labels that are likely wrong, and print the paths; return the exit code."""
    options = _parser().parse_args(arguments)
    runs = records.find_runs(options.runs, options.task, options.latest)
    if len(runs) > MAX_RUNS:
        raise UserError(f"{len(runs)} runs are too many for one page, {MAX_RUNS} at most: name some, or use --latest 2")
    path = _page_path(options.output, [run.folder for run in runs])
    labels_path = _named_file(options.labels, "label_issues.jsonl") if options.labels else None
    _refuse_files_of_runs([file for file in (path, labels_path) if file], runs)
    shown = [run.record for run in report_runs(runs)[0]] if labels_path else []
    issues = find_label_issues(shown) if shown else None
    html = report_page(runs, path.parent, issues)
    if labels_path and issues:
        _write(labels_path, "".join(map(_json_line, issues.lines())), "--labels")
    _write(path, html, "--output")
    write_out(f"{path}\n" + (f"{labels_path}\n" if issues else ""))
    if issues:
        write_error(f"gptask: {issues.summary}\n")
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
    parser.add_argument(
        "--labels", metavar="FILE",
        help="find labels that are likely wrong among the rows that the runs predict and have not learned, and write "
        "them as JSON Lines (tasks of one label an example; pip install 'gptask[labels]')",
    )  # fmt: skip
    parser.add_argument("--task", help="only the runs of this task")
    parser.add_argument("--latest", type=int, metavar="N", help="only the last N runs of each task")
    return parser


def _page_path(output: str | None, folders: Sequence[Path]) -> Path:
    """The file to write: in the run's folder or the one above all runs, never in the root of the file system."""
    if output:
        return _named_file(output, "report.html")
    above = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    if above == Path(above.anchor):
        return Path("report.html")
    here = Path.cwd()
    return (above.relative_to(here) if above.is_relative_to(here) else above) / "report.html"


def _named_file(name: str, default: str) -> Path:
    """The file that the user names, or the ``default`` one in a folder."""
    path = user_path(name)
    return path / default if path.is_dir() else path


def _refuse_files_of_runs(paths: Sequence[Path], runs: Sequence[records.RunRecord]) -> None:
    """Raise `UserError` for a file to write that is a run's own, or is to be written twice."""
    own = {real_path(run.folder / name): run for run in runs for name in (*records.MARKS, *_listed_files(run))}
    for path in paths:
        if run := own.get(real_path(path)):
            raise UserError(f"{path} is a file of the run {run.folder}, which it would damage; choose another name")
    if len({real_path(path) for path in paths}) < len(paths):
        raise UserError(f"--output and --labels are the same file, {paths[0]}; choose another name for one")


def _listed_files(run: records.RunRecord) -> Iterable[str]:
    return run.manifest.files if run.manifest else ()


def _json_line(values: dict[str, Any]) -> str:
    """A line of JSON, in ASCII where a text from a data file is not Unicode (half a surrogate pair)."""
    line = json_text(values)
    return (line if _encodable(line) == line else json.dumps(values)) + "\n"


def _encodable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair from a data file."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _write(path: Path, text: str, option: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}; choose another place: {option} FILE") from error
