"""Figures as SVG within the page."""

import xml.etree.ElementTree as ET

from gptask.analysis.report.figure import FIGURE_STYLE, INK, colour, svg_figure


def svg_text(key="k", label="中文 $x$ <script>&", title="a <b> & c"):
    def draw(canvas):
        axes = canvas.add_subplot()
        axes.plot([1, 2, 3], [3, 1, 2], color=colour(1), marker="o", label=label)
        axes.set_title(label)
        axes.legend()

    return str(svg_figure(key, title, "it falls", draw))


def test_text_stays_text_and_is_escaped():
    svg = ET.fromstring(svg_text())
    assert "中文 $x$ <script>&" in [text.text for text in svg.iter("text")]
    assert svg.find("title").text == "a <b> & c"
    assert svg.find("desc").text == "it falls"
    assert not list(svg.iter("style"))


def test_colours_follow_the_page():
    svg = svg_text()
    assert "stroke: var(--c1)" in svg
    assert "fill: var(--ink)" in svg
    assert "#0101" not in svg
    assert "DejaVu" not in svg


def test_the_style_uses_only_placeholder_colours():
    assert {value for name, value in FIGURE_STYLE.items() if "color" in name} <= {INK, "#010102", "#010103"}


def test_two_figures_share_no_ids():
    def ids(svg):
        return {element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")}

    assert ids(svg_text("a"))
    assert not ids(svg_text("a")) & ids(svg_text("b"))


def test_drawing_leaves_the_settings_of_matplotlib_alone(monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg_text()
    assert dict(matplotlib.rcParams) == before
