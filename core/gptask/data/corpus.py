"""The splits of a run: read through the cache, cut from train where there is no file, limited by the user."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.schemas import Data, Files, Hub, Sample
from gptask.data.columns import label_names
from gptask.data.documents import options_for_task
from gptask.data.examples import Examples, cached_examples
from gptask.data.files import FileReader
from gptask.data.hub import HubReader
from gptask.data.reading import SUFFIXES
from gptask.data.store import ArrowStore
from gptask.errors import DataError, UserError, listing
from gptask.plugins.task import Task

log = logging.getLogger("gptask")
SPLITS = ("train", "validation", "test")


class CachedCorpus:
    """The splits of a run's data. Nothing is read before a split is asked for."""

    def __init__(self, task: Task, options: Data, seed: int) -> None:
        if not 0 < options.cut < 0.5:
            raise UserError(f"data.cut={options.cut} must lie between 0 and 0.5: the share cut from train for a split")
        for split in SPLITS:
            limit = getattr(options.limit, split)
            if limit is not None and limit < 1:
                raise UserError(f"data.limit.{split}={limit} must be at least 1")
        self.task, self.seed = task, seed
        self._readers: dict[str, FileReader | HubReader] = {}
        self._stores: dict[str, ArrowStore] = {}
        self.options = options
        if isinstance(options, Sample):
            said = {"license": options.license} if options.license else {}
            self.options = _as_file_options(options, **task.sample() | said)
        for split in SPLITS:
            if self.given(split) is not None and not self._on_hub(split):
                self._reader(split)  # a missing file is an error before anything is loaded
        self._splits: dict[str, Examples] = {}

    def split(self, name: str) -> Examples:
        """A split, cut from train where the user gave no file for it; limited by ``data.limit``."""
        if name not in SPLITS:
            raise UserError(f"no split '{name}'; there are {listing(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self._limited(name, *self._choose(name))
        return self._splits[name]

    def whole(self, name: str) -> Examples:
        """Every row given for a split, without cut and limit: what a label set is taken from."""
        store = self._store(name)
        return Examples(store, np.arange(len(store)), name)

    def sources(self, name: str) -> dict[str, str]:
        """Files (or the hub split) that a split which was read came from, each with a hash of its content."""
        store = self._stores.get(name if self.given(name) is not None else "train")
        return store.sources if store else {}

    def require(self, name: str) -> None:
        """Raise `UserError` unless there is data given for a split."""
        if self.given(name) is None:
            raise UserError(f"no {name} data: set data.{name}=<file> (with data=files), or take data=sample")

    def warn_overlap(self) -> None:
        """Count test and validation inputs that occur in train."""
        train = self.split("train").digests
        for name in ("validation", "test"):
            shared = int(np.isin(self.split(name).digests, train).sum())
            if shared:
                log.warning("%d of %d %s inputs also occur in train", shared, len(self.split(name)), name)

    def given(self, name: str) -> Any:
        """The file names (or the hub split) the user gave for a split, None if none."""
        return getattr(self.options, name, None)

    def fingerprint(self) -> list[Any]:
        """What the data is by content: a hash of every file (of a hub split, its own), and the names of labels."""
        given = [name for name in SPLITS if self.given(name) is not None]
        return [
            [[name, *self._reader(name).fingerprint().values()] for name in given],
            list(label_names(self.options).items()),
        ]

    def _choose(self, name: str) -> tuple[ArrowStore, np.ndarray]:
        missing = [split for split in ("validation", "test") if self.given(split) is None]
        if name in missing:
            if self.given("train") is None:
                self.require(name)
            cut = self._cut(missing)[name]
            log.info("%s: none given; %d examples cut from train by seed %d, duplicates kept together",
                     name, len(cut), self.seed)  # fmt: skip
            return self._store("train"), cut
        store = self._store(name)
        if name == "train" and missing:
            return store, self._cut(missing)["train"]
        return store, np.arange(len(store))

    def _cut(self, missing: list[str]) -> dict[str, np.ndarray]:
        """Divide train by its groups, so that duplicates and questions on one context stay together."""
        store = self._store("train")
        groups, inverse = np.unique(store.column("group"), return_inverse=True)
        share = max(1, round(self.options.cut * len(groups)))
        if len(groups) < share * len(missing) + 1:
            raise DataError(
                f"train has {len(groups)} different examples, too few to cut {listing(missing)} from; "
                "add rows or name a file for each split"
            )
        place = np.random.default_rng(self.seed).permutation(len(groups)) // share
        rows = place[inverse]
        cut = {split: np.flatnonzero(rows == number) for number, split in enumerate(missing)}
        return cut | {"train": np.flatnonzero(rows >= len(missing))}

    def _limited(self, name: str, store: ArrowStore, rows: np.ndarray) -> Examples:
        limit, total = getattr(self.options.limit, name), len(rows)
        if limit is not None and limit < total:
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:limit])
        log.info("%s: %d examples%s", name, len(rows), f" of {total} (data.limit)" if len(rows) < total else "")
        return Examples(store, rows, name)

    def _store(self, name: str) -> ArrowStore:
        if name not in self._stores:
            self.require(name)
            self._stores[name] = cached_examples(self.task, self.options, name, self._reader(name))
        return self._stores[name]

    def _on_hub(self, name: str) -> bool:
        """Whether a split is a hub split, and not a local file put in its place."""
        given = self.given(name)
        if not isinstance(self.options, Hub) or not isinstance(given, str):
            return False
        suffixes = {suffix.lower() for suffix in Path(given).suffixes}
        return not (suffixes & {*SUFFIXES, ".txt", ".gz"} or Path(given).expanduser().is_file())

    def _reader(self, name: str) -> FileReader | HubReader:
        if name not in self._readers:
            self._readers[name] = self._new_reader(name)
        return self._readers[name]

    def _new_reader(self, name: str) -> FileReader | HubReader:
        if self._on_hub(name):
            return HubReader(self.options, self.given(name))  # type: ignore[arg-type]
        options = self.options if isinstance(self.options, Files) else _as_file_options(self.options)
        return FileReader(options_for_task(options, self.task), self.given(name))


def _as_file_options(options: Data, **more: Any) -> Files:
    """The same options for local files: ``more`` goes over what all kinds of data share."""
    return Files(**({f.name: getattr(options, f.name) for f in fields(Data)} | more))
