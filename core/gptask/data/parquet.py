"""Rows of Parquet files; bytes are decoded as UTF-8."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptask.data.opening import MAX_RATIO, MIN_LARGE_BYTES, too_large
from gptask.data.rows import Row, unique_names
from gptask.errors import DataError


def parquet_rows(stream: io.BufferedIOBase, path: Path, wanted: set[str]) -> Iterator[Row]:
    """The rows of a Parquet file.

    Bytes that are not UTF-8 are null, or a bad row where their column is wanted. Raises `DataError` for a file that is
    not Parquet and for a wanted column that occurs twice.
    """
    with tempfile.TemporaryFile() as unpacked:
        is_file = isinstance(getattr(stream, "raw", None), io.FileIO)
        if not is_file:  # Parquet is read from its end
            shutil.copyfileobj(stream, unpacked)
        yield from _rows(stream if is_file else unpacked, path, wanted)


def _rows(stream: Any, path: Path, wanted: set[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(stream) as file:
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            limit = max(MIN_LARGE_BYTES, MAX_RATIO * path.stat().st_size)
            if sum(group.total_byte_size for group in groups) > limit:
                raise DataError(too_large(path, limit))
            schema = file.schema_arrow
            has_bytes = {name for name, kind in zip(schema.names, schema.types, strict=True) if "binary" in str(kind)}
            names = unique_names(schema.names, wanted, str(path))
            number = 0
            for batch in file.iter_batches(1024):
                for value in batch.rename_columns(names).to_pylist():
                    number += 1
                    yield Row(number, _decode_bytes(value, has_bytes, wanted) if has_bytes else value, "row")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    except ValueError as error:  # of pyarrow: two nested columns of one name
        raise DataError(f"{path} can't be read: {error}") from error


def _decode_bytes(row: dict[str, Any], has_bytes: set[str], wanted: set[str]) -> dict[str, Any] | DataError:
    """A row with the bytes of some columns decoded."""
    decoded = dict(row)
    for name in has_bytes & row.keys():
        try:
            decoded[name] = _decoded(row[name])
        except UnicodeDecodeError as error:
            if any(column == name or column.startswith(f"{name}.") for column in wanted):
                return DataError(f"the column '{name}' holds bytes that are not UTF-8 text: {error.object[:20]!r}")
            decoded[name] = None
    return decoded


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(member) for member in value]
    return {name: _decoded(member) for name, member in value.items()} if isinstance(value, dict) else value
