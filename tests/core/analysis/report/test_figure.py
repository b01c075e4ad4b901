"""SVG that fits into a page."""

import xml.etree.ElementTree as ET

from gptask.analysis.report.figure import INK, STYLE, colour, figure


def drawn(key="k", label="中文 $x$ <script>&", title="a <b> & c"):
    def draw(canvas):
        axes = canvas.add_subplot()
        axes.plot([1, 2, 3], [3, 1, 2], color=colour(1), marker="o", label=label)
        axes.set_title(label)
        axes.legend()

    return str(figure(key, title, "it falls", draw))


def test_text_stays_text_and_is_escaped():
    found = ET.fromstring(drawn())
    assert "中文 $x$ <script>&" in [text.text for text in found.iter("text")]
    assert found.find("title").text == "a <b> & c"
    assert found.find("desc").text == "it falls"
    assert not list(found.iter("style"))


def test_colours_follow_the_page():
    svg = drawn()
    assert "stroke: var(--c1)" in svg
    assert "fill: var(--ink)" in svg
    assert "#0101" not in svg
    assert "DejaVu" not in svg


def test_every_colour_of_the_style_is_known():
    assert {value for name, value in STYLE.items() if "color" in name} <= {INK, "#010102", "#010103"}


def test_ids_of_two_figures_are_apart():
    def ids(svg):
        return {element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")}

    assert ids(drawn("a"))
    assert not ids(drawn("a")) & ids(drawn("b"))


def test_pyplot_keeps_no_state(monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn()
    assert dict(matplotlib.rcParams) == before
