"""Hidden states of layers that don't learn, kept on disk, so that later epochs read them instead of computing them."""

from __future__ import annotations

import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
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
SPARE = 2  # the states may fill at most 1/SPARE of the free disk


class ActivationCache(ABC):
    """States of a split's items in a table of S slots (S, C): ``sizes`` (N,) says how many of them each item has.

    An item is marked as done after its states were written, so a run that was stopped leaves nothing wrong behind.
    """

    done: Tensor  # (N,)
    table: Tensor  # (S, C)

    def __init__(self, backbone: EngineBackbone, head: TaskHead, sizes: np.ndarray) -> None:
        self.backbone, self.head, self.dtype = backbone, head, backbone.model.dtype
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def _map(self, path: Path) -> Tensor:
        shape = (int(self.starts[-1]), self.backbone.channels)
        return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=self.dtype).view(shape)

    def hidden(self, batch: PaddedBatch) -> Tensor:
        """Last hidden states (B, T, C) of a batch, from what is kept of all its items, which otherwise is kept now;
        they are right where the head reads them, and not for pads."""
        rows = np.asarray(batch.rows)
        pairs = zip(self.starts[rows], self.starts[rows + 1], strict=True)
        slots = torch.from_numpy(np.concatenate([np.arange(*pair) for pair in pairs]))
        if bool(self.done[rows].all()):
            return self.read(batch, self.table[slots].to(batch.input_ids.device))[0]
        hidden, states = self.read(batch, None)
        self.table[slots] = states.cpu()
        self.done[rows] = True
        return hidden

    @abstractmethod
    def read(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Last hidden states (B, T, C) of a batch and what is to be kept, one item's behind the other's.

        The latter are not computed where they are given.
        """


class FinalStates(ActivationCache):
    """Last hidden states of a frozen backbone: of each item's last token if the head reads no other, else of all.

    They lie in the cache under a key of the encoded items, the backbone's weights and number format.
    """

    def __init__(self, data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead) -> None:
        store = data.items(split)
        lengths = store.column("length")
        super().__init__(backbone, head, np.ones_like(lengths) if head.last_only else lengths)
        parts = [store.path.stem, backbone.origin.weights_hash, str(self.dtype), head.last_only]
        path = cache_folder() / "states" / f"{digest(repr(parts))}.bin"
        path.parent.mkdir(exist_ok=True)
        self.table = self._map(path)
        flags = str(path.with_suffix(".done"))
        self.done = torch.from_file(flags, shared=True, size=len(lengths), dtype=torch.bool)

    def read(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `ActivationCache`."""
        b, t = batch.input_ids.shape
        if states is None:
            here = self.head.needed_positions(batch) if self.head.last_only else None
            hidden = self.backbone.hidden(batch.input_ids, batch.lengths, here)
            return hidden, hidden[_real(batch) if here is None else here]
        if self.head.last_only:
            return states[:, None].expand(b, t, -1), states
        return nn.utils.rnn.pad_sequence(states.split(batch.lengths.tolist()), batch_first=True), states


class LowerLayerStates(ActivationCache):
    """What the layers below the first adapter make of all tokens; the layers above it start from there.

    They lie in a file without a name, which is gone with the process.
    """

    def __init__(
        self, data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead, layers: list[nn.Module]
    ) -> None:
        lengths = data.items(split).column("length")
        super().__init__(backbone, head, lengths)
        self.layers = layers
        self.done = torch.zeros(len(lengths), dtype=torch.bool)
        with tempfile.NamedTemporaryFile(dir=cache_folder()) as file:
            self.table = self._map(Path(file.name))

    def read(self, batch: PaddedBatch, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `ActivationCache`."""
        return read(self.backbone, self.layers, batch, states, self.head.needed_positions(batch))


def read(
    backbone: EngineBackbone,
    layers: list[nn.Module],
    batch: PaddedBatch,
    states: Tensor | None,
    needed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Last hidden states (B, T, C), and those (S, C) that the first ``layers`` make of the S real tokens.

    Where the latter are given, these layers are passed over. The former are right at least where they are ``needed``.
    """
    *_, last = layers
    compute, seen = last.forward, []

    def look(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = compute(*args, **kwargs)
        seen.append(out.flatten(0, 1)[_places(batch)])
        return out

    def give(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert states is not None
        of = torch.zeros(hidden.shape[:2].numel(), dtype=torch.long, device=hidden.device)
        numbers = torch.arange(len(states), device=hidden.device)
        of.scatter_reduce_(0, _places(batch), numbers, "amin", include_self=False)  # a shared token: its first owner's
        return states[of].view_as(hidden)

    forms: list[Callable[..., Tensor]] = [look] if states is None else [*[_same] * (len(layers) - 1), give]
    changed = layers[-len(forms) :]
    try:
        for layer, form in zip(changed, forms, strict=True):
            layer.forward = form
        hidden = backbone.hidden(batch.input_ids, batch.lengths, needed)
    finally:
        for layer in changed:
            del layer.forward
    return hidden, seen[0] if states is None else states


def _same(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _real(batch: PaddedBatch) -> Tensor:
    """(B, T) true for real tokens."""
    return torch.arange(batch.input_ids.shape[1], device=batch.lengths.device) < batch.lengths[:, None]


def _places(batch: PaddedBatch) -> Tensor:
    """(S,) places of the real tokens in what is being read, a row without pads or padded rows behind one another."""
    layout = attention.current_layout()
    return layout.keys[layout.real] if layout else _real(batch).flatten().nonzero()[:, 0]


def cacheable_layers(backbone: EngineBackbone) -> list[nn.Module]:
    """The layers below the first one that learns, if what they make of a text is the same each time and the rest of
    the model goes on from it alone, which is tried; else none."""
    stack = backbone.layers
    learning = {id(p) for p in backbone.body.parameters() if p.requires_grad}
    if learning - {id(p) for layer in stack for p in layer.parameters()}:
        return []
    first = next((n for n, layer in enumerate(stack) if any(id(p) in learning for p in layer.parameters())), len(stack))
    layers = stack[:first]
    return layers if layers and _resumes(backbone, layers) else []


def _resumes(backbone: EngineBackbone, layers: list[nn.Module]) -> bool:
    ids, lengths = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 6, 0, 0]]), torch.tensor([5, 3])
    batch = PaddedBatch(ids.to(backbone.device), lengths.to(backbone.device), lengths)
    training = backbone.peft.training
    try:
        with torch.random.fork_rng():
            first, second = (read(backbone, layers, batch, None)[1] for _ in range(2))  # not with dropout
            backbone.peft.eval()
            whole, states = read(backbone, layers, batch, None)
            resumed, _ = read(backbone, layers, batch, states)
    except Exception as error:  # whatever layers raise that take or return more than states
        log.debug("the lower layers can't be passed over: %s", error)
        return False
    finally:
        backbone.peft.train(training)
    real = _real(batch)
    return torch.equal(first, second) and torch.equal(whole[real], resumed[real])


def activation_cache_for(
    data: DataModule, split: str, backbone: EngineBackbone, head: TaskHead, lower: list[nn.Module]
) -> ActivationCache | None:
    """What is kept of a split: of the ``lower`` layers, or of the whole backbone if there are none; None where there
    is no room, which the log says."""
    store = data.items(split)
    slots = len(store) if head.last_only and not lower else int(store.column("length").sum())
    size = slots * backbone.channels * backbone.model.dtype.itemsize
    free = shutil.disk_usage(cache_folder()).free
    if size * SPARE > free:
        log.warning(
            "%s: hidden states would need %d MB of the %d MB free in %s, so every epoch computes them again",
            split, size >> 20, free >> 20, cache_folder(),
        )  # fmt: skip
        return None
    if lower:
        log.info("%s: states of the lower %d layers are kept for later epochs (%d MB)", split, len(lower), size >> 20)
        return LowerLayerStates(data, split, backbone, head, lower)
    log.info("%s: hidden states are kept in %s (%d MB)", split, cache_folder() / "states", size >> 20)
    return FinalStates(data, split, backbone, head)
