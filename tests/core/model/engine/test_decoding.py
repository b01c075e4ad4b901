"""Prompts decoded in one batch get the same text as each of them alone."""

from itertools import permutations

import pytest
from gptask.config.engine import Fast
from gptask.model.engine import bucket_plan, kv_cache

from tests.support.decoded_rows import assert_same, decode_alone, decode_batch, shapes_read

FAMILIES = ["gpt2", "llama", "gemma3"]
LONG = list(range(30, 50))  # longer than Gemma's tiny window of 8
TAILS = [[7], [8, 9, 10], [11, 12], [7, 13, 14, 15, 16, 17]]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_tokens_are_decoded_as_alone(family, length, penalty, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = decode_alone(backbone, prompts, repetition_penalty=penalty)
    assert len({tuple(ids) for ids, _ in expected}) == len(prompts)  # the tiny model does depend on its prompt
    assert_same(decode_batch(backbone, prompts, repetition_penalty=penalty), expected)


@pytest.mark.parametrize("prompts", [[LONG] * 3, [LONG[:12], LONG, LONG[:13]], [LONG, [7, 8]]])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_equal_or_begin_others_are_decoded_as_alone(family, prompts, backbone_of):
    backbone = backbone_of(family)
    assert_same(decode_batch(backbone, prompts), decode_alone(backbone, prompts))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [0, 12])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_that_finish_in_any_order_leave_the_others_as_they_were(family, length, packed, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = decode_alone(backbone, prompts)
    backbone.use_engine(Fast(packing=packed))  # if not, the model makes the masks and keeps the cache itself
    for limits in [*permutations((1, 2, 4, 7)), (1, 1, 5, 5), (5, 1, 1, 5), (3, 3, 3, 3)]:
        got = decode_batch(backbone, prompts, limits)
        assert [ids for ids, _ in got] == [ids[:limit] for (ids, _), limit in zip(expected, limits, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_buckets_are_decoded_as_alone(family, backbone_of, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    monkeypatch.setattr(bucket_plan, "BUCKET_COST", 1)
    backbone, prompts = backbone_of(family), [LONG, *TAILS, LONG[:9], [*LONG[:9], 60]]
    backbone.engine.packs_windows = True  # texts grow beyond Gemma's window
    assert bucket_plan.split_by_length([*map(len, prompts)]) == [[1, 3, 2], [4], [5, 6], [0]]
    expected = decode_alone(backbone, prompts)
    for limits in [(16,) * 7, (1, 2, 3, 4, 5, 6, 7), (9, 1, 1, 1, 9, 2, 1), (1, 9, 3, 1, 1, 1, 8)]:
        got = decode_batch(backbone, prompts, limits)
        assert [ids for ids, _ in got] == [ids[:limit] for (ids, _), limit in zip(expected, limits, strict=True)]


def test_finished_rows_leave_the_batch(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    shapes = shapes_read(backbone, monkeypatch)
    decode_batch(backbone, TAILS, [2, 5, 1, 3])
    assert shapes == [(1, 12), (3, 1), (2, 1), (1, 1), (1, 1)]
