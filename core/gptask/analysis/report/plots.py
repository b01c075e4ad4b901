"""The plots of the page: learning curves of all runs, and how far each run's confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from gptask.analysis.report.calibration import Bin
from gptask.analysis.report.curves import Curve
from gptask.analysis.report.figure import INK, MUTED, colour, figure, plain
from gptask.analysis.report.report_run import ReportRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("train/loss", "val/loss")
MARKS, DASHES = "os^Dvx", ("-", "--", "-.", ":")
METRICS = 5  # validation metrics drawn at most


def learning(entries: Sequence[ReportRun], logged: Sequence[dict[str, Curve]]) -> list[Markup]:
    """Losses in one plot, then a plot for each validation metric, the main one first; runs overlaid."""
    names = list(dict.fromkeys(f"val/{name}" for entry in entries for name in entry.record.metrics))
    other = sorted({name for curves in logged for name in curves} - {*names, *LOSSES})
    plots = [("loss", list(LOSSES))] + [(name, [name]) for name in [*names, *other][:METRICS]]
    shown = [(title, some) for title, some in plots if any(name in curves for curves in logged for name in some)]
    return [_learning(f"curve{k}", title, some, entries, logged) for k, (title, some) in enumerate(shown)]


def _learning(
    key: str, title: str, names: Sequence[str], entries: Sequence[ReportRun], logged: Sequence[dict[str, Curve]]
) -> Markup:
    lines: dict[str, tuple[int, str, Curve]] = {}  # label -> colour, name, points
    for entry, curves in zip(entries, logged, strict=True):
        for place, name in enumerate(names):
            if name in curves:
                label = _label(entry.tag if len(entries) > 1 else "", name if len(names) > 1 else "") or name
                lines[label] = (entry.number if len(entries) > 1 else place, name, curves[name])

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, (number, name, curve) in lines.items():
            _line(axes, curve, number, name, label)
        axes.set_title(title)
        axes.set_xlabel("step")
        plain(axes)
        if len(lines) > 1:
            axes.legend()

    said = "; ".join(f"{label} from {y[0]:.4g} to {y[-1]:.4g}" for label, (_, _, (_, y)) in lines.items())
    return figure(key, f"{title} by training step", said, draw)


def _label(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _line(axes: Axes, curve: Curve, number: int, name: str, label: str) -> None:
    """Training is a thin line; a validation has a mark for each time."""
    dash = DASHES[number // 6 % len(DASHES)] if name != "train/loss" else "-"
    mark = MARKS[number % len(MARKS)] if name != "train/loss" or len(curve[0]) == 1 else ""
    width = 1.0 if name == "train/loss" else 1.6
    axes.plot(*curve, color=colour(number), label=label, marker=mark, linestyle=dash, linewidth=width)


def reliability(entry: ReportRun, bins: Sequence[Bin]) -> Markup:
    """Share of right answers by confidence, above the number of predictions in each bin."""

    def draw(canvas: Figure) -> None:
        top, below = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
        middle = np.asarray([b.confidence for b in bins])
        share = np.asarray([b.share for b in bins])
        spread = np.asarray([[b.share - b.low for b in bins], [b.high - b.share for b in bins]])
        top.errorbar(middle, share, np.maximum(spread, 0), color=colour(entry.number), marker="o", capsize=2)
        top.set_ylim(-0.03, 1.03)
        top.set_ylabel("share right")
        top.set_title("above the dotted line: better than it believes", fontsize=8.5, color=MUTED)
        _counts(below, entry.number, bins)

    said = "; ".join(f"confidence {b.confidence:.2f}: {b.share:.0%} of {b.n} right" for b in bins)
    return figure(f"calibration{entry.number}", f"Reliability of run {entry.name}", said, draw)


def _counts(axes: Axes, number: int, bins: Sequence[Bin]) -> None:
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
