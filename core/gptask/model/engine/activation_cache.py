"""Hidden states of frozen layers, cached on disk, so that later epochs read them instead of computing them.

Shapes: I items of a split, S slots of the cache's table, B rows and T positions of a batch, N its real tokens, C
channels.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptask.data.cache import cache_folder, digest
from gptask.data.datamodule import DataModule, PaddedBatch
from gptask.model.engine import attention
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
        self.done[items] = True
        return hidden_BTC

    @abstractmethod
    def compute_or_resume(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return a batch's last hidden states (B, T, C), and the states to cache, those of one item after another.

        Cached ``states`` are used where they are given and computed where not.
        """


class FinalStates(ActivationCache):
    """Last hidden states of a frozen backbone: of each item's last token if the head reads no other, else of all.

    They lie in the cache folder under a key of the encoded items, the backbone's weights and number format.
    """

    def __init__(self, data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead) -> None:
        items = data.items(split)
        lengths = items.column("length")
        super().__init__(backbone, head, np.ones_like(lengths) if head.last_only else lengths)
        key = [items.path.stem, backbone.origin.weights_hash, str(self.dtype), head.last_only]
        path = cache_folder() / "states" / f"{digest(repr(key))}.bin"
        path.parent.mkdir(exist_ok=True)
        self.table = self._map_table(path)
        done_path = str(path.with_suffix(".done"))
        self.done = torch.from_file(done_path, shared=True, size=len(lengths), dtype=torch.bool)

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
        with tempfile.NamedTemporaryFile(dir=cache_folder()) as file:
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
    captured: list[Tensor] = []
    last = layers[-1]
    if states_NC is None:
        forwards: dict[nn.Module, Any] = {last: partial(_capture, last.forward, batch, captured)}
    else:
        forwards = dict.fromkeys(layers, _skip) | {last: partial(_resume, batch, states_NC)}
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        hidden_BTC = backbone.hidden(batch.input_ids, batch.lengths, needed)
    finally:
        for layer in forwards:
            del layer.forward
    return hidden_BTC, captured[0] if states_NC is None else states_NC


def _capture(forward: Any, batch: PaddedBatch, captured: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A layer's own forward pass, whose states (N, C) of real tokens are appended to ``captured``."""
    out: Tensor = forward(*args, **kwargs)
    captured.append(out.flatten(0, 1)[_token_places(batch)])
    return out


def _skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _resume(batch: PaddedBatch, states_NC: Tensor, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The cached states in the shape of ``hidden``, the padded batch or the packed row; pads get any token's."""
    tokens = torch.zeros(hidden.shape[:2].numel(), dtype=torch.long, device=hidden.device)
    numbers_N = torch.arange(len(states_NC), device=hidden.device)
    # a token that sequences share gets the states of the first of them
    tokens.scatter_reduce_(0, _token_places(batch), numbers_N, "amin", include_self=False)
    return states_NC[tokens].view_as(hidden)


def _real_tokens(batch: PaddedBatch) -> Tensor:
    """(B, T) true at real tokens."""
    return torch.arange(batch.input_ids.shape[1], device=batch.lengths.device) < batch.lengths[:, None]


def _token_places(batch: PaddedBatch) -> Tensor:
    """Places (N,) of the real tokens in this forward pass: in its packed row, or in the flattened padded batch."""
    layout = attention.current_layout()
    places_N: Tensor = layout.token_places() if layout else _real_tokens(batch).flatten().nonzero()[:, 0]
    return places_N


def cacheable_layers(backbone: EngineBackbone) -> list[nn.Module]:
    """Return the layers below the first one that learns; none where their states cannot be cached.

    They can if they are the same in every pass and the rest of the model depends on nothing else, which is tried.
    """
    layers = backbone.layers
    learning = {id(p) for p in backbone.body.parameters() if p.requires_grad}
    if learning - {id(p) for layer in layers for p in layer.parameters()}:
        return []
    learns = [any(id(p) in learning for p in layer.parameters()) for layer in layers]
    lower = layers[: learns.index(True)] if True in learns else layers
    return lower if lower and _can_resume(backbone, lower) else []


def _can_resume(backbone: EngineBackbone, layers: list[nn.Module]) -> bool:
    """Whether the states after these layers repeat, and the layers above make the same of them when they resume."""
    ids, lengths = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 6, 0, 0]]), torch.tensor([5, 3])
    batch = PaddedBatch(ids.to(backbone.device), lengths.to(backbone.device), lengths)
    training = backbone.peft.training
    try:
        with torch.random.fork_rng():
            first, second = (capture_or_resume(backbone, layers, batch, None)[1] for _ in range(2))  # dropout differs
            backbone.peft.eval()
            computed, states = capture_or_resume(backbone, layers, batch, None)
            resumed, _ = capture_or_resume(backbone, layers, batch, states)
    except Exception as error:  # layers that take or return more than states raise whatever they raise
        log.debug("the states of the lower layers cannot be cached: %s", error)
        return False
    finally:
        backbone.peft.train(training)
    real = _real_tokens(batch)
    return torch.equal(first, second) and torch.equal(computed[real], resumed[real])


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
    if lower:
        log.info(
            "%s: the states of the lower %d layers are cached for later epochs (%d MB)", split, len(lower), size >> 20
        )
        return LowerLayerStates(data, split, backbone, head, lower)
    log.info("%s: hidden states are cached in %s (%d MB)", split, cache_folder() / "states", size >> 20)
    return FinalStates(data, split, backbone, head)
