"""`gptask compare`: runs side by side, with paired tests."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from gptask.analysis.compare import leaderboard, terminal
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import RunRecord, find_runs
from gptask.analysis.compare.render import TEXTS, problems
from gptask.cli.arguments import VerbParser
from gptask.cli.output import write_error, write_out
from gptask.errors import UserError, listing, real_path, user_path

DESCRIPTION = "Runs side by side: metrics with intervals, and paired tests on the same test examples."
EPILOG = """examples:
  gptask compare outputs                                    every run below a folder, task by task
  gptask compare outputs/sentiment/a outputs/sentiment/b    two runs, every metric tested
  gptask compare 'outputs/qa/*' --baseline outputs/qa/first --format markdown
  gptask compare BASE CANDIDATE --fail-if-worse --margin 0.5   for CI: exit code 1 on a significant loss
  gptask compare outputs --leaderboard                      writes outputs/leaderboard.md and .html
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    options = _parser().parse_args(list(arguments))
    _refuse_unused_options(options)
    if options.fail_if_worse:
        return _fail_if_worse(options)
    records = find_runs(options.runs, options.task, options.latest)
    if options.leaderboard:
        return _write_leaderboard(options, records)
    two_runs = sum(not record.problem for record in records) == 2
    every_metric = two_runs or options.format in ("json", "csv")
    comparison = compare(records, options.baseline, options.metric, every_metric, options.force)
    if options.format == "table":
        terminal.show(comparison)
    else:
        write_out(TEXTS[options.format](comparison))
    if options.format == "csv":  # its rows have no place for notes
        notes = [table.note for table in comparison.tables if table.note]
        write_error("".join(f"gptask: {line}\n" for line in notes + problems(comparison.problems)))
    return _exit_code(records)


def _exit_code(records: Sequence[RunRecord]) -> int:
    """2 if a run that the user named is not compared, else 0; those below a folder that was named are only listed."""
    left_out = [record.folder for record in records if record.problem and record.named]
    if left_out:
        write_error(f"gptask: named, but not compared: {listing(left_out)}\n")
    return 2 if left_out else 0


def _parser() -> VerbParser:
    parser = VerbParser("compare", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("runs", nargs="+", help="run folders, folders of run folders, or glob patterns")
    add("--task", help="only runs of this task")
    add("--latest", type=int, metavar="N", help="only the last N runs of each task")
    add("--baseline", type=Path, metavar="RUN", help="the run that others are tested against (default: the best)")
    add("--metric", help="the metric that ranks and is tested (default: each task's main one)")
    add("--format", choices=("table", "markdown", "csv", "json", "html"), default="table")
    add("--force", action="store_true", help="show runs that can't be ranked together in tables of their own")
    add("--leaderboard", action="store_true", help="write leaderboard.md and .html above the runs")
    add("--fail-if-worse", action="store_true", help="BASE CANDIDATE: exit 1 on a significant loss")
    add("--margin", type=float, default=0.0, help="... beyond this much of the metric (default 0)")
    return parser


def _refuse_unused_options(options: argparse.Namespace) -> None:
    """Raise `UserError` for options that would have no effect."""
    if not 0 <= options.margin < math.inf or (options.margin and not options.fail_if_worse):
        raise UserError(f"--margin {options.margin:g} must be 0 or more, and goes with --fail-if-worse")
    of_tables = {"--baseline": options.baseline, "--force": options.force, "--format": options.format != "table"}
    of_selection = {
        "--leaderboard": options.leaderboard,
        "--task": options.task,
        "--latest": options.latest is not None,
    }
    if options.leaderboard and (unused := [name for name, value in of_tables.items() if value]):
        raise UserError(f"--leaderboard takes no {listing(unused)}")
    if options.fail_if_worse and (unused := [name for name, value in (of_tables | of_selection).items() if value]):
        raise UserError(f"--fail-if-worse takes no {listing(unused)}")


def _write_leaderboard(options: argparse.Namespace, records: Sequence[RunRecord]) -> int:
    """Write it into the first argument that is a folder of runs, else into the folder above all runs."""
    run_folders = {real_path(record.folder) for record in records}
    arguments = [user_path(argument) for argument in options.runs]
    above = Path(os.path.commonpath([record.folder.absolute().parent for record in records]))
    folder = next((path for path in arguments if path.is_dir() and real_path(path) not in run_folders), above)
    paths, left_out = leaderboard.write(records, folder, options.metric)
    write_out("".join(f"{path}\n" for path in paths))
    write_error("".join(f"gptask: {line}\n" for line in problems(left_out)))
    return _exit_code(records)


def _fail_if_worse(options: argparse.Namespace) -> int:
    """Compare a candidate with a base: 1 if it is significantly worse by more than the margin."""
    base, candidate = _base_and_candidate(options.runs)
    comparison = compare([base, candidate], base.folder, options.metric, grouped=False)
    (table,) = comparison.tables
    if not (verdicts := table.verdicts.get(table.main)):
        raise UserError(f"{table.main} can't be tested: {table.note or 'it has no direction'}")
    (verdict,) = verdicts.values()
    if verdict.word == "none":
        raise UserError(f"{table.main} is not a number in one of the runs")
    worst = verdict.difference.high if verdict.higher_is_better else -verdict.difference.low
    failed = verdict.word == "worse" and worst < -options.margin
    beyond = f" beyond the margin {options.margin:g}" if options.margin else ""
    outcome = "failed: a" if failed else "passed: no"
    write_out(f"{table.main}: {verdict.sentence}\n{outcome} significant loss{beyond}\n")
    return int(failed)


def _base_and_candidate(arguments: Sequence[str]) -> tuple[RunRecord, RunRecord]:
    """The two runs of --fail-if-worse; raises `UserError` for runs that can't be compared."""
    records = [find_runs([argument]) for argument in arguments]
    if len(records) != 2 or any(len(runs) > 1 for runs in records):
        counts = listing(f"{argument} ({len(runs)})" for argument, runs in zip(arguments, records, strict=True))
        raise UserError(f"--fail-if-worse takes two runs, BASE and CANDIDATE; got {counts}")
    (base,), (candidate,) = records
    if problems_found := [f"{run.folder} can't be compared: {run.problem}" for run in (base, candidate) if run.problem]:
        raise UserError("\n".join(problems_found))
    if base.task != candidate.task:
        raise UserError(f"{base.folder} is of task '{base.task}', {candidate.folder} of '{candidate.task}'")
    if real_path(base.folder) == real_path(candidate.folder):
        raise UserError(f"BASE and CANDIDATE are the same run, {base.folder}")
    return base, candidate
