"""README.md and the pages of docs/ taken apart: blocks of code, shell commands, links, option names."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_MARK = re.compile(r"<!-- run: [^\n]*-->\n$")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
GENERATED = re.compile(r"<!-- \[\[\[cog.*?<!-- \[\[\[end\]\]\] -->", re.DOTALL)
FILE_OF_BLOCK = re.compile(r"`(?P<name>[\w./-]+\.(?:yaml|jsonl?|csv))`(?:(?!\n\n)[^`])*\n\n?$")
SHELL_TOKEN = re.compile(
    r"""[ \t]*(?:\\\n[ \t]*)*(?:
    (?P<comment>\#[^\n]*)
    |(?P<redirect>\d?>>?(?:&\d|\s*[^\s|;&<>]+))
    |(?P<operator>&&|\|\||[|;&\n])
    |(?P<word>(?:[^\s'"|;&<>\\\#]|\\[^\n]|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\S)\#)+)
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Command:
    """One command of a shell block."""

    text: str  # as it is written, without its variables
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    piped: bool = False  # it reads what the command before it writes

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    is_run: bool  # it is marked to be run
    file: str | None  # name of the file that it shows

    @property
    def commands(self) -> list[Command]:
        """The commands of a shell block."""
        return list(parse_commands(self.text))


@cache
def read_blocks(text: str) -> list[Block]:
    """The blocks of a page, without those that are generated."""
    text = GENERATED.sub(lambda generated: "\n" * generated[0].count("\n"), text)
    blocks = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        file = FILE_OF_BLOCK.search(before[-400:]) if match["language"] in ("yaml", "json", "csv") else None
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines(keepends=True)]
        marked = bool(RUN_MARK.search(before))
        blocks.append(
            Block(match["language"], "".join(lines), before.count("\n") + 1, marked, file["name"] if file else None)
        )
    return blocks


def parse_commands(text: str) -> Iterator[Command]:
    """The commands of a shell text; a ``ValueError`` for syntax that a page does without."""
    words, position, start, piped = list[str](), 0, 0, False
    text = f"{text}\n"
    while position < len(text):
        if not (token := SHELL_TOKEN.match(text, position)):
            raise ValueError(f"what is this? {text[position : position + 40]!r}")
        if token["word"]:
            start = start if words else token.start("word")
            words += shlex.split(token["word"])
        if token["operator"]:
            if words:
                yield _command(text[start : token.start("operator")].strip(), words, piped)
            words, piped = [], token["operator"] == "|"
        position = token.end()


def _command(text: str, words: list[str], piped: bool) -> Command:
    variables = []
    while match := re.match(r"([A-Z_]+)=(.*)", words[0]) if len(words) > 1 else None:
        variables.append((match[1], match[2]))
        words, text = words[1:], re.sub(r"^[A-Z_]+=\S*\s+", "", text)
    return Command(text, tuple(words), tuple(variables), piped)


def github_anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = BLOCK.sub("", text)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))


def inline_code(text: str) -> list[str]:
    """What stands in backticks outside blocks and generated parts."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", GENERATED.sub("", text)))
