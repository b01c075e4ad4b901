"""Decoding on the fast engine: one pass for rows of all adapters, in buckets of similar length, prompts in parts.

Shapes: B rows, H query heads, K key and value heads, D head channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptask.model.engine import attention
from gptask.model.engine.bucket_plan import BucketPlan, split_by_length
from gptask.model.engine.forward_state import current_state, forward_state
from gptask.model.engine.inference_weights import AdapterStack, RowAdapters, tensor_identity
from gptask.model.engine.interface import DecodingRow, EngineBackbone
from gptask.model.engine.left_padding import decoding_mask, next_token_logits
from gptask.model.engine.length_bucket import LengthBucket
from gptask.model.engine.prompt_queue import LONG_PROMPT, KeptText, PromptQueue, UnreadPrompt
from gptask.model.engine.sampling import SampledBatch

if TYPE_CHECKING:
    from gptask.model.engine.reference import ReferenceEngine


class FastBatch(SampledBatch):
    """Rows that are still being written, of any adapters, in buckets of similar length, so that a step reads few pads.

    Where the model can't compute its attention by ours, each bucket is a pass of its own, and rows share one bucket.
    Where its layers can't compute each row's adapter, so do the rows of each adapter.
    """

    def __init__(self, engine: ReferenceEngine, keep: int) -> None:
        super().__init__(engine.backbone)
        self.engine, self.keep = engine, keep
        self.buckets: list[LengthBucket] = []
        self.queue = PromptQueue()
        self.kept: list[KeptText] = []  # the latest last
        self.weights: list[tuple[int, int]] = []  # that read them
        self._made: tuple[Any, int] = None, 0  # the model, and the number of its weights' drops, of these parameters
        self._parameters: list[Tensor] = []
        self._plans: dict[tuple[Any, ...], BucketPlan] = {}
        self._row_adapters: RowAdapters | None = None  # of the last pass

    @property
    def rows(self) -> list[DecodingRow]:
        """The rows that are still being written."""
        return [row for bucket in self.buckets for row in bucket.rows]

    @property
    def unread(self) -> list[DecodingRow]:
        """The rows whose prompts are not read to their end."""
        return self.queue.rows

    @property
    def kept_bytes(self) -> int:
        """The memory that kept texts hold, beside the keys and values of rows."""
        return sum(text.nbytes for text in self.kept)

    def enqueue(self, rows: Sequence[DecodingRow]) -> None:
        """Take more rows, whose prompts `read` reads; rows with the same prompt and adapter share it."""
        for row in rows:
            self.queue.add(row)

    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """Read the prompts of more rows, and those that were enqueued, to their ends."""
        self.enqueue(rows)
        self.read(sum(len(prompt.ids) for prompt in self.queue.prompts))

    @torch.inference_mode()
    def read(self, max_tokens: int) -> int:
        """See `DecodingBatch`; short prompts of one adapter together, long ones part by part.

        Rows whose reading fails leave the batch with the exception; the others are as they were.
        """
        if not self.queue.prompts:
            return 0
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self._forget_outdated()
        chosen = self.queue.choose(max_tokens, self.kept)
        together: dict[str | None, list[UnreadPrompt]] = {}
        for prompt, tokens in chosen:
            if prompt.bucket or prompt.kept or tokens < len(prompt.ids) or tokens > LONG_PROMPT:
                self._read_part(prompt, tokens)
            else:
                together.setdefault(prompt.adapter, []).append(prompt)
        for prompts in together.values():
            self.queue.drop(prompts)
            self._read_together([row for prompt in prompts for row in prompt.rows])
        return sum(tokens for _, tokens in chosen)

    def _read_part(self, prompt: UnreadPrompt, tokens: int) -> None:
        """Read the next tokens of a prompt, and let its rows in with the last one."""
        try:
            with self.engine.running(prompt.adapter):
                if prompt.bucket is None:
                    prompt.begin(LengthBucket(self.backbone, self.engine.layers_of(prompt.adapter), False, 0))
                assert prompt.bucket is not None
                prompt.bucket.read_part(prompt.ids[prompt.bucket.end :][:tokens])
        except BaseException:
            self.queue.drop([prompt])
            raise
        if not prompt.rest:
            self.queue.drop([prompt])
            prompt.bucket.finish_prompt(prompt.rows, self._can_pack(prompt.rows))
            self.buckets.append(prompt.bucket)

    def _read_together(self, rows: Sequence[DecodingRow]) -> None:
        """Read the prompts of rows of one adapter, and let the rows in."""
        lengths = [len(row.prompt) for row in rows]
        in_buckets = self.engine.decodes_in_buckets(max(len(row.prompt) + row.limit for row in rows))
        groups = split_by_length(lengths) if in_buckets else [[*range(len(rows))]]
        packs, layers = self._can_pack(rows), self.engine.layers_of(rows[0].adapter)
        buckets = []
        with self.engine.running(rows[0].adapter):
            for places in groups:
                bucket = LengthBucket(self.backbone, layers, packs, max(lengths[place] for place in places))
                bucket.add_rows([rows[place] for place in places], [lengths[place] for place in places])
                bucket.read_prompts()
                buckets.append(bucket)
        self.buckets += buckets

    def _can_pack(self, rows: Sequence[DecodingRow]) -> bool:
        return self.engine.can_pack(max(len(row.prompt) + row.limit for row in rows))

    def forget(self) -> None:
        """Drop what is kept of texts that have left."""
        self.kept = []

    def _require_engine(self) -> None:
        """Raise `RuntimeError` where the backbone computes by another engine than the one that read the rows."""
        if self.backbone.engine is not self.engine:
            raise RuntimeError("the backbone computes by another engine now: open a new decoding batch")

    def _forget_outdated(self) -> None:
        """Drop what other weights than the model's, or adapters that have been removed, have read."""
        self._require_engine()
        made = self.backbone.peft, self.engine.weight_drops
        if made != self._made:  # walking through a model with many adapters takes as long as reading a prompt
            named = self.backbone.peft.named_parameters() if self.keep else ()
            added = self.backbone.adapter_layers.keys()  # a digest is of these bytes: they can't change
            self._made, self._parameters = made, [p for name, p in named if added.isdisjoint(name.split("."))]
        weights = [(self.engine.weight_drops, 0), *map(tensor_identity, self._parameters)]
        if weights != self.weights:
            self.kept, self.weights = [], weights
        self.kept = [text for text in self.kept if self._has_adapter(text.adapter)]

    def _has_adapter(self, adapter: str | None) -> bool:
        """Whether an adapter is none that has been removed."""
        return adapter is None or adapter in self.backbone.adapter_layers

    @torch.inference_mode()
    def step(self) -> list[DecodingRow]:
        """See `DecodingBatch`.

        Raises `KeyError` before anything is read where the adapter of a row has been removed: once these rows have
        left, the others go on. Any other exception leaves the layers with different numbers of tokens: the rows that
        were in the batch are lost, and new ones need a new batch.
        """
        if self.buckets:
            self._require_engine()
            self.engine.require_adapters([row.adapter for row in self.rows])
        ended = super().step()
        self.interrupted = True
        self._rearrange()
        self.interrupted = False
        return ended

    def _reading_group(self, bucket: LengthBucket) -> tuple[bool, bool, int, str]:
        """With what other buckets one can be read together; whether its newest tokens are unread comes first."""
        adapter = None if self.engine.adapts_rows else bucket.rows[0].adapter
        return *bucket.reading_group(), adapter or ""

    def _rearrange(self) -> None:
        """Put like buckets together, and let rows move between them where that pays or saves memory.

        After a step the newest token of every row is unread. A row that is admitted has none, and joins others after
        its first step.
        """
        buckets: list[LengthBucket] = []
        for key, group in groupby(sorted(self.buckets, key=self._reading_group), self._reading_group):
            _, packs, *_ = key
            by_length = packs and self.backbone.device.type == "cpu"
            buckets += self._plans.setdefault(key, BucketPlan(by_length)).rearranged([*group])
        self.buckets = buckets

    def next_logits(self) -> Tensor:
        """Read the rows' newest tokens; return logits (B, V) of the tokens that follow."""
        logits = []
        for (unread, packs, *_), group in groupby(self.buckets, self._reading_group):
            buckets = [*group]
            if not unread:  # just admitted
                logits += [bucket.take_logits() for bucket in buckets]
                continue
            for together in [buckets] if packs else [[bucket] for bucket in buckets]:
                logits.append(self._read_newest(together))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _read_newest(self, buckets: list[LengthBucket]) -> Tensor:
        """Read the newest token of each row of some buckets; return logits (B, V) of the tokens that follow.

        There are several buckets only where the model computes its attention by ours.
        """
        rows, layers = [row for bucket in buckets for row in bucket.rows], buckets[0].layers
        is_mixed = self.engine.adapts_rows and {row.adapter for row in rows} != {self.engine.sole_adapter}
        with self.engine.running(None if is_mixed else rows[0].adapter):
            adapters = self._adapters_of([row.adapter for row in rows]) if is_mixed else None
            with forward_state(layers=layers, row_adapters=adapters):
                return _read_newest(self.backbone, rows, buckets)

    def _adapters_of(self, adapters: list[str | None]) -> RowAdapters | None:
        """The adapters of the rows of a pass; None where none has any. Those of the last pass are taken again."""
        if not any(adapters):
            return None
        state = current_state()
        weights = state.inference_weights if state else None
        stack = weights.stack(set(adapters)) if weights else AdapterStack([*dict.fromkeys(adapters)])
        last = self._row_adapters
        if last is None or last.stack is not stack or last.adapters != adapters:
            self._row_adapters = last = RowAdapters(adapters, stack)
        return last

    def remove(self, rows: Sequence[DecodingRow]) -> None:
        """Let rows leave; the last ones are kept for prompts that begin like them."""
        leaving = set(rows)
        for bucket in self.buckets if leaving else []:
            for place, row in enumerate(bucket.rows) if self.keep else ():
                if row in leaving and self._has_adapter(row.adapter):
                    self._keep_text(KeptText(row.ids[: bucket.lengths[place]], row.adapter, bucket.states_of(place)))
            bucket.keep([place for place, row in enumerate(bucket.rows) if row not in leaving])
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]
        groups = {self._reading_group(bucket) for bucket in self.buckets}
        self._plans = {group: plan for group, plan in self._plans.items() if group in groups}  # they hold buckets

    def _keep_text(self, text: KeptText) -> None:
        """Keep a text in place of those that it begins with, and of the oldest one if there are too many."""
        others = [kept for kept in self.kept if not text.begins_with(kept)]
        self.kept = [*others, text][-self.keep :]

    def leave(self, row: DecodingRow) -> None:
        """See `DecodingBatch`; a prompt that is half read for no other row is dropped."""
        if row in self.queue.rows:
            self.queue.remove(row)
        else:
            super().leave(row)


def _read_newest(backbone: EngineBackbone, rows: Sequence[DecodingRow], buckets: list[LengthBucket]) -> Tensor:
    """Logits (B, V) behind the newest tokens of the rows of some buckets."""
    tokens_B1 = torch.tensor([row.new_ids[-1:] for row in rows], device=backbone.device)
    positions_B1 = torch.tensor([[len(row.prompt) + len(row.new_ids) - 1] for row in rows], device=backbone.device)
    for bucket in buckets:
        bucket.add_position()
    if buckets[0].packs:
        with forward_state(layout=DecodingStep(buckets)):
            open_mask = attention.open_mask(backbone.model)
            logits_BV = next_token_logits(backbone, tokens_B1, open_mask, positions_B1, None)
    else:
        (bucket,) = buckets
        mask = decoding_mask(backbone, bucket.real(), 1)
        logits_BV = next_token_logits(backbone, tokens_B1, mask, positions_B1, bucket.cache)
    for bucket in buckets:
        bucket.lengths = [length + 1 for length in bucket.lengths]
    return logits_BV


class DecodingStep:
    """The attention of a step in which each row of some buckets reads one token."""

    def __init__(self, buckets: Sequence[LengthBucket]) -> None:
        self.buckets = buckets
        self.layer = 0  # number of the layer that attends next

    def attend(
        self,
        padded_attention: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """Append a layer's new keys and values (B, K, 1, D) and attend to all of them from queries (B, H, 1, D).

        Returns states (B, 1, H, D).
        """
        layer, self.layer = self.layer, self.layer + 1
        states, start = [], 0
        for bucket in self.buckets:
            rows = slice(start, start := start + len(bucket.rows))
            keys_BKSD, values_BKSD = bucket.buffers[layer].update(key[rows], value[rows])
            states.append(padded_attention(query[rows], keys_BKSD, values_BKSD, bucket.window_mask(window)))
        return states[0] if len(states) == 1 else torch.cat(states)
