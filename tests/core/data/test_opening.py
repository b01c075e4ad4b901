"""Compressed files and files of other kinds are recognised by their content."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable

import pytest
from gptask.config.schemas import Files
from gptask.data import opening
from gptask.data.reading import read, read_stream
from gptask.data.rows import ReadingNotes, Source
from gptask.errors import DataError

TEXT = b"text,label\na,x\n"
ROW = {"text": "a", "label": "x"}


def values(name: str, **options: object) -> list:
    return [row.value for row in read(Source.parse(name), Files(**options), ("text", "label"), ReadingNotes())]


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"), io.BytesIO())
    return stream.getvalue()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.bz2", "a.csv.xz"])
def test_compressed_content_is_read_under_any_name(write_file: Callable, compress: Callable, name: str) -> None:
    assert values(write_file(name, compress(TEXT))) == [ROW]


def test_plain_content_under_a_compressed_name_is_read(tmp_path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(TEXT)
    assert values(str(tmp_path / "a.csv.gz")) == [ROW]


def test_parquet_is_read_under_any_name(write_file: Callable) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW]), sink)
    assert values(write_file("a.csv", sink.getvalue())) == [ROW]
    assert values(write_file("b.parquet", gzip.compress(sink.getvalue()))) == [ROW]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(xl__workbook=b"", Content=b""), "is an Excel workbook; save it as CSV"),
        (zipped(word__document=b""), "is a Word document; save it as plain text"),
        (
            zipped(mimetype=b"application/vnd.oasis.opendocument.spreadsheet"),
            "is a document of LibreOffice; save it as",
        ),
        (
            zipped(train=TEXT, test=TEXT),
            r"is a zip archive; unpack it first \(unzip\) and name a file in it: train, test",
        ),
        (zipped(a=TEXT)[:30], "is a broken zip archive"),
        (b"%PDF-1.7 ...", "is a PDF document; extract its text first"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99,
            r"is an old or encrypted Office file \(.xls, .doc\); save it",
        ),
        (b"\x28\xb5\x2f\xfd\x00", r"is compressed by zstd; unpack it first \(unzstd\)"),
        (pickle.dumps([ROW], protocol=4), "is a Python pickle, which may run code"),
        (tarred(), "is a tar archive; unpack it first"),
        (b"SQLite format 3\x00", "is an SQLite database; export the table as CSV"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:0\n", r"is a pointer of Git LFS.*\(git lfs pull\)"),
        (b"\n<!DOCTYPE html><html>", r"is a web page \(HTML\), not csv; download the data itself"),
    ],
    ids=lambda value: (
        "" if isinstance(value, bytes) else value[:30]
    ),  # an archive holds the time, which workers differ in
)
def test_other_kinds_of_files_are_refused_with_advice(write_file: Callable, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv {message}"):
        values(write_file("a.csv", content))


def test_texts_that_begin_like_other_kinds_are_read(write_file: Callable) -> None:
    for text in ("BZhang said so", "ORCA whales", "PK is great", "%PDF", "<html> is a tag"):
        assert values(write_file("a.txt", text + "\n")) == [text]


def test_standard_input_that_is_packed_is_refused() -> None:
    for content, message in ((gzip.compress(TEXT), "zcat FILE"), (zipped(a=TEXT), "unzip -p FILE"), (b"%PDF-1", "PDF")):
        with pytest.raises(DataError, match=f"standard input is .*{message}"):
            list(read_stream([content], Files()))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    write_file: Callable, monkeypatch: pytest.MonkeyPatch, compress: Callable, name: str
) -> None:
    monkeypatch.setattr(opening, "MIN_LARGE_BYTES", 100_000)
    content = b"text,label\n" + b"aaaaaaaaaaaaaaaaaaaaaaaa,x\n" * 40_000
    if name == "a.json":
        content = b'[{"text": "' + b"a" * 1_200_000 + b'"}]'
    with pytest.raises(
        DataError, match=r"unpacks to more than [\d,]+ bytes, over 200 times .*unpack it first and name"
    ):
        values(write_file(name, compress(content)))


def test_a_large_file_of_usual_density_is_read(write_file: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MIN_LARGE_BYTES", 1000)
    lines = "".join(f"{number * 7919 % 10007} words of text,{number % 3}\n" for number in range(3000))
    assert len(values(write_file("a.csv", gzip.compress(b"text,label\n" + lines.encode())))) == 3000


def test_a_parquet_file_of_far_more_than_its_size_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from gptask.data import parquet

    table = pa.table({"text": ["a" * 1000] * 5000})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    assert len(values(str(tmp_path / "a.parquet"))) == 5000
    monkeypatch.setattr(parquet, "MIN_LARGE_BYTES", 100_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        values(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.conll"])
def test_an_endless_line_is_refused(write_file: Callable, monkeypatch, encoding: str, name: str) -> None:
    monkeypatch.setattr(opening, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr("gptask.data.encoding.MAX_LINE_BYTES", 100_000)
    with pytest.raises(DataError, match="line 2 is longer than 100,000 bytes; is it a file of another kind"):
        values(write_file(name, ("a\n" + "x" * 300_000).encode(encoding)), encoding=encoding, columns={"text": "0"})


def test_an_endless_line_of_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("gptask.data.encoding.MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match="line 2 is longer than 1,000 bytes"):
        list(read_stream(io.BufferedReader(io.BytesIO(b"a\n" + b"x" * 5000)), Files(), ()))
