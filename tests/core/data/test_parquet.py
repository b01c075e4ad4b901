"""Parquet files: bytes, nulls, and names that occur twice."""

import io
import itertools
import math
import re
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
    (bad,) = values(write_file("b.parquet", parquet([twice_inside], ["text"])))
    assert isinstance(bad, DataError)
    assert re.match(r"the column 'text' holds a value that can't be read: .*duplicate field names", str(bad))


OUT_OF_RANGE = [
    pa.array([2**62, 1], pa.timestamp("us")),
    pa.array([2**31 - 1, 1], pa.date32()),
    pa.array([2**62, 1], pa.duration("s")),
    pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfex")),
]


@pytest.mark.parametrize("column", OUT_OF_RANGE, ids=["timestamp", "date", "duration", "no UTF-8"])
def test_a_cell_that_python_can_not_hold_is_null_or_a_bad_row_where_it_is_wanted(
    write_file: Callable, column: pa.Array
) -> None:
    name = write_file("a.parquet", parquet([pa.array(["a", "b"]), column], ["text", "extra"]))
    first, second = values(name)
    assert first == {"text": "a", "extra": None}
    assert second["text"] == "b"
    assert second["extra"] is not None
    bad, good = values(name, ("text", "extra"))
    assert isinstance(bad, DataError)
    assert re.match(
        r"the column 'extra' holds a value that can't be read: .* \((Overflow|UnicodeDecode)Error\)", str(bad)
    )
    assert good == second


def test_a_damaged_parquet_file_is_an_error_with_the_row_where_reading_stops(write_file: Callable) -> None:
    sink = io.BytesIO()
    table = pa.table({"text": [f"text {k}" for k in range(3000)]})
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=1500)
    raw = bytearray(sink.getvalue())
    second_group = pq.ParquetFile(sink).metadata.row_group(1).column(0).data_page_offset
    raw[second_group : second_group + 8] = b"\xff" * 8
    rows = read(Source.parse(write_file("a.parquet", bytes(raw))), Files(), ("text",), ReadingNotes())
    assert len(list(itertools.islice(rows, 1024))) == 1024
    with pytest.raises(DataError, match=r"a\.parquet, behind row 1024, can't be read, .* damaged: .*\(OSError\)"):
        next(rows)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all", b"PARE" * 20])
def test_a_file_that_is_no_parquet_is_refused(write_file: Callable, content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file|is empty|damaged"):
        values(write_file("a.parquet", content))
