"""`gptask compare`: runs side by side, with paired tests."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptask.cli.arguments import Parser
from gptask.errors import UserError, listing

if TYPE_CHECKING:
    from gptask.analysis.compare.records import RunRecord

ABOUT = "Runs side by side: metrics with intervals, and paired tests on the same test examples."
EPILOG = """examples:
  gptask compare outputs                                    every run below a folder, task by task
  gptask compare outputs/sentiment/a outputs/sentiment/b    two runs, every metric tested
  gptask compare 'outputs/qa/*' --baseline outputs/qa/first --format markdown
  gptask compare BASE CANDIDATE --fail-if-worse --margin 0.5   for CI: exit code 1 on a significant loss
  gptask compare outputs --leaderboard                      writes outputs/leaderboard.md and .html
"""


def parser() -> Parser:
    """The arguments of `gptask compare`."""
    made = Parser("compare", description=ABOUT, epilog=EPILOG)
    made.add_argument("runs", nargs="+", help="run folders, folders that hold some, or glob patterns")
    made.add_argument("--task", help="only runs of this task")
    made.add_argument("--latest", type=int, metavar="N", help="only the last N runs of each task")
    made.add_argument("--baseline", type=Path, metavar="RUN", help="what others are tested against (default: the best)")
    made.add_argument("--metric", help="the metric that ranks and is tested (default: each task's main one)")
    made.add_argument("--format", choices=("table", "markdown", "csv", "json", "html"), default="table")
    made.add_argument("--force", action="store_true", help="show runs that can't be ranked together, apart")
    made.add_argument("--leaderboard", action="store_true", help="write leaderboard.md and .html above the runs")
    made.add_argument("--fail-if-worse", action="store_true", help="BASE CANDIDATE: exit 1 on a significant loss")
    made.add_argument("--margin", type=float, default=0.0, help="... beyond this much of the metric (default 0)")
    return made


def compare(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit code."""
    options = parser().parse_args(list(arguments))
    _refuse(options)
    from gptask.analysis.compare import comparison
    from gptask.analysis.compare import render as formats
    from gptask.analysis.compare.records import find

    if options.fail_if_worse:
        return _gate(options)
    records = find(options.runs, options.task, options.latest)
    if options.leaderboard:
        return _leaderboard(options, records)
    every = sum(not record.problem for record in records) == 2 or options.format in ("json", "csv")
    found = comparison.compare(records, options.baseline, options.metric, every, options.force)
    if options.format == "table":
        from gptask.analysis.compare import terminal

        terminal.show(found)
    else:
        sys.stdout.write(formats.TEXTS[options.format](found))
    if options.format == "csv":  # has no place for them
        notes = [table.note for table in found.tables if table.note]
        sys.stderr.writelines(f"gptask: {line}\n" for line in notes + formats.problems(found.problems))
    return 0


def _refuse(options: argparse.Namespace) -> None:
    """Raise `UserError` for options that would be passed over."""
    if not 0 <= options.margin < math.inf or (options.margin and not options.fail_if_worse):
        raise UserError(f"--margin {options.margin:g} must be 0 or more, and goes with --fail-if-worse")
    of_tables = {"--baseline": options.baseline, "--force": options.force, "--format": options.format != "table"}
    others = {"--leaderboard": options.leaderboard, "--task": options.task, "--latest": options.latest is not None}
    for verb, refused in (("leaderboard", of_tables), ("fail_if_worse", of_tables | others)):
        given = [name for name, value in refused.items() if value]
        if getattr(options, verb) and given:
            raise UserError(f"--{verb.replace('_', '-')} takes no {listing(given)}")


def _leaderboard(options: argparse.Namespace, records: Sequence[RunRecord]) -> int:
    """Write it into the first folder that is given to hold runs, else into the one above all runs."""
    from gptask.analysis.compare import leaderboard
    from gptask.analysis.compare import render as formats

    folders = {record.folder.resolve() for record in records}
    given = [Path(place).expanduser() for place in options.runs]
    above = Path(os.path.commonpath([record.folder.absolute().parent for record in records]))
    place = next((path for path in given if path.is_dir() and path.resolve() not in folders), above)
    paths, problems = leaderboard.write(records, place, options.metric)
    sys.stdout.writelines(f"{path}\n" for path in paths)
    sys.stderr.writelines(f"gptask: {line}\n" for line in formats.problems(problems))
    return 0


def _gate(options: argparse.Namespace) -> int:
    """Compare a candidate with a base: 1 if it is worse by more than the margin, beyond chance."""
    from gptask.analysis.compare.comparison import compare
    from gptask.analysis.compare.records import find

    places = [find([place]) for place in options.runs]
    if len(places) != 2 or any(len(found) > 1 for found in places):
        told = listing(f"{place} ({len(found)})" for place, found in zip(options.runs, places, strict=True))
        raise UserError(f"--fail-if-worse takes two runs, BASE and CANDIDATE; got {told}")
    (base,), (candidate,) = places
    for record in (base, candidate):
        if record.problem:
            raise UserError(f"{record.folder} can't be compared: {record.problem}")
    if base.task != candidate.task:
        raise UserError(f"{base.folder} is of task '{base.task}', {candidate.folder} of '{candidate.task}'")
    if base.folder.resolve() == candidate.folder.resolve():
        raise UserError(f"BASE and CANDIDATE are the same run, {base.folder}")
    found = compare([base, candidate], base.folder, options.metric, grouped=False)
    for record in found.problems:  # only now read
        raise UserError(f"{record.folder} can't be compared: {record.problem}")
    (table,) = found.tables
    if not (verdicts := table.verdicts.get(table.main)):
        raise UserError(f"{table.main} can't be tested: {table.note or 'it has no direction'}")
    (verdict,) = verdicts.values()
    if verdict.word == "none":
        raise UserError(f"{table.main} is not a number in one of the runs")
    worst = verdict.difference.high if verdict.higher_is_better else -verdict.difference.low
    failed = verdict.word == "worse" and worst < -options.margin
    beyond = f" beyond the margin {options.margin:g}" if options.margin else ""
    said = "failed: a" if failed else "passed: no"
    sys.stdout.write(f"{table.main}: {verdict.words}\n{said} significant loss{beyond}\n")
    return int(failed)
