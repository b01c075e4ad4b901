"""Rows of Parquet files; bytes are decoded as UTF-8."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptask.data.opening import MAX_RATIO, MIN_LARGE_BYTES, too_large
from gptask.data.rows import Row, unique_names
from gptask.errors import DataError, damaged

MAGIC = b"PAR1"
BATCH_ROWS = 1024


def parquet_rows(stream: io.BufferedIOBase, path: Path, wanted: set[str]) -> Iterator[Row]:
    """The rows of a Parquet file.

    Bytes that are not UTF-8, and what Python can't hold, such as a date of the year 150000, are null, or a bad row
    where their column is wanted. Raises `DataError` for a file that is not Parquet or damaged and for a wanted column
    that occurs twice.
    """
    with tempfile.TemporaryFile() as unpacked:
        is_file = isinstance(getattr(stream, "raw", None), io.FileIO)
        if not is_file:  # Parquet is read from its end
            shutil.copyfileobj(stream, unpacked)
        yield from _rows(stream if is_file else unpacked, path, wanted)


def _rows(stream: Any, path: Path, wanted: set[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    stream.seek(0)
    if stream.read(len(MAGIC)) != MAGIC:
        raise DataError(f"{path} is not a Parquet file: it does not start with {MAGIC.decode()}")
    stream.seek(0)
    with _damaged(path):
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        unpacked = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
    if unpacked > (limit := max(MIN_LARGE_BYTES, MAX_RATIO * path.stat().st_size)):
        raise DataError(too_large(path, limit))
    with file:
        has_bytes = {name for name, kind in zip(schema.names, schema.types, strict=True) if "binary" in str(kind)}
        names = unique_names(schema.names, wanted, str(path))
        batches, number = file.iter_batches(BATCH_ROWS), 0
        while True:
            with _damaged(f"{path}, behind row {number},"):
                batch = next(batches, None)
            if batch is None:
                return
            for value in _values(batch.rename_columns(names), wanted):
                number += 1
                if has_bytes and isinstance(value, dict):
                    value = _decode_bytes(value, has_bytes, wanted)
                yield Row(number, value, "row")


@contextmanager
def _damaged(place: object) -> Iterator[None]:
    """`damaged`, also for sizes in a file that are larger than memory."""
    import pyarrow as pa

    with damaged(place, DataError):
        try:
            yield
        except pa.ArrowMemoryError as error:
            raise DataError(f"{place} asks for more memory than there is: {error}") from error


def _values(batch: Any, wanted: set[str]) -> Sequence[dict[str, Any] | DataError]:
    """The rows of a batch; cell by cell only where one of them can't be read."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except Exception:  # pyarrow raises what Python's own types raise, such as OverflowError
        return [_row(batch, row, wanted) for row in range(batch.num_rows)]


def _row(batch: Any, row: int, wanted: set[str]) -> dict[str, Any] | DataError:
    cells: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cells[name] = column[row].as_py()
        except Exception as error:
            if _is_wanted(name, wanted):
                return DataError(
                    f"the column '{name}' holds a value that can't be read: {error} ({type(error).__name__})"
                )
            cells[name] = None
    return cells


def _is_wanted(name: str, wanted: set[str]) -> bool:
    return any(column == name or column.startswith(f"{name}.") for column in wanted)


def _decode_bytes(row: dict[str, Any], has_bytes: set[str], wanted: set[str]) -> dict[str, Any] | DataError:
    """A row with the bytes of some columns decoded."""
    decoded = dict(row)
    for name in has_bytes & row.keys():
        try:
            decoded[name] = _decoded(row[name])
        except UnicodeDecodeError as error:
            if _is_wanted(name, wanted):
                return DataError(f"the column '{name}' holds bytes that are not UTF-8 text: {error.object[:20]!r}")
            decoded[name] = None
    return decoded


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(member) for member in value]
    return {name: _decoded(member) for name, member in value.items()} if isinstance(value, dict) else value
