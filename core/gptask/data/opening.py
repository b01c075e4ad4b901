"""Files as streams of bytes: compression and kind are recognised by content, whatever the name says."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gptask.errors import DataError, UserError, listing

HEAD_BYTES = 4096
CHUNK_BYTES = 2**17  # of a file's content, unpacked at once
MAX_RATIO = 200  # of the unpacked size to that of the file, from MIN_LARGE_BYTES on; logs and tables have 3 to 50
MIN_LARGE_BYTES = 2**30
MAX_LINE_BYTES = 2**27
COMPRESSIONS: tuple[tuple[str, re.Pattern[bytes], Callable[..., Any]], ...] = (
    ("gzip", re.compile(rb"\x1f\x8b"), gzip.open),
    ("bzip2", re.compile(rb"BZh[1-9]1AY&SY"), bz2.open),
    ("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.open),
)
COMPRESSED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
AS_TABLE = "save it as CSV (UTF-8), or as Parquet from pandas"
UNREADABLE = (  # position and first bytes, what such a file is, and what to do with it
    (0, b"%PDF-", "a PDF document", "extract its text first (pdftotext)"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Office file (.xls, .doc)", "save it as CSV (UTF-8)"),
    (0, b"{\\rtf", "a text in RTF", "save it as plain text"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first (unzstd)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first (7z x)"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first (unrar x)"),
    *(
        (257, magic, "a tar archive", "unpack it first (tar xf) and name the files in it")
        for magic in (b"ustar\x00", b"ustar  \x00")
    ),
    (0, b"SQLite format 3\x00", "an SQLite database", "export the table as CSV"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", AS_TABLE),
    (0, b"\x93NUMPY", "a NumPy array", AS_TABLE),
    (0, b"ARROW1\x00\x00", "an Arrow (Feather) file", "write it as Parquet"),
    (0, b"Obj\x01", "an Avro file", "write it as Parquet"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it first (git lfs pull)"),
    *(
        (0, bytes([0x80, protocol]), "a Python pickle, which may run code when it is loaded", AS_TABLE)
        for protocol in (2, 3, 4, 5)
    ),
)
OFFICE_PARTS = {"xl/": "an Excel workbook", "word/": "a Word document", "ppt/": "a PowerPoint presentation"}


class _Unpacked(io.RawIOBase):
    """The unpacked content of a file; raises `DataError` where it is too large for the file to be meant as data."""

    def __init__(self, path: Path, content: io.BufferedIOBase) -> None:
        self.path, self.content = path, content
        self.limit = max(MIN_LARGE_BYTES, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.content.seek(offset, whence)

    def tell(self) -> int:
        return self.content.tell()

    def readinto(self, buffer: Any) -> int:
        count = self.content.readinto(buffer)
        if count and self.content.tell() > self.limit:
            raise DataError(too_large(self.path, self.limit))
        return count


def too_large(path: Path, limit: int) -> str:
    """What is said of a file that unpacks to more than ``limit`` bytes."""
    return (
        f"{path} unpacks to more than {limit:,} bytes, over {MAX_RATIO} times its size; if it is meant to, unpack it "
        "first and name the unpacked file"
    )


def limited_lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """The lines of a stream, each cut at `MAX_LINE_BYTES`."""
    return iter(partial(stream.readline, MAX_LINE_BYTES), b"")


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's content, decompressed (gzip, bzip2, xz), as a stream that can be rewound.

    Raises `DataError` for a file of another kind (zip, Excel, PDF, ...), with what to do with it, and for one that is
    cut short; `UserError` for one that can't be read.
    """
    compression = None
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        compression, open_file = next(
            ((name, opener) for name, magic, opener in COMPRESSIONS if magic.match(head)), (None, open)
        )
        expected = COMPRESSED_SUFFIXES.get(path.suffix.lower())
        if head and not compression and expected and b"\x00" in head:
            raise DataError(f"{path} is not a complete {expected} file: it does not start like one")
        if head.startswith(b"PK\x03\x04"):
            raise DataError(_zip_advice(path))
        with open_file(path, "rb") as content:
            stream = io.BufferedReader(_Unpacked(path, content), CHUNK_BYTES) if compression else content
            refuse_unreadable(stream.read(HEAD_BYTES) if compression else head, path)
            stream.seek(0)
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is not a complete {compression} file: {error}") from error
    except OSError as error:
        if compression and not error.errno:  # bz2 raises a bare OSError
            raise DataError(f"{path} is not a complete {compression} file: {error}") from error
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def refuse_unreadable(head: bytes, name: object) -> None:
    """Raise `DataError` where the first bytes are those of a file that holds no rows of text."""
    for position, magic, kind, advice in UNREADABLE:
        if head[position:].startswith(magic):
            raise DataError(f"{name} is {kind}; {advice}")


def _zip_advice(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            mimetype = archive.read("mimetype") if "mimetype" in members else b""
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        return f"{path} is a broken zip archive: {error}"
    if mimetype.startswith(b"application/vnd.oasis"):
        return f"{path} is a document of LibreOffice; save it as CSV (UTF-8), or as plain text"
    for folder, kind in OFFICE_PARTS.items():
        if any(member.startswith(folder) for member in members):
            return f"{path} is {kind}; save it as {'CSV (UTF-8)' if folder == 'xl/' else 'plain text'}"
    return f"{path} is a zip archive; unpack it first (unzip) and name a file in it: {listing(members, 6)}"
