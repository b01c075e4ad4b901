"""Parquet files: bytes, nulls, and names that occur twice."""

import io
import math
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gptask.config.schemas import Files
from gptask.data.reading import read
from gptask.data.rows import ReadingNotes, Source
from gptask.errors import DataError


def parquet(columns: list, names: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), sink)
    return sink.getvalue()


def values(name: str, names: tuple[str, ...] = ("text", "label"), **options: object) -> list:
    return [row.value for row in read(Source.parse(name), Files(**options), names, ReadingNotes())]


def test_bytes_are_decoded(write_file: Callable) -> None:
    columns = [
        pa.array(["schön".encode(), None]),
        pa.array([[b"a", b"b"], []]),
        pa.array([{"x": b"c"}, {"x": None}]),
        pa.array([b"\xff\xd8", b"ok"]),
        pa.array([1.5, math.nan]),
    ]
    name = write_file("a.parquet", parquet(columns, ["text", "label", "nested", "image", "score"]))
    first, second = values(name)
    assert first == {"text": "schön", "label": ["a", "b"], "nested": {"x": "c"}, "image": None, "score": 1.5}
    assert second["text"] is None
    assert second["image"] == "ok"
    assert math.isnan(second["score"])
    bad, good = values(name, ("text", "image"))
    assert str(bad) == "the column 'image' holds bytes that are not UTF-8 text: b'\\xff\\xd8'"
    assert good["image"] == "ok"


def test_a_column_twice_is_refused_only_where_it_is_wanted(write_file: Callable) -> None:
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    name = write_file("a.parquet", parquet(arrays, ["text", "label", "text"]))
    with pytest.raises(DataError, match=r"a.parquet: 2 columns are called 'text' \(positions 0, 2, from 0\)"):
        values(name)
    row = {"text": "a", "label": "b", "text.1": "c"}
    assert values(name, ("label",)) == [row]
    assert values(name, columns={"text": 2, "label": 1}) == [row]
    twice_inside = pa.StructArray.from_arrays(arrays[:2], names=["x", "x"])
    with pytest.raises(DataError, match=r"can't be read: .*duplicate field names"):
        values(write_file("b.parquet", parquet([twice_inside], ["text"])))
