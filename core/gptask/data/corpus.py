"""The splits of a run: read through the cache, cut from train where there is no file, limited by the user."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.schemas import Data, Files, Hub, Sample
from gptask.data.columns import Columns
from gptask.data.documents import options_for_task
from gptask.data.examples import Examples, cached_examples, task_groups
from gptask.data.files import FileReader
from gptask.data.hub import HubReader
from gptask.data.labels import label_names
from gptask.data.opening import COMPRESSED_SUFFIXES
from gptask.data.reading import FORMAT_OF_SUFFIX
from gptask.data.splitting import joined_groups, stratified_splits
from gptask.data.store import ArrowStore
from gptask.errors import DataError, UserError, listing, user_path
from gptask.plugins.task import Task
from gptask.plugins.types import Field, Kind

log = logging.getLogger("gptask")
SPLITS = ("train", "validation", "test")
LOCAL_SUFFIXES = {*FORMAT_OF_SUFFIX, ".txt", *COMPRESSED_SUFFIXES}


class CachedCorpus:
    """The splits of a run's data. Nothing is read before a split is asked for."""

    def __init__(self, task: Task, options: Data, seed: int) -> None:
        if not 0 < options.cut < 0.5:
            raise UserError(f"data.cut={options.cut} must lie between 0 and 0.5: the share cut from train for a split")
        for split in SPLITS:
            limit = getattr(options.limit, split)
            if limit is not None and limit < 1:
                raise UserError(f"data.limit.{split}={limit} must be at least 1")
        for split in ("validation", "test"):
            if getattr(options, f"{split}_columns") and getattr(options, split, "") is None:
                raise UserError(
                    f"data.{split}_columns is for a file of its own, and data.{split} is not set: the {split} split is "
                    "cut from train, whose columns data.columns names"
                )
        if options.half not in (None, 1, 2):
            raise UserError(
                f"data.half={options.half} must be 1 or 2, the half of train to take, or null for all of it"
            )
        if options.stratify and not _label_field(task):
            raise UserError("data.stratify=true needs a task whose examples have labels; leave it out (null) or false")
        self.task, self.seed = task, seed
        self.options = options
        if isinstance(options, Sample):
            license_option = {"license": options.license} if options.license else {}
            self.options = _as_file_options(options, **task.sample() | license_option)
        self._readers: dict[str, FileReader | HubReader] = {}
        self._stores: dict[str, ArrowStore] = {}
        self._splits: dict[str, Examples] = {}
        for split in SPLITS:  # a missing file or a wrong option is an error before anything is read
            if self.split_source(split) is not None:
                Columns(task, self.split_options(split), split=split)
                if not self._is_hub_split(split):
                    self._reader(split)

    def split(self, name: str) -> Examples:
        """A split, cut from train where the user gave no file for it; limited by ``data.limit``, and ``data.half``."""
        if name not in SPLITS:
            raise UserError(f"no split '{name}'; there are {listing(SPLITS)}")
        if name not in self._splits:
            examples = self._limited(name, *self._choose_rows(name))
            self._splits[name] = self._half(examples) if name == "train" and self.options.half else examples
        return self._splits[name]

    def all_rows(self, name: str) -> Examples:
        """Every row given for a split, without cut and limit: a label set is taken from these."""
        store = self._store(name)
        return Examples(store, np.arange(len(store)), name)

    def sources(self, name: str) -> dict[str, str]:
        """The files (or the hub split) that a split was read from, each with a hash of its content; none if unread."""
        store = self._stores.get(name if self.split_source(name) is not None else "train")
        return store.sources if store else {}

    def require_split(self, name: str) -> None:
        """Raise `UserError` unless there is data given for a split."""
        if self.split_source(name) is None:
            raise UserError(f"no {name} data: set data.{name}=<file> (with data=files), or take data=sample")

    def warn_overlap(self) -> None:
        """Log how many validation and test inputs also occur in train, and how many test inputs in validation."""
        seen = {"train": self.split("train").digests}
        for name in ("validation", "test"):
            digests = self.split(name).digests
            for other, overlap in count_overlap(digests, seen).items():
                if overlap:
                    log.warning("%d of %d %s inputs also occur in %s", overlap, len(digests), name, other)
            seen[name] = digests

    def split_source(self, name: str) -> Any:
        """The file names (or the hub split) the user gave for a split, None if none."""
        return getattr(self.options, name, None)

    def split_options(self, name: str) -> Data:
        """The options that read a split: its own columns replace those of all splits, field by field."""
        columns = getattr(self.options, f"{name}_columns", {})
        return replace(self.options, columns={**self.options.columns, **columns}) if columns else self.options

    def fingerprint(self) -> list[Any]:
        """The identity of the data: per split its files' hashes (or the hub's fingerprint), and the label names."""
        names = [name for name in SPLITS if self.split_source(name) is not None]
        return [
            [[name, *self._reader(name).fingerprint().values()] for name in names],
            list(label_names(self.options).items()),
        ]

    def _choose_rows(self, name: str) -> tuple[ArrowStore, np.ndarray]:
        """The store that holds a split, and the split's rows in it."""
        if name in self._missing:
            if self.split_source("train") is None:
                self.require_split(name)
            rows = self._cut[name]
            together = f"duplicates and equal values of {self.options.group}" if self.options.group else "duplicates"
            log.info("%s: no file given, so %d examples are cut from train (seed %d%s); %s stay in one split",
                     name, len(rows), self.seed, ", stratified by label" * self._stratified, together)  # fmt: skip
            return self._store("train"), rows
        store = self._store(name)
        if name == "train" and self._missing:
            return store, self._cut["train"]
        return store, np.arange(len(store))

    @property
    def _missing(self) -> list[str]:
        """The splits that are cut from train."""
        return [split for split in ("validation", "test") if self.split_source(split) is None]

    @property
    def _stratified(self) -> bool:
        """Whether a cut takes the same share of every label."""
        return self.options.stratify is not False and _label_field(self.task) is not None

    @cached_property
    def _cut(self) -> dict[str, np.ndarray]:
        """The rows of train that each missing split gets, and those that stay, divided by groups.

        Duplicates, questions on one context and equal values of the column ``data.group`` stay in one split.
        """
        missing, rows = self._missing, np.arange(len(self._store("train")))
        groups, group_of_row = self._groups(rows)
        groups_per_split = max(1, round(self.options.cut * groups))
        if groups < groups_per_split * len(missing) + 1:
            raise DataError(
                f"train has {groups} different examples, too few to cut {listing(missing)} from; "
                "add rows or name a file for each split"
            )
        split_of_row = self._draw_splits(rows, group_of_row, len(missing), groups_per_split)
        cut = {split: np.flatnonzero(split_of_row == number) for number, split in enumerate(missing)}
        return cut | {"train": np.flatnonzero(split_of_row >= len(missing))}

    def _groups(self, rows: np.ndarray) -> tuple[int, np.ndarray]:
        """How many groups some rows (N,) of train form that must stay together, and the number of each row's (N,)."""
        store = self._store("train")
        values = store.column("group")
        if self.options.group:
            values = joined_groups(values, task_groups(self.task, store))
        groups, group_of_row = np.unique(values[rows], return_inverse=True)
        return len(groups), group_of_row

    def _draw_splits(self, rows: np.ndarray, group_of_row: np.ndarray, splits: int, size: int) -> np.ndarray:
        """The split (N,) of some rows (N,) of train, ascending, with their groups (N,).

        It is 0 to ``splits`` - 1, of ``size`` groups each, and a higher number for the rest. The seed decides.
        """
        generator, field = np.random.default_rng(self.seed), _label_field(self.task)
        groups = int(group_of_row.max()) + 1
        if self._stratified and field:
            labelled_rows, labels = self._store("train").labels(field.name)
            is_drawn = np.isin(labelled_rows, rows)
            group_of_label = group_of_row[np.searchsorted(rows, labelled_rows[is_drawn])]
            labels = np.unique(labels[is_drawn], return_inverse=True)[1]
            by_rarest = field.kind is Kind.LABELS
            split_of_group = stratified_splits(group_of_label, labels, groups, splits, size, by_rarest, generator)
        else:
            split_of_group = generator.permutation(groups) // size
        split_of_row: np.ndarray = split_of_group[group_of_row]
        return split_of_row

    def _half(self, train: Examples) -> Examples:
        """The half of the training examples that ``data.half`` names; the seed divides them by groups.

        The halves have the same share of every label, where cuts are stratified.
        """
        groups, group_of_row = self._groups(train.rows)
        if groups < 2:
            raise DataError(f"data.half={self.options.half}: train has {groups} different examples, too few to halve")
        is_first = self._draw_splits(train.rows, group_of_row, 1, groups // 2) == 0
        rows = train.rows[is_first if self.options.half == 1 else ~is_first]
        log.info("train: %d of %d examples (data.half=%d)", len(rows), len(train), self.options.half)
        return Examples(train.store, rows, train.name)

    def _limited(self, name: str, store: ArrowStore, rows: np.ndarray) -> Examples:
        limit, total = getattr(self.options.limit, name), len(rows)
        if limit is not None and limit < total:
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:limit])
        log.info("%s: %d examples%s", name, len(rows), f" of {total} (data.limit)" if len(rows) < total else "")
        return Examples(store, rows, name)

    def _store(self, name: str) -> ArrowStore:
        if name not in self._stores:
            self.require_split(name)
            self._stores[name] = cached_examples(self.task, self.split_options(name), name, self._reader(name))
        return self._stores[name]

    def _is_hub_split(self, name: str) -> bool:
        """Whether a split is a hub split, and not a local file in its place."""
        source = self.split_source(name)
        if not isinstance(self.options, Hub) or not isinstance(source, str):
            return False
        suffixes = {suffix.lower() for suffix in Path(source).suffixes}
        return not (suffixes & LOCAL_SUFFIXES or user_path(source).is_file())

    def _reader(self, name: str) -> FileReader | HubReader:
        if name not in self._readers:
            self._readers[name] = self._new_reader(name)
        return self._readers[name]

    def _new_reader(self, name: str) -> FileReader | HubReader:
        options = self.split_options(name)
        if isinstance(options, Hub) and self._is_hub_split(name):
            return HubReader(options, self.split_source(name))
        file_options = options if isinstance(options, Files) else _as_file_options(options)
        return FileReader(options_for_task(file_options, self.task), self.split_source(name))


def count_overlap(digests: np.ndarray, splits: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many of the input digests (N,) are among those of each split that a model was trained or selected on."""
    return {name: int(np.isin(digests, splits[name]).sum()) for name in ("train", "validation") if name in splits}


def _label_field(task: Task) -> Field | None:
    """The field that holds the label or the labels of an example, None for a task without or with several such."""
    label_fields = [field for field in task.targets() if field.kind in (Kind.LABEL, Kind.LABELS)]
    return label_fields[0] if len(label_fields) == 1 else None


def _as_file_options(options: Data, **overrides: Any) -> Files:
    """What all kinds of data have in common as options of local files, with ``overrides`` over them."""
    return Files(**({field.name: getattr(options, field.name) for field in fields(Data)} | overrides))
