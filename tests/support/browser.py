"""Debian's chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

# The least contrast of any visible text with what lies behind it, as WCAG 2 computes it, and the text itself.
LEAST_CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  const background = (node) => rgba(getComputedStyle(node).backgroundColor);
  const behind = (node) => node ? over(background(node), behind(node.parentElement)) : [1, 1, 1];
  const luminance = (colour) => colour.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let least = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].map((child) => child.nodeType === 3 ? child.data : "").join("").trim();
    const shown = text || node.placeholder;
    if (!shown || node.disabled || !node.checkVisibility() || node.closest(".unseen, .skip, option")) continue;
    const style = getComputedStyle(node, text ? null : "::placeholder");
    const [a, b] = [luminance(over(rgba(style.color), behind(node))), luminance(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, shown];
  }
  return least;
}"""
# Controls without a name that a screen reader could say, elements whose reference is missing, and ids that occur twice.
UNNAMED = """() => {
  const name = (node) => node.getAttribute("aria-label")
    || [...node.labels ?? []].map((label) => label.textContent).join("")
    || (node.matches("button, a, summary") ? node.textContent : "");
  const kinds = "input, textarea, select, button, a, summary, [role=group], nav, section";
  const controls = [...document.querySelectorAll(kinds)];
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  const references = [...document.querySelectorAll("[aria-describedby], [for]")]
    .flatMap((node) => (node.getAttribute("aria-describedby") ?? node.htmlFor).split(" "));
  return [controls.filter((node) => !name(node).trim()).map((node) => node.outerHTML),
    references.filter((id) => !ids.includes(id)), ids.filter((id, place) => ids.indexOf(id) !== place)];
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where playwright or chromium is missing."""
    library = pytest.importorskip("playwright.sync_api", reason="no playwright on this machine")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A tab on a server's page, which records errors and requests to other hosts in ``faults``.

    Tests share one, as a new one costs a second: `open` shows a view without the answers of an earlier test.
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.url = url
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(10_000)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._on_console)
        self.page.on("request", self._on_request)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:  # an error status
            self.faults.append(message.text)

    def _on_request(self, request: Any) -> None:
        if urlsplit(request.url)[:2] != urlsplit(self.url)[:2] and not request.url.startswith("data:"):
            self.faults.append(request.url)

    def look(self, width: int = 1300, scheme: str = "light", reduced_motion: str = "no-preference") -> None:
        """Set the screen's width, the colour scheme, and whether motion is unwelcome."""
        self.page.set_viewport_size({"width": width, "height": 844})
        self.page.emulate_media(color_scheme=scheme, reduced_motion=reduced_motion)

    def open(self, run: str, view: str | None = None) -> None:
        """Show a run's view without what has been written in it and answered."""
        self.page.goto(f"{self.url}/#{urlencode({'run': run} | ({'view': view} if view else {}))}")
        self.page.locator("h1", has_text=run).wait_for()
        if (clear := self.page.get_by_role("button", name="Clear")).is_visible():
            clear.click()
        self.page.evaluate("""for (const form of document.querySelectorAll("main form")) {
            form.reset();
            for (const control of form.elements) control.dispatchEvent(new Event("input", { bubbles: true }));
        }""")

    def unfold(self) -> None:
        """Open everything that is folded in the view."""
        self.page.evaluate("for (const details of document.querySelectorAll('main details')) details.open = true")

    def fill(self, label: str, text: str) -> Any:
        """Write into the control of a label, in the view that is shown."""
        control = self.page.locator("main").get_by_label(label, exact=True)
        control.fill(text)
        return control

    def ask(self, **fields: str) -> Any:
        """Fill in fields, submit with the keyboard, and return the newest answer's card."""
        cards = self.page.locator(".card")
        before = cards.count()
        for name, text in fields.items():
            self.page.locator("main .field", has=self.page.locator("label", has_text=name)).locator(
                "textarea, input"
            ).fill(text)
        self.page.keyboard.press("Control+Enter")
        cards.nth(before).wait_for()
        return cards.first
