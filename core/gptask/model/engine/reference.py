"""The reference engine: transformers, PEFT and torch as they are.

Shapes: B rows, T positions, C channels, N states, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gptask.model.engine import adapters as adapters_of_model
from gptask.model.engine.interface import Adapters, DecodingBatch, DecodingRow, Engine, EngineBackbone
from gptask.model.engine.sampling import SampledBatch

PEFT_LOCK = threading.RLock()  # PEFT tells the layers a pass's adapters by hooks, which another thread would see


class ReferenceEngine(Engine):
    """Every pass is one call of the model: padded rows, no caches but transformers' own, a prompt at a time."""

    name = "reference"

    def __init__(self, backbone: EngineBackbone) -> None:
        super().__init__(backbone)
        self.compiled: Callable[..., Any] | None = None
        self.adapts_rows = False  # whether the layers know the adapters of a pass by other means than PEFT's

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"compiled": None}  # a copy would compute with the weights that were compiled

    def install(self) -> None:
        """Leave the model as it is, and compile it again if it is another one."""
        if self.compiled is not None:
            self.compiled = self._compiled_body()

    def uninstall(self) -> None:
        """Do nothing."""

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
        """See `Engine`; every state is computed."""
        inputs = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        if adapters is None:
            return self.states(**inputs)
        return self.adapted_states(adapters, **inputs)

    def states(self, **inputs: Any) -> Tensor:
        """The decoder's last hidden states (B, T, C)."""
        with self.beside_adapters():
            states_BTC: Tensor = (self.compiled or self.backbone.body)(use_cache=False, **inputs).last_hidden_state
        return states_BTC

    def beside_adapters(self) -> AbstractContextManager[Any]:
        """A context in which no other thread's pass tells the layers its adapters."""
        hooked = not self.adapts_rows and adapters_of_model.added_adapters(self.backbone)
        return PEFT_LOCK if hooked else nullcontext()

    def adapted_states(self, adapters: Adapters, **inputs: Any) -> Tensor:
        """The same with an adapter for each row, by PEFT's batches of several adapters."""
        given = next(value for value in inputs.values() if isinstance(value, Tensor))
        self.require_adapters(adapters, len(given))
        if not any(adapters):
            with self.beside_adapters():
                states_BTC: Tensor = self.backbone.body(**inputs).last_hidden_state
            return states_BTC
        peft, own = self.backbone.peft, self.backbone.peft.active_adapters or ["__base__"]
        if len(own) > 1:
            raise ValueError(
                f"the model uses {len(own)} adapters of its own at once, so no others can be added to rows"
            )
        with PEFT_LOCK:
            output = peft(
                **inputs,
                adapter_names=[adapter or own[0] for adapter in adapters],
                output_hidden_states=True,
                logits_to_keep=1,  # of no use here
            )
        states_BTC = output.hidden_states[-1]
        return states_BTC

    def require_adapters(self, adapters: Adapters, rows: int | None = None) -> None:
        """Raise `KeyError` for an adapter that was not added, `ValueError` for another number than that of the rows."""
        if rows is not None and len(adapters) != rows:
            raise ValueError(f"{rows} rows need {rows} adapters (None for the model as it is), got {len(adapters)}")
        if unknown := {adapter for adapter in adapters if adapter} - adapters_of_model.added_adapters(self.backbone):
            raise KeyError(f"no adapter {sorted(unknown)[0]}: add_adapter(folder) returns the name of each")

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """See `Engine`; all logits (N, V) are held at once."""
        return torch.nn.functional.cross_entropy(self.backbone.logits(states).float(), next_ids, reduction="none")

    def decoding_batch(self, keep: int = 0) -> DecodingBatch:
        """See `Engine`; nothing is kept."""
        return ReferenceBatch(self)

    @contextmanager
    def running(self, adapter: str | None = None) -> Iterator[None]:
        """See `Engine`; the model is this engine already."""
        if adapter is not None:
            raise ValueError("the model's own methods run without added adapters")
        yield

    def add_adapter(self, folder: Path, layers: int | None = None) -> str:
        """See `Engine`."""
        digest = adapters_of_model.add_adapter(self.backbone, folder)
        self.install()
        return digest

    def remove_adapter(self, digest: str) -> None:
        """See `Engine`."""
        adapters_of_model.remove_adapter(self.backbone, digest)
        self.install()

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
            states_1TC = self.engine.adapted_states([row.adapter], use_cache=True, **inputs)
            logits.append(self.backbone.logits(states_1TC[:, -1]))
        return torch.cat(logits)

    def remove(self, rows: Sequence[DecodingRow]) -> None:
        """Let rows leave."""
        self.caches = {row: cache for row, cache in self.caches.items() if row not in rows}
