"""The page: everything a report says, rendered by one template into one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gptask.analysis.compare.records import RunRecord
from gptask.analysis.report import calibration, classes, facts, measures, plots, settings, slices
from gptask.analysis.report import disagreements as flips
from gptask.analysis.report import example_lists as examples
from gptask.analysis.report.curves import Curve, curves
from gptask.analysis.report.report_run import ReportRun, entries
from gptask.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


def page(records: Sequence[RunRecord]) -> str:
    """The HTML of a report on runs, the first of which the others are compared with.

    Raises `UserError` where none of them can be shown.
    """
    good, bad = entries(records)
    if not good:
        raise UserError(_damage(bad))
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            several=len(good) > 1,
            entries=good,
            damaged=bad,
            version=version("gptask"),
            script=Markup(script),
            script_hash=digest,
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            **_overview(good),
            **_curves(good),
            **_parts(good),
        )
    )


def _damage(bad: Sequence[RunRecord]) -> str:
    """One line that says why there is nothing to report."""
    said = [f"{record.folder}: {record.problem}" for record in bad]
    return said[0] if len(said) == 1 else f"none of {len(said)} runs can be shown; {said[0]}"


def _overview(good: Sequence[ReportRun]) -> dict[str, Any]:
    tasks = groupby(sorted(good, key=lambda entry: entry.record.task), key=lambda entry: entry.record.task)
    return {
        "facts": facts.facts(good),
        "origin": facts.origin(good),
        "tasks": [(task, some, measures.metrics(some)) for task, some in ((t, list(e)) for t, e in tasks)],
        "verdicts": list(measures.verdicts(flips.groups(good))),
        "hashes": {str(entry.record.result.get("test_data_hash")) for entry in good},
        "differences": settings.differences(good),
        "commands": [(entry, settings.reproduce(entry)) for entry in good],
        "config": settings.text(good[0]),
    }


def _curves(good: Sequence[ReportRun]) -> dict[str, Any]:
    logged: list[dict[str, Curve]] = []
    notes = []
    for entry in good:
        try:
            found = curves(*entry.record.curves)
            if not found:
                notes.append((entry, "it logged none (an evaluation, or another logger)"))
        except UserError as error:
            found = {}
            notes.append((entry, str(error)))
        logged.append(found)
    return {"learning": plots.learning(good, logged), "curve_notes": notes}


def _parts(good: Sequence[ReportRun]) -> dict[str, Any]:
    bins = [(entry, calibration.bins(entry)) for entry in good]
    return {
        "classes": [found for entry in good if (found := classes.classes(entry))],
        "reliability": [
            (entry, some, plots.reliability(entry, some)) for entry, some in bins if not isinstance(some, str)
        ],
        "unreliable": [(entry, why) for entry, why in bins if isinstance(why, str)],
        "slices": list(slices.tables(flips.groups(good))),
        "bar": measures.bar,
        "lacking": [(entry, entry.lacking) for entry in good if entry.lacking],
        "lists": list(examples.listings(good)),
        "flips": examples.flipped(flips.flips(good[0], other) for other in good[1:]),
    }


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for none, and for what is not a number."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"
