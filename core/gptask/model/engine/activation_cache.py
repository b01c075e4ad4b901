"""Hidden states of frozen layers, cached on disk, so that later epochs read them instead of computing them.

Shapes: I items of a split, S slots of the cache's table, B rows and T positions of a batch, N its real tokens, C
channels.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptask.data.cache import cache_folder, digest, part_suffix, remove, usable
from gptask.data.datamodule import DataModule, PaddedBatch
from gptask.model.engine.forward_registry import is_wrapped_by, original_forward, replace_forward, replaced_by
from gptask.model.engine.forward_state import current_state, forward_state
from gptask.model.engine.interface import EngineBackbone
from gptask.plugins.protocols import TaskHead

log = logging.getLogger("gptask")
MAX_DISK_SHARE = 0.5  # of the free disk that the states of one split may fill


class ActivationCache(ABC):
    """States of a split's items in a table of S slots; ``sizes`` (I,) tells how many slots each item takes.

    An item is marked as done after its states were written, so an interrupted run leaves nothing wrong behind.
    """

    done: Tensor  # (I,) whether the states of an item are in the table
    table: Tensor  # (S, C)

    def __init__(self, backbone: EngineBackbone, head: TaskHead, sizes: np.ndarray) -> None:
        self.backbone, self.head, self.dtype = backbone, head, backbone.model.dtype
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def _map_table(self, path: Path) -> Tensor:
        slots, channels = int(self.starts[-1]), self.backbone.channels
        _reserve(path, slots * channels * self.dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=slots * channels, dtype=self.dtype).view(slots, channels)

    def hidden(self, batch: PaddedBatch) -> Tensor:
        """Last hidden states (B, T, C) of a batch, right where the head reads them and arbitrary for pads.

        They are read from the cache if every item is cached; else they are computed, and the cache is filled.
        """
        items = np.asarray(batch.rows)
        pairs = zip(self.starts[items], self.starts[items + 1], strict=True)
        slots = torch.from_numpy(np.concatenate([np.arange(start, end) for start, end in pairs]))
        if bool(self.done[items].all()):
            return self.compute_or_resume(batch, self.table[slots].to(batch.input_ids.device))[0]
        hidden_BTC, states = self.compute_or_resume(batch, None)
        self.table[slots] = states.cpu()
        self.mark_done(items)
        return hidden_BTC

    def mark_done(self, items: np.ndarray) -> None:
        """Note the numbers of the items whose states have just been written to the table."""
        self.done[items] = True

    @abstractmethod
    def compute_or_resume(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return a batch's last hidden states (B, T, C), and the states to cache, those of one item after another.

        Cached ``states`` are used where they are given and computed where not.
        """


class FinalStates(ActivationCache):
    """Last hidden states of a frozen backbone: of each item's last token if the head reads no other, else of all.

    They lie in the cache folder under a key of the encoded items, the backbone's weights and number format. A checksum
    of each item's states tells whether they are as they were written.
    """

    def __init__(self, data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead) -> None:
        items = data.items(split)
        lengths = items.column("length")
        super().__init__(backbone, head, np.ones_like(lengths) if head.last_only else lengths)
        key = [items.path.stem, backbone.origin.weights_hash, str(self.dtype), head.last_only]
        table_file = cache_folder() / "states" / f"{digest(repr(key))}.bin"
        checksum_file = table_file.with_suffix(".crc")
        table_file.parent.mkdir(exist_ok=True)
        sizes = [int(self.starts[-1]) * backbone.channels * self.dtype.itemsize, 8 * len(lengths)]  # bytes
        files = [table_file, checksum_file]
        if not usable(*files) or [file.stat().st_size for file in files] != sizes:
            for file in files:
                remove(file)
        self.table = self._map_table(table_file)
        # 0 where the states of an item are not in the table, else 1 more than their CRC-32
        _reserve(checksum_file, 8 * len(lengths))
        self.checksums = torch.from_file(str(checksum_file), shared=True, size=len(lengths), dtype=torch.int64)
        written = self.checksums.nonzero()[:, 0]
        self.done = torch.zeros(len(lengths), dtype=torch.bool)
        self.done[written] = self.checksums[written] == self._computed_checksums(written.numpy())
        if damaged := len(written) - int(self.done.sum()):
            log.warning("%s: the states of %d items are damaged and are computed again", table_file, damaged)

    def mark_done(self, items: np.ndarray) -> None:
        """See `ActivationCache`; writes down the checksums of the states, too."""
        super().mark_done(items)
        self.checksums[items] = self._computed_checksums(items)

    def _computed_checksums(self, items: np.ndarray) -> Tensor:
        table_bytes = self.table.view(torch.uint8).numpy()
        rows = [table_bytes[self.starts[item] : self.starts[item + 1]] for item in items]
        return torch.tensor([zlib.crc32(row.data) + 1 for row in rows], dtype=torch.int64)

    def compute_or_resume(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `ActivationCache`; states (B, C) of last tokens, or (N, C) of all."""
        b, t = batch.input_ids.shape
        if states is None:
            needed_BT = self.head.needed_positions(batch) if self.head.last_only else None
            hidden_BTC = self.backbone.hidden(batch.input_ids, batch.lengths, needed_BT)
            return hidden_BTC, hidden_BTC[_real_tokens(batch) if needed_BT is None else needed_BT]
        if self.head.last_only:
            return states[:, None].expand(b, t, -1), states
        rows = torch.split(states, batch.lengths.tolist())
        return nn.utils.rnn.pad_sequence([*rows], batch_first=True), states


class LowerLayerStates(ActivationCache):
    """States of all tokens after the layers below the first adapter; the layers above resume from them.

    They lie in an unlinked file, which disappears with the process.
    """

    def __init__(
        self, data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead, layers: list[nn.Module]
    ) -> None:
        lengths = data.items(split).column("length")
        super().__init__(backbone, head, lengths)
        self.layers = layers
        self.done = torch.zeros(len(lengths), dtype=torch.bool)
        with tempfile.NamedTemporaryFile(dir=cache_folder(), suffix=part_suffix()) as file:
            self.table = self._map_table(Path(file.name))

    def compute_or_resume(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `ActivationCache`; states (N, C)."""
        return capture_or_resume(self.backbone, self.layers, batch, states, self.head.needed_positions(batch))


def capture_or_resume(
    backbone: EngineBackbone,
    layers: list[nn.Module],
    batch: PaddedBatch,
    states_NC: Tensor | None,
    needed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the last hidden states (B, T, C), and the states (N, C) of the real tokens after the first ``layers``.

    Where the latter are given, these layers are skipped. The former are right at least where they are ``needed``.
    """
    for layer in layers:
        if not is_wrapped_by(layer, CachedLayer):
            replace_forward(layer, CachedLayer(replaced_by(layer)), wraps=True)
    activations = Activations(layers, batch, states_NC)
    with forward_state(activations=activations):
        hidden_BTC = backbone.hidden(batch.input_ids, batch.lengths, needed)
    assert activations.states_NC is not None, "every pass goes through the last of the layers"
    return hidden_BTC, activations.states_NC


class Activations:
    """What a pass does with the states (N, C) after some layers: resume from them, or capture them."""

    def __init__(self, layers: list[nn.Module], batch: PaddedBatch, states_NC: Tensor | None) -> None:
        self.layers, self.last, self.batch, self.states_NC = set(layers), layers[-1], batch, states_NC
        self.resumes = states_NC is not None

    def resumed(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The states after a layer that is skipped, in the shape of ``hidden``: the padded batch or the packed row.

        Those after the last of the layers are the cached ones, those before it are not used; pads get any token's.
        """
        if layer is not self.last or self.states_NC is None:
            return hidden
        tokens = torch.zeros(hidden.shape[:2].numel(), dtype=torch.long, device=hidden.device)
        numbers_N = torch.arange(len(self.states_NC), device=hidden.device)
        # a token that sequences share gets the states of the first of them
        tokens.scatter_reduce_(0, _token_places(self.batch), numbers_N, "amin", include_self=False)
        return self.states_NC[tokens].view_as(hidden)

    def capture(self, layer: nn.Module, out: Tensor) -> None:
        """Take the states of the real tokens after the last of the layers."""
        if layer is self.last:
            self.states_NC = out.flatten(0, 1)[_token_places(self.batch)]


class CachedLayer:
    """The forward function of a decoder layer whose states may be captured, or be there already."""

    def __init__(self, before: Callable[..., Any] | None) -> None:
        self.before = before  # what computed the layer in place of its own function, if anything

    def __call__(self, layer: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """States (B, T, C) after the layer."""
        state = current_state()
        activations = state.activations if state else None
        compute = partial(self.before, layer) if self.before else original_forward(layer)
        if activations is None or layer not in activations.layers:
            computed: Tensor = compute(hidden, *args, **kwargs)
            return computed
        if activations.resumes:
            resumed: Tensor = activations.resumed(layer, hidden)
            return resumed
        out: Tensor = compute(hidden, *args, **kwargs)
        activations.capture(layer, out)
        return out


def _reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes on disk: where a disk fills later, writing through a map would kill the process."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            remove(path)
            raise


def _real_tokens(batch: PaddedBatch) -> Tensor:
    """(B, T) true at real tokens."""
    return torch.arange(batch.input_ids.shape[1], device=batch.lengths.device) < batch.lengths[:, None]


def _token_places(batch: PaddedBatch) -> Tensor:
    """Places (N,) of the real tokens in this forward pass: in its packed row, or in the flattened padded batch."""
    state = current_state()
    layout = state.layout if state else None
    places_N: Tensor = layout.token_places() if layout else _real_tokens(batch).flatten().nonzero()[:, 0]
    return places_N


def cacheable_layers(backbone: EngineBackbone) -> list[nn.Module]:
    """Return the layers below the first one that learns; none where their states cannot be cached.

    They can if they are the same in every pass and the rest of the model depends on nothing else, which is tried.
    """
    layers = backbone.layers
    learning = {id(p) for p in backbone.body.parameters() if p.requires_grad}
    if not backbone.engine.caches_activations or learning - {id(p) for layer in layers for p in layer.parameters()}:
        return []
    learns = [any(id(p) in learning for p in layer.parameters()) for layer in layers]
    lower = layers[: learns.index(True)] if True in learns else layers
    return lower if lower and backbone.engine.fits("activation_cache", lambda: _why_not(backbone, lower)) else []


def _why_not(backbone: EngineBackbone, layers: list[nn.Module]) -> str | None:
    """Why the layers above can't resume from the states after these; None where they can, by random states.

    The states have to repeat, and the layers above have to make the same of them when they resume.
    """
    ids, lengths = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 6, 0, 0]]), torch.tensor([5, 3])
    batch = PaddedBatch(ids.to(backbone.device), lengths.to(backbone.device), lengths)
    training = backbone.peft.training
    try:
        with torch.random.fork_rng():
            first, second = (capture_or_resume(backbone, layers, batch, None)[1] for _ in range(2))  # dropout differs
            backbone.peft.eval()
            computed, states = capture_or_resume(backbone, layers, batch, None)
            resumed, _ = capture_or_resume(backbone, layers, batch, states)
    finally:
        backbone.peft.train(training)
    if not torch.equal(first, second):
        return "the states of the frozen layers are not the same in every pass"
    real = _real_tokens(batch)
    return (
        None if torch.equal(computed[real], resumed[real]) else "the layers above make another result of cached states"
    )


def activation_cache_for(
    data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead, lower: list[nn.Module]
) -> ActivationCache | None:
    """Return the cache of a split: of the ``lower`` layers' states, or of the last ones if there are no such layers.

    None, with a warning, where the disk has too little room.
    """
    items = data.items(split)
    slots = len(items) if head.last_only and not lower else int(items.column("length").sum())
    size = slots * backbone.channels * backbone.model.dtype.itemsize
    free = shutil.disk_usage(cache_folder()).free
    if size > MAX_DISK_SHARE * free:
        log.warning(
            "%s: hidden states would need %d MB of the %d MB free in %s, so every epoch computes them again",
            split, size >> 20, free >> 20, cache_folder(),
        )  # fmt: skip
        return None
    try:
        if not lower:
            log.info("%s: hidden states are cached in %s (%d MB)", split, cache_folder() / "states", size >> 20)
            return FinalStates(data, split, backbone, head)
        log.info(
            "%s: the states of the lower %d layers are cached for later epochs (%d MB)", split, len(lower), size >> 20
        )
        return LowerLayerStates(data, split, backbone, head, lower)
    except OSError as error:  # another process has filled the disk
        log.warning("%s: %s in %s, so every epoch computes the states again", split, error.strerror, cache_folder())
        return None
