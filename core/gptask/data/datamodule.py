"""The default data module: encodes with a cache, counts what was cut, and batches by length."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gptask.data.batches import BatchesByLength
from gptask.data.cache import cache_folder, digest
from gptask.data.corpus import CachedCorpus
from gptask.data.examples import Examples, code_hash
from gptask.data.prefixes import prefixes
from gptask.data.store import ArrowStore
from gptask.errors import DataError
from gptask.plugins.task import Task
from gptask.plugins.types import IGNORED, Encoded, Example

log = logging.getLogger("gptask")


@dataclass
class PaddedBatch:
    """Right-padded sequences of prompt, target and EOS. B sequences, T positions, K numbers per label."""

    input_ids: Tensor  # (B, T)
    lengths: Tensor  # (B,) prompt + target + EOS
    prompt_lengths: Tensor  # (B,)
    labels: Tensor | None = None  # (B,) or (B, K); lists of different lengths are padded with `IGNORED`
    extra: dict[str, list[Any]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)  # which encoded item each sequence is
    learned: Tensor | None = None  # (B, T) which tokens of the prompts are learned too

    def to(self, device: Any, non_blocking: bool = False) -> PaddedBatch:
        """The same batch on another device."""
        tensors = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return PaddedBatch(**(vars(self) | tensors))

    def prompts(self) -> list[list[int]]:
        """The prompts' ids without targets and padding."""
        pairs = zip(self.input_ids.tolist(), self.prompt_lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in pairs]

    def predicting(self) -> Tensor:
        """(B, T) true where the state predicts a token that is learned: of the target, its EOS, or ``learned`` in the
        prompt; by position and never by id."""
        position = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None]
        here = (position >= self.prompt_lengths[:, None] - 1) & (position < self.lengths[:, None] - 1)
        if self.learned is not None:
            here[:, : self.learned.shape[1] - 1] |= self.learned[:, 1:]
        return here

    def last(self) -> Tensor:
        """(B,) position of the last real token."""
        return self.lengths - 1


def collate(items: Sequence[dict[str, Any]]) -> PaddedBatch:
    """Encoded items to a right-padded batch; pads are known by position, so their id does not matter."""
    sequences = [torch.tensor(item["ids"] + (item["target"] or []), dtype=torch.long) for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return PaddedBatch(
        ids,
        torch.tensor([len(sequence) for sequence in sequences]),
        torch.tensor([len(item["ids"]) for item in items]),
        _labels([item["label"] for item in items]),
        {name: [item["extra"][name] for item in items] for name in items[0]["extra"] or {}},
        [item.get("row", number) for number, item in enumerate(items)],
        _learned([item.get("learned") or [] for item in items], ids.shape),
    )


def _labels(labels: list[Any]) -> Tensor | None:
    """Labels (B,) or (B, K), whole numbers as such; K is the longest list's length."""
    if labels[0] is None:
        return None
    if np.asarray(labels[0]).dtype.kind not in "iu":
        return torch.tensor(labels, dtype=torch.float32)
    rows = [torch.tensor(label, dtype=torch.long) for label in labels]
    return torch.nn.utils.rnn.pad_sequence(rows, True, IGNORED) if rows[0].ndim else torch.stack(rows)


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded items with their row numbers."""

    def __init__(self, store: ArrowStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.store[index] | {"row": index}


class DataModule(pl.LightningDataModule):
    """Core's data module: one encoded store per split, kept in a cache keyed by everything it depends on."""

    def __init__(self, task: Task, corpus: CachedCorpus, tokenizer: Any, options: Any, seed: int) -> None:
        super().__init__()
        self.task, self.corpus, self.tokenizer, self.options, self.seed = (
            task,
            corpus,
            tokenizer,
            options,
            seed,
        )
        self.shares = False  # whether the backbone computes once what prompts of a batch have in common
        self._items: dict[str, ArrowStore] = {}
        self._prefixes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def examples(self, split: str) -> Examples:
        """The examples of a split."""
        return self.corpus.split(split)

    def items(self, split: str) -> ArrowStore:
        """The encoded items of a split; ``example`` says which example each belongs to."""
        if split not in self._items:
            self._items[split] = self._encoded(split)
        return self._items[split]

    def _encoded(self, split: str) -> ArrowStore:
        examples = self.examples(split)
        parts = [examples.key, _fingerprint(self.tokenizer), self.options.max_tokens, self.task]
        parts += [self.task.demonstrations, code_hash(self.task)]
        path = cache_folder() / "encoded" / f"{digest(repr(parts))}.arrow"
        meta = {"truncated": 0, "tokens_cut": 0}
        store = ArrowStore(path) if path.exists() else ArrowStore.write(path, self._encode(examples, meta), meta)
        if store.meta["truncated"]:
            log.warning(
                "%s: %d of %d inputs were longer than data.max_tokens=%d and lost %d tokens in all",
                split, store.meta["truncated"], len(store), self.options.max_tokens, store.meta["tokens_cut"],
            )  # fmt: skip
        return store

    def _encode(self, examples: Iterable[Example], meta: dict[str, int]) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(examples):
            try:
                items = encode(self.task, example, self.tokenizer, self.options.max_tokens)
            except DataError as error:
                raise DataError(f"example '{example['id']}': {error}") from error
            for item in items:
                meta["truncated"] += bool(item["truncated"])
                meta["tokens_cut"] += item.pop("truncated")
                yield item | {"example": number}

    def _loader(self, split: str, sampler: BatchesByLength) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            Items(self.items(split)),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.options.workers,
            persistent_workers=False,
        )

    def _lengths(self, split: str) -> np.ndarray:
        return self.items(split).column("length")

    def _common(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Which prompts share a prefix, for a task with a field that several examples have in common."""
        store = self.items(split)
        if not self.shares:
            return None
        if split not in self._prefixes and len(store) and any(f.group for f in self.task.inputs()):
            column = store.table.column("ids").combine_chunks()
            ends = column.offsets.to_numpy()[1:-1]
            self._prefixes[split] = prefixes(np.split(column.flatten().to_numpy(), ends))
        return self._prefixes.get(split)

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches of the current epoch (the trainer asks anew for every epoch)."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        options = self.options
        return self._loader(
            "train",
            BatchesByLength(
                self._lengths("train"),
                options.batch_size,
                options.batch_tokens,
                (self.seed * 1_000_003 + epoch) % 2**63,
                self._share(),
                common=self._common("train"),
            ),
        )

    def eval_dataloader(self, split: str) -> DataLoader[dict[str, Any]]:
        """Batches of a split by falling length, in a fixed order; large ones where text is generated behind prompts."""
        store, size = self.items(split), self.options.eval_batch_size
        written = len(store) and store[0]["target"] is not None
        tokens = scored_tokens(self.options, reads=split == "validation" or not written, writes=bool(written))
        padding = 1.0 if written else 0.1
        batches = BatchesByLength(self._lengths(split), size, tokens, None, padding=padding, common=self._common(split))
        return self._loader(split, batches)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Validation batches."""
        return self.eval_dataloader("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches."""
        return self.eval_dataloader("test")


def scored_tokens(options: Any, *, reads: bool, writes: bool) -> int:
    """Padded tokens of a batch that is scored, that is read for its loss or for what a head says, or written behind.

    A CPU reads most in a second where a layer's states stay in its caches; a decoding step of many rows costs little
    more than one of few.
    """
    if reads and not writes:
        return int(options.batch_tokens) * (16 if torch.cuda.is_available() else 2)
    return int(options.batch_tokens) * (16 if reads else 64)


def _learned(bounds: Sequence[list[int]], shape: Sequence[int]) -> Tensor | None:
    """(B, T) true in the spans that begin and end at ``bounds``; None where there are none."""
    if not any(bounds):
        return None
    mask = torch.zeros(*shape, dtype=torch.bool)
    for row, ends in zip(mask, bounds, strict=True):
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            row[start:end] = True
    return mask


def encode(task: Task, example: Example, tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """Encode one example into items for `collate`; EOS is put behind every target, so that the model learns to stop."""
    encoded = task.encode(example, tokenizer, max_tokens)
    items = []
    for part in [encoded] if isinstance(encoded, Encoded) else encoded:
        target = None if part.target is None else [*part.target, tokenizer.eos_token_id]
        length = len(part.ids) + len(target or [])
        if length > max_tokens:
            raise DataError(f"prompt and target need {length} tokens; data.max_tokens is {max_tokens}: raise it")
        fields = {"ids": part.ids, "target": target, "label": part.label, "extra": part.extra or None}
        fields["learned"] = [place for span in part.learned for place in span]
        items.append(fields | {"length": length, "truncated": part.truncated})
    return items


def _fingerprint(tokenizer: Any) -> str:
    """A hash of a tokenizer's whole definition."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{text} {tokenizer.eos_token_id}".encode()).hexdigest()[:16]
