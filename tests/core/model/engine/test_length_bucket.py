"""Prompts that are read together, in groups and without what they share, are continued as each of them alone."""

import pytest
from gptask.model.engine import kv_cache, length_bucket
from gptask.model.engine.kv_cache import _with_capacity

from tests.support.decoded_rows import assert_same, decode_alone, decode_batch, shapes_read

FAMILIES = ["gpt2", "llama", "gemma3"]
LONG = list(range(30, 50))  # longer than Gemma's tiny window of 8
TAILS = [[7], [8, 9, 10], [11, 12], [7, 13, 14, 15, 16, 17]]


@pytest.mark.parametrize("length", [0, 3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_in_groups_are_decoded_as_alone(family, length, backbone_of, monkeypatch):
    monkeypatch.setattr(length_bucket, "PREFILL_TOKENS", 8)
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    shapes = shapes_read(backbone, monkeypatch)
    got = decode_batch(backbone, prompts)
    assert len([shape for shape in shapes if shape[1] > 1]) > 1 + bool(length), "too few groups to prove anything"
    assert_same(got, decode_alone(backbone, prompts))


def test_what_prompts_share_is_read_once(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    shapes = shapes_read(backbone, monkeypatch)
    decode_batch(backbone, [LONG + tail for tail in TAILS], 3)
    assert shapes == [(1, len(LONG) + sum(map(len, TAILS))), (4, 1), (4, 1)]


@pytest.mark.parametrize(
    ("prompts", "limit", "windowed", "first_shape"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6]], 3, False, (1, 6)),  # all within the window
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6]], 4, False, (2, 5)),  # the prompts alone are
        ([[*LONG, 7], [*LONG, 8, 9]], 1, False, (2, 22)),
        ([[*LONG, 7], [*LONG, 8, 9]], 3, True, (1, 23)),
    ],
)
def test_prompts_longer_than_a_window_share_where_layers_pass_it(
    prompts, limit, windowed, first_shape, backbone_of, monkeypatch
):
    backbone = backbone_of("gemma3")
    backbone.engine.packs_windows = windowed
    expected = decode_alone(backbone, prompts, limits=limit)
    shapes = shapes_read(backbone, monkeypatch)
    assert_same(decode_batch(backbone, prompts, limit), expected)
    assert shapes[0] == first_shape


@pytest.mark.parametrize("length", [0, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_grow_without_changing_the_text(family, length, backbone_of, monkeypatch):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    limits = [16, 12, 9, 16]
    expected = decode_batch(backbone, prompts, limits)
    calls = []
    monkeypatch.setattr(kv_cache, "_with_capacity", lambda *args: calls.append(args) or _with_capacity(*args))
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    assert_same(decode_batch(backbone, prompts, limits), expected)
    assert len(calls) >= 2 * 2 * 3  # layers, keys and values, and several times
