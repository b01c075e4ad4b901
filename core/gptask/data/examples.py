"""Checked examples in an Arrow store, through a cache keyed by all they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from gptask.config.schemas import BadRowPolicy, Data
from gptask.data.cache import cache_folder, digest
from gptask.data.code_hash import CODE_OF_EXAMPLES, code_hash
from gptask.data.columns import Columns
from gptask.data.files import FileReader, shortest_paths
from gptask.data.hub import HubReader
from gptask.data.messages import unused_members
from gptask.data.rows import ReadingNotes, Row
from gptask.data.store import ArrowStore
from gptask.errors import DataError, listing
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Kind

log = logging.getLogger("gptask")
# options of data that shape examples, and so belong to the key of the cache
EXAMPLE_OPTIONS = {"columns", "label_separator", "on_bad", "format", "header", "pattern", "quote", "encoding"}
EXAMPLE_OPTIONS |= {"delimiter", "documents", "separator", "group"}
MAX_QUOTED_ROWS = 3  # bad rows quoted in the log when they are skipped
_to_json = json.JSONEncoder(ensure_ascii=False).encode


class Examples(Sequence[Example]):
    """Some rows of a store, as examples; ``key`` identifies their content, the choice of rows included."""

    def __init__(self, store: ArrowStore, rows: np.ndarray, name: str) -> None:
        self.store, self.rows, self.name = store, rows, name
        self.key = digest(store.path.stem + hashlib.sha256(rows.tobytes()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.store[self.rows[index]]

    def __iter__(self) -> Iterator[Example]:
        return self.store.records_at(self.rows)

    def after(self, number: int) -> Iterator[Example]:
        """The examples behind the first ``number``."""
        return self.store.records_at(self.rows[number:])

    def without(self, digests: Sequence[int]) -> Examples:
        """The examples whose input digest is none of these."""
        kept = ~np.isin(self.digests, np.asarray(digests, dtype=np.int64))
        return self if kept.all() else Examples(self.store, self.rows[kept], self.name)

    @property
    def digests(self) -> np.ndarray:
        """The input digest of every example, shape (N,)."""
        digests: np.ndarray = self.store.column("digest")[self.rows]
        return digests

    @property
    def hash(self) -> str:
        """A hash of inputs and references: equal for the same test set, whatever file it came from."""
        sha256 = hashlib.sha256()
        for example in self:
            content = {name: value for name, value in example.items() if name not in ("id", "digest", "group")}
            sha256.update(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return sha256.hexdigest()[:16]


class ExampleReader:
    """Turns one split's rows into records for a store.

    ``meta`` counts rows by file, skipped bad rows (and quotes the first) and what the task cleaned; it is complete once
    all records are drawn.
    """

    def __init__(
        self, task: Task, columns: Columns, on_bad: BadRowPolicy, train: bool, short_names: Mapping[str, str]
    ) -> None:
        self.task, self.columns, self.on_bad, self.train = task, columns, on_bad, train
        self.short_names = short_names  # of the files, for ids
        self.input_names = [field.name for field in task.inputs()]
        self.group_names = ["group"] if columns.group else _group_names(task)
        self.row_counts: Counter[str] = Counter()  # by file
        self.cleaning_counts: Counter[str] = Counter()  # by what `Task.clean` does
        self.has_messages = any(field.kind is Kind.MESSAGES for field in task.inputs())
        self.any_good = False
        self.meta: dict[str, Any] = {
            "rows": self.row_counts,
            "skipped": 0,
            "first": [],
            "cleaned": self.cleaning_counts,
            "unused_members": Counter[str](),  # of messages
        }

    def records(self, reader: FileReader | HubReader) -> Iterator[Example]:
        """Examples, each with a digest of its inputs and one of the fields that must stay in one split (its group)."""
        cleaned = self.task.clean(self._examples(reader), self.train, self.cleaning_counts)
        if not isinstance(cleaned, Iterable):
            raise TypeError(f"Task.clean() must yield the examples, got {cleaned!r}")
        for example in cleaned:
            input_digest = signed_digest([example[name] for name in self.input_names])
            values = [example[name] for name in self.group_names]
            yield example | {"digest": input_digest, "group": signed_digest(values) if values else input_digest}

    def _examples(self, reader: FileReader | HubReader) -> Iterator[Example]:
        """The usable examples, each with an id: the row's own, else its file and line."""
        for file, row in self._rows(reader):
            if isinstance(row.value, str) and not row.value.strip():
                continue
            self.row_counts[file] += 1
            try:
                example = self.columns.example(row)
                self.task.check(example)
            except DataError as error:
                self._skip_or_raise(row.location(file), error)
                continue
            if self.has_messages:
                self.meta["unused_members"].update(unused_members(row.value))
            example.setdefault("id", row.location(self.short_names.get(file, os.path.basename(file))))
            self.any_good = True
            yield example

    def _rows(self, reader: FileReader | HubReader) -> Iterator[tuple[str, Row]]:
        """The rows (of a table with a word a row: the sentences) of each file, with the file's name."""
        for file, rows_of_file in groupby(reader.rows(self.columns.header_names), key=itemgetter(0)):
            for row in self.columns.sentences(row for _, row in rows_of_file):
                yield file, row
        self.meta["sentence_column"] = self.columns.sentence_column

    def _skip_or_raise(self, place: str, error: DataError) -> None:
        if self.on_bad is BadRowPolicy.stop:
            # where even the first row is bad, the options are more likely wrong than the row
            hint = " (data.on_bad=skip leaves such rows out)" if self.any_good else ""
            raise DataError(f"{place}: {error}{hint}") from error
        self.meta["skipped"] += 1
        if len(self.meta["first"]) < MAX_QUOTED_ROWS:
            self.meta["first"].append(f"{place}: {error}")


def _group_names(task: Task) -> list[str]:
    return [field.name for field in task.inputs() if field.group]


def task_groups(task: Task, store: ArrowStore) -> np.ndarray:
    """The groups (N,) that a task itself keeps together, besides ``data.group``: by its fields, else equal inputs."""
    if not (names := _group_names(task)):
        return store.column("digest")
    return np.array([signed_digest([example[name] for name in names]) for example in store])


def signed_digest(values: list[Any]) -> int:
    """A digest as a signed 64-bit number: eight bytes a row however large the data."""
    text = f"[{', '.join(map(_to_json, values))}]"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") - 2**63


def example_schema(task: Task) -> Any:
    """The columns of a task's examples in a store."""
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    types = {
        Kind.TEXT: text,
        Kind.TEXTS: pa.list_(text),
        Kind.LABEL: text,
        Kind.LABELS: pa.list_(text),
        Kind.INTEGERS: pa.list_(number),
        Kind.NUMBER: pa.float64(),
        Kind.MESSAGES: pa.list_(pa.map_(text, text)),  # a map has the members of each message, a struct those of all
        Kind.TOKENS: pa.list_(text),
        Kind.TAGS: pa.list_(text),
    }
    columns = [(field.name, types[field.kind]) for field in (*task.inputs(), *task.targets())]
    return pa.schema([("id", text), *columns, ("digest", number), ("group", number)])


def stored_examples(task: Task, records: Iterable[Example], content: Any, meta: dict[str, Any], name: str) -> Examples:
    """Examples that are made of others, in the cache under a key of the ``content`` they are made of and of the task.

    Drawing ``records`` may fill ``meta``, which the store keeps.
    """
    key = digest(repr([content, task, code_hash(task, CODE_OF_EXAMPLES)]))
    path = cache_folder() / "examples" / f"{key}.arrow"
    store = ArrowStore.cached(path) or ArrowStore.write(path, records, meta, example_schema(task))
    return Examples(store, np.arange(len(store)), name)


def cached_examples(task: Task, options: Data, split: str, reader: FileReader | HubReader) -> ArrowStore:
    """The examples of a split, from the cache if it holds them; logs the rows read, cleaned, skipped and duplicate."""
    columns = Columns(task, options, split=split)
    hashes = reader.fingerprint()
    shaping = sorted((f.name, repr(getattr(options, f.name))) for f in fields(options) if f.name in EXAMPLE_OPTIONS)
    short_names = shortest_paths(hashes)
    content = [f"{short_names[name]} {content_hash}" for name, content_hash in hashes.items()]
    train = split == "train"
    code = code_hash(task, CODE_OF_EXAMPLES)
    key = digest(repr([content, getattr(reader, "fields", []), shaping, columns.names, train, task, code]))
    path = cache_folder() / "examples" / f"{key}.arrow"
    store = ArrowStore.cached(path)
    if store is None:
        example_reader = ExampleReader(task, columns, options.on_bad, train, short_names)
        example_reader.meta["files"] = list(hashes)
        example_reader.meta["notes"] = {name: vars(notes) for name, notes in getattr(reader, "notes", {}).items()}
        store = ArrowStore.write(path, example_reader.records(reader), example_reader.meta, example_schema(task))
    store.sources = hashes
    row_counts = store.meta["rows"]
    # the same files in the same order, under the names they had when the cache was filled
    cached_names = store.meta.get("files", list(hashes))
    parallel_rows = row_counts.get("+".join(cached_names), 0)  # parallel files are counted together
    for (name, content_hash), cached_name in zip(hashes.items(), cached_names, strict=True):
        rows = row_counts.get(cached_name, parallel_rows)
        notes = ReadingNotes(**store.meta.get("notes", {}).get(cached_name, {}))
        how = f"; {notes.summary()}" if notes.options else ""
        log.info("%s: %d rows of %s (sha256 %s%s)", split, rows, name, content_hash[:12], how)
        for sentence in notes.decisions:
            log.info("%s: %s: %s", split, name, sentence)
        for sentence in notes.warnings:
            log.warning("%s: %s: %s", split, name, sentence)
    _log_quality(store, split, listing(hashes))
    return store


def _log_quality(store: ArrowStore, split: str, files: str) -> None:
    """Log what was cleaned, skipped and duplicate; raises `DataError` for a split without examples."""
    skipped, first_errors = store.meta["skipped"], "; ".join(store.meta["first"])
    if not len(store):
        cause = f"; all {skipped} rows are bad: {first_errors}" if skipped else ""
        raise DataError(f"{split}: there is no example in {files}{cause}")
    if column := store.meta.get("sentence_column"):
        log.info("%s: a word a row; the column '%s' parts the sentences (data.columns.sentence)", split, column)
    if store.meta["unused_members"]:
        counts = ", ".join(f"{name} ({count:,})" for name, count in store.meta["unused_members"].items())
        log.info("%s: members of messages that are not used: %s", split, counts)
    if store.meta["cleaned"]:
        actions = ", ".join(f"{count:,} {action}" for action, count in store.meta["cleaned"].items())
        log.info("%s: cleaned: %s", split, actions)
    if skipped:
        log.warning(
            "%s: %d of %d rows are bad and skipped (data.on_bad=skip): %s%s",
            split, skipped, sum(store.meta["rows"].values()), first_errors, ", ..." * (skipped > MAX_QUOTED_ROWS),
        )  # fmt: skip
    if duplicates := len(store) - len(np.unique(store.column("digest"))):
        log.warning("%s: %d of %d inputs are duplicates", split, duplicates, len(store))
