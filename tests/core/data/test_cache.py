"""Entries of the cache: written completely, checked when read, swept when abandoned."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from gptask.data import cache
from gptask.data.store import ArrowStore


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_table(folder: Path, name: str = "0123456789abcdef") -> Path:
    path = folder / "encoded" / f"{name}.arrow"
    ArrowStore.write(path, [{"number": number} for number in range(10)], {"note": "é"})
    return path


def test_a_sound_table_is_read(folder: Path) -> None:
    store = ArrowStore.cached(write_table(folder))
    assert store is not None
    assert (len(store), store.meta) == (10, {"note": "é"})


def test_a_table_that_is_not_there_is_none(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ArrowStore.cached(folder / "encoded" / "none.arrow") is None
    assert caplog.text == ""


def flip_a_bit(content: bytes) -> bytes:
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-10], flip_a_bit], ids=["empty", "truncated", "changed"]
)
def test_a_damaged_table_is_deleted(folder: Path, suffix: str, damage, caplog: pytest.LogCaptureFixture) -> None:
    path = write_table(folder)
    damaged = path.with_suffix(suffix)
    damaged.write_bytes(damage(damaged.read_bytes()))
    assert ArrowStore.cached(path) is None
    assert "is damaged" in caplog.text
    assert list(path.parent.iterdir()) == []


def test_a_table_without_its_description_is_deleted(folder: Path) -> None:
    path = write_table(folder)
    path.with_suffix(".json").unlink()
    assert ArrowStore.cached(path) is None
    assert not path.exists()


def test_a_copied_table_is_read_and_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(folder)
    os.utime(path, (1, 1))  # as a copy has it
    assert ArrowStore.cached(path) is not None
    monkeypatch.setattr(cache, "seal", None)
    assert ArrowStore.cached(path) is not None


def test_what_a_killed_process_left_is_removed_by_the_next_write(folder: Path, dead_process: int) -> None:
    left = folder / "encoded" / f"left.arrow.{cache.HOST}.{dead_process}.part"
    mine = folder / "encoded" / f"mine.arrow.{cache.HOST}.{os.getppid()}.part"  # of a process that lives
    elsewhere = folder / "encoded" / f"new.arrow.other-host.{dead_process}.part"
    old = folder / "encoded" / f"old.arrow.other-host.{dead_process}.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    for path in (mine, elsewhere, old):
        path.write_text("half")
    os.utime(old, (time.time() - 2 * cache.MAX_PART_AGE,) * 2)
    write_table(folder)
    assert [path.exists() for path in (left, mine, elsewhere, old)] == [False, True, True, False]


def test_a_block_that_raises_leaves_the_old_file(folder: Path) -> None:
    path = folder / "hashes" / "a"
    with cache.replacing(path) as part:
        part.write_text("old")
    with suppress(KeyError), cache.replacing(path) as part:
        part.write_text("new")
        raise KeyError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_another_process_has_written_meanwhile_stays(folder: Path) -> None:
    path = folder / "backbones" / "a"
    with cache.replacing(path) as part:
        part.mkdir()
        path.mkdir()
        (path / "theirs").touch()
    assert [file.name for file in path.iterdir()] == ["theirs"]


def test_an_entry_s_use_is_marked(folder: Path) -> None:
    path = write_table(folder)
    os.utime(path.with_suffix(".json"), (1, 1))
    assert cache.entries()[0].used == 1
    ArrowStore.cached(path)
    assert cache.entries()[0].used > time.time() - 100


def test_entries_are_listed_with_what_is_wrong_with_them(folder: Path, dead_process: int) -> None:
    write_table(folder, "a")
    write_table(folder, "b").write_bytes(b"x")
    (folder / "states").mkdir()
    (folder / "states" / "c.bin").write_bytes(b"1")
    (folder / "hashes").mkdir()
    (folder / "hashes" / "d").write_text("1234")
    (folder / "verdicts").mkdir()
    (folder / "verdicts" / "e.json").write_text(json.dumps({}))
    (folder / "texts").mkdir()
    (folder / "texts" / "f.jsonl.part").write_text("half")  # that a killed process left, and another goes on with
    (folder / "texts" / "f.jsonl.part.json").write_text("{}")
    (folder / f"model.gguf.{cache.HOST}.{dead_process}.part").write_text("half")
    problems = {(entry.kind, entry.paths[0].name.partition(".")[0]): entry.problem for entry in cache.entries()}
    assert {name for name, problem in problems.items() if problem is None} == {("encoded", "a"), ("verdicts", "e")}
    assert {name for name, problem in problems.items() if problem} == {
        ("encoded", "b"), ("states", "c"), ("hashes", "d"), ("unfinished", "model"),
    }  # fmt: skip
