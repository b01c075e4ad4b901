"""Records in an Arrow file: written as a stream, read through a memory map."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1024


class ArrowStore(Sequence[dict[str, Any]]):
    """Dictionaries on disk: random access through a memory map, so a store larger than memory is fine."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.batches = self.table.to_batches()  # of CHUNK rows each, but for the last
        self.sources: dict[str, str] = {}  # what it was read from this time, each with a hash of its content
        self.meta: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))

    @classmethod
    def write(
        cls, path: Path, records: Iterable[dict[str, Any]], meta: dict[str, Any], schema: Any = None
    ) -> ArrowStore:
        """Stream records to ``path``; a stopped write leaves nothing. ``meta`` may fill up while records are drawn."""
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        notes = partial.with_suffix(".json")
        try:
            iterator = iter(records)
            chunk = list(islice(iterator, CHUNK))
            schema = schema or _schema(chunk)
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                while chunk:
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
                    chunk = list(islice(iterator, CHUNK))
            notes.write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
            notes.replace(path.with_suffix(".json"))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
        return cls(path)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, shape (N,)."""
        return self.table.column(name).to_numpy()

    def lengths(self, name: str) -> np.ndarray:
        """Lengths of the lists in a column, where there are any."""
        import pyarrow.compute as pc

        lists = self.table.column(name).drop_null()
        return pc.list_value_length(lists).to_numpy() if len(lists) else np.zeros(0, dtype=int)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: Any) -> Any:
        batch, row = divmod(range(len(self))[index], CHUNK)
        return self.batches[batch].slice(row, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.at(np.arange(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.path,)  # a loader's worker maps the file itself

    def at(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """The records at rising row numbers, read chunk by chunk."""
        import pyarrow as pa

        ends = np.searchsorted(rows, CHUNK * np.arange(1, len(self.batches)))
        for number, chosen in enumerate(np.split(rows, ends)):
            if len(chosen):
                yield from self.batches[number].take(pa.array(chosen - number * CHUNK)).to_pylist()


def _schema(records: list[dict[str, Any]]) -> Any:
    """Infer a schema from the first records; whole numbers take four bytes (token ids, labels, positions)."""
    import pyarrow as pa

    def narrow(kind: Any) -> Any:
        if pa.types.is_list(kind):
            return pa.list_(narrow(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([(child.name, narrow(child.type)) for child in kind])
        return pa.int32() if pa.types.is_int64(kind) or pa.types.is_null(kind) else kind

    inferred = pa.RecordBatch.from_pylist(records).schema if records else []
    return pa.schema([(field.name, narrow(field.type)) for field in inferred])
