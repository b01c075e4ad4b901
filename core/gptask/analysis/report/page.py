"""The report page: one template renders all sections into one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptask.analysis.compare.records import WAY_OUT, RunRecord
from gptask.analysis.explain.page_of_run import page_of_run
from gptask.analysis.html_page import rendered
from gptask.analysis.report import calibration, classes, facts, measures, plots, settings, slices
from gptask.analysis.report.curves import Curve, learning_curves
from gptask.analysis.report.disagreements import find_flips, groups_on_same_examples
from gptask.analysis.report.example_cards import passage
from gptask.analysis.report.example_lists import example_lists, flip_lists
from gptask.analysis.report.label_issues import LabelIssues
from gptask.analysis.report.report_run import ReportRun, input_fields, report_runs
from gptask.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
MAX_LABEL_ISSUES = 50  # rows of the table of labels that are likely wrong
MAX_LABEL_PAIRS = 12
REPORT_STYLE = TEMPLATES / "page.css"


def report_page(records: Sequence[RunRecord], folder: Path = Path(), label_issues: LabelIssues | None = None) -> str:
    """The HTML of a report that compares runs with the first one; it will lie in ``folder``, where its links begin.

    ``label_issues`` add a section on their labels.

    Raises `UserError` if none of them can be shown.
    """
    runs, damaged = report_runs(records)
    if not runs:
        raise UserError(_damage_message(damaged))
    return rendered(
        TEMPLATES / "page.html",
        style=REPORT_STYLE.read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        several=len(runs) > 1,
        runs=runs,
        damaged=damaged,
        way_out=WAY_OUT,
        explained=_explain_pages(runs, folder),
        **_overview(runs),
        **_learning_curves(runs),
        **_sections(runs),
        **_labels(runs, label_issues),
    )


def _damage_message(damaged: Sequence[RunRecord]) -> str:
    """Why there is nothing to report, with the way out of damage; other problems name their own."""
    problems = [f"{record.folder}: {record.problem}" for record in damaged]
    message = problems[0] if len(problems) == 1 else f"none of {len(problems)} runs can be shown; {problems[0]}"
    return f"{message}. {WAY_OUT}" if damaged[0].damaged else message


def _explain_pages(runs: Sequence[ReportRun], folder: Path) -> list[tuple[ReportRun, str, str]]:
    """Each run that `gptask explain` wrote a page for, with the relative URL, and with what is wrong with the page."""
    pages = []
    for run in runs:
        path, problem = page_of_run(run.record.folder)
        if path is not None:
            pages.append((run, quote(Path(os.path.relpath(path, folder)).as_posix()), problem))
    return pages


def _overview(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """The template's variables for metrics, facts, configuration and commands."""

    def task_of(run: ReportRun) -> str:
        return run.record.task

    runs_by_task = [(task, list(group)) for task, group in groupby(sorted(runs, key=task_of), key=task_of)]
    return {
        "facts": facts.run_facts(runs),
        "code_facts": facts.code_facts(runs),
        "tasks": [(task, task_runs, measures.metric_rows(task_runs)) for task, task_runs in runs_by_task],
        "baselines": measures.baseline_rows(runs),
        "verdicts": list(measures.verdict_rows(groups_on_same_examples(runs))),
        "hashes": {str(run.record.result.get("test_data_hash")) for run in runs},
        "differences": settings.config_differences(runs),
        "commands": [(run, settings.reproduce(run)) for run in runs],
        "config": settings.config_text(runs[0]),
    }


def _learning_curves(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """The template's variables for learning curves; a note says why a run has none."""
    curves_by_run: list[dict[str, Curve]] = []
    notes = []
    for run in runs:
        run_curves: dict[str, Curve] = {}
        try:
            run_curves = learning_curves(*run.record.curves_source)
            if not run_curves:
                notes.append((run, "the run has no metrics.csv with values (it is an evaluation, or logs elsewhere)"))
        except UserError as error:
            notes.append((run, str(error)))
        curves_by_run.append(run_curves)
    return {"learning": plots.learning_plots(runs, curves_by_run), "curve_notes": notes}


def _sections(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """The template's variables for classes, calibration, slices, examples and flips."""
    bins = [(run, calibration.confidence_bins(run)) for run in runs]
    return {
        "classes": [table for run in runs if (table := classes.class_report(run))],
        "reliability": [
            (run, run_bins, plots.reliability_diagram(run, run_bins))
            for run, run_bins in bins
            if not isinstance(run_bins, str)
        ],
        "without_reliability": [(run, reason) for run, reason in bins if isinstance(reason, str)],
        "slices": list(slices.slice_tables(groups_on_same_examples(runs))),
        "bar": measures.bar,
        "unavailable": [(run, run.unavailable_reason) for run in runs if run.unavailable_reason],
        "lists": list(example_lists(runs)),
        "flips": flip_lists(find_flips(runs[0], other) for other in runs[1:]),
    }


def _labels(runs: Sequence[ReportRun], issues: LabelIssues | None) -> dict[str, Any]:
    """The template's variables for labels that are likely wrong."""
    run_of = {run.record.folder: run for run in runs}
    shown = issues.issues[:MAX_LABEL_ISSUES] if issues else []
    texts = [[(name, passage(value)) for name, value in input_fields(issue.row).items()] for issue in shown]
    return {
        "label_issues": issues,
        "max_label_pairs": MAX_LABEL_PAIRS,
        "shown_label_issues": [
            (issue, run_of[issue.record.folder], fields) for issue, fields in zip(shown, texts, strict=True)
        ],
    }
