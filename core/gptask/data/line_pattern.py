"""Regular expressions of users for the lines of a file, which end although a line makes them search for ever."""

from __future__ import annotations

import re
from typing import Any

from gptask.errors import UserError

MATCH_SECONDS = 5.0  # for one line; a million times what a line takes a sound expression
MAX_CHARACTERS, MAX_COPIES = 10_000, 10_000  # of an expression, and of a part of it by counts such as {20}
ESCAPED_OR_BRACE = re.compile(r"\\N\{[^}]*\}|\\.|\{(?!\d*,?\d*\})", re.DOTALL)
COUNTS = re.compile(r"\{(\d*),?(\d*)\}")


class LinePattern:
    """An expression in Python's syntax; ``option`` is where it is from, for messages.

    Raises `UserError` for one that is not valid, and for one so large that compiling it takes the memory.
    """

    def __init__(self, expression: str, option: str) -> None:
        import regex  # for start-up time

        self.expression, self.option = expression, option
        try:
            self.group_names = [*re.compile(expression).groupindex]
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"{option} {expression[:200]!r} is not a valid regular expression: {error}") from error
        copies = 1
        for counts in COUNTS.findall(expression):
            copies *= max(int(count or 1) for count in counts) or 1
        if len(expression) > MAX_CHARACTERS or copies > MAX_COPIES:
            raise UserError(
                f"{option} {expression[:200]!r} is too large: at most {MAX_CHARACTERS:,} characters, and counts in "
                f"braces of at most {MAX_COPIES:,} multiplied"
            )
        # a brace that is no count is itself in Python, and elsewhere in regex the mark of an inexact match
        literal_braces = ESCAPED_OR_BRACE.sub(lambda part: r"\{" if part[0] == "{" else part[0], expression)
        self._fullmatch: Any = regex.compile(literal_braces, regex.VERSION0).fullmatch

    def fullmatch(self, line: str, number: int) -> Any:
        """The match of a whole line, or None; raises `UserError` where the search takes over `MATCH_SECONDS`."""
        try:
            return self._fullmatch(line, timeout=MATCH_SECONDS)
        except TimeoutError as error:
            raise UserError(
                f"{self.option} {self.expression[:200]!r} takes over {MATCH_SECONDS:g} s on line {number}: it can "
                "match the same text in too many ways; write nested repeats such as (a+)+ as a+"
            ) from error
