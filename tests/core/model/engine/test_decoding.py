"""Prompts decoded in one batch get the same text as each of them alone."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from gptask.model.engine import decoding, kv_cache
from gptask.model.engine.decoding import decode, stop_test
from gptask.model.engine.kv_cache import PreallocatedKVCache, _with_capacity
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions

FAMILIES = ["gpt2", "llama", "gemma3"]
LONG = list(range(30, 50))  # longer than Gemma's tiny window of 8
TAILS = [[7], [8, 9, 10], [11, 12], [7, 13, 14, 15, 16, 17]]


@torch.inference_mode()
def decode_batch(backbone, prompts, limits=16, **options):
    """Token ids and score of each prompt, all decoded at once."""
    limits = [limits] * len(prompts) if isinstance(limits, int) else list(limits)
    return decode(backbone, prompts, limits, GenerationOptions(**options))


def decode_alone(backbone, prompts, **options):
    return [decode_batch(backbone, [prompt], **options)[0] for prompt in prompts]


def assert_same(got, expected):
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected], rel=1e-3)


def shapes_read(backbone, monkeypatch):
    """A list of the shapes of ids (B, T) that the decoder reads from here on."""
    shapes = []
    forward = backbone.body.forward

    def spy(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.body, "forward", spy)
    return shapes


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_tokens_are_decoded_as_alone(family, length, penalty, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = decode_alone(backbone, prompts, repetition_penalty=penalty)
    assert len({tuple(ids) for ids, _ in expected}) == len(prompts)  # the tiny model does depend on its prompt
    assert_same(decode_batch(backbone, prompts, repetition_penalty=penalty), expected)


@pytest.mark.parametrize("length", [0, 3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_in_groups_are_decoded_as_alone(family, length, backbone_of, monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    shapes = shapes_read(backbone, monkeypatch)
    got = decode_batch(backbone, prompts)
    assert len([shape for shape in shapes if shape[1] > 1]) > 1 + bool(length), "too few groups to prove anything"
    assert_same(got, decode_alone(backbone, prompts))


@pytest.mark.parametrize("prompts", [[LONG] * 3, [LONG[:12], LONG, LONG[:13]], [LONG, [7, 8]]])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_equal_or_begin_others_are_decoded_as_alone(family, prompts, backbone_of):
    backbone = backbone_of(family)
    assert_same(decode_batch(backbone, prompts), decode_alone(backbone, prompts))


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
    backbone.packs_windows = windowed
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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [0, 12])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_that_finish_in_any_order_leave_the_others_as_they_were(family, length, packed, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = decode_alone(backbone, prompts)
    backbone.packs_correctly = packed  # if not, the model makes the masks and keeps the cache itself
    for limits in [*permutations((1, 2, 4, 7)), (1, 1, 5, 5), (5, 1, 1, 5), (3, 3, 3, 3)]:
        got = decode_batch(backbone, prompts, limits)
        assert [ids for ids, _ in got] == [ids[:limit] for (ids, _), limit in zip(expected, limits, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_buckets_are_decoded_as_alone(family, backbone_of, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    monkeypatch.setattr(decoding, "BUCKET_COST", 1)
    backbone, prompts = backbone_of(family), [LONG, *TAILS, LONG[:9], [*LONG[:9], 60]]
    backbone.packs_windows = True  # texts grow beyond Gemma's window
    assert decoding.split_by_length([*map(len, prompts)]) == [[1, 3, 2], [4], [5, 6], [0]]
    expected = decode_alone(backbone, prompts)
    for limits in [(16,) * 7, (1, 2, 3, 4, 5, 6, 7), (9, 1, 1, 1, 9, 2, 1), (1, 9, 3, 1, 1, 1, 8)]:
        got = decode_batch(backbone, prompts, limits)
        assert [ids for ids, _ in got] == [ids[:limit] for (ids, _), limit in zip(expected, limits, strict=True)]


@pytest.mark.parametrize(
    ("lengths", "bucket_cost", "expected"),
    [
        ([5], 9, [[0]]),
        ([40, 5, 64], 31, [[1], [0, 2]]),
        ([40, 5, 64], 33, [[1, 0, 2]]),
        ([300, 7, 290, 9, 8, 100], 128, [[1, 4, 3], [5], [2, 0]]),
        ([300, 7, 290, 9, 8, 100], 200, [[1, 4, 3], [5, 2, 0]]),
    ],
)
def test_rows_of_different_lengths_are_split_where_that_saves_enough(lengths, bucket_cost, expected, monkeypatch):
    monkeypatch.setattr(decoding, "BUCKET_COST", bucket_cost)
    assert decoding.split_by_length(lengths) == expected


def test_finished_rows_leave_the_batch(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    shapes = shapes_read(backbone, monkeypatch)
    decode_batch(backbone, TAILS, [2, 5, 1, 3])
    assert shapes == [(1, 12), (3, 1), (2, 1), (1, 1), (1, 1)]


def keys_of(buffer):
    """The numbers (B, S) that a buffer's keys are; its values are their negatives."""
    assert torch.equal(buffer.values, -buffer.keys)
    return buffer.keys[:, 0, :, 0].tolist()


def pair(rows):
    """Rows of numbers as keys, in two heads of three channels, and their negatives as values."""
    keys = torch.tensor(rows, dtype=torch.float32)[:, None, :, None].expand(-1, 2, -1, 3)
    return keys, -keys


def buffer_of(*rows, shows_capacity=False):
    """A buffer that holds rows of numbers."""
    buffer, shape = PreallocatedKVCache(shows_capacity), (len(rows), len(rows[0]))
    places = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1])).unbind(1)
    buffer.write(shape, places, [part.transpose(1, 2).flatten(0, 1) for part in pair(rows)])
    return buffer


def append(buffer, *rows):
    keys, values = buffer.update(*pair(rows))
    assert keys is buffer.keys
    assert values is buffer.values


@pytest.mark.parametrize(
    ("count", "source", "target", "expected"),
    [
        (2, [3], [0], [[7, 8], [3, 4]]),
        (3, [], [], [[1, 2], [3, 4], [5, 6]]),
        (2, [2, 3], [0, 1], [[5, 6], [7, 8]]),
        (1, [2], [0], [[5, 6]]),
    ],
)
def test_rows_are_moved_and_the_first_ones_kept(count, source, target, expected):
    buffer = buffer_of([1, 2], [3, 4], [5, 6], [7, 8])
    buffer.move_rows(source, target, count)
    assert keys_of(buffer) == expected
    assert buffer.get_seq_length() == 2
    append(buffer, *([place + 90] for place in range(count)))
    assert keys_of(buffer) == [[*row, place + 90] for place, row in enumerate(expected)]


def test_a_buffer_grows(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = buffer_of([1, 2], [3, 4])
    allocated = buffer.buffers[0]
    append(buffer, [5], [6])
    assert buffer.buffers[0] is allocated
    append(buffer, [7], [8])
    assert buffer.buffers[0] is not allocated
    assert keys_of(buffer) == [[1, 2, 5, 7], [3, 4, 6, 8]]


def test_a_buffer_that_shows_its_capacity_has_zeros_behind_the_end(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = buffer_of([1, 2], [3, 4], shows_capacity=True)
    assert keys_of(buffer) == [[1, 2, 0], [3, 4, 0]]
    append(buffer, [5], [6])
    append(buffer, [7], [8])
    assert keys_of(buffer) == [[1, 2, 5, 7, 0, 0], [3, 4, 6, 8, 0, 0]]
    buffer.move_rows([1], [0], 1)
    assert keys_of(buffer) == [[3, 4, 6, 8, 0, 0]]
    assert buffer.keys.is_contiguous()
    assert buffer.get_seq_length() == 4


def test_states_written_in_parts_lie_at_their_places():
    buffer, numbers = PreallocatedKVCache(), torch.arange(1.0, 6.0)[:, None, None].expand(-1, 2, 3)
    for part, rows, columns in ((slice(3), [2, 2, 2], [0, 1, 2]), (slice(3, 5), [0, 1], [2, 2])):
        buffer.write((3, 3), (torch.tensor(rows), torch.tensor(columns)), [numbers[part], -numbers[part]])
    assert keys_of(buffer) == [[0, 0, 4], [0, 0, 5], [1, 2, 3]]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of bytes, and of a few words of several letters."""
    from gptask.model.backbone.scratch import train_tokenizer

    return train_tokenizer(["good film, good film\n\n"] * 3, 270)


STOPS = [
    ("a good film is on END of it", ["ND o"]),  # several tokens
    ("a good film, good film", ["oo"]),  # inside a token
    ("a good film, good film", ["m, go"]),  # starts and ends inside tokens
    ("good\n\nfilm", ["\n"]),
    ("电影很好。这部电影", ["。"]),  # three bytes, a token each
    ("这部电影很好", ["影很"]),
    ("so 这部电影讲的是龙凤龟麟虎豹狮象的事", ["这部电影讲的是龙凤龟麟虎豹狮象"]),  # more tokens than letters
    ("film 🙂 good", ["🙂"]),
    ("a good film", ["never", "film", " good"]),
]


@pytest.mark.parametrize(("text", "stops"), STOPS)
def test_a_stop_text_is_found_with_its_last_token_and_not_before(text, stops, tokenizer):
    is_stopped = stop_test(SimpleNamespace(tokenizer=tokenizer), stops)
    ids = tokenizer(text)["input_ids"]
    first = next(n for n in range(len(ids)) if any(stop in tokenizer.decode(ids[: n + 1]) for stop in stops))
    assert next(n for n in range(len(ids)) if is_stopped(ids[: n + 1])) == first


@pytest.mark.parametrize(("text", "stops"), [("这部电影很好", ["影好", "龙"]), ("a good film", ["x", "filmy"])])
def test_a_stop_text_that_is_not_there_is_not_found(text, stops, tokenizer):
    is_stopped = stop_test(SimpleNamespace(tokenizer=tokenizer), stops)
    ids = tokenizer(text)["input_ids"]
    assert not any(is_stopped(ids[: n + 1]) for n in range(len(ids)))


@pytest.mark.parametrize(("text", "stops"), STOPS)
def test_a_stop_text_ends_a_generated_text(text, stops, tokenizer, backbone_of, monkeypatch):
    backbone, ids = backbone_of("llama"), tokenizer(text)["input_ids"]
    backbone.tokenizer = tokenizer
    dictated = iter(ids)

    def logits(hidden):
        return torch.nn.functional.one_hot(torch.tensor([next(dictated)]), 320)

    monkeypatch.setattr(backbone, "logits", logits)
    (generated,) = generate(backbone, [[5, 6]], GenerationOptions(max_new_tokens=len(ids), stop=stops))
    end = min(text.index(stop) for stop in stops if stop in text)
    assert generated.text == text[:end]
    rest = tokenizer.decode(list(dictated))
    assert text.endswith(rest)
    assert len(rest) <= len(text) - end - min(len(stop) for stop in stops if stop in text)
