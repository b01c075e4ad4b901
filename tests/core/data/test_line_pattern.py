"""Expressions of users match as Python's do, and end although a line makes them search for ever."""

import re

import pytest
from gptask.config.schemas import Files
from gptask.data import line_pattern
from gptask.data.line_pattern import LinePattern
from gptask.data.reading import read
from gptask.data.rows import Source
from gptask.errors import UserError

ENDLESS = "a" * 60


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        (r"(?P<label>[A-Z]+):\S+ (?P<text>.+)", "DESC:manner How so ?"),
        (r"\{(?P<n>\d{1,3})\}", "{12}"),
        (r"x{e}", "x{e}"),  # an inexact match to regex
        (r"x{e}", "y"),
        (r"{a}[{]b{2}", "{a}{bb"),
        (r"\N{BULLET} (?P<t>.*)", "• point"),
        (r"(?i)straße", "STRASSE"),  # full case folding is what regex does by default
        (r"[[a]||b]", "a||b]"),  # sets of sets are what regex reads by default
        (r"(?x) a b  # comment", "ab"),
        (r"a++b|(?>a+)c", "aac"),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible (nested set|set union)")
def test_an_expression_matches_as_in_python(expression: str, line: str) -> None:
    expected, match = re.fullmatch(expression, line), LinePattern(expression, "data.pattern").fullmatch(line, 1)
    assert (match and match.groupdict()) == (expected and expected.groupdict())


@pytest.mark.parametrize("options", [{"pattern": r"(?P<text>(a|aa)+)!"}, {"separator": r"(a|aa)+!"}])
def test_an_endless_search_is_an_error_with_option_and_line(options: dict, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(line_pattern, "MATCH_SECONDS", 0.02)
    (tmp_path / "a.txt").write_text(f"aa\n{ENDLESS}\n")
    with pytest.raises(UserError, match=rf"data\.{next(iter(options))} .* takes over 0\.02 s on line 2: .*\(a\+\)\+"):
        list(read(Source(tmp_path / "a.txt"), Files(**options), ()))


@pytest.mark.parametrize(
    "expression", ["a{1000000000}", "((a{1000}){1000}){1000}", "(a{,99999}b)", "x" * 10_001, "(a{30}){400}"]
)
def test_an_expression_too_large_to_compile_is_refused(expression: str) -> None:
    with pytest.raises(UserError, match="is too large: at most 10,000 characters"):
        LinePattern(expression, "data.separator")


@pytest.mark.parametrize("expression", ["(", r"\p{L}", "a{99999999999999999999}", "(?P<text>x)(?P<text>y)"])
def test_what_python_does_not_know_is_refused(expression: str) -> None:
    with pytest.raises(UserError, match="is not a valid regular expression"):
        LinePattern(expression, "data.pattern")
