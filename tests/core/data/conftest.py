"""Files to read, a cache folder for every test, and the lines that were logged."""

import gzip
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("GPTASK_CACHE", str(folder))
    return folder


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., str]:
    """``write_file("a.csv", text)``: the name of a new file, gzipped if it ends so."""

    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> str:
        raw = content.encode(encoding) if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return str(path)

    return write


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages of the ``gptask`` logger, whatever other tests did to its handlers."""
    lines: list[str] = []

    class CollectLines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    log, handler = logging.getLogger("gptask"), CollectLines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)
