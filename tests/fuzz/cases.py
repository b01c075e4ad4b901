"""Cases run one after another in this process, drawn and shrunk by hypothesis."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from tests.fuzz.sandbox import MEMORY, Fault, Sandbox, peak_memory, reset_peak_memory
from tests.fuzz.target import Setting, Target

MAX_TEXT = 6000  # characters that are kept of a fault


@dataclass
class Found:
    """A fault, with the case that caused it: the smallest one that hypothesis found, where it was shrunk."""

    target: str
    kind: str
    place: str
    case: str
    text: str
    chunk: int = 0


@dataclass
class ChunkResult:
    """What came of the cases of one seed; ``counts`` are the faults of each signature."""

    target: str
    chunk: int
    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0  # bytes
    counts: dict[str, int] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _NewFault(Exception):
    """Raised for hypothesis to shrink; it tells faults apart by the class."""


def run_case(target: Target, case: Any, sandbox: Sandbox, setting: Setting) -> Fault | None:
    """Run one case; return its fault."""
    reset_peak_memory()
    try:
        with sandbox.case(repr(case)):
            target.run(case, sandbox, setting)
    except Fault as fault:
        return fault
    if peak_memory() > MEMORY:
        return Fault("memory", f"{peak_memory() / 2**30:.1f} GB at most")
    return None


def run_chunk(
    target: Target,
    chunk: int,
    count: int,
    sandbox: Sandbox,
    setting: Setting,
    known: Sequence[str] = (),
    shrink: bool = False,
    before_case: Callable[[int], None] = lambda number: None,
) -> ChunkResult:
    """Run ``count`` cases of a seed; a fault whose signature is not ``known`` is shrunk, if that is asked for."""
    result, counts = ChunkResult(target.name, chunk), Counter[str]()
    start, drawn = time.monotonic(), dict[str, Found]()
    classes: dict[str, type[_NewFault]] = {}

    @hypothesis.seed(chunk)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=True,
        print_blob=False,
    )
    @given(target.cases)
    def check(case: Any) -> None:
        before_case(result.cases)
        began = time.monotonic()
        fault = run_case(target, case, sandbox, setting)
        result.cases += 1
        result.slowest = max(result.slowest, time.monotonic() - began)
        result.peak = max(result.peak, peak_memory())
        if fault is None:
            return
        counts[fault.signature] += 1
        if fault.signature in known:
            return
        drawn[fault.signature] = Found(
            target.name, fault.kind, fault.place, repr(case)[:MAX_TEXT], fault.text[-MAX_TEXT:], chunk
        )
        if shrink:
            raise classes.setdefault(fault.signature, type("NewFault", (_NewFault,), {}))(fault.signature)

    try:
        check()
    except (_NewFault, BaseExceptionGroup):
        pass
    except hypothesis.errors.Flaky as error:  # another outcome the second time: reported with what was seen first
        drawn.setdefault("flaky", Found(target.name, "flaky", "outcome", "", str(error)[:MAX_TEXT], chunk))
        counts["flaky: outcome"] += 1
    result.seconds = time.monotonic() - start
    result.counts, result.found = dict(counts), list(drawn.values())
    return result
