"""The default data module: encodes with a cache, counts the tokens cut off, and batches by length."""

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

from gptask.data.batches import BatchesByLength, epoch_of_batches
from gptask.data.cache import cache_folder, digest
from gptask.data.code_hash import CODE_OF_ENCODING, code_hash
from gptask.data.corpus import CachedCorpus
from gptask.data.examples import Examples
from gptask.data.prefixes import shared_prefixes
from gptask.data.store import ArrowStore
from gptask.errors import DataError
from gptask.plugins.task import Task
from gptask.plugins.text_tokenizer import text_tokenizer
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
    rows: list[int] = field(default_factory=list)  # the number of each sequence's encoded item
    learned: Tensor | None = None  # (B, T) true for tokens of the prompts that are learned too

    def to(self, device: Any, non_blocking: bool = False) -> PaddedBatch:
        """The same batch on another device."""
        tensors = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return PaddedBatch(**(vars(self) | tensors))

    def part(self, rows: slice) -> PaddedBatch:
        """Some of the sequences, without the pads that only others need."""
        count = len(self.lengths)
        if range(count)[rows] == range(count):
            return self
        width = int(self.lengths[rows].max())
        return PaddedBatch(
            self.input_ids[rows, :width],
            self.lengths[rows],
            self.prompt_lengths[rows],
            None if self.labels is None else self.labels[rows],
            {name: values[rows] for name, values in self.extra.items()},
            self.rows[rows],
            None if self.learned is None else self.learned[rows, :width],
        )

    def prompts(self) -> list[list[int]]:
        """The prompts' ids without targets and padding."""
        ids_and_lengths = zip(self.input_ids.tolist(), self.prompt_lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in ids_and_lengths]

    def predicting(self) -> Tensor:
        """(B, T) true where the state predicts a token that is learned: of the target, its EOS, or ``learned`` ones.

        Tokens are known by their position and never by their id.
        """
        position = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None]
        mask = (position >= self.prompt_lengths[:, None] - 1) & (position < self.lengths[:, None] - 1)
        if self.learned is not None:
            mask[:, : self.learned.shape[1] - 1] |= self.learned[:, 1:]
        return mask

    def last(self) -> Tensor:
        """(B,) position of the last real token."""
        return self.lengths - 1


def collate(items: Sequence[dict[str, Any]]) -> PaddedBatch:
    """Pad encoded items on the right; pads are known by position, so their id does not matter."""
    if not items:  # of a process that has nothing to score
        none = torch.zeros(0, dtype=torch.long)
        return PaddedBatch(none.view(0, 0), none, none)
    sequences = [torch.tensor(item["ids"] + (item["target"] or []), dtype=torch.long) for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return PaddedBatch(
        ids,
        torch.tensor([len(sequence) for sequence in sequences]),
        torch.tensor([len(item["ids"]) for item in items]),
        _label_tensor([item["label"] for item in items]),
        {name: [item["extra"][name] for item in items] for name in items[0]["extra"] or {}},
        [item.get("row", number) for number, item in enumerate(items)],
        _learned_mask([item.get("learned") or [] for item in items], ids.shape),
    )


def _label_tensor(labels: list[Any]) -> Tensor | None:
    """Labels (B,) or (B, K), as integers if they are; K is the longest list's length."""
    if labels[0] is None:
        return None
    if np.asarray(labels[0]).dtype.kind not in "iu":
        return torch.tensor(labels, dtype=torch.float32)
    rows = [torch.tensor(label, dtype=torch.long) for label in labels]
    return torch.nn.utils.rnn.pad_sequence(rows, True, IGNORED) if rows[0].ndim else torch.stack(rows)


def _learned_mask(bounds: Sequence[list[int]], shape: Sequence[int]) -> Tensor | None:
    """(B, T) true in spans, whose starts and ends alternate in each row's ``bounds``; None where there are no spans."""
    if not any(bounds):
        return None
    mask = torch.zeros(*shape, dtype=torch.bool)
    for mask_row, row_bounds in zip(mask, bounds, strict=True):
        for start, end in zip(row_bounds[::2], row_bounds[1::2], strict=True):
            mask_row[start:end] = True
    return mask


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded items with their row numbers."""

    def __init__(self, store: ArrowStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = self.store[index]
        return item | {"row": index}


class DataModule(pl.LightningDataModule):
    """Core's data module: one encoded store per split, in a cache keyed by everything the token ids depend on."""

    def __init__(self, task: Task, corpus: CachedCorpus, tokenizer: Any, options: Any, seed: int) -> None:
        super().__init__()
        self.task, self.corpus, self.tokenizer, self.options, self.seed = task, corpus, tokenizer, options, seed
        self.shares_prefixes = False  # whether the backbone computes a prefix that prompts of a batch share only once
        self.resumed_at = (0, 0)  # the epoch in which a resumed training goes on, and its batches that are done
        self.train_examples: Examples | None = None  # what is learned in place of the corpus's own training examples
        self.labelled_examples: int | None = None  # the first ones of train, the others have no labels; None: all
        self._items: dict[str, ArrowStore] = {}
        self._prefixes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def examples(self, split: str) -> Examples:
        """The examples of a split."""
        if split == "train" and self.train_examples is not None:
            return self.train_examples
        return self.corpus.split(split)

    def items(self, split: str) -> ArrowStore:
        """The encoded items of a split; ``example`` says which example each belongs to."""
        if split not in self._items:
            self._items[split] = self._encoded_store(split)
        return self._items[split]

    def _encoded_store(self, split: str) -> ArrowStore:
        examples = self.examples(split)
        parts = [examples.key, _tokenizer_hash(self.tokenizer), self.options.max_tokens, self.task]
        parts += [self.task.demonstrations, code_hash(self.task, CODE_OF_ENCODING)]
        path = cache_folder() / "encoded" / f"{digest(repr(parts))}.arrow"
        meta = {"truncated": 0, "tokens_cut": 0}
        store = ArrowStore.cached(path)
        if store is None:
            store = ArrowStore.write(path, self._encode(examples, meta), meta)
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
            generator=torch.Generator(),  # so that making a loader leaves the training's random state as it is
        )

    def has_label(self, rows: Any) -> np.ndarray:
        """Whether training items, by their numbers (N,), are of examples with labels, shape (N,)."""
        owners = self.items("train").column("example")[rows]
        labelled: np.ndarray = owners < (np.inf if self.labelled_examples is None else self.labelled_examples)
        return labelled

    def _lengths(self, split: str) -> np.ndarray:
        return self.items(split).column("length")

    def _shared_prefixes(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The group (N,) of each prompt and the length (N,) of the prefix it shares, for a task with a group field."""
        store = self.items(split)
        if not self.shares_prefixes:
            return None
        if split not in self._prefixes and len(store) and any(f.group for f in self.task.inputs()):
            column = store.table.column("ids").combine_chunks()
            starts = column.offsets.to_numpy()[1:-1]  # of all prompts but the first
            self._prefixes[split] = shared_prefixes(np.split(column.flatten().to_numpy(), starts))
        return self._prefixes.get(split)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches of the current epoch (the trainer asks anew for every epoch)."""
        trainer = self.trainer
        resumed_epoch, done = self.resumed_at
        batches = BatchesByLength(
            self._lengths("train"),
            self.options.batch_size,
            self.options.batch_tokens,
            (self.seed * 1_000_003 + epoch_of_batches(trainer)) % 2**63,
            (trainer.global_rank, trainer.world_size) if trainer else (0, 1),
            common=self._shared_prefixes("train"),
            first_batch=done if trainer and trainer.current_epoch == resumed_epoch else 0,
            parts=None if self.labelled_examples is None else self.has_label(np.arange(len(self.items("train")))),
        )
        return self._loader("train", batches)

    def eval_dataloader(self, split: str) -> DataLoader[dict[str, Any]]:
        """Batches of a split, longest first, in a fixed order; large ones where text is generated behind prompts.

        Several processes divide them among themselves, and a number that the trainer limits them to, too.
        """
        trainer, store = self.trainer, self.items(split)
        limit, shard = None, (0, 1)
        if trainer and trainer.world_size > 1:  # a trainer limits the batches of each process
            limit = trainer.limit_val_batches if trainer.state.fn == "fit" else trainer.limit_test_batches
            shard = trainer.global_rank, trainer.world_size
        writes = len(store) > 0 and store[0]["target"] is not None
        batches = BatchesByLength(
            self._lengths(split),
            self.options.eval_batch_size,
            eval_batch_tokens(self.options, reads=split == "validation" or not writes, writes=writes),
            seed=None,
            shard=shard,
            limit=limit if isinstance(limit, int) else None,
            max_padding=1.0 if writes else 0.1,
            common=self._shared_prefixes(split),
        )
        return self._loader(split, batches)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Validation batches."""
        return self.eval_dataloader("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches."""
        return self.eval_dataloader("test")


def eval_batch_tokens(options: Any, *, reads: bool, writes: bool) -> int:
    """Padded tokens of a batch that is scored: one that is read for a loss or a head's output, or generated behind.

    A CPU reads most tokens a second where a layer's states fit into its caches; a decoding step of many rows costs
    little more than one of a few.
    """
    if reads and not writes:
        return int(options.batch_tokens) * (16 if torch.cuda.is_available() else 2)
    return int(options.batch_tokens) * (16 if reads else 64)


def encode(task: Task, example: Example, tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """Encode one example into items for `collate`; every target ends with EOS, so that the model learns to stop.

    Raises `DataError` for an item of more than ``max_tokens`` tokens.
    """
    encoded = task.encode(example, text_tokenizer(tokenizer), max_tokens)
    items = []
    for part in [encoded] if isinstance(encoded, Encoded) else encoded:
        target = None if part.target is None else [*part.target, tokenizer.eos_token_id]
        length = len(part.ids) + len(target or [])
        if length > max_tokens:
            raise DataError(f"prompt and target need {length} tokens; data.max_tokens is {max_tokens}: raise it")
        items.append(
            {
                "ids": part.ids,
                "target": target,
                "label": part.label,
                "extra": part.extra or None,
                "learned": [bound for span in part.learned for bound in span],
                "length": length,
                "truncated": part.truncated,
            }
        )
    return items


def _tokenizer_hash(tokenizer: Any) -> str:
    """A hash of a tokenizer's whole definition."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{definition} {tokenizer.eos_token_id}".encode()).hexdigest()[:16]
