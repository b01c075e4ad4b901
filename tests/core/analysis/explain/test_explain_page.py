"""The page of explanations in a real browser, read from a file as its reader reads it."""

import json
import re
from html.parser import HTMLParser

import pytest
from gptask.analysis.explain import explain_page as module
from gptask.analysis.explain.explain_page import explain_page
from gptask.analysis.explain.explanation import AttributionMap, Explanation
from gptask.runs.atomic_write import write_text

from tests.support.browser import LEAST_CONTRAST, UNNAMED, chromium
from tests.support.explanations import FAITHFUL, RANDOM, attended, classified, translated

HOSTILE = "</script><!--<script><img src=x onerror=\"document.title='broken'\"> &amp; <b>bold</b> \x07 \u2028 {{ 7*7 }}"
ARABIC = "هذا فيلم سيئ جدا yes really و لا أنصح به"
CHINESE = "这部电影很好看, 真的"
ASTRAL = "𝒂 👩‍🚀 bad one 𝒃"  # characters of two UTF-16 units before the words


def html_of(explanations, faithfulness=FAITHFUL, method="ig", **options):
    return explain_page(explanations, faithfulness, method=method, run="outputs/sst2", run_digest="ab12", **options)


@pytest.fixture(scope="module")
def shared_page():
    """One tab, as a new one costs a second."""
    with chromium() as browser:
        page = browser.new_context().new_page()
        page.set_default_timeout(10_000)
        yield page


@pytest.fixture
def opened(shared_page, tmp_path):
    """A function that opens the page of some explanations; it may show no error and load nothing."""
    faults, page = [], shared_page
    listeners = {
        "pageerror": lambda error: faults.append(str(error)),
        "console": lambda message: faults.append(message.text),
        "request": lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)

    def open_page(explanations, faithfulness=FAITHFUL, method="ig", width=1200, scheme="light", **options):
        file = tmp_path / "explain.html"
        html = explain_page(explanations, faithfulness, method=method, run="a/b", run_digest="ab12", **options)
        write_text(file, html)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(file.as_uri())
        return page

    yield open_page
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    assert faults == []


def words(page, card=0):
    return page.locator(".card").nth(card).locator(".explanation > div .word-group [data-word]")


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_data_can_not_end_its_element():
    html = html_of([classified(HOSTILE, id=HOSTILE)])
    texts, tag = {}, ""

    class Reader(HTMLParser):
        def handle_starttag(self, name, attributes):
            nonlocal tag
            tag = dict(attributes).get("id", name)
            assert name != "img"

        def handle_data(self, data):
            texts[tag] = texts.get(tag, "") + data

    Reader().feed(html)
    (line,) = texts["explanations"].strip().split("\n")
    assert Explanation.from_json(line).fields == {"text": HOSTILE}
    assert html.count("<script") == 2


def test_a_method_no_better_than_random_is_said_to_be_so():
    assert "No better than random" not in html_of([classified("a b c d")])
    for name in ("No better than random", RANDOM.sentence, "Attention is not a reason"):
        assert name in html_of([classified("a b c d")], RANDOM, "attention")
    assert "was not measured" in html_of([classified("a")], None)


def test_maps_of_heads_that_are_too_large_are_left_out_and_counted(monkeypatch):
    explanations = [attended("a b c d"), attended("one two three four five six"), attended("e f")]
    assert html_of(explanations, method="attention").count('id="attention-') == 3
    monkeypatch.setattr(module, "MAX_MAP_WORDS", 5)
    html = html_of(explanations, method="attention")
    assert re.findall('id="attention-([0-9])', html) == ["0", "2"]
    assert "The heads of 1 texts" in html
    monkeypatch.setattr(module, "MAX_ATTENTION_MB", 1e-6)
    assert re.findall('id="attention-([0-9])', html_of(explanations)) == ["0"]


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    file = tmp_path / "why.html"
    write_text(file, explain_page([classified("half \ud800 pair")], None, method="ig", run="a", run_digest=""))
    assert "half ? pair" in file.read_text(encoding="utf-8")


def test_scripts_name_only_each_other_and_read_no_html():
    for number, name in enumerate(module.SCRIPTS):
        code = (module.STATIC / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code)
        assert {*re.findall(r'from "\./(.+)"', code)} <= {*module.SCRIPTS[:number]}


# --- in a browser -------------------------------------------------------------------------------------------------


def test_words_are_coloured_by_sign_and_strength_and_by_more_than_colour(opened):
    page = opened([classified("a very bad film", seed=3)])
    kinds = words(page).evaluate_all("nodes => nodes.map((node) => [node.textContent, node.className])")
    assert [word for word, _ in kinds] == ["a", "very", "bad", "film"]
    assert [kind for _, kind in kinds][2:] == ["for", "cut"]
    styles = words(page).evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).borderBottomStyle)")
    page.get_by_label("Explained").select_option("1")  # the other class: each sign turns
    assert words(page).nth(2).get_attribute("class") == "against"
    other = words(page).evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).borderBottomStyle)")
    assert (styles[2], other[2]) == ("solid", "dashed")
    assert words(page).nth(2).get_attribute("aria-label") == "bad: −0.90 against positive"
    assert words(page).nth(2).evaluate("node => node.style.getPropertyValue('--strength')") == "100"
    assert page.locator(".strongest").inner_text().startswith("Strongest: bad −0.90")
    assert "32 steps, completeness error 2.1%" in page.locator(".card").inner_text()


def test_a_click_deletes_a_word_and_shows_both_probabilities(opened):
    page = opened([classified("a very bad film")])
    shares = page.locator(".outcome .share")
    assert shares.all_inner_texts() == ["90.0%", "10.0%"]
    words(page).nth(2).click()
    assert shares.all_inner_texts() == ["90.0% → 49.5%", "10.0% → 14.5%"]
    assert page.locator(".outcome .caption").inner_text() == "Without “bad”"
    assert words(page).nth(2).get_attribute("aria-pressed") == "true"
    words(page).nth(3).click()
    assert "was not computed" in page.locator(".outcome").inner_text()
    words(page).nth(3).click()
    assert shares.all_inner_texts() == ["90.0%", "10.0%"]


def test_the_keyboard_reaches_each_text_once_and_moves_between_words(opened):
    page = opened([classified("a very bad film", id="0"), classified(ARABIC, id="1")])
    page.get_by_label("Explained").first.focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "a"
    for key, word in [("ArrowRight", "very"), ("End", "film"), ("ArrowRight", "film"), ("ArrowLeft", "bad")]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == word
    page.keyboard.press("Enter")
    assert page.locator(".outcome .caption").first.inner_text() == "Without “bad”"
    page.keyboard.press("Tab")  # to the next text, not to the next word
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == ARABIC.split()[0]
    page.keyboard.press("ArrowLeft")  # the next word stands to the left
    assert page.evaluate(focused) == ARABIC.split()[1]
    page.keyboard.press(" ")
    assert page.locator(".outcome .caption").nth(1).inner_text() == f"Without “{ARABIC.split()[1]}”"


def test_texts_of_every_script_are_shown_as_they_are(opened):
    texts = [HOSTILE, ARABIC, CHINESE, ASTRAL, "two\r\nlines\tand a tab"]
    page = opened([classified(text) for text in texts])
    shown = page.locator(".explanation > div .word-group").all_text_contents()
    expected = [text.replace("\x07", "\u2407").replace("\r\n", "\n") for text in texts]
    assert shown == expected
    for card, text in enumerate(texts):
        spans = [word.text for word in classified(text).words]
        assert words(page, card).all_text_contents() == [span.replace("\x07", "\u2407") for span in spans]
    direction = "nodes => nodes.map((node) => getComputedStyle(node).direction)"
    assert page.locator(".explanation > div .word-group").evaluate_all(direction) == ["ltr", "rtl", "ltr", "ltr", "ltr"]
    assert page.title().startswith("Why a/b")
    assert page.locator(".cards img, .cards b").count() == 0


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.long)])
def test_a_long_text_is_folded_and_shown_on_demand(opened, count):
    page = opened([classified(" ".join(f"word{n}" for n in range(count)))])
    assert words(page).count() == 400
    page.get_by_role("button", name=f"Show all {count:,} words").click()
    assert words(page).count() == count
    assert words(page).nth(count - 2).get_attribute("class") in ("for", "against", "faint")
    assert page.evaluate("document.activeElement.textContent") == "word400"


def test_a_written_word_chooses_what_is_explained(opened):
    page = opened([translated()])
    assert page.locator(".strongest").inner_text().startswith("Strongest: Drei +0.011")
    page.locator(".answer [data-word]", has_text="stand").click()
    assert page.locator(".strongest").inner_text().startswith("Strongest: stehen +0.011")
    assert page.get_by_label("Explained").input_value() == "2"
    assert page.locator(".answer [aria-pressed=true]").all_inner_texts() == ["stand"]
    assert page.locator(".outcome .share").all_inner_texts() == ["70.0%"]
    assert page.locator(".explanation .caption").all_inner_texts()[:2] == ["language", "source"]


def test_tags_and_ends_of_spans_are_named_by_their_words(opened):
    maps = [AttributionMap("PER", 0.8, [0.5, -0.1], place=0), AttributionMap("O", 0.9, [0.0, 0.0], place=1)]
    spans = [{"type": "PER", "text": "Ada"}]
    page = opened([classified("Ada sleeps", maps=maps, probabilities={}, prediction=spans, reference=None)])
    options = page.get_by_label("Explained").locator("option").all_inner_texts()
    assert options == ["Ada: PER (80.0%)", "sleeps: O (90.0%)"]
    assert page.locator(".answer").inner_text().split() == ["predicted", "PER:", "Ada"]
    page.get_by_label("Explained").select_option("1")  # no word says anything
    assert page.locator(".strongest").is_hidden()


def test_an_input_without_words_is_shown(opened):
    page = opened([Explanation("x", {"text": "   "}, [], "negative", [])], None)
    assert "There is nothing to explain" in page.locator(".card").inner_text()


def test_lists_are_searched_and_filtered(opened):
    labels = ["positive", "negative"]
    page = opened([classified(f"text {n} is bad", id=f"t{n}", reference=labels[n % 2]) for n in range(50)])
    assert page.locator(".card").count() == 20
    assert page.locator("#count").inner_text() == "20 of 50 texts are shown"
    page.get_by_role("button", name="Show more").click()
    assert page.locator(".card").count() == 40
    page.locator("#state").select_option("right")
    assert page.locator("#count").inner_text() == "20 of 25 texts that match, of 50 are shown"
    page.get_by_label("Search").fill("T13 bad")
    assert page.locator(".card .id").all_inner_texts()[0].startswith("t13")
    assert page.locator(".card").count() == 1
    page.get_by_label("Search").fill("")
    page.locator("#state").select_option("wrong")
    page.locator("#class").select_option("true")
    assert page.get_by_label("Explained").first.input_value() == "1"  # the reference is positive


def test_heads_are_shown_with_their_words(opened):
    page = opened([attended("the quick brown fox")], RANDOM, "attention")
    page.get_by_text("Attention of every layer and head").click()
    said = page.locator(".heads output")
    page.locator(".heads select").first.select_option("0")
    page.locator(".heads select").nth(1).select_option("1")
    assert said.inner_text() == "layer 0, head 1: “fox” reads “brown” 100%"
    group = page.locator(".heads .word-group [data-word]")
    group.nth(1).focus()
    assert said.inner_text() == "layer 0, head 1: “quick” reads “the” 100%"
    large = page.locator(".maps > canvas")
    box = large.bounding_box()
    large.hover(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    assert said.inner_text() == "layer 0, head 1: “brown” reads “quick” by 100%"
    pixel = large.evaluate("canvas => [...canvas.getContext('2d').getImageData(1, 2, 1, 1).data][3]")
    assert pixel == 255
    overview = page.locator(".overview canvas")
    box = overview.bounding_box()
    overview.click(position={"x": box["width"] * 0.2, "y": box["height"] * 0.5})  # layer 1, head 0
    assert said.inner_text().startswith("layer 1, head 0: “brown” reads “the” 16%")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), pytest.param(1200, "light", marks=pytest.mark.long)])
def test_the_page_fits_and_can_be_read_and_named(opened, width, scheme):
    texts = [*map(classified, [HOSTILE, ARABIC, "a very bad film " + "W" * 400]), translated()]
    page = opened([*texts, attended("the quick brown fox")], RANDOM, "attention", width, scheme)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.locator(".heads output").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast, text = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, text
    assert page.evaluate(UNNAMED) == [[], [], []]


@pytest.mark.long
def test_a_thousand_texts_are_there_at_once(opened):
    text = "one of the many films that are not as bad as they seem to be, and not as good as they could be "
    page = opened([classified(f"{text}{n}", id=str(n), seed=n) for n in range(1000)])
    assert page.locator("#count").inner_text() == "20 of 1,000 texts are shown"
    parsed = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(json.dumps({"milliseconds until 20 of 1,000 texts are shown": parsed}))  # 250 on two cores
