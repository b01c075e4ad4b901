"""The Lightning trainer as gptask sets it up."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from gptask.errors import UserError

CHATTER = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*logging interval.*",
    ".*LeafSpec.*",
    ".*could not find the monitored.*",  # training.py says what that means
    ".*sync_dist=True.*",  # every process scores everything
    ".*in eval mode at the start of training.*",  # tuning=head: so it shall be
    ".*your dataloader is not resumable.*",
)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch, of equal ones the last: its learning rate has fallen further (a small validation set often
    has several)."""

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Any = None) -> bool:
        """Whether an epoch takes the place of the one that is kept."""
        kept = self.best_k_models.get(self.kth_best_model_path)
        equal = current is not None and kept is not None and bool(current == kept)
        return equal or super().check_monitor_top_k(trainer, current)


def build_trainer(folder: Path, options: dict[str, Any], **ours: Any) -> pl.Trainer:
    """A trainer with gptask's settings, the user's ``options`` over them."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in CHATTER:
        warnings.filterwarnings("ignore", text)
    settings: dict[str, Any] = {
        "default_root_dir": str(folder),
        "enable_model_summary": False,
        "enable_progress_bar": "callbacks" in ours,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 5,
        "use_distributed_sampler": False,  # the batch sampler shares batches out itself
        "reload_dataloaders_every_n_epochs": 1,  # new batches by length every epoch
    }
    try:
        return pl.Trainer(**(settings | ours | options))
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"the trainer refuses its options {options}: {error}") from error


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Within, Python's search for garbage passes over what is there already; to search all of it takes a third of a
    second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
