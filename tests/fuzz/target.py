"""A target of the fuzzing: what its cases are, and what is done with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.sandbox import Sandbox


@dataclass(frozen=True)
class Setting:
    """What cases share: finished runs by name, each in a folder of its own that no case changes."""

    runs: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """``run`` raises `Fault` for a case that the product does not take as it should.

    A case is a value whose ``repr`` says all of it. ``share`` is the target's part of all cases.
    """

    name: str
    share: float
    cases: st.SearchStrategy[Any]
    run: Callable[[Any, Sandbox, Setting], None]
