"""A later epoch, which reads cached hidden states, against the first, which computes them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from harness import FULL, Result
from ours import Training, options


class Epochs(pl.Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def run(tier: str) -> list[Result]:
    """SST-2 sentences: tuning=head caches the states of the whole backbone, LoRA those of the lower layers."""
    return [later_epochs("head", tier), later_epochs("lora_half", tier)]


def later_epochs(tuning: str, tier: str) -> Result:
    """Seconds of three epochs after the first."""
    count = 2000 if tier == FULL else 300
    ours = Training(options("sst2", f"tuning={tuning}", f"data.limit.train={count}"))
    ours.module.runtimes[0].activation_caches["train"].done.zero_()  # a cache of an earlier benchmark must not help
    clock = Epochs()
    ours.fit(Path(tempfile.mkdtemp()), 4, [clock], limit_val_batches=0)
    first, *others = clock.seconds
    name, firsts = f"tuning={tuning}, a later epoch", [first] * len(others)
    return Result(f"cached_states_{tuning}", name, "s", others, firsts, "its first epoch", lower=True)
