"""The plots of the page: learning curves of all runs, and a reliability diagram of each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from gptask.analysis.report.calibration import Bin
from gptask.analysis.report.curves import Curve
from gptask.analysis.report.figure import COLOUR_COUNT, INK, MUTED, colour, integer_steps, svg_figure
from gptask.analysis.report.report_run import ReportRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("train/loss", "val/loss")
MARKERS, LINE_STYLES = "os^Dvx", ("-", "--", "-.", ":")
MAX_METRICS = 5  # validation metrics drawn


def learning_plots(runs: Sequence[ReportRun], curves_by_run: Sequence[dict[str, Curve]]) -> list[Markup]:
    """One plot of the losses, then one for each validation metric, the main one first; the runs share each plot."""
    names = list(dict.fromkeys(f"val/{name}" for run in runs for name in run.record.metrics))
    other = sorted({name for curves in curves_by_run for name in curves} - {*names, *LOSSES})
    candidates = [("loss", list(LOSSES))] + [(name, [name]) for name in [*names, *other][:MAX_METRICS]]
    plots = [
        (title, curve_names)
        for title, curve_names in candidates
        if any(name in curves for curves in curves_by_run for name in curve_names)
    ]
    return [
        _learning_plot(f"curve{k}", title, curve_names, runs, curves_by_run)
        for k, (title, curve_names) in enumerate(plots)
    ]


def _learning_plot(
    key: str, title: str, names: Sequence[str], runs: Sequence[ReportRun], curves_by_run: Sequence[dict[str, Curve]]
) -> Markup:
    lines: dict[str, tuple[int, str, Curve]] = {}  # label -> colour, name, points
    for run, curves in zip(runs, curves_by_run, strict=True):
        for position, name in enumerate(names):
            if name in curves:
                parts = [run.letter if len(runs) > 1 else "", name if len(names) > 1 else ""]
                label = " ".join(filter(None, parts)) or name
                lines[label] = (run.number if len(runs) > 1 else position, name, curves[name])

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, (number, name, curve) in lines.items():
            _draw_curve(axes, curve, number, name, label)
        axes.set_title(title)
        axes.set_xlabel("step")
        integer_steps(axes)
        if len(lines) > 1:
            axes.legend()

    description = "; ".join(f"{label} from {y[0]:.4g} to {y[-1]:.4g}" for label, (_, _, (_, y)) in lines.items())
    return svg_figure(key, f"{title} by training step", description, draw)


def _draw_curve(axes: Axes, curve: Curve, number: int, name: str, label: str) -> None:
    """Training is a thin line; a curve of validations has a marker at each of them."""
    training = name == "train/loss"
    line_style = "-" if training else LINE_STYLES[number // COLOUR_COUNT % len(LINE_STYLES)]
    marker = MARKERS[number % len(MARKERS)] if not training or len(curve[0]) == 1 else ""
    width = 1.0 if training else 1.6
    axes.plot(*curve, color=colour(number), label=label, marker=marker, linestyle=line_style, linewidth=width)


def reliability_diagram(run: ReportRun, bins: Sequence[Bin]) -> Markup:
    """The share of right predictions by confidence, above the number of predictions in each bin."""

    def draw(canvas: Figure) -> None:
        share_axes, count_axes = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        share_axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
        confidence = np.asarray([b.confidence for b in bins])
        share = np.asarray([b.share for b in bins])
        errors = np.asarray([[b.share - b.low for b in bins], [b.high - b.share for b in bins]])
        errors = np.maximum(errors, 0)
        share_axes.errorbar(confidence, share, errors, color=colour(run.number), marker="o", capsize=2)
        share_axes.set_ylim(-0.03, 1.03)
        share_axes.set_ylabel("share right")
        share_axes.set_title("above the dotted line: underconfident", fontsize=8.5, color=MUTED)
        _draw_counts(count_axes, run.number, bins)

    description = "; ".join(f"confidence {b.confidence:.2f}: {b.share:.0%} of {b.n} right" for b in bins)
    return svg_figure(f"calibration{run.number}", f"Reliability of run {run.name}", description, draw)


def _draw_counts(axes: Axes, number: int, bins: Sequence[Bin]) -> None:
    centres = [(b.start + b.end) / 2 for b in bins]
    axes.bar(centres, [b.n for b in bins], width=0.085, color=colour(number), alpha=0.35)
    for centre, b in zip(centres, bins, strict=True):
        axes.text(centre, b.n, f"{b.n:,}", ha="center", va="bottom", fontsize=7.5, color=INK)
    axes.margins(y=0.45)
    axes.set_yticks([])
    axes.grid(False)
    axes.set_xlim(0, 1)
    axes.set_ylabel("count")
    axes.set_xlabel("confidence")
