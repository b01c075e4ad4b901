"""Records in an Arrow file: written as a stream, read through a memory map."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gptask.data.cache import replacing, seal, usable

CHUNK_ROWS = 1024


class ArrowStore(Sequence[dict[str, Any]]):
    """Dictionaries on disk: random access through a memory map, so a store may be larger than memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.chunks = self.table.to_batches()  # each of CHUNK_ROWS rows, except the last
        self.sources: dict[str, str] = {}  # what this run reads the records from, each with a hash of its content
        self.meta: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["meta"]

    @classmethod
    def cached(cls, path: Path) -> ArrowStore | None:
        """Open the store at ``path`` in the cache; None where there is none, or a damaged one, which is deleted."""
        return cls(path) if usable(path, path.with_suffix(".json")) else None

    @classmethod
    def write(
        cls, path: Path, records: Iterable[dict[str, Any]], meta: dict[str, Any], schema: Any = None
    ) -> ArrowStore:
        """Stream records to ``path``; an interrupted write leaves no file. Drawing ``records`` may fill ``meta``."""
        import pyarrow as pa

        iterator = iter(records)
        chunk = list(islice(iterator, CHUNK_ROWS))
        schema = schema or _infer_schema(chunk)
        with replacing(path) as table:
            with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                while chunk:
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
                    chunk = list(islice(iterator, CHUNK_ROWS))
            with replacing(path.with_suffix(".json")) as description:
                text = json.dumps({"meta": meta, "seal": seal(table)})  # in ASCII: it may quote half a surrogate pair
                description.write_text(text, encoding="utf-8")
        return cls(path)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, shape (N,)."""
        numbers: np.ndarray = self.table.column(name).to_numpy()
        return numbers

    def labels(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The labels in a column of texts or of lists of them: the row of each (M,), and its number by name (M,)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.table.column(name).combine_chunks()
        rows = np.arange(len(column))
        if pa.types.is_list(column.type):
            column, rows = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        rows = rows[column.is_valid().to_numpy(zero_copy_only=False)]
        encoded = column.drop_null().dictionary_encode()
        rank = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist(), dtype=str)))
        return rows, rank[encoded.indices.to_numpy()]

    def lengths(self, name: str) -> np.ndarray:
        """Lengths of the lists in a column, without the rows that have none."""
        import pyarrow.compute as pc

        lists = self.table.column(name).drop_null()
        return pc.list_value_length(lists).to_numpy() if len(lists) else np.zeros(0, dtype=int)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        chunk, row = divmod(range(len(self))[index], CHUNK_ROWS)
        return self.chunks[chunk].slice(row, 1).to_pylist(maps_as_pydicts="strict")[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.records_at(np.arange(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowStore, (self.path,)  # a loader's worker maps the file itself

    def records_at(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """The records at ascending row numbers (N,), read chunk by chunk."""
        import pyarrow as pa

        ends = np.searchsorted(rows, CHUNK_ROWS * np.arange(1, len(self.chunks)))
        for number, chunk_rows in enumerate(np.split(rows, ends)):
            if len(chunk_rows):
                chunk = self.chunks[number].take(pa.array(chunk_rows - number * CHUNK_ROWS))
                yield from chunk.to_pylist(maps_as_pydicts="strict")


def _infer_schema(records: list[dict[str, Any]]) -> Any:
    """Infer a schema from the first records; whole numbers take four bytes (token ids, labels, positions)."""
    import pyarrow as pa

    def narrow(arrow_type: Any) -> Any:
        if pa.types.is_list(arrow_type):
            return pa.list_(narrow(arrow_type.value_type))
        if pa.types.is_struct(arrow_type):
            return pa.struct([(member.name, narrow(member.type)) for member in arrow_type])
        return pa.int32() if pa.types.is_int64(arrow_type) or pa.types.is_null(arrow_type) else arrow_type

    inferred = pa.RecordBatch.from_pylist(records).schema if records else []
    return pa.schema([(column.name, narrow(column.type)) for column in inferred])
