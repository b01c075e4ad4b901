"""Errors a user can mend, and how they are worded."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake the user can mend: the message says what, what was got, what was expected and the way out."""


class DataError(UserError):
    """A bad row or file; the reader puts the file and the line in front of the message."""


def listing(names: Iterable[object], limit: int = 12) -> str:
    """Names for a message, cut to ``limit`` so that it stays a line."""
    shown = [str(name) for name in names]
    more = f", … ({len(shown) - limit} more)" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more or "(none)"


def nearest(word: str, known: Iterable[object]) -> str:
    """``" Did you mean 'x'?"`` for the closest known name, or nothing."""
    found = get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""
