"""Decoding in shared buffers gives every prompt what it gets alone."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from gptask.model.engine import decoding, kv_cache
from gptask.model.engine.decoding import decode, stop_test
from gptask.model.engine.kv_cache import PreallocatedKVCache, _grown
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions

FAMILIES = ["gpt2", "llama", "gemma3"]
LONG = list(range(30, 50))  # longer than Gemma's tiny window of 8
TAILS = [[7], [8, 9, 10], [11, 12], [7, 13, 14, 15, 16, 17]]


@torch.inference_mode()
def together(backbone, prompts, rooms=16, **options):
    """Token ids and score of each prompt, all decoded at once."""
    rooms = [rooms] * len(prompts) if isinstance(rooms, int) else list(rooms)
    return decode(backbone, prompts, rooms, GenerationOptions(**options))


def alone(backbone, prompts, **options):
    return [together(backbone, [prompt], **options)[0] for prompt in prompts]


def same(got, expected):
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected], rel=1e-3)


def read_by(backbone, monkeypatch):
    """The shapes of ids (B, T) that the decoder reads from here on."""
    seen = []
    forward = backbone.body.forward

    def spy(*args, **kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.body, "forward", spy)
    return seen


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_tokens_are_decoded_as_alone(family, length, penalty, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = alone(backbone, prompts, repetition_penalty=penalty)
    assert len({tuple(ids) for ids, _ in expected}) == len(prompts)  # the tiny model does listen to its prompt
    same(together(backbone, prompts, repetition_penalty=penalty), expected)


@pytest.mark.parametrize("length", [0, 3, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_in_groups_are_decoded_as_alone(family, length, backbone_of, monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    seen = read_by(backbone, monkeypatch)
    got = together(backbone, prompts)
    assert len([shape for shape in seen if shape[1] > 1]) > 1 + bool(length), "one group would prove nothing"
    same(got, alone(backbone, prompts))


@pytest.mark.parametrize("prompts", [[LONG] * 3, [LONG[:12], LONG, LONG[:13]], [LONG, [7, 8]]])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_are_the_same_or_parts_of_others_are_decoded_as_alone(family, prompts, backbone_of):
    backbone = backbone_of(family)
    same(together(backbone, prompts), alone(backbone, prompts))


def test_what_prompts_share_is_read_once(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    seen = read_by(backbone, monkeypatch)
    together(backbone, [LONG + tail for tail in TAILS], 3)
    assert seen == [(1, len(LONG) + sum(map(len, TAILS))), (4, 1), (4, 1)]


@pytest.mark.parametrize(
    ("prompts", "room", "windowed", "first"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6]], 3, False, (1, 6)),  # all within the window
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6]], 4, False, (2, 5)),  # the prompts alone are
        ([[*LONG, 7], [*LONG, 8, 9]], 1, False, (2, 22)),
        ([[*LONG, 7], [*LONG, 8, 9]], 3, True, (1, 23)),
    ],
)
def test_prompts_longer_than_a_window_share_where_layers_tell_it(
    prompts, room, windowed, first, backbone_of, monkeypatch
):
    backbone = backbone_of("gemma3")
    backbone.windowed = windowed
    expected = alone(backbone, prompts, rooms=room)
    seen = read_by(backbone, monkeypatch)
    same(together(backbone, prompts, room), expected)
    assert seen[0] == first


@pytest.mark.parametrize("length", [0, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_grow_without_changing_the_text(family, length, backbone_of, monkeypatch):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    rooms = [16, 12, 9, 16]
    expected = together(backbone, prompts, rooms)
    made, make = [], _grown
    monkeypatch.setattr(kv_cache, "_grown", lambda *args: made.append(args) or make(*args))
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    same(together(backbone, prompts, rooms), expected)
    assert len(made) >= 2 * 2 * 3  # layers, keys and values, and several times


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("length", [0, 12])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_that_finish_in_any_order_leave_the_others_as_they_were(family, length, apart, backbone_of):
    backbone, prompts = backbone_of(family), [LONG[:length] + tail for tail in TAILS]
    expected = alone(backbone, prompts)
    backbone.apart = apart  # if not, the model makes the masks and keeps the cache itself
    for rooms in [*permutations((1, 2, 4, 7)), (1, 1, 5, 5), (5, 1, 1, 5), (3, 3, 3, 3)]:
        got = together(backbone, prompts, rooms)
        assert [ids for ids, _ in got] == [ids[:room] for (ids, _), room in zip(expected, rooms, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_segments_are_decoded_as_alone(family, backbone_of, monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    monkeypatch.setattr(decoding, "BUCKET_COST", 1)
    backbone, prompts = backbone_of(family), [LONG, *TAILS, LONG[:9], [*LONG[:9], 60]]
    backbone.windowed = True  # texts grow beyond Gemma's window
    assert decoding.split_by_length([*map(len, prompts)]) == [[1, 3, 2], [4], [5, 6], [0]]
    expected = alone(backbone, prompts)
    for rooms in [(16,) * 7, (1, 2, 3, 4, 5, 6, 7), (9, 1, 1, 1, 9, 2, 1), (1, 9, 3, 1, 1, 1, 8)]:
        got = together(backbone, prompts, rooms)
        assert [ids for ids, _ in got] == [ids[:room] for (ids, _), room in zip(expected, rooms, strict=True)]


@pytest.mark.parametrize(
    ("lengths", "apart", "expected"),
    [
        ([5], 9, [[0]]),
        ([40, 5, 64], 31, [[1], [0, 2]]),
        ([40, 5, 64], 33, [[1, 0, 2]]),
        ([300, 7, 290, 9, 8, 100], 128, [[1, 4, 3], [5], [2, 0]]),
        ([300, 7, 290, 9, 8, 100], 200, [[1, 4, 3], [5, 2, 0]]),
    ],
)
def test_rows_of_other_lengths_are_apart_where_that_saves_enough(lengths, apart, expected, monkeypatch):
    monkeypatch.setattr(decoding, "BUCKET_COST", apart)
    assert decoding.split_by_length(lengths) == expected


def test_finished_rows_are_not_read_on(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    seen = read_by(backbone, monkeypatch)
    together(backbone, TAILS, [2, 5, 1, 3])
    assert seen == [(1, 12), (3, 1), (2, 1), (1, 1), (1, 1)]


def held(buffer):
    """The numbers that a buffer shows: (B, S) of keys, and its values, which are their negatives."""
    assert torch.equal(buffer.values, -buffer.keys)
    return buffer.keys[:, 0, :, 0].tolist()


def pair(rows):
    """Rows of numbers as keys, in two heads of three channels, and their negatives as values."""
    keys = torch.tensor(rows, dtype=torch.float32)[:, None, :, None].expand(-1, 2, -1, 3)
    return keys, -keys


def placed(*rows, whole=False):
    """A buffer that holds rows of numbers."""
    buffer, shape = PreallocatedKVCache(whole), (len(rows), len(rows[0]))
    where = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1])).unbind(1)
    buffer.place(shape, where, [part.transpose(1, 2).flatten(0, 1) for part in pair(rows)])
    return buffer


def write(buffer, *rows):
    shown = buffer.update(*pair(rows))
    assert shown[0] is buffer.keys
    assert shown[1] is buffer.values


@pytest.mark.parametrize(
    ("rows", "source", "target", "expected"),
    [
        (2, [3], [0], [[7, 8], [3, 4]]),
        (3, [], [], [[1, 2], [3, 4], [5, 6]]),
        (2, [2, 3], [0, 1], [[5, 6], [7, 8]]),
        (1, [2], [0], [[5, 6]]),
    ],
)
def test_a_buffer_keeps_the_rows_it_is_told(rows, source, target, expected):
    buffer = placed([1, 2], [3, 4], [5, 6], [7, 8])
    buffer.keep(rows, source, target)
    assert held(buffer) == expected
    assert buffer.get_seq_length() == 2
    write(buffer, *([place + 90] for place in range(rows)))
    assert held(buffer) == [[*row, place + 90] for place, row in enumerate(expected)]


def test_a_buffer_grows(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = placed([1, 2], [3, 4])
    room = buffer.room[0]
    write(buffer, [5], [6])
    assert buffer.room[0] is room
    write(buffer, [7], [8])
    assert buffer.room[0] is not room
    assert held(buffer) == [[1, 2, 5, 7], [3, 4, 6, 8]]


def test_a_whole_buffer_shows_zeros_where_nothing_is_written_yet(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = placed([1, 2], [3, 4], whole=True)
    assert held(buffer) == [[1, 2, 0], [3, 4, 0]]
    write(buffer, [5], [6])
    write(buffer, [7], [8])
    assert held(buffer) == [[1, 2, 5, 7, 0, 0], [3, 4, 6, 8, 0, 0]]
    buffer.keep(1, [1], [0])
    assert held(buffer) == [[3, 4, 6, 8, 0, 0]]
    assert buffer.keys.is_contiguous()
    assert buffer.get_seq_length() == 4


def test_what_was_read_in_parts_lies_where_it_belongs():
    buffer, numbers = PreallocatedKVCache(), torch.arange(1.0, 6.0)[:, None, None].expand(-1, 2, 3)
    for part, rows, columns in ((slice(3), [2, 2, 2], [0, 1, 2]), (slice(3, 5), [0, 1], [2, 2])):
        buffer.place((3, 3), (torch.tensor(rows), torch.tensor(columns)), [numbers[part], -numbers[part]])
    assert held(buffer) == [[0, 0, 4], [0, 0, 5], [1, 2, 3]]


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and a few words of several letters."""
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
    stopped = stop_test(SimpleNamespace(tokenizer=tokenizer), stops)
    ids = tokenizer(text)["input_ids"]
    first = next(n for n in range(len(ids)) if any(stop in tokenizer.decode(ids[: n + 1]) for stop in stops))
    assert next(n for n in range(len(ids)) if stopped(ids[: n + 1])) == first


@pytest.mark.parametrize(("text", "stops"), [("这部电影很好", ["影好", "龙"]), ("a good film", ["x", "filmy"])])
def test_a_stop_text_that_is_not_there_is_not_found(text, stops, tokenizer):
    stopped = stop_test(SimpleNamespace(tokenizer=tokenizer), stops)
    ids = tokenizer(text)["input_ids"]
    assert not any(stopped(ids[: n + 1]) for n in range(len(ids)))


@pytest.mark.parametrize(("text", "stops"), STOPS)
def test_a_stop_text_ends_a_generated_text(text, stops, tokenizer, backbone_of, monkeypatch):
    backbone, ids = backbone_of("llama"), tokenizer(text)["input_ids"]
    backbone.tokenizer = tokenizer
    dictated = iter(ids)

    def logits(hidden):
        return torch.nn.functional.one_hot(torch.tensor([next(dictated)]), 320)

    monkeypatch.setattr(backbone, "logits", logits)
    (said,) = generate(backbone, [[5, 6]], GenerationOptions(max_new_tokens=len(ids), stop=stops))
    end = min(text.index(stop) for stop in stops if stop in text)
    assert said.text == text[:end]
    rest = tokenizer.decode(list(dictated))
    assert text.endswith(rest)
    assert len(rest) <= len(text) - end - min(len(stop) for stop in stops if stop in text)
