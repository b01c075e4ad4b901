"""`gptask compare`: runs side by side, with paired tests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gptask.cli.arguments import Parser
from gptask.errors import UserError

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
    made.add_argument("--leaderboard", action="store_true", help="write leaderboard.md and .html into the first folder")
    made.add_argument("--fail-if-worse", action="store_true", help="BASE CANDIDATE: exit 1 on a significant loss")
    made.add_argument("--margin", type=float, default=0.0, help="... beyond this much of the metric (default 0)")
    return made


def compare(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit code."""
    options = parser().parse_args(list(arguments))
    from gptask.compare import comparison, formats, leaderboard
    from gptask.compare.records import find

    if options.margin < 0 or (options.margin and not options.fail_if_worse):
        raise UserError(f"--margin {options.margin:g} must be 0 or more, and goes with --fail-if-worse")
    if options.fail_if_worse:
        return _gate(options)
    records = find(options.runs, options.task, options.latest)
    if options.leaderboard:
        for path in leaderboard.write(records, Path(options.runs[0])):
            sys.stdout.write(f"{path}\n")
        return 0
    every = len(records) == 2 or options.format in ("json", "csv")
    found = comparison.compare(records, options.baseline, options.metric, every, options.force)
    if options.format == "table":
        formats.show(found)
    else:
        sys.stdout.write(formats.TEXTS[options.format](found))
    return 0


def _gate(options: argparse.Namespace) -> int:
    """Compare a candidate with a base: 1 if it is worse by more than the margin, beyond chance."""
    from gptask.compare.comparison import compare
    from gptask.compare.records import read

    if len(options.runs) != 2:
        raise UserError(f"--fail-if-worse takes two runs, BASE and CANDIDATE; got {len(options.runs)}")
    base, candidate = (read(Path(folder)) for folder in options.runs)
    for record in (base, candidate):
        if record.problem:
            raise UserError(f"{record.folder} can't be compared: {record.problem}")
    if base.task != candidate.task:
        raise UserError(f"{base.folder} is of task '{base.task}', {candidate.folder} of '{candidate.task}'")
    if base.folder.resolve() == candidate.folder.resolve():
        raise UserError(f"BASE and CANDIDATE are the same run, {base.folder}")
    (table,) = compare([base, candidate], base.folder, options.metric, grouped=False).tables
    ((_, verdict),) = table.verdicts[table.main].items()
    worst = verdict.difference.high if verdict.higher_is_better else -verdict.difference.low
    failed = verdict.word == "worse" and worst < -options.margin
    beyond = f" beyond the margin {options.margin:g}" if options.margin else ""
    said = "failed: a" if failed else "passed: no"
    sys.stdout.write(f"{table.main}: {verdict.words}\n{said} significant loss{beyond}\n")
    return int(failed)
