"""The examples of a run: files or hub data, read once into an Arrow store, checked, cut into splits and limited."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config import Data, Files, Hub, OnBad, Sample
from gptask.data.columns import Columns
from gptask.data.reading import Row, Source, read
from gptask.data.store import Store, cache_folder
from gptask.errors import DataError, UserError, listing
from gptask.task import Example, Kind, Task

log = logging.getLogger("gptask")
SPLITS = ("train", "validation", "test")


def digest(text: str) -> str:
    """Sixteen hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _number(text: str) -> int:
    """A text's digest as a signed 64-bit number: eight bytes a row however large the data."""
    return int(digest(text), 16) - 2**63


class Examples(Sequence[Example]):
    """Some rows of a store, as examples; ``key`` names the content, the choice of rows included."""

    def __init__(self, store: Store, rows: np.ndarray, name: str) -> None:
        self.store, self.rows, self.name = store, rows, name
        self.key = digest(store.path.stem + hashlib.sha256(rows.tobytes()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.store[self.rows[index]]

    def __iter__(self) -> Iterator[Example]:
        if len(self.rows) == len(self.store):
            yield from self.store
        else:
            yield from (self.store[row] for row in self.rows)

    @property
    def digests(self) -> np.ndarray:
        """The input digest of every example, shape (N,)."""
        return self.store.column("digest")[self.rows]

    @property
    def hash(self) -> str:
        """A hash of inputs and references: equal for the same test set, whatever file it came from."""
        total = hashlib.sha256()
        for example in self:
            kept = {k: v for k, v in example.items() if k not in ("id", "line", "source", "digest", "group")}
            total.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return total.hexdigest()[:16]


class Corpus:
    """The splits of a run's data. Nothing is read before a split is asked for."""

    def __init__(self, task: Task, options: Data, seed: int) -> None:
        if not 0 < options.cut < 0.5:
            raise UserError(f"data.cut={options.cut} must lie between 0 and 0.5: the share cut from train for a split")
        self.task, self.options, self.seed = task, options, seed
        if isinstance(options, Sample):
            shared = {k: v for k, v in vars(options).items() if not k.startswith("_")}
            self.options = Files(**(shared | task.sample()))
        for split in SPLITS:
            if isinstance(self.options, Files) and self.given(split) is not None:
                FileReader(self.options, self.given(split))  # a missing file is an error before anything is loaded
        self._stores: dict[str, Store] = {}
        self._splits: dict[str, Examples] = {}

    def split(self, name: str) -> Examples:
        """A split, cut from train where the user gave no file for it; limited by ``data.limit``."""
        if name not in SPLITS:
            raise UserError(f"no split '{name}'; there are {listing(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self._limited(name, *self._choose(name))
        return self._splits[name]

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

    def _choose(self, name: str) -> tuple[Store, np.ndarray]:
        missing = [split for split in ("validation", "test") if self.given(split) is None]
        if name in missing:
            cut = self._cut(missing)
            log.info("%s: no file given; %d examples cut from train (seed %d)", name, len(cut[name]), self.seed)
            return self._store("train"), cut[name]
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

    def _limited(self, name: str, store: Store, rows: np.ndarray) -> Examples:
        limit = getattr(self.options.limit, name)
        if limit is not None and limit < 1:
            raise UserError(f"data.limit.{name}={limit} must be at least 1")
        total = len(rows)
        if limit is not None and limit < total:
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:limit])
        log.info("%s: %d examples%s", name, len(rows), f" of {total} (data.limit)" if len(rows) < total else "")
        return Examples(store, rows, name)

    def _store(self, name: str) -> Store:
        if name not in self._stores:
            given = self.given(name)
            self.require(name)
            reader = (
                HubReader(self.options, given) if isinstance(self.options, Hub) else FileReader(self.options, given)
            )
            self._stores[name] = _stored(self.task, self.options, name, reader)
        return self._stores[name]


class FileReader:
    """The rows of one or several files, or of parallel files joined by line."""

    def __init__(self, options: Data, given: Any) -> None:
        assert isinstance(options, Files)
        self.options = options
        self.parallel = isinstance(given, Mapping)
        names = list(given.values()) if self.parallel else [given] if isinstance(given, str) else list(given)
        self.fields = list(given) if self.parallel else []
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"data files must be a name, a list of names or field: name pairs, got {given!r}")
        self.sources = [Source.parse(name, options.root) for name in names]

    def fingerprint(self) -> list[str]:
        """What the content depends on: the files' hashes, logged as the data really used."""
        prints = []
        for source in self.sources:
            with source.path.open("rb") as stream:
                code = hashlib.file_digest(stream, "sha256").hexdigest()
            log.info("data: %s (sha256 %s)", source.path, code[:12])
            prints.append(f"{source.path.name}#{source.part} {code}")
        return prints

    def rows(self, columns: Columns) -> Iterator[tuple[str, Row]]:
        """Rows with the name of their file."""
        if self.parallel:
            yield from self._parallel()
        else:
            for source in self.sources:
                for row in read(source, self.options, columns.wanted):
                    yield str(source.path), row

    def _parallel(self) -> Iterator[tuple[str, Row]]:
        lines = replace(self.options, format="lines", pattern=None)
        streams = [read(source, lines, ()) for source in self.sources]
        number, first = 0, str(self.sources[0].path)
        while True:
            values = [next(stream, None) for stream in streams]
            if all(value is None for value in values):
                return
            if any(value is None for value in values):
                ended = self.sources[[value is None for value in values].index(True)].path
                counts = listing(f"{s.path.name} {sum(1 for _ in read(s, lines, ()))}" for s in self.sources)
                raise DataError(f"{ended} ends after line {number}, but parallel files must be equally long: {counts}")
            number += 1
            yield first, Row(number, dict(zip(self.fields, (v.value for v in values if v), strict=True)))


class HubReader:
    """The rows of one split of a hub data set."""

    def __init__(self, options: Data, given: str) -> None:
        from gptask.data.hub import load

        assert isinstance(options, Hub)
        self.name = f"{options.path}[{given}]"
        self.data = load(options, given)

    def fingerprint(self) -> list[str]:
        """The data set's own fingerprint."""
        log.info("data: %s from the hub (fingerprint %s)", self.name, self.data._fingerprint)
        return [self.name, self.data._fingerprint]

    def rows(self, columns: Columns) -> Iterator[tuple[str, Row]]:
        """Rows with the data set's name."""
        for number, value in enumerate(self.data, 1):
            yield self.name, Row(number, value)


def code_hash(task: Task) -> str:
    """A hash of the modules that define a task, so that a plugin author's edit is never answered from a cache."""
    total = hashlib.sha256()
    for cls in type(task).__mro__:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file and cls is not object and issubclass(cls, Task):
            total.update(Path(inspect.getfile(cls)).read_bytes())
    return total.hexdigest()[:16]


def _stored(task: Task, options: Data, split: str, reader: FileReader | HubReader) -> Store:
    kept = {k: v for k, v in asdict(options).items() if k in _SHAPING}
    parts = [*reader.fingerprint(), repr(sorted(kept.items())), repr(task), code_hash(task), code_hash_core()]
    path = cache_folder() / "examples" / f"{digest(' '.join(parts))}.arrow"
    if path.exists():
        store = Store(path)
    else:
        meta: dict[str, Any] = {}
        store = Store.write(path, _examples(task, options, split, reader, meta), meta, _schema(task))
    for message, (count, place) in store.meta.get("skipped", {}).items():
        log.warning("%s: %d bad rows skipped, first at %s: %s", split, count, place, message)
    digests = store.column("digest") if len(store) else np.array([])
    if not len(store):
        raise DataError(f"{split}: there is no example in {listing(s.path for s in getattr(reader, 'sources', []))}")
    if twice := len(digests) - len(np.unique(digests)):
        log.warning("%s: %d of %d inputs are duplicates", split, twice, len(digests))
    return store


_SHAPING = [
    "columns",
    "labels",
    "label_start",
    "label_separator",
    "on_bad",
    "format",
    "header",
    "pattern",
    "quote",
    "encoding",
]


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
    }
    fields = [
        ("id", text),
        *((f.name, kinds[f.kind]) for f in task.fields()),
        ("digest", number),
        ("group", number),
    ]
    return pa.schema(fields)


def code_hash_core() -> str:
    """A hash of the modules that turn files into examples."""
    names = ("gptask.data.reading", "gptask.data.columns", "gptask.data.corpus", "gptask.task")
    return digest("".join(Path(str(sys.modules[name].__file__)).read_text(encoding="utf-8") for name in names))


def _examples(
    task: Task, options: Data, split: str, reader: FileReader | HubReader, meta: dict[str, Any]
) -> Iterable[Example]:
    columns = Columns(task, options)
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    for number, (file, row) in enumerate(reader.rows(columns)):
        if isinstance(row.value, str) and not row.value.strip():
            continue
        try:
            example = columns.example(row)
            task.check(example)
        except DataError as error:
            place = f"{file}:{row.line}"
            if options.on_bad is OnBad.stop:
                raise DataError(f"{place}: {error} (data.on_bad=skip leaves such rows out)") from error
            counts[str(error)] += 1
            places.setdefault(str(error), place)
            continue
        yield {
            "id": example.pop("id", f"{split}-{number}"),
            **example,
            "digest": _number(task.key(example)),
            "group": _number(task.key(example, grouped=True)),
        }
    meta["skipped"] = {message: [count, places[message]] for message, count in counts.most_common(20)}
