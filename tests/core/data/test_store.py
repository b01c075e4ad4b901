"""Records on disk come back as they were written and are not read into memory."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from gptask.data.cache import cache_folder
from gptask.data.store import CHUNK_ROWS, ArrowStore
from gptask.errors import UserError


def records(n: int, text: str = "word ") -> list[dict]:
    return [{"number": k, "text": f"{text}{k}", "ids": [k, k + 1], "extra": {"left": [k]}} for k in range(n)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "a.arrow"


def test_records_come_back_as_written(path: Path) -> None:
    written = records(2 * CHUNK_ROWS + 7)
    store = ArrowStore.write(path, iter(written), {"note": "é"})
    assert len(store) == len(written)
    assert list(store) == written
    assert [store[k] for k in (0, CHUNK_ROWS - 1, CHUNK_ROWS, -1)] == [
        written[k] for k in (0, CHUNK_ROWS - 1, CHUNK_ROWS, -1)
    ]
    assert store.column("number").tolist() == list(range(len(written)))
    assert ArrowStore(path).meta == {"note": "é"}
    with pytest.raises(IndexError):
        store[len(written)]


@pytest.mark.parametrize("n", [1, CHUNK_ROWS, CHUNK_ROWS + 1])
def test_rows_are_read_chunk_by_chunk_in_order(path: Path, n: int) -> None:
    written = records(n)
    store = ArrowStore.write(path, written, {})
    rows = np.sort(np.random.default_rng(0).permutation(n)[: n // 2 + 1])
    assert list(store.records_at(rows)) == [written[row] for row in rows]
    assert list(store.records_at(np.arange(0))) == []


def test_a_store_may_be_empty(path: Path) -> None:
    store = ArrowStore.write(path, [], {}, pa.schema([("digest", pa.int64())]))
    assert len(store) == 0
    assert list(store) == []
    assert store.column("digest").tolist() == []


def test_numbers_take_four_bytes_and_texts_stay_texts(path: Path) -> None:
    schema = ArrowStore.write(path, [{"ids": [1], "none": None, "share": 0.5, "extra": {"left": [2]}}], {}).table.schema
    assert schema.field("ids").type == pa.list_(pa.int32())
    assert schema.field("extra").type == pa.struct([("left", pa.list_(pa.int32()))])
    assert schema.field("share").type == pa.float64()


def test_an_interrupted_write_leaves_no_file(path: Path) -> None:
    def breaking() -> object:
        yield from records(CHUNK_ROWS + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ArrowStore.write(path, breaking(), {})
    assert list(path.parent.iterdir()) == []


def test_drawing_records_may_fill_meta(path: Path) -> None:
    meta: dict = {}

    def counting() -> object:
        for number, record in enumerate(records(3), 1):
            meta["seen"] = number
            yield record

    assert ArrowStore.write(path, counting(), meta).meta == {"seen": 3}


def test_a_store_is_mapped_and_not_read_into_memory(path: Path) -> None:
    text = "a long text " * 1000
    before = pa.total_allocated_bytes()
    store = ArrowStore.write(path, ({"number": k, "text": f"{text}{k}"} for k in range(3000)), {})
    assert path.stat().st_size > 30_000_000
    assert all(store[k]["text"].endswith(str(k)) for k in range(0, 3000, 100))
    assert sum(1 for _ in store) == 3000
    assert store.column("number").sum() == 2999 * 1500
    assert pa.total_allocated_bytes() - before < 100_000


def test_a_loaders_worker_maps_the_file_itself(path: Path) -> None:
    store = ArrowStore.write(path, records(CHUNK_ROWS), {"seen": 1})
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert list(copy) == list(store)
    assert copy.meta == store.meta


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"can't be made .*set GPTASK_CACHE"):
        cache_folder()
