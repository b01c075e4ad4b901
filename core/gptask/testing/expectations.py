"""How a clause of the plugin contract says that a task breaks it."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from typing import Any

LEARNED_SHARE = 0.1  # of the first loss: a batch is memorized once its loss is no more than this


class NotApplicable(Exception):
    """A clause does not apply to this task."""


def expect(condition: Any, message: str) -> None:
    """Raise `AssertionError` with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def nearly_equal(a: Any, b: Any) -> bool:
    """Whether two outputs are equal but for the rounding of their numbers."""
    if is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and nearly_equal(asdict(a), asdict(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(nearly_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(nearly_equal, a, b))
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) if isinstance(a, float) else a == b
