"""The page in a real browser against a server of canned answers, under the policy that the real server sends."""

import ast
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gptask.config.schemas import DType, Lora, Pretrained, Serve
from gptask.data.words import words
from gptask.serving.http.playground import STATIC, page_files, playground_router
from gptask.serving.http_app import create_app
from gptask.serving.server import build_state
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging

from tests.support.browser import LEAST_CONTRAST, UNNAMED, Tab, chromium
from tests.support.canned_server import ANSWER, CONTEXT, INTENTS, SENTENCE, XSS, CannedServer, listening, models

ROOT = Path(__file__).parents[4]
NASTY = """it's "quoted" $HOME `date` \\n \\\\ !! %s * 北京 👩‍🚀
second line\ttab <b>&amp;</b> #not a comment"""


@pytest.fixture(scope="module")
def canned():
    return CannedServer(playground_router())


@pytest.fixture(scope="module")
def url(canned):
    outer = FastAPI()
    outer.mount("/some/prefix", canned.app)
    outer.mount("/", canned.app)
    with listening(outer) as address:
        yield address


@pytest.fixture(scope="module")
def shared_tab(url):
    with chromium() as browser:
        yield Tab(browser, url)


@pytest.fixture
def tab(shared_tab):
    """The tab on a wide screen; at a test's end it may have seen no error and no other host."""
    shared_tab.look()
    url = shared_tab.url
    yield shared_tab
    shared_tab.url = url
    faults, shared_tab.faults = shared_tab.faults, []
    assert faults == []


def last_body(canned):
    return json.loads(canned.requests[-1][2])


# --- the files ----------------------------------------------------------------------------------------------------


def test_files_are_served_with_their_types_and_checked_by_etag():
    app = FastAPI()
    app.include_router(playground_router())
    client = TestClient(app)
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/static/main.js").headers["content-type"].startswith("text/javascript")
    assert client.head("/").status_code == 200
    fresh = client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (fresh.status_code, fresh.content) == (304, b"")
    assert client.get("/static/..%2Fplayground.py").status_code == 404
    assert client.get("/static/index.html").status_code == 404
    assert "/static/main.js" not in app.openapi()["paths"]


def test_files_name_only_each_other_and_hold_no_inline_code():
    tags, names = [], {file.name for file in page_files()}
    assert len(names) == len(page_files())

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append((tag, dict(attributes)))

    Reader().feed((STATIC / "index.html").read_text(encoding="utf-8"))
    for tag, attributes in tags:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        target = attributes.get("src") or attributes.get("href") or "#"
        assert target.startswith(("#", "data:,", "openapi.json")) or target.removeprefix("static/") in names
    for script in (file for file in page_files() if file.suffix == ".js"):
        code = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code)
        assert {*re.findall(r'from "\./(.+)"', code)} <= names


def test_a_wheel_holds_the_files():
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    packed = {file.distribution_path for file in wheel.recurse_included_files()}
    assert {file.relative_to(ROOT / "core").as_posix() for file in page_files()} <= packed


# --- answers ------------------------------------------------------------------------------------------------------


def test_probabilities_are_bars_with_the_rest_on_demand(tab, canned):
    tab.open("banking77")
    assert tab.page.locator(".lead").inner_text().replace("\u00a0", " ") == (
        "classification · accuracy 92.4 (91.4 to 93.3), n = 3,080, test"
    )
    first = tab.ask(text="Where is my card?")
    assert last_body(canned) == {"text": "Where is my card?"}
    assert canned.requests[-1][0].endswith("/v1/predict/banking77")
    assert first.locator(".predicted").all_inner_texts() == ["intent_0\npredicted,\n91.1%"]  # a word for screen readers
    width = first.locator(".bar i").first.evaluate("bar => bar.clientWidth / bar.parentElement.clientWidth")
    assert width == pytest.approx(INTENTS["intent_0"], abs=0.01)
    assert first.locator(".bars li").count() == 8
    first.get_by_text("show all 77").click()
    assert first.locator(".bars li").count() == 77
    tab.ask(text="And now?")  # the first answer stays, below
    assert tab.page.locator(".inputs dd").all_inner_texts() == ["And now?", "Where is my card?"]
    assert "intent_0 91.1%" in tab.page.locator("#status").text_content()
    tab.unfold()
    assert json.loads(tab.page.locator(".card pre").first.inner_text())["probabilities"] == INTENTS
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.get_by_text("Answers appear here.").is_visible()


def test_several_labels_and_truncation(tab):
    tab.open("goemotions")
    card = tab.ask(text="Oh!")
    assert card.locator(".prediction").inner_text() == "joy, surprise"
    assert card.locator(".predicted .label").all_inner_texts() == ["joy", "surprise"]
    assert card.locator(".share").all_inner_texts()[-1] == "<0.1%"
    tab.open("sst2")
    text = "W" * 3000
    card = tab.ask(text=text)
    assert card.locator(".warning").inner_text().startswith("truncated: 3 tokens were cut off")
    card.get_by_text("show all 3000 characters").click()
    assert card.locator(".inputs .text").inner_text() == text
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_spans_and_tags_are_marked_in_the_words(tab, canned):
    tab.open("wikigold")
    card = tab.ask(tokens=SENTENCE, predicate="3, 7")
    assert last_body(canned) == {"tokens": words(SENTENCE), "predicate": [3, 7]}
    assert card.locator("mark").all_inner_texts() == [
        "Trobriand\u00a0PER",
        "55th New York regiment\u00a0ORG",
        "Howe\u00a0PER",
        "北京\u00a0LOC",
    ]
    marked = card.locator(".marked").inner_text()
    assert re.sub("\u00a0(PER|ORG|LOC)", "", marked) == SENTENCE  # with its spaces, and nothing else
    assert card.locator(".legend li").all_inner_texts() == ["PER 2", "ORG 1", "LOC 1"]
    assert tab.page.locator(".words").inner_text().startswith("0 Dr 1 .")
    tab.open("pos")
    card = tab.ask(tokens="The dog barks")
    assert card.locator("mark").all_inner_texts() == ["The\u00a0DET", "dog\u00a0NOUN", "barks\u00a0VERB"]
    tab.page.get_by_role("link", name="wikigold").click()
    tab.page.locator("mark").nth(3).wait_for()
    assert tab.page.locator("mark").count() == 4  # what another run's view showed is still there


def test_the_page_divides_texts_into_words_as_the_library_does(tab):
    texts = [
        SENTENCE,
        NASTY,
        "It's a well-known AT&T test, isn't it? U.S. 3.5 10,000 12:30 ... http://a.b/c?d=é @user #tag",
        "这部电影很好。It’s great; ทดสอบ ภาษาไทย ១២ ភាសាខ្មែរ",
        "カタカナとひらがな 한국어 띄어쓰기 ＡＢＣ don’t",
        "naïve café e\u0301 \u200bzero a\u00adb \x85 שלום עולם مرحبا _under_ x-y- -z 'tis can't cannot n't",
        "",
        "  \n\t ",
    ]
    tab.open("pos")
    split = """async (texts) => {
        const { placedWords } = await import("./static/words.js");
        return texts.map((text) => placedWords(text).map(({ word, start }) => [word, text.startsWith(word, start)]));
    }"""
    placed = tab.page.evaluate(split, texts)
    assert [[word for word, _ in parts] for parts in placed] == [words(text) for text in texts]
    assert all(there for parts in placed for _, there in parts)


def test_a_span_is_marked_in_its_context(tab):
    tab.open("xquad")
    card = tab.ask(context=CONTEXT + " There were 11.", question="How many points?")
    assert card.locator("mark").all_inner_texts() == ["11", "11"]
    assert "where it stands 2 times" in card.inner_text()
    assert card.locator(".marked").inner_text() == CONTEXT + " There were 11."
    assert card.locator(".inputs dt").all_inner_texts() == ["question"]  # the context is not shown twice


def test_texts_samples_and_objects(tab):
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.open("multi30k")
    card = tab.ask(source="Drei Kinder")
    assert card.locator(".prediction .text").inner_text() == ANSWER
    assert card.locator(".samples li").count() == 2
    card.get_by_role("button", name="Copy").first.click()
    tab.page.get_by_text("Copied").first.wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == ANSWER
    tab.open("lm")
    assert tab.page.locator(".lead").inner_text().endswith("1,400, test, lower is better")
    facts = tab.ask(text="Some text").locator(".facts").all_inner_texts()
    assert facts == ["perplexity\n17.2\nbits per byte\n0.9312", "nats\n51.2\ntokens\n18"]
    tab.open("pos")
    tab.page.locator("main textarea").fill("שלום")
    assert tab.page.locator("main textarea").evaluate("area => getComputedStyle(area).direction") == "rtl"


def test_a_run_explains_its_prediction(tab, canned):
    tab.open("sst2")
    tab.fill("text required", "a very bad film")
    tab.page.get_by_role("button", name="Explain").click()
    card = tab.page.locator(".card").first
    words = card.locator(".explanation > div .word-group [data-word]")
    words.nth(2).click()
    assert last_body(canned) == {"model": "sst2", "example": {"text": "a very bad film"}, "method": "ig"}
    assert words.all_text_contents() == ["a", "very", "bad", "film"]
    assert words.nth(2).get_attribute("class") == "for"
    look = words.nth(2).evaluate("node => [getComputedStyle(node).display, getComputedStyle(node).borderBottomStyle]")
    assert look == ["inline", "solid"]
    assert card.locator(".outcome .share").all_inner_texts() == ["90.0% → 49.5%", "10.0% → 14.5%"]
    assert tab.page.locator("#status").text_content() == "The explanation is shown"
    check_page(tab)
    tab.page.get_by_label("Method").select_option("attention")
    tab.page.get_by_role("button", name="Explain").click()
    tab.page.locator(".card").nth(1).wait_for()
    assert last_body(canned)["method"] == "attention"
    assert "Attention is not a reason" in card.inner_text()
    card.get_by_text("Attention of every layer and head").click()
    card.get_by_text("layer 2, head 0: “film” reads “a” 16%").wait_for()
    assert "weights" not in card.locator("pre").text_content()
    tab.fill("text required", "wrong")
    tab.page.get_by_role("button", name="Explain").click()
    tab.page.get_by_text("the text is empty after the task's cleaning").wait_for()
    tab.fill("text required", "proxy")
    tab.page.get_by_role("button", name="Explain").click()
    tab.page.get_by_text("HTTP status 502").wait_for()
    tab.fill("text required", "a b")
    tab.page.get_by_role("button", name="Try again", exact=True).click()  # what failed is asked again: to explain
    tab.page.locator(".explanation").nth(2).wait_for()
    tab.open("banking77")
    assert tab.page.get_by_role("button", name="Explain").count() == 0


def test_messages_are_a_form_of_turns(tab, canned):
    tab.open("assistant", "predict")
    assert tab.page.locator(".lead").inner_text() == "generation"  # its metric was not finite
    tab.page.get_by_label("Message", exact=True).fill("Hi")
    tab.page.get_by_text("Add a message").click()
    tab.page.get_by_label("Message", exact=True).nth(1).fill("Hello")
    tab.page.get_by_text("Add a message").click()
    tab.page.get_by_label("Message", exact=True).nth(2).fill("Well?")
    tab.page.get_by_label("Remove this message").nth(1).click()
    tab.page.get_by_role("button", name="Predict").click()
    tab.page.locator(".card").wait_for()
    assert last_body(canned) == {"messages": [{"role": "user", "content": text} for text in ("Hi", "Well?")]}


def test_text_is_never_read_as_html(tab, canned):
    tab.open(XSS)
    fields = tab.page.locator("main textarea")
    fields.first.fill(XSS)
    tab.page.locator("main input").first.fill("0.5")
    fields.nth(1).fill(f"{XSS}\n\n two ")
    tab.unfold()
    tab.page.keyboard.press("Control+Enter")
    tab.page.get_by_role("button", name="Predict").click()
    tab.page.locator(".card").first.wait_for()
    assert last_body(canned) == {XSS: XSS, "weight": 0.5, "notes": [XSS, "two"]}
    tab.open("smollm2")
    tab.fill("Message", XSS).press("Enter")
    tab.page.locator(".turn-assistant .note").wait_for()
    assert tab.page.locator("img, b").count() == 0
    assert tab.page.title() == "smollm2 – gptask serve"


# --- errors -------------------------------------------------------------------------------------------------------


def test_errors_stand_where_they_belong(tab, canned):
    tab.open("sst2")
    count = len(canned.requests)
    tab.page.get_by_role("button", name="Predict").click()
    field = tab.page.get_by_label("text")
    assert tab.page.locator(".field-error").inner_text() == "Fill in text."
    assert field.evaluate("area => area === document.activeElement && area.ariaInvalid === 'true'")
    assert len(canned.requests) == count
    tab.fill("text required", "wrong").press("Control+Enter")
    tab.page.get_by_text("the text is empty after the task's cleaning").wait_for()
    tab.page.clock.install()
    tab.fill("text required", "busy").press("Control+Enter")
    box = tab.page.locator(".error")
    box.wait_for()
    assert tab.page.locator(".field-error").is_hidden()
    assert "Request id: r-42" in box.inner_text()
    assert box.get_by_role("button").is_disabled()
    assert re.search("Try again in 3[56].. s$", box.inner_text())
    tab.page.clock.run_for(3_600_000)
    tab.page.clock.resume()
    tab.fill("text required", "good")
    box.get_by_role("button", name="Try again", exact=True).click()
    tab.page.locator(".card").wait_for()
    assert box.count() == 0
    tab.fill("text required", "proxy").press("Control+Enter")
    tab.page.get_by_text("HTTP status 502").wait_for()
    tab.page.context.set_offline(True)
    tab.page.keyboard.press("Control+Enter")
    tab.page.get_by_text("The server does not answer").wait_for()
    tab.page.context.set_offline(False)
    tab.open("wikigold")
    tab.fill("predicate optional", "3, x")
    tab.fill("tokens required", "a b").press("Control+Enter")
    tab.page.get_by_text('"x" is no whole number').wait_for()


def test_a_server_that_is_gone_or_has_no_runs(tab, canned):
    tab.page.route("**/v1/models", lambda route: route.abort())
    tab.page.goto(f"{tab.url}/?gone")
    tab.page.get_by_text("The server does not answer").wait_for()
    tab.page.unroute("**/v1/models")
    canned.models = []
    try:
        tab.page.get_by_role("button", name="Try again").click()
        tab.page.get_by_text("This server serves no runs yet.").wait_for()
    finally:
        canned.models = models()
    tab.page.get_by_text("Reload the list").click()
    tab.page.locator("h1", has_text="sst2").wait_for()
    assert tab.page.locator("#status").text_content() == "12 runs"


def test_the_token_is_kept_for_the_tab_and_sent(tab, canned):
    canned.token = "s3cret"
    try:
        tab.page.goto(f"{tab.url}/?token")
        tab.page.get_by_text("a token is needed").wait_for()
        field = tab.page.get_by_label("Token of this server")
        assert field.evaluate("input => input === document.activeElement")
        field.fill("s3cr北t")
        field.press("Enter")
        tab.page.get_by_text("The token has characters").wait_for()
        field.fill("s3cret")
        field.press("Enter")
        tab.page.locator("h1", has_text="sst2").wait_for()
        tab.page.reload()
        tab.ask(text="fine")
        assert canned.requests[-1][1]["authorization"] == "Bearer s3cret"
        codes = codes_of(tab)
        assert "Bearer $GPTASK_TOKEN" in codes[0]
        assert "GPTASK_TOKEN" in codes[1]
        assert "s3cret" not in tab.page.content()
        kept = "[localStorage.length, document.cookie, ...Object.values(sessionStorage)]"
        assert tab.page.evaluate(kept) == [0, "", "s3cret"]
        tab.page.get_by_text("Token: set").click()
        field.press("Enter")  # an empty one takes it away
        tab.page.get_by_text("a token is needed").wait_for()
        assert tab.page.evaluate("sessionStorage.length") == 0
    finally:
        canned.token = None
        tab.page.goto("about:blank")


# --- models that write --------------------------------------------------------------------------------------------


def test_chat_streams_and_remembers(tab, canned):
    tab.open("smollm2")
    tab.unfold()
    tab.fill("System message", "Be brief.")
    tab.fill("Temperature", "0.5")
    tab.fill("Max tokens", "64")
    message = tab.fill("Message", "Say hello")
    message.press("Shift+Enter")
    message.press("Enter")
    tab.page.locator(".turn-assistant .note").wait_for()
    assert tab.page.locator(".turn-assistant .text").inner_text() == ANSWER
    assert message.input_value() == ""
    assert tab.page.locator("#status").text_content() == f"Answer: {ANSWER}"
    message.fill("a long one")
    message.press("Enter")
    tab.page.get_by_text("The answer ends at the most tokens").wait_for()
    turns = [("system", "Be brief."), ("user", "Say hello\n"), ("assistant", ANSWER), ("user", "a long one")]
    expected = {"temperature": 0.5, "max_tokens": 64, "stream": True, "model": "smollm2"}
    assert last_body(canned) == expected | {"messages": [{"role": role, "content": text} for role, text in turns]}
    for text, complaint in [("break", "the head failed"), ("drop", "The connection ended before")]:
        message.fill(text)
        message.press("Enter")
        tab.page.get_by_text(complaint).wait_for()
        assert tab.page.locator(".turn-assistant.failed .text").inner_text() == ANSWER
        assert message.input_value() == text  # to be sent again
    message.fill("wrong")
    message.press("Enter")
    tab.page.locator(".error", has_text="the text is empty").wait_for()
    assert tab.page.locator(".turn-assistant.failed .note").inner_text() == "no answer"
    assert tab.page.locator(".error button").count() == 0  # it would be refused again
    message.fill("better")
    message.press("Enter")
    tab.page.locator(".turn-assistant > .note.row").nth(2).wait_for()
    assert [turn["content"] for turn in last_body(canned)["messages"]][-3:] == ["a long one", ANSWER, "better"]
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.locator(".log li").count() == 0


def test_a_stream_is_stopped_by_the_reader(tab, canned):
    canned.left.clear()
    tab.open("smollm2")
    message = tab.fill("Message", "slow")
    message.press("Enter")
    tab.page.get_by_text("It begins").wait_for()
    tab.page.get_by_role("button", name="Stop").click()
    tab.page.get_by_text("stopped after").wait_for()
    assert canned.left.wait(10)
    assert tab.page.get_by_role("button", name="Send").evaluate("button => button === document.activeElement")
    message.fill("next")
    message.press("Enter")
    tab.page.locator(".turn-assistant .note").nth(1).wait_for()
    assert [turn["content"] for turn in last_body(canned)["messages"]] == ["slow", "It begins", "next"]
    message.fill("slow")
    message.press("Enter")
    tab.page.get_by_text("It begins").nth(1).wait_for()
    tab.page.get_by_role("button", name="Clear").click()
    tab.page.get_by_role("button", name="Send").wait_for()
    assert tab.page.locator(".log li").count() == 0


def test_a_text_is_continued(tab, canned):
    tab.open("base")
    tab.fill("Text to continue", "Once upon a time ").press("Control+Enter")
    tab.page.locator(".card .note").wait_for()
    assert tab.page.locator(".card .text").inner_text() == "Once upon a time " + ANSWER
    assert last_body(canned) == {"model": "base", "prompt": "Once upon a time ", "stream": True}
    tab.fill("Text to continue", "break").press("Control+Enter")
    tab.page.get_by_text("the head failed").wait_for()
    tab.fill("Temperature", "9")
    tab.page.keyboard.press("Control+Enter")
    tab.page.get_by_text("Temperature: ").wait_for()
    tab.page.get_by_role("link", name="Chat").click()
    tab.page.get_by_text("base has no chat template").wait_for()


# --- the request as code ------------------------------------------------------------------------------------------


def codes_of(tab):
    tab.unfold()
    tab.page.locator(".code pre").nth(1).wait_for()
    return tab.page.locator(".code pre").evaluate_all("blocks => blocks.map((block) => block.textContent)")


def literals(code, function):
    """The arguments of the one call of a function in Python code, its names read as what they were set to."""
    tree = ast.parse(code)
    names = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    call = next(call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == function)
    arguments = [names[arg.id] if isinstance(arg, ast.Name) else arg for arg in call.args]
    return [*map(ast.literal_eval, arguments)], {word.arg: ast.literal_eval(word.value) for word in call.keywords}


def test_the_code_sends_exactly_what_is_in_the_form(tab, canned):
    if not Path("/usr/bin/curl").exists():
        pytest.skip("no curl on this machine")
    tab.open("xquad")
    tab.unfold()
    tab.page.locator(".code").get_by_text("Fill in context.").wait_for()
    assert tab.page.locator(".field-error:visible").count() == 0
    tab.fill("context required", CONTEXT)
    tab.fill("question required", NASTY)
    curl, python = codes_of(tab)
    example = {"context": CONTEXT, "question": NASTY}
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["prediction"] == "11", done.stderr
    assert last_body(canned) == example
    assert literals(python, "predict") == (["xquad", [example]], {})
    assert literals(python, "Client") == ([tab.url], {})
    for run, view, label in [("smollm2", "chat", "Message"), ("base", "complete", "Text to continue")]:
        tab.open(run, view)
        tab.fill(label, NASTY)
        curl, python = codes_of(tab)
        done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=30)
        assert done.stdout.endswith("data: [DONE]\n\n"), done.stderr
        body = {"messages": [{"role": "user", "content": NASTY}]} if view == "chat" else {"prompt": NASTY}
        assert last_body(canned) == body | {"model": run, "stream": True}
        assert literals(python, "create") == ([], last_body(canned))


# --- a real server ------------------------------------------------------------------------------------------------


def test_the_page_talks_to_the_real_server(tab, random_run, tiny_model):
    labels = ["good", "bad", XSS]
    tasks = {"tone": Sentiment(labels=labels), "names": TokenTagging(types=["PER"])}
    runs = [f"{name}:{random_run(task, 'llama', Lora(rank=2)).folder}" for name, task in tasks.items()]
    backbone = Pretrained(source=str(tiny_model("llama", 128)), dtype=DType.float32)
    state = build_state(Serve(runs=runs, backbone=backbone, port=0))
    with listening(create_app(state)) as tab.url:
        tab.open("tone")
        card = tab.ask(text="The quick brown fox is good.")
        assert card.locator(".bars li").count() == 3
        assert card.locator(".prediction").inner_text() in labels
        tab.open("names")
        assert tab.ask(tokens=SENTENCE).locator(".marked").inner_text().startswith("Dr")
    assert state.batcher.drain(10)


# --- layout and access --------------------------------------------------------------------------------------------


LOOKS = [(390, "dark"), (1300, "light")]
OTHER_LOOKS = [
    pytest.param(width, scheme, marks=pytest.mark.long) for width, scheme in [(390, "light"), (1300, "dark")]
]


@pytest.mark.parametrize(("width", "scheme"), LOOKS + OTHER_LOOKS)
def test_the_page_fits_and_can_be_read_and_named(tab, width, scheme):
    tab.look(width, scheme, reduced_motion="reduce")
    text = f"{SENTENCE} 11 {'W' * 500}"
    for run, fields in {"sst2": ["text"], "wikigold": ["tokens"], "xquad": ["context", "question"], XSS: []}.items():
        tab.open(run)
        if fields:
            tab.ask(**dict.fromkeys(fields, text))
        check_page(tab)
    for run, view in [("smollm2", "chat"), ("base", "complete"), ("assistant", "predict"), ("base", "chat")]:
        tab.open(run, view)
        if (run, view) == ("smollm2", "chat"):
            tab.fill("Message", f"break {text}").press("Enter")
            tab.page.locator(".error").wait_for()
        check_page(tab)
    assert tab.page.locator("#run-select").is_visible() == (width == 390)
    assert tab.page.locator("#run-list").is_visible() == (width == 1300)


def check_page(tab):
    tab.unfold()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= tab.page.viewport_size["width"]
    contrast, text = tab.page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, text
    assert tab.page.evaluate(UNNAMED) == [[], [], []]


def test_the_keyboard_reaches_everything_in_order(tab):
    tab.open("sst2")
    reached = []
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        node = tab.page.evaluate_handle("document.activeElement")
        text, outline = node.evaluate("n => [n.textContent.trim() || n.id, getComputedStyle(n).outlineStyle]")
        assert outline != "none", text
        reached.append(text)
        if text == "This request as code":
            break
    names = [model["id"] for model in models()]
    assert reached[:2] == ["Skip to the run", "Token"]
    assert [text[: len(name)] for text, name in zip(reached[2:], names, strict=False)] == names
    assert "About this run" in reached[-6:-4]
    assert reached[-4:-2] == ["Predict", "Explain"]
    tab.page.locator(".skip").focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "main"
    assert tab.page.url.endswith("#run=sst2")


def test_a_phone_chooses_a_run_from_a_list_and_the_address_keeps_it(tab):
    tab.look(width=390)
    tab.open("sst2")
    tab.page.get_by_label("Run", exact=True).select_option("xquad")
    tab.page.locator("h1", has_text="xquad").wait_for()
    tab.page.reload()
    tab.page.locator("h1", has_text="xquad").wait_for()
    tab.page.go_back()
    tab.page.locator("h1", has_text="sst2").wait_for()
    assert tab.page.get_by_label("Run", exact=True).input_value() == "sst2"


@pytest.mark.long
def test_the_page_works_behind_a_path_prefix(tab, canned):
    tab.url += "/some/prefix"
    tab.open("banking77")
    tab.ask(text="Where is my card?")
    assert {path for path, _, _ in canned.requests[-3:]} >= {"/some/prefix/v1/predict/banking77"}
    assert f"curl {tab.url}/v1/predict/banking77" in codes_of(tab)[0]
