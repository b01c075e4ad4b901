"""Several tasks' data modules as one: batches of one task each, in random order, as often as `Mixing` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl

from gptask.config.multitask import batches_per_task
from gptask.config.schemas import Mixing
from gptask.data.batches import epoch_of_batches, first_batch_of
from gptask.errors import UserError

PASS_STRIDE = 10_007  # more epochs than any training has, so that (epoch, pass) gives a different seed for each pair


class TaskBatch(NamedTuple):
    """A training batch, and the number of the task it belongs to."""

    task_index: int
    batch: Any


class EpochView:
    """The trainer as a task's own data module sees it: an epoch is one pass through that task's data."""

    def __init__(self, trainer: pl.Trainer, epoch: int) -> None:
        self.trainer, self.current_epoch = trainer, epoch
        self.reload_dataloaders_every_n_epochs = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


class InterleavedLoader:
    """An epoch: ``counts`` batches of each task, in an order drawn by the seed.

    ``loaders`` make a task's loader for its first, second, ... pass, from a batch on. A task with fewer batches than
    its count is passed through again; one with more leaves some out, different ones in each epoch. A resumed training
    has ``first_batch`` batches of the epoch behind it.
    """

    def __init__(
        self, loaders: Sequence[Callable[[int, int], Any]], counts: Sequence[int], seed: int, first_batch: int = 0
    ) -> None:
        self.loaders, self.counts, self.seed = loaders, counts, seed
        self.first_batch = self._next_first = first_batch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[TaskBatch]:
        order = np.random.default_rng(self.seed).permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        first, self._next_first = self._next_first, 0
        done = np.bincount(order[:first], minlength=len(self.counts)).tolist()
        streams = [_endless(loader, batches) for loader, batches in zip(self.loaders, done, strict=True)]
        for task_index in order[first:].tolist():
            yield TaskBatch(task_index, next(streams[task_index]))


def _endless(loader: Callable[[int, int], Any], done: int) -> Iterator[Any]:
    """The batches of a task, pass after pass, behind the first ``done`` ones."""
    pass_number = 0
    while done and (size := len(loader(pass_number, 0))) <= done:
        pass_number, done = pass_number + 1, done - size
    while True:
        yield from loader(pass_number, done)
        pass_number, done = pass_number + 1, 0


class Mixture(pl.LightningDataModule):
    """The data modules of several tasks, by name."""

    def __init__(self, modules: dict[str, Any], mixing: Mixing, seed: int) -> None:
        super().__init__()
        self.modules, self.mixing, self.seed = modules, mixing, seed
        self.resumed_at = (0, 0)  # the epoch in which a resumed training goes on, and its batches that are done

    def prepare_data(self) -> None:
        """Prepare each task's data."""
        for module in self.modules.values():
            module.prepare_data()

    def setup(self, stage: str) -> None:
        """Set up each task's data module."""
        for module in self.modules.values():
            module.setup(stage)

    def train_dataloader(self) -> InterleavedLoader:
        """The batches of the current epoch (the trainer asks anew for every epoch)."""
        epoch = epoch_of_batches(self.trainer)
        loaders = [partial(self._loader, module, epoch) for module in self.modules.values()]
        counts = batches_per_task(self.batch_counts(epoch), self.mixing)
        resumed_epoch, done = self.resumed_at
        resumed = done and self.trainer and self.trainer.current_epoch == resumed_epoch
        if not (resumed and all(self._continues(module, epoch) for module in self.modules.values())):
            done = 0
        return InterleavedLoader(loaders, counts, (self.seed * 1_000_003 + epoch) % 2**63, done)

    def _continues(self, module: Any, epoch: int) -> bool:
        """Whether a task's loader can begin behind its first batches; a plugin's own need not."""
        return first_batch_of(self._loader(module, epoch, 0, 1)) == 1

    def _loader(self, module: Any, epoch: int, pass_number: int, first_batch: int = 0) -> Any:
        """A task's training batches for one of its passes within an epoch, from a batch on."""
        epoch += PASS_STRIDE * pass_number
        module.trainer = EpochView(self.trainer, epoch) if self.trainer else None
        module.resumed_at = (epoch, first_batch)
        return module.train_dataloader()

    def batch_counts(self, epoch: int = 0) -> list[int]:
        """Training batches of each task in one pass; raises `UserError` where they can't be counted."""
        counts: list[int] = []
        for name, module in self.modules.items():
            try:
                counts.append(len(self._loader(module, epoch, 0)))
            except TypeError as error:
                raise UserError(
                    f"tasks.{name}: its training data is a stream of unknown length, which can't be mixed with others; "
                    "train it alone"
                ) from error
            if not counts[-1]:
                raise UserError(f"tasks.{name}: its training data makes no batch")
        return counts

    def passes(self) -> list[float]:
        """How often an epoch goes through the data of each task."""
        sizes = self.batch_counts()
        return [count / size for count, size in zip(batches_per_task(sizes, self.mixing), sizes, strict=True)]

    def val_dataloader(self) -> list[Any]:
        """Validation batches of each task."""
        return [module.val_dataloader() for module in self.modules.values()]

    def test_dataloader(self) -> list[Any]:
        """Test batches of each task."""
        return [module.test_dataloader() for module in self.modules.values()]
