"""Matplotlib figures as inline SVG: the text has the page's font, the colours follow its light or dark scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 2.9)  # inches; about the width of a phone, so that text keeps its size there
MARGINS = {
    "left": 0.11,
    "right": 0.985,
    "bottom": 0.155,
    "top": 0.9,
    "hspace": 0.1,
}  # a computed layout takes twice as long
COLOUR_COUNT = 6  # the seventh run has the first colour again, with another marker
INK, MUTED, GRID = "#010101", "#010102", "#010103"  # placeholders for the colours of the page's style sheet
COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
COLOURS |= {f"#0101a{k}": f"var(--c{k})" for k in range(COLOUR_COUNT)}
FIGURE_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gptask",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


def colour(number: int) -> str:
    """The placeholder of a run's colour."""
    return f"#0101a{number % COLOUR_COUNT}"


def svg_figure(key: str, title: str, description: str, draw: Callable[[Figure], None]) -> Markup:
    """Draw on a new figure and return its SVG; ``key`` makes its ids unique within the page."""
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(FIGURE_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has fonts for them
        canvas = Figure(figsize=SIZE)
        canvas.subplots_adjust(**MARGINS)
        draw(canvas)
        canvas.savefig(stream, format="svg", transparent=True)
    return _inline_svg(stream.getvalue(), key, title, description)


def integer_steps(axes: Axes) -> None:
    """Label the x axis with whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _inline_svg(svg: str, key: str, title: str, description: str) -> Markup:
    """The text of an SVG file as an element of the page; matplotlib has escaped all text in it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    referenced_ids = set(re.findall(r'(?:url\(|xlink:href=")#([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{key}-{match[1]}"' if match[1] in referenced_ids else "", svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", svg)
    svg = re.sub(r"(fill|stroke): (#0101\w\w)\b", lambda match: f"{match[1]}: {COLOURS.get(match[2], match[2])}", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg role="img" viewBox="{view_box[1] if view_box else ""}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    labels = f' aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
    labels += f'<desc id="{key}-desc">{escape(description)}</desc>'
    return Markup(head + labels + re.sub(r"\s*\n\s*", " ", svg[svg.index(">") + 1 :]))
