"""What a result depends on: versions, commit, memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

PACKAGES = (
    "gptask",
    "torch",
    "transformers",
    "pytorch-lightning",
    "peft",
    "sacrebleu",
    "rouge-score",
    "scikit-learn",
)


def peak_memory_mb() -> int:
    """Most memory this process held: on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would count the process that started this one
        return next(int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(touching: bool = False) -> str | None:
    """The commit gptask's own code is at, where it runs from a checkout; ``touching``: the last that changed it."""
    asked = ["log", "-1", "--format=%H", "--", "."] if touching else ["rev-parse", "HEAD"]
    command = ["git", "-C", str(files("gptask")), *asked]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
