"""Shared by the comparisons: alternating rounds, results with their ratios, and a report as JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FULL = "full"


@dataclass
class Result:
    """One comparison: the values of both sides in each round, where higher is better unless ``lower``."""

    id: str  # names the comparison in docs/results.json
    measure: str
    unit: str
    ours: list[float]
    reference: list[float]
    against: str  # name of the reference
    lower: bool = False  # seconds and megabytes: the reference is divided by ours, so that above 1 is better
    quality: tuple[float, float] | None = None  # ours, reference: a ratio counts only if ours is as good
    shares: tuple[float | None, float | None] = (None, None)  # ours, reference: of the machine's matrix peak
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        pairs = zip(self.ours, self.reference, strict=True)
        return statistics.median(r / o if self.lower else o / r for o, r in pairs)

    @property
    def counts(self) -> bool:
        """Whether our quality is at least the reference's, where it was measured."""
        return self.quality is None or self.quality[0] >= self.quality[1]

    def row(self) -> list[str]:
        """Cells of the Markdown table."""
        quality = "" if self.quality is None else f"{self.quality[0]:.1f} / {self.quality[1]:.1f}"
        ratio = f"**{self.ratio:.2f}×**" if self.counts else f"({self.ratio:.2f}×: worse result)"
        shares = " / ".join("" if share is None else f"{share:.0%}" for share in self.shares).strip(" /")
        cells = [self.measure, self.against, _span(self.ours), _span(self.reference), self.unit, ratio]
        return [*cells, quality, shares, self.note]


HEADER = [
    "measure",
    "against",
    "gptask",
    "reference",
    "unit",
    "ratio",
    "quality (ours / ref.)",
    "matrix peak (ours / ref.)",
    "note",
]


def _span(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.4g} ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else f"{middle:.4g}"


def alternate(
    sides: dict[str, Callable[[], float]], rounds: int, after_first: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Work per second of each side; the sides take turns, and each call does its work and returns how much it was.

    One round that is not counted goes first: it chooses kernels and allocates memory. ``after_first`` is called behind
    it, when models have learned from all examples once.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            work = side()
            if number:
                rates[name].append(work / (time.perf_counter() - start))
        if not number:
            after_first()
    return rates


def bf16() -> bool:
    """Whether this processor multiplies in bfloat16; emulation is a hundred times slower, so neither side uses it."""
    import torch
    from gptask.config.schemas import DType
    from gptask.model.backbone.backbone import number_format

    return number_format(DType.auto) is torch.bfloat16


def matrix_peak(dtype: str | None = None, size: int = 2048, tries: int = 8) -> float:
    """Best GFLOP/s of a square matrix product, measured now; by default in the format gptask computes in here."""
    import torch

    dtype = dtype or ("bfloat16" if bf16() else "float32")
    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def memory_rate(size: int = 1 << 28, tries: int = 8) -> float:
    """Best GB/s of reading float32 numbers that no cache holds, measured now."""
    import torch

    numbers, best = torch.ones(size), float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return 4 * size / best / 1e9


def matrix_weights(model: Any) -> int:
    """Weights in the matrices of a model's layers."""
    return sum(weights.numel() for weights in model.get_decoder().layers.parameters() if weights.ndim == 2)


def vocabulary_weights(model: Any) -> int:
    """Weights of the matrix that scores the vocabulary."""
    return int(model.get_output_embeddings().weight.numel())


def subprocess_rate(*arguments: str) -> dict[str, Any]:
    """Run a Python program that prints one JSON line last, in a process of its own."""
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    if process.returncode:
        raise RuntimeError(f"{arguments} failed:\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}")
    return dict(json.loads(process.stdout.strip().splitlines()[-1]))


def machine() -> dict[str, Any]:
    """The machine that the numbers were measured on, with the matrix peaks of this very run."""
    import torch

    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),  # that this process may use
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16_peak_gflops": round(matrix_peak()) if bf16() else None,
        "fp32_peak_gflops": round(matrix_peak("float32")),
    }


def report(results: list[Result], tier: str, folder: Path) -> Path:
    """Write ``<date>.json`` and ``<date>.md``; return the latter."""
    from gptask.runs.provenance import git_commit

    folder.mkdir(parents=True, exist_ok=True)
    stamp, facts = datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), machine()
    rows = [asdict(result) | {"ratio": result.ratio, "counts": result.counts} for result in results]
    command = shlex.join(["python", "tests/benchmarks/bench.py", *sys.argv[1:]])
    run = {"tier": tier, "commit": git_commit(), "date": stamp[:10], "command": command, "machine": facts}
    content = run | {"results": rows}
    (folder / f"{stamp}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    lines = [" | ".join(cells) for cells in (HEADER, ["---"] * len(HEADER), *(result.row() for result in results))]
    head = f"`make bench TIER={tier}`, {stamp}; " + ", ".join(f"{name} {value}" for name, value in facts.items())
    page = folder / f"{stamp}.md"
    page.write_text(head + "\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n")
    return page
