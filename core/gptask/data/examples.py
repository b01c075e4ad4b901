"""Checked examples in an Arrow store, through a cache keyed by all they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.schemas import BadRowPolicy, Data
from gptask.data.cache import cache_folder, digest
from gptask.data.columns import Columns
from gptask.data.files import FileReader
from gptask.data.hub import HubReader
from gptask.data.store import ArrowStore
from gptask.errors import DataError, listing
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Kind

log = logging.getLogger("gptask")
SHAPING = {"columns", "label_separator", "on_bad", "format", "header", "pattern", "quote", "encoding"}
SHAPING |= {"documents", "separator"}
QUOTED = 3  # bad rows that are quoted when rows are skipped
_json = json.JSONEncoder(ensure_ascii=False).encode


class Examples(Sequence[Example]):
    """Some rows of a store, as examples; ``key`` names the content, the choice of rows included."""

    def __init__(self, store: ArrowStore, rows: np.ndarray, name: str) -> None:
        self.store, self.rows, self.name = store, rows, name
        self.key = digest(store.path.stem + hashlib.sha256(rows.tobytes()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.store[self.rows[index]]

    def __iter__(self) -> Iterator[Example]:
        return self.store.at(self.rows)

    @property
    def digests(self) -> np.ndarray:
        """The input digest of every example, shape (N,)."""
        return self.store.column("digest")[self.rows]

    @property
    def hash(self) -> str:
        """A hash of inputs and references: equal for the same test set, whatever file it came from."""
        total = hashlib.sha256()
        for example in self:
            kept = {k: v for k, v in example.items() if k not in ("id", "digest", "group")}
            total.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return total.hexdigest()[:16]


class ExampleReader:
    """Turns one split's rows into records for a store; ``meta`` counts rows by file, bad ones, and what was cleaned."""

    def __init__(self, task: Task, columns: Columns, on_bad: BadRowPolicy, train: bool) -> None:
        self.task, self.columns, self.on_bad, self.train = task, columns, on_bad, train
        self.inputs = [f.name for f in task.inputs()]
        self.shared = [f.name for f in task.inputs() if f.group]
        self.rows: Counter[str] = Counter()
        self.good = 0
        self.curated: Counter[str] = Counter()
        self.meta: dict[str, Any] = {"rows": self.rows, "skipped": 0, "first": [], "curated": self.curated}

    def records(self, reader: FileReader | HubReader) -> Iterator[Example]:
        """Examples with a digest of their inputs and of what must stay in one split."""
        for example in self.task.clean(self._examples(reader), self.train, self.curated):
            own = _number([example[name] for name in self.inputs])
            shared = _number([example[name] for name in self.shared]) if self.shared else own
            yield example | {"digest": own, "group": shared}

    def _examples(self, reader: FileReader | HubReader) -> Iterator[Example]:
        """Examples that can be used, with an id: their own, else file and line."""
        for file, row in reader.rows(self.columns.wanted):
            if isinstance(row.value, str) and not row.value.strip():
                continue
            self.rows[file] += 1
            try:
                example = self.columns.example(row)
                self.task.check(example)
            except DataError as error:
                self._bad(row.at(file), error)
                continue
            example.setdefault("id", row.at(os.path.basename(file)))
            self.good += 1
            yield example

    def _bad(self, place: str, error: DataError) -> None:
        if self.on_bad is BadRowPolicy.stop:
            hint = " (data.on_bad=skip leaves such rows out)" if self.good else ""  # else the options may be wrong
            raise DataError(f"{place}: {error}{hint}") from error
        self.meta["skipped"] += 1
        if len(self.meta["first"]) < QUOTED:
            self.meta["first"].append(f"{place}: {error}")


def _number(values: list[Any]) -> int:
    """A digest as a signed 64-bit number: eight bytes a row however large the data."""
    text = f"[{', '.join(map(_json, values))}]"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") - 2**63


def _schema(task: Task) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    kinds = {
        Kind.TEXT: text,
        Kind.TEXTS: pa.list_(text),
        Kind.LABEL: text,
        Kind.LABELS: pa.list_(text),
        Kind.INTEGERS: pa.list_(number),
        Kind.NUMBER: pa.float64(),
        Kind.MESSAGES: pa.list_(pa.struct([("role", text), ("content", text)])),
        Kind.TOKENS: pa.list_(text),
        Kind.TAGS: pa.list_(text),
    }
    own = [(f.name, kinds[f.kind]) for f in task.fields()]
    return pa.schema([("id", text), *own, ("digest", number), ("group", number)])


def cached_examples(task: Task, options: Data, split: str, reader: FileReader | HubReader) -> ArrowStore:
    """The examples of a split, from the cache if it holds them; the log says what was read, skipped and seen twice."""
    columns = Columns(task, options)
    prints = reader.fingerprint()
    shaping = sorted((f.name, repr(getattr(options, f.name))) for f in fields(options) if f.name in SHAPING)
    content = [f"{Path(name).name} {code}" for name, code in prints.items()]
    train = split == "train"
    key = digest(repr([content, getattr(reader, "fields", []), shaping, columns.names, train, task, code_hash(task)]))
    path = cache_folder() / "examples" / f"{key}.arrow"
    if path.exists():
        store = ArrowStore(path)
    else:
        reading = ExampleReader(task, columns, options.on_bad, train)
        reading.meta["files"] = list(prints)
        store = ArrowStore.write(path, reading.records(reader), reading.meta, _schema(task))
    store.sources = prints
    rows, files = store.meta["rows"], store.meta.get("files", list(prints))  # as they were called when they were read
    together = rows.get("+".join(files), 0)  # parallel files have their rows in common
    for (name, code), file in zip(prints.items(), files, strict=True):
        log.info("%s: %d rows of %s (sha256 %s)", split, rows.get(file, together), name, code[:12])
    _report(store, split, listing(prints))
    return store


def _report(store: ArrowStore, split: str, names: str) -> None:
    skipped, first = store.meta["skipped"], "; ".join(store.meta["first"])
    if not len(store):
        why = f"; all {skipped} rows are bad: {first}" if skipped else ""
        raise DataError(f"{split}: there is no example in {names}{why}")
    if store.meta["curated"]:
        done = ", ".join(f"{number:,} {what}" for what, number in store.meta["curated"].items())
        log.info("%s: cleaned: %s", split, done)
    if skipped:
        total = sum(store.meta["rows"].values())
        log.warning("%s: %d of %d rows are bad and skipped (data.on_bad=skip): %s%s", split, skipped, total, first,
                    ", ..." if skipped > QUOTED else "")  # fmt: skip
    if twice := len(store) - len(np.unique(store.column("digest"))):
        log.warning("%s: %d of %d inputs are duplicates", split, twice, len(store))


def code_hash(task: Task) -> str:
    """A hash of the code a task's encoding depends on, so that an author's edit is never answered from a cache.

    That is this package, and each module in the task's ancestry with the modules beside it. A class without a file
    (typed into a notebook) is never answered from a cache at all.
    """
    files = set(Path(__file__).parent.glob("*.py"))
    total = hashlib.sha256()
    for cls in type(task).__mro__:
        if issubclass(cls, Task):
            module = sys.modules[cls.__module__]
            file = getattr(module, "__file__", None)
            total.update(b"" if file else os.urandom(16))
            files.update(Path(file or __file__).parent.glob("*.py") if module.__package__ else [Path(file or __file__)])
    for path in sorted(files):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
