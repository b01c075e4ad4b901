"""The reference engine: transformers, PEFT and torch as they are.

Shapes: B rows, T positions, C channels, N states, V vocabulary.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gptask.errors import UserError
from gptask.model.engine import adapters as adapters_of_model
from gptask.model.engine import layer_skipping
from gptask.model.engine.adapter_files import AdapterFiles, read_adapter
from gptask.model.engine.forward_registry import restore_forwards
from gptask.model.engine.forward_state import forward_state
from gptask.model.engine.interface import Adapters, DecodingBatch, DecodingRow, Engine, EngineBackbone
from gptask.model.engine.sampling import SampledBatch

PEFT_LOCK = threading.RLock()  # PEFT switches the model from one adapter to another, for all threads


class ReferenceEngine(Engine):
    """Every pass is one call of the model: padded rows, no caches but transformers' own, a prompt at a time."""

    name = "reference"

    def __init__(self, backbone: EngineBackbone) -> None:
        super().__init__(backbone)
        self.compiled: Callable[..., Any] | None = None
        self.adapts_rows = False  # whether the layers compute each pass's adapter, without PEFT's switch

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"compiled": None}  # a copy would compute with the weights that were compiled

    def install(self) -> None:
        """Leave the model as it is, but for layers that some adapters do without, and compile it again if it was."""
        layers = int(self.backbone.config.num_hidden_layers)
        if any(count < layers for count in self.backbone.adapter_layers.values()):
            layer_skipping.install(self.backbone)
        if self.compiled is not None:
            self.compiled = self._compiled_body()

    def uninstall(self) -> None:
        """Put back what the model was before `install`."""
        restore_forwards(self.backbone.peft)

    def drop_inference_weights(self) -> None:
        """Do nothing: there are none."""

    def hidden(
        self,
        ids: Tensor | None = None,
        lengths: Tensor | None = None,
        needed: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """See `Engine`; rows of each adapter are computed together."""
        given: Tensor = ids if embeds is None else embeds  # type: ignore[assignment]
        if adapters is not None:
            self.require_adapters(adapters, len(given))
        names = list(dict.fromkeys(adapters or ()))
        if len(names) < 2:
            return self.hidden_by(names[0] if names else None, ids, embeds, lengths, needed)
        states, order = [], []
        for name in names:
            rows = [row for row, adapter in enumerate(adapters or ()) if adapter == name]
            inputs = (None if values is None else values[rows] for values in (ids, embeds, lengths, needed))
            states.append(self.hidden_by(name, *inputs))
            order += rows
        return torch.cat(states)[torch.tensor(order).argsort()]

    def hidden_by(
        self,
        adapter: str | None,
        ids: Tensor | None,
        embeds: Tensor | None,
        lengths: Tensor | None,
        needed: Tensor | None,
    ) -> Tensor:
        """Last hidden states (B, T, C) of rows that have one adapter; every state is computed."""
        with ReferenceEngine.running(self, adapter):
            return self.states(adapter, ids, embeds)

    def states(self, adapter: str | None, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        """The same by one call of the model, inside of `running`."""
        inputs = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        body = self.backbone.body if adapter or self.compiled is None else self.compiled
        states_BTC: Tensor = body(use_cache=False, **inputs).last_hidden_state
        return states_BTC

    def require_adapters(self, adapters: Adapters, rows: int | None = None) -> None:
        """Raise `KeyError` for an adapter that was not added, `ValueError` for another number than that of the rows."""
        if rows is not None and len(adapters) != rows:
            raise ValueError(f"{rows} rows need {rows} adapters (None for the model as it is), got {len(adapters)}")
        if unknown := {adapter for adapter in adapters if adapter} - self.backbone.adapter_layers.keys():
            raise KeyError(f"no adapter {sorted(unknown)[0]}: add_adapter(folder) returns the name of each")

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """See `Engine`; all logits (N, V) are held at once."""
        return torch.nn.functional.cross_entropy(self.backbone.logits(states).float(), next_ids, reduction="none")

    def decoding_batch(self, keep: int = 0) -> DecodingBatch:
        """See `Engine`; nothing is kept."""
        return ReferenceBatch(self)

    @contextmanager
    def running(self, adapter: str | None = None) -> Iterator[None]:
        """See `Engine`; while an adapter runs, passes in other threads wait."""
        if adapter is None:
            with PEFT_LOCK if self.backbone.adapter_layers and not self.adapts_rows else nullcontext():
                yield
            return
        self.require_adapters([adapter])
        with (
            PEFT_LOCK,
            adapters_of_model.active_adapters(self.backbone, [adapter]),
            forward_state(layers=self.layers_of(adapter)),
        ):
            yield

    def layers_of(self, adapter: str | None) -> int:
        """See `Engine`."""
        return min(self.backbone.adapter_layers.get(adapter or "", sys.maxsize), super().layers_of(adapter))

    def read_adapter(self, folder: Path, layers: int | None = None) -> AdapterFiles:
        """See `Engine`."""
        count = super().layers_of(None)
        if layers is not None and not 1 <= layers <= count:
            raise UserError(f"the adapter in {folder} is one of {layers} layers; the model has {count}")
        return read_adapter(folder, None if layers == count else layers)

    def add_adapter(self, adapter: Path | AdapterFiles, layers: int | None = None) -> str:
        """See `Engine`."""
        files = adapter if isinstance(adapter, AdapterFiles) else self.read_adapter(adapter, layers)
        if files.digest in self.backbone.adapter_layers:
            return files.digest
        if files.layers is not None and (reason := self._why_not_leave(files.layers)):
            raise UserError(
                f"the adapter in {files.folder} was trained in the first {files.layers} layers; rows can't leave "
                f"{type(self.backbone.model).__name__} after them: {reason}"
            )
        adapters_of_model.add_adapter(self.backbone, files)
        self.adapters_changed()
        try:
            adapters_of_model.prove_adapter(self.backbone, files)
        except BaseException:
            self.remove_adapter(files.digest)
            raise
        return files.digest

    def _why_not_leave(self, layers: int) -> str | None:
        """Why rows can't leave the model after its first ``layers``; None where they can."""
        if self.compiled is not None:
            return "compile=true compiles all layers"
        if layers in self.backbone.adapter_layers.values():
            return None  # tried before
        return layer_skipping.why_not(self.backbone, layers)

    def remove_adapter(self, digest: str) -> None:
        """See `Engine`."""
        if digest not in self.backbone.adapter_layers:
            raise KeyError(f"no adapter {digest}")
        adapters_of_model.remove_adapter(self.backbone, digest)
        self.adapters_changed()

    @property
    def sole_adapter(self) -> str | None:
        """The only adapter beside the model where a pass of it alone is faster than a mixed one."""
        return None

    def adapters_changed(self) -> None:
        """Adapt to layers that have got or lost adapters; all else of the model is as it was."""
        if self.compiled is not None:
            self.compiled = self._compiled_body()

    def compile(self) -> None:
        """See `Engine`."""
        self.compiled = self._compiled_body()

    def _compiled_body(self) -> Callable[..., Any]:
        body = self.backbone.body
        compiled: Callable[..., Any] = torch.compile(lambda **inputs: body(**inputs), dynamic=True)
        return compiled


class ReferenceBatch(SampledBatch):
    """Rows that are read one at a time, each with a cache of its own."""

    def __init__(self, engine: ReferenceEngine) -> None:
        super().__init__(engine.backbone)
        self.engine = engine
        self.caches: dict[DecodingRow, DynamicCache] = {}
        self._unread: list[DecodingRow] = []

    @property
    def rows(self) -> list[DecodingRow]:
        """The rows that are still being written."""
        return list(self.caches)

    @property
    def unread(self) -> list[DecodingRow]:
        """The rows whose prompts are not read to their end."""
        return list(self._unread)

    def enqueue(self, rows: Sequence[DecodingRow]) -> None:
        """Take more rows, which `read` admits."""
        self._unread += rows

    def read(self, max_tokens: int) -> int:
        """Admit rows whose prompts together have at most so many tokens, or a longer one alone."""
        if self._unread and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        count = tokens = 0
        for row in self._unread:
            if count and tokens + len(row.prompt) > max_tokens:
                break
            count, tokens = count + 1, tokens + len(row.prompt)
        rows, self._unread = self._unread[:count], self._unread[count:]
        self.admit(rows)
        return tokens

    def leave(self, row: DecodingRow) -> None:
        """Drop a row before its end; a row that has left already is no error."""
        if row in self._unread:
            self._unread.remove(row)
        else:
            super().leave(row)

    def step(self) -> list[DecodingRow]:
        """See `DecodingBatch`."""
        self.engine.require_adapters([row.adapter for row in self.rows])
        return super().step()

    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """Take more rows; a step reads what is unread of each."""
        self.caches |= {row: DynamicCache(config=self.backbone.config) for row in rows}

    def next_logits(self) -> Tensor:
        """Read the rows' unread tokens; return logits (B, V) of the tokens that follow."""
        logits = []
        for row, cache in self.caches.items():
            unread = row.ids[cache.get_seq_length() :]
            inputs = {"input_ids": torch.tensor([unread], device=self.backbone.device), "past_key_values": cache}
            with self.engine.running(row.adapter):
                states_1TC = self.backbone.body(use_cache=True, **inputs).last_hidden_state
            logits.append(self.backbone.logits(states_1TC[:, -1]))
        return torch.cat(logits)

    def remove(self, rows: Sequence[DecodingRow]) -> None:
        """Let rows leave."""
        self.caches = {row: cache for row, cache in self.caches.items() if row not in rows}
