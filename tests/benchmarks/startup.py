"""From the command to the first training step, with the backbone cached and without the cost probe."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import FULL, ROOT, Result
from ours import options

TARGET = 8.0  # seconds


def run(tier: str) -> list[Result]:
    """Seconds until the first step is done, a fresh process each time."""
    seconds = [first_step() for _ in range(4 if tier == FULL else 2)][1:]  # the first one fills the disk cache
    target = [TARGET] * len(seconds)
    return [Result("startup", "start to the first step", "s", seconds, target, "8 seconds", lower=True)]


def first_step() -> float:
    """Start `gptask train` and wait for its first line about a step."""
    folder = Path(tempfile.mkdtemp()) / "run"
    limits = ["data.limit.train=64", "data.limit.validation=8", "data.limit.test=8"]
    trainer = ["probe=false", "trainer.max_steps=1", "+trainer.limit_val_batches=0", "+trainer.limit_test_batches=0"]
    command = [sys.executable, "-m", "gptask", "train", *options("sst2"), *limits, *trainer, f"folder={folder}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "step 1/" in line:
            seconds = time.perf_counter() - start
            process.communicate()
            return seconds
    raise RuntimeError("".join(lines))
