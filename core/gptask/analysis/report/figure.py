"""A matplotlib figure as SVG within a page: real text in the page's font, colours that follow light and dark."""

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

SIZE = (4.6, 2.9)  # inches, drawn about a phone's width, so that text keeps its size there
MARGINS = {"left": 0.11, "right": 0.985, "bottom": 0.155, "top": 0.9, "hspace": 0.1}  # laying out takes half the time
SERIES = 6  # colours; the seventh run has the first again, with other marks
INK, MUTED, GRID = "#010101", "#010102", "#010103"
COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
COLOURS |= {f"#0101a{k}": f"var(--c{k})" for k in range(SERIES)}
STYLE: dict[Any, Any] = {
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
    """The colour of a run, to be replaced by the page's variable."""
    return f"#0101a{number % SERIES}"


def figure(key: str, title: str, description: str, draw: Callable[[Figure], None]) -> Markup:
    """Draw on a new figure and return its SVG. ``key`` sets its ids apart from those of other figures of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the fonts
        canvas = Figure(figsize=SIZE)
        canvas.subplots_adjust(**MARGINS)
        draw(canvas)
        canvas.savefig(stream, format="svg", transparent=True)
    return _embedded(stream.getvalue(), key, title, description)


def plain(axes: Axes) -> None:
    """Steps and counts are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _embedded(svg: str, key: str, title: str, description: str) -> Markup:
    """An SVG file's text as an element of the page; matplotlib escapes what it was given as text."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:url\(|xlink:href=")#([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", svg)
    svg = re.sub(r"(fill|stroke): (#0101\w\w)\b", lambda found: f"{found[1]}: {COLOURS.get(*[found[2]] * 2)}", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg role="img" viewBox="{box[1] if box else ""}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    said = f' aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
    said += f'<desc id="{key}-desc">{escape(description)}</desc>'
    return Markup(head + said + re.sub(r"\s*\n\s*", " ", svg[svg.index(">") + 1 :]))
