"""Rows move to other buckets once the steps so far have lost as much as moving takes, or where memory is wasted."""

import pytest
from gptask.model.engine import bucket_plan, kv_cache
from gptask.model.engine.bucket_plan import MAX_MEMORY, split_by_length
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions

from tests.support.decoded_rows import assert_same, decode_alone


@pytest.mark.parametrize(
    ("lengths", "bucket_cost", "expected"),
    [
        ([5], 9, [[0]]),
        ([40, 5, 64], 31, [[1], [0, 2]]),
        ([40, 5, 64], 33, [[1, 0, 2]]),
        ([300, 7, 290, 9, 8, 100], 128, [[1, 4, 3], [5], [2, 0]]),
        ([300, 7, 290, 9, 8, 100], 200, [[1, 4, 3], [5, 2, 0]]),
        ([1000, 7, 8, 9], 10**6, [[1, 2, 3], [0]]),  # more pads than the memory allows
    ],
)
def test_rows_of_different_lengths_are_split_where_that_saves_enough(lengths, bucket_cost, expected, monkeypatch):
    monkeypatch.setattr(bucket_plan, "BUCKET_COST", bucket_cost)
    assert split_by_length(lengths) == expected


def rows_of(lengths, limits):
    return [
        DecodingRow([*range(5, 5 + length)], limit, GenerationOptions())
        for length, limit in zip(lengths, limits, strict=True)
    ]


@pytest.fixture
def backbone(backbone_of, monkeypatch):
    backbone = backbone_of("llama", context=256)
    backbone.tokenizer.eos_token = None
    backbone.model.generation_config.eos_token_id = None
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    return backbone.eval()


def test_a_new_row_joins_only_when_the_steps_have_lost_what_moving_takes(backbone, monkeypatch):
    monkeypatch.setattr(bucket_plan, "BUCKET_COST", 20)
    batch = backbone.engine.decoding_batch()
    first, second = rows_of([20, 12], [40, 40])
    batch.admit([first])
    batch.step()
    batch.admit([second])
    steps = 0
    while len(batch.buckets) > 1 or not steps:
        batch.step()
        steps += 1
    # a step loses 20 - 8 pads at first; the move copies the 13 positions of the second row, or both rows' 34
    assert 2 <= steps <= 20
    assert len(batch.buckets) == 1
    while batch.rows:
        batch.step()
    expected = decode_alone(backbone, [first.prompt, second.prompt], limits=40)
    assert_same([(row.new_ids, row.score) for row in (first, second)], expected)


def test_buckets_shrink_when_long_rows_leave(backbone, monkeypatch):
    copied = []
    of_buffers = kv_cache.PreallocatedKVCache.append_rows
    monkeypatch.setattr(
        kv_cache.PreallocatedKVCache,
        "append_rows",
        lambda buffer, added, end: copied.append(len(added)) or of_buffers(buffer, added, end),
    )
    batch = backbone.engine.decoding_batch()
    rows = rows_of([100, 60, 61, 62, 63], [2, 50, 50, 50, 50])
    batch.admit(rows)
    for _ in range(45):
        batch.step()
        assert all(bucket.positions <= MAX_MEMORY * bucket.promised for bucket in batch.buckets)
    assert batch.buckets[0].capacity <= 63 + 45 + 4
    assert sum(copied) <= 2 * 2 * 4, "the rows move at most twice"  # two layers
    while batch.rows:
        batch.step()
    expected = decode_alone(backbone, [row.prompt for row in rows[1:]], limits=50)
    assert_same([(row.new_ids, row.score) for row in rows[1:]], expected)


def test_all_rows_share_a_bucket_where_each_bucket_is_a_pass(backbone):
    from gptask.config.engine import Fast

    backbone.use_engine(Fast(packing=False))
    batch = backbone.engine.decoding_batch()
    rows = rows_of([30, 5, 60, 7], [9] * 4)
    for row in rows:
        batch.admit([row])
        batch.step()
    batch.step()
    assert len(batch.buckets) == 1
    while batch.rows:
        batch.step()
    assert_same(
        [(row.new_ids, row.score) for row in rows], decode_alone(backbone, [row.prompt for row in rows], limits=9)
    )
