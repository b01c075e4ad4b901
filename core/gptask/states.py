"""Hidden states of a frozen backbone, kept on disk, so that a head's second epoch costs no forward pass."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptask.backbone.model import Backbone
from gptask.data.examples import digest
from gptask.data.module import Batch, DataModule
from gptask.data.store import cache_folder
from gptask.heads import Head

log = logging.getLogger("gptask")
SPARE = 2  # the states may fill at most 1/SPARE of the free disk


class States:
    """Last hidden states of a split's items: N rows (N, C) where the head reads the last token only, else one a token.

    They lie in the cache under a key of the encoded items, the backbone's weights and number format. A row is marked
    as done after it was written, so a run that was stopped leaves nothing wrong behind.
    """

    def __init__(self, data: DataModule, split: str, backbone: Backbone, head: Head) -> None:
        store = data.items(split)
        self.last_only, lengths = head.last_only, store.column("length")
        self.starts = np.concatenate([[0], np.cumsum(np.ones_like(lengths) if self.last_only else lengths)])
        self.backbone, self.dtype = backbone, backbone.model.dtype
        parts = [store.path.stem, backbone.origin.weights_hash, str(self.dtype), self.last_only]
        path = cache_folder() / "states" / f"{digest(repr(parts))}.bin"
        self.done, self.table = self._open(path, len(lengths), int(self.starts[-1]))

    def _open(self, path: Path, rows: int, slots: int) -> tuple[Tensor, Tensor]:
        """Flags (N,) and states (slots, C), both maps of files."""
        path.parent.mkdir(exist_ok=True)
        shape = (slots, self.backbone.channels)
        flags = torch.from_file(str(path.with_suffix(".done")), shared=True, size=rows, dtype=torch.bool)
        table = torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=self.dtype)
        return flags, table.view(shape)

    def hidden(self, batch: Batch) -> Tensor:
        """States (B, T, C) of a batch, read if all are there, else computed and kept; those of pads are not real."""
        rows = np.asarray(batch.rows)
        if not bool(self.done[rows].all()):
            hidden = self.backbone.hidden(batch.input_ids, batch.lengths)
            self._keep(hidden, batch, rows)
            return hidden
        b, t = batch.input_ids.shape
        device = batch.input_ids.device
        if self.last_only:
            return self.table[self.starts[rows]].to(device)[:, None].expand(b, t, -1)
        parts = [self.table[start:end] for start, end in zip(self.starts[rows], self.starts[rows + 1], strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(device)

    def _keep(self, hidden: Tensor, batch: Batch, rows: np.ndarray) -> None:
        if self.last_only:
            last = hidden[torch.arange(len(rows), device=hidden.device), batch.last()]
            self.table[self.starts[rows]] = last.cpu()
        else:
            for states, row, length in zip(hidden.cpu(), rows, batch.lengths.tolist(), strict=True):
                self.table[self.starts[row] : self.starts[row + 1]] = states[:length]
        self.done[rows] = True


def states_of(data: DataModule, split: str, backbone: Backbone, head: Head) -> States | None:
    """The kept states of a split; None where they can't be kept, which the log says."""
    store = data.items(split)
    slots = len(store) if head.last_only else int(store.column("length").sum())
    size = slots * backbone.channels * backbone.model.dtype.itemsize
    free = shutil.disk_usage(cache_folder()).free
    if size * SPARE > free:
        log.warning(
            "%s: hidden states would need %d MB of the %d MB free in %s, so every epoch computes them again",
            split, size >> 20, free >> 20, cache_folder(),
        )  # fmt: skip
        return None
    log.info("%s: hidden states are kept in %s (%d MB)", split, cache_folder() / "states", size >> 20)
    return States(data, split, backbone, head)
