"""The backbones in memory, one for each set of weights, and the adapters beside them, each as long as it is used."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptask.config.conversion import from_plain
from gptask.config.engine import EngineOptions
from gptask.config.schemas import DType, Pretrained
from gptask.errors import UserError, damaged, user_path
from gptask.model.backbone.backbone import from_folder, number_format
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.backbone.quantizing import quantize
from gptask.model.engine.int4 import BYTES_PER_WEIGHT as INT4_BYTES
from gptask.runs.run import Run, load_run_onto
from gptask.runs.saved_model import base_weights_hash, has_full_weights, locate_backbone, locate_base, prediction_format
from gptask.serving.models.run_folders import last_part, url_name

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.engine.interface import Engine

log = logging.getLogger("gptask")


@dataclass(eq=False)
class PooledBackbone:
    """A backbone in memory; ``is_bare`` is one that no run has trained. ``users`` counts the views of each adapter."""

    name: str
    backbone: GPTBackbone
    is_bare: bool
    users: Counter[str | None] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Count the bytes of the weights, before adapters come to them."""
        self.bytes = sum(weight.numel() * weight.itemsize for weight in self.backbone.parameters())
        self.bytes += self.backbone.int4.nbytes if self.backbone.int4 else 0


class BackbonePool:
    """Loads backbones, within ``memory_mb`` megabytes of weights if there are several, and runs onto them.

    ``dtype`` replaces the number format of all. ``between_passes`` calls a function while no pass runs; ``forget``
    drops what others keep of an engine whose backbone is removed. One thread at a time calls its methods.
    """

    def __init__(
        self,
        engine: EngineOptions,
        dtype: DType | None,
        memory_mb: int | None,
        between_passes: Callable[[Callable[[], Any]], Any],
        forget: Callable[[Engine], None],
    ) -> None:
        self.engine, self.dtype, self.memory_mb = engine, dtype, memory_mb
        self.between_passes, self.forget = between_passes, forget
        self.backbones: dict[str, PooledBackbone] = {}  # by the hash of their weights
        # Finalizers run in any thread at any time, within a lock of that thread too: they leave notes, and no more
        self._dropped: deque[tuple[str, str | None]] = deque()

    def add_bare(self, options: Any) -> PooledBackbone:
        """Load a pretrained backbone."""
        if not isinstance(options, Pretrained):
            raise UserError("a backbone from scratch has random weights: train it first, then serve its run folder")
        origin = locate_backbone(options)
        assert origin is not None
        name = name_of_source(options.source)
        dtype = number_format(self.dtype or options.dtype)
        return self._pooled(origin, name, dtype, True, None, f"the backbone {name}")

    def backbone_of_run(self, folder: Path, model: Path, values: dict[str, Any]) -> PooledBackbone:
        """The backbone in memory on which a run is loaded; ``values`` are the run's config.

        Raises `UserError` where there is none and no memory for another.
        """
        full = has_full_weights(model)
        dtype = number_format(self.dtype) if self.dtype else prediction_format(model, values)
        if pooled := self.backbones.get(base_weights_hash(model)):
            return pooled
        source = getattr(from_plain("backbone", values["backbone"]), "source", None)
        name = last_part(folder) if full or source is None else name_of_source(source)
        problem = "has weights of its own" if full else f"is on another backbone, {name}"
        return self._pooled(locate_base(model, values), name, dtype, not full, str(model), f"{folder} {problem}")

    def _pooled(
        self, origin: BackboneOrigin, name: str, dtype: torch.dtype, bare: bool, tokenizer: str | None, why: str
    ) -> PooledBackbone:
        """The backbone with these weights, loaded unless it is there; ``why`` begins the refusal of another one."""
        if origin.weights_hash not in self.backbones:
            self._require_memory(weight_bytes(Path(origin.location), dtype, self.dtype is DType.int4), why)
            backbone = from_folder(origin, dtype, tokenizer, self.engine).eval()
            backbone.to("cuda" if torch.cuda.is_available() else "cpu")
            if not bare:
                _copy_weights(backbone)
            if self.dtype is DType.int4:
                quantize(backbone)
            pooled = self.backbones[origin.weights_hash] = PooledBackbone(name, backbone, bare)
            log.info("backbone %s: %d MB of weights in %s; %s", name, megabytes(pooled.bytes),
                     backbone.weight_format, backbone.engine.summary())  # fmt: skip
        return self.backbones[origin.weights_hash]

    def _require_memory(self, needed: int, why: str) -> None:
        """Raise `UserError` where another backbone of ``needed`` bytes is not allowed."""
        taken = sum(pooled.bytes for pooled in self.backbones.values())
        total = megabytes(taken + needed)
        if self.memory_mb is not None and total > self.memory_mb:
            raise UserError(
                f"{why}: its weights take {megabytes(needed)} MB beside {megabytes(taken)} MB of others, and "
                f"memory_mb={self.memory_mb} allows less: set memory_mb={total}, or serve fewer backbones"
            )
        if self.memory_mb is None and taken:
            names = " and ".join(pooled.name for pooled in self.backbones.values())
            raise UserError(
                f"{why}, and can't share {names}: a further backbone takes {megabytes(needed)} MB of weights. Allow it "
                f"by memory_mb={total} (for all weights together), or serve it by itself"
            )

    def load_run(self, pooled: PooledBackbone, folder: Path) -> Run:
        """Load a run of one task; its adapter stays until nobody holds the run's backbone any more."""
        run = load_run_onto(pooled.backbone, folder, self.between_passes)
        self._count(pooled, run.backbone)
        return run

    def bare_view(self, pooled: PooledBackbone) -> GPTBackbone:
        """The backbone without adapter; it stays until nobody holds the view any more."""
        view = pooled.backbone.with_adapter(None)
        self._count(pooled, view)
        return view

    def _count(self, pooled: PooledBackbone, view: GPTBackbone) -> None:
        key = pooled.backbone.origin.weights_hash
        pooled.users[view.adapter] += 1
        weakref.finalize(view, self._dropped.append, (key, view.adapter)).atexit = False

    @property
    def adapters(self) -> int:
        """How many adapters are in memory."""
        return sum(len(pooled.backbone.adapter_layers) for pooled in tuple(self.backbones.values()))

    def remove_unused(self) -> bool:
        """Take out adapters and backbones that nobody holds; whether there was such a backbone."""
        count = len(self.backbones)
        adapters = self.adapters
        while self._dropped:
            key, adapter = self._dropped.popleft()
            self.backbones[key].users[adapter] -= 1
        for key, pooled in list(self.backbones.items()):
            pooled.users = +pooled.users  # without those at 0
            backbone = pooled.backbone
            for digest in backbone.adapter_layers.keys() - pooled.users.keys():
                self.between_passes(partial(backbone.engine.remove_adapter, digest))
                log.info("adapter %s: not used any more, removed", digest)
            if not pooled.users:
                del self.backbones[key]
                self.forget(backbone.engine)
                backbone.engine.uninstall()
                del backbone.peft  # the engine and the backbone hold each other, which would keep the weights
                log.info("backbone %s: not used any more, removed", pooled.name)
        if (self.adapters, len(self.backbones)) != (adapters, count):
            gc.collect()  # PEFT's layers are in cycles, which else keep the weights of ten reloads
        return len(self.backbones) < count


def _copy_weights(backbone: GPTBackbone) -> None:
    """Hold the weights in memory: those that are mapped from a file change with it where the file is rewritten."""
    for weight in backbone.parameters():
        weight.data = weight.data.clone()
    backbone.set_model(backbone.peft)


def name_of_source(source: Any) -> str:
    """A backbone's name: the last part of its source, without .gguf."""
    return url_name(last_part(user_path(str(source))).removesuffix(".gguf"))


def weight_bytes(folder: Path, dtype: torch.dtype, with_int4: bool = False) -> int:
    """The bytes that the weights in a folder take in a number format, with those of int4 beside them at most."""
    from safetensors import safe_open

    count = 0
    for file in sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")):
        with damaged(file), safe_open(file, "pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count * dtype.itemsize + (math.ceil(count * INT4_BYTES) if with_int4 else 0)


def megabytes(size: int) -> int:
    """Bytes as megabytes of 2^20 bytes, rounded up."""
    return -(-size // 2**20)
