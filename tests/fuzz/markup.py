"""Whether pages and Markdown texts hold only the markup that gptask writes, whatever the data in them says."""

from __future__ import annotations

import ast
import re
import shlex
from html.parser import HTMLParser
from typing import Any

from tests.fuzz.hostile import MARK
from tests.fuzz.sandbox import Fault

VOID = {"meta", "link", "input", "br", "hr", "img", "path", "rect", "line", "circle", "col", "wbr", "use", "polyline"}
FORBIDDEN = {
    "iframe",
    "object",
    "embed",
    "form",
    "base",
    "frame",
    "applet",
    "foreignobject",
    "audio",
    "video",
    "portal",
    "u",
}
ADDRESSES = {"href", "src", "action", "formaction", "xlink:href", "srcset", "data", "poster", "srcdoc"}


class PageReader(HTMLParser):
    """Elements with their attributes, the texts of scripts and styles, and the elements that are still open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.unbalanced: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]].append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def check_page(page: str) -> None:
    """Raise `Fault` for a page in which data became markup, a script, a style or an address."""
    reader = PageReader(page)
    for tag, attributes in reader.elements:
        if tag in FORBIDDEN or MARK in tag:
            raise Fault("html", f"element {tag}", _around(page, f"<{tag}"))
        for name, value in attributes.items():
            if name.startswith("on") or MARK in name:
                raise Fault("html", f"attribute {name[:20]} of {tag}", _around(page, name))
            if name in ADDRESSES and not re.match(r"#|data:(,|image/)", value or "#"):
                raise Fault("html", f"{name} of {tag}", str(value)[:300])
            if name == "style" and (MARK in str(value) or re.search(r"url\(|expression|@import", str(value))):
                raise Fault("html", f"style of {tag}", str(value)[:300])
    for tag, texts in reader.raw.items():
        if any(MARK in text for text in texts) or sum(t == tag for t, _ in reader.elements) > (
            1 if tag == "script" else 20
        ):
            raise Fault("html", f"content of {tag}", page[:300])
    if reader.open or reader.unbalanced or any(MARK in comment for comment in reader.comments):
        raise Fault("html", "elements that don't match", f"open {reader.open[:5]}, unbalanced {reader.unbalanced[:5]}")


def _around(page: str, text: str) -> str:
    place = page.lower().find(text.lower())
    return page[max(0, place - 300) : place + 300]


def check_markdown(text: str, headings: int | None = None, links: bool = False) -> list[tuple[str, str]]:
    """The code blocks of a Markdown text, by language; `Fault` where data became markup of it."""
    from markdown_it import MarkdownIt

    blocks, found = [], 0
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.type == "fence":
            blocks.append((token.info, token.content))
        found += token.type == "heading_open"
        if token.type in ("html_block", "code_block", "hr"):
            raise Fault("markdown", token.type, token.content[:300])
        for child in token.children or []:
            if child.type == "html_inline" and child.content != "<br>":
                raise Fault("markdown", "html", child.content[:300])
            if child.type in ("link_open", "image") and not links:
                raise Fault("markdown", child.type, str(child.attrs)[:300])
        if token.type == "heading_open" and found == 1 and token.tag != "h1":
            raise Fault("markdown", "first heading", text[:300])
    if headings is not None and found != headings:
        raise Fault("markdown", f"{found} headings", text[:2000])
    for language, content in blocks:
        _check_code(language, content)
    return blocks


def _check_code(language: str, content: str) -> None:
    try:
        if language == "python":
            ast.parse(content)
        elif language == "bash":
            shlex.split(content)
        elif language != "text":
            raise ValueError(f"language {language!r}")
    except (SyntaxError, ValueError) as error:
        raise Fault("markdown", f"{language} code: {type(error).__name__}", content[:1000]) from error
