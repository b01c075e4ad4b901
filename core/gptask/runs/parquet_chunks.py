"""A Parquet file from chunks of rows: each is an Arrow stream with types of its own, all stand in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from gptask.runs.prediction_lines import as_json, encodable

ROW_GROUP = 10_000  # rows of a row group
JSON_NAMES = b"json"  # in a chunk's metadata: its columns whose cells are JSON, since they have no common type


def arrow_chunk(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> bytes:
    """Rows as an Arrow stream (IPC format); ``names`` are the columns where there are no rows."""
    import pyarrow as pa

    arrays, json_names = dict[str, Any](), list[str]()
    for name in dict.fromkeys(name for row in rows for name in row) or names:
        values = [encodable(row.get(name)) for row in rows]
        try:
            arrays[name] = pa.array(values)
            if "struct<>" in str(arrays[name].type):
                raise pa.ArrowInvalid("Parquet has no empty structs")
        except (pa.ArrowException, OverflowError):
            json_names.append(name)
            arrays[name] = _json_array(values)
    table = pa.table(arrays).replace_schema_metadata({JSON_NAMES: json.dumps(json_names)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def join_chunks(chunks: Path, stream: IO[bytes]) -> None:
    """Write a Parquet file of all chunks in a file; a column whose types have no common one is JSON in texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = [table.schema for table in _tables(chunks)]
    names = dict.fromkeys(name for schema in schemas for name in schema.names)
    types = {name: _common_type(name, schemas, chunks) for name in names}
    schema = pa.schema([(name, types[name] or pa.string()) for name in names])
    waiting: list[Any] = []
    with pq.ParquetWriter(stream, schema) as writer:
        for table in _tables(chunks):
            waiting.append(_with_types(table, types, schema))
            while sum(map(len, waiting)) >= ROW_GROUP:
                joined = pa.concat_tables(waiting)
                writer.write_table(joined.slice(0, ROW_GROUP))
                waiting = [joined.slice(ROW_GROUP)]
        if any(map(len, waiting)):
            writer.write_table(pa.concat_tables(waiting))


def _tables(chunks: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(chunks)) as source:
        while source.tell() < source.size():
            with pa.ipc.open_stream(source) as reader:
                yield reader.read_all()


def _json_names(schema: Any) -> list[str]:
    names: list[str] = json.loads(schema.metadata[JSON_NAMES])
    return names


def _with_types(table: Any, types: dict[str, Any], schema: Any) -> Any:
    """A chunk with the columns and types of the whole file."""
    import pyarrow as pa

    arrays, json_names = [], _json_names(table.schema)
    for name, common in types.items():
        column = table.column(name) if name in table.column_names else pa.nulls(len(table))
        if common is None and name not in json_names:
            column = _json_array(column.to_pylist())
        arrays.append(column.cast(schema.field(name).type))
    return pa.table(arrays, schema=schema)


def _common_type(name: str, schemas: Sequence[Any], chunks: Path) -> Any:
    """The type of a column in all chunks, None if they can't share one."""
    import pyarrow as pa

    if any(name in _json_names(schema) for schema in schemas):
        return None
    types = dict.fromkeys(schema.field(name).type for schema in schemas if name in schema.names)
    try:
        common = pa.unify_schemas([pa.schema([(name, kind)]) for kind in types], promote_options="permissive")
        common = common.field(name).type
        if len(types) > 1:  # a whole number may be too large for float64
            for table in _tables(chunks):
                if name in table.column_names:
                    table.column(name).cast(common)
    except pa.ArrowException:
        return None
    return common


def _json_array(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else as_json(value) for value in values], pa.string())
