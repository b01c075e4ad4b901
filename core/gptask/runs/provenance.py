"""What a result depends on: package versions, git commit, memory."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from contextlib import suppress
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
    """Peak memory of this process in MiB: allocated on the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss would include the process that started this one
        return next(int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def memory_limit_mb(root: Path = Path("/")) -> int | None:
    """The most memory in MiB that this process can get on Linux: what it has and what is free, in its control group.

    None elsewhere. ``root`` is where the files of the system lie.
    """
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
        used = re.search(r"VmRSS:\s+(\d+) kB", (root / "proc/self/status").read_text())
    except OSError:
        return None
    limits = [(int(free[1]) + int(used[1])) >> 10] if free and used else []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups of version 2 and 1
        with suppress(OSError, ValueError):  # "max" where there is no limit
            limits.append(int((root / "sys/fs/cgroup" / name).read_text()) >> 20)
    return min(limits, default=None)


def versions() -> dict[str, str]:
    """Versions of the installed packages that a result depends on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """The commit of the checkout that gptask runs from; None where it does not run from a git checkout."""
    command = ["git", "-C", str(files("gptask")), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
