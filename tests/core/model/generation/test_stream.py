"""Streaming equals generation, emits no incomplete character and no text after a stop text, reads no token twice."""

import random

import pytest
import torch
from gptask.errors import UserError
from gptask.model.backbone.scratch import train_tokenizer
from gptask.model.generation.generate import generate
from gptask.model.generation.stream import Stream, StreamedText
from gptask.plugins.generation_options import GenerationOptions
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.support.tiny_models import FAMILIES
from tests.support.tokenizers import KINDS, TEXT, tokenizer_of

PROMPT = list(range(5, 25))  # longer than gemma3's window of 8


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of bytes and a few words."""
    return train_tokenizer(["good film, good film\n\n"] * 3, 270)


@pytest.fixture
def reads(monkeypatch):
    """``reads(backbone)`` returns a list of how many tokens each of its forward passes reads."""

    def spy(backbone):
        token_counts, forward = [], backbone.body.forward

        def counted(*args, **kwargs):
            token_counts.append(kwargs["input_ids"].shape[1])
            return forward(*args, **kwargs)

        monkeypatch.setattr(backbone.body, "forward", counted)
        return token_counts

    return spy


TEXTS = [
    ("a good film is on END of it", ["ND o"]),  # several tokens
    ("a good film, good film", ["oo"]),  # inside a token
    ("good\n\nfilm", ["\n"]),
    ("电影很好。这部电影", ["。"]),  # three bytes, a token each
    ("这部电影很好", ["影很"]),
    ("film 🙂 good", ["🙂"]),
    ("film 🙂🙃 good", ["🙃 goo", "🙃 g"]),
    ("aab aaab good", ["aaab"]),  # the stop text begins again inside its own beginning
    ("这部电影很好 🙂 good film", []),
    ("这部电影很好 🙂 good film", ["never", "filmy"]),
]


@pytest.mark.parametrize(("text", "stops"), TEXTS)
def test_pieces_hold_complete_characters_and_are_final(text, stops, tokenizer):
    end = min((text.index(stop) for stop in stops if stop in text), default=len(text))
    pieces, streamed = StreamedText(tokenizer, stops), ""
    for token in tokenizer(text)["input_ids"]:
        piece = pieces.add(token)
        assert "\ufffd" not in piece
        streamed += piece
        assert text[:end].startswith(streamed)
        if pieces.stopped:
            break
    assert streamed + pieces.rest() == text[:end]
    assert pieces.stopped == (end < len(text))


def test_text_that_can_not_begin_a_stop_text_is_emitted_at_once(tokenizer):
    pieces = StreamedText(tokenizer, ["\n\n"])
    ids = tokenizer("a good film")["input_ids"]
    assert [pieces.add(token) for token in ids] == [tokenizer.decode([token]) for token in ids]


def test_an_incomplete_character_at_the_end_is_dropped(tokenizer):
    pieces = StreamedText(tokenizer, [])
    assert "".join(map(pieces.add, tokenizer("ok 🙂")["input_ids"][:-1])) + pieces.rest() == "ok "


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_every_kind_of_tokenizer_are_the_text(kind):
    tokenizer = tokenizer_of(kind)
    text = TEXT[:103] if kind in ("characters", "unigram") else TEXT
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids[3:3] = [tokenizer.eos_token_id] * 2  # which no text shows
    pieces = StreamedText(tokenizer, [])
    streamed = "".join(map(pieces.add, ids)) + pieces.rest()
    assert streamed == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(pieces.starts) == len(ids)
    assert pieces.starts == sorted(pieces.starts)


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_are_the_text_too(seed, tokenizer):
    draw = random.Random(seed)
    parts = [draw.choice(["a", "é", "这", "🙂", b"\xe8", b"\x80", b"\xf0\x9f", b"\xff"]) for _ in range(60)]
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    names = bytes_to_unicode()
    ids = [tokenizer.convert_tokens_to_ids(names[byte]) for byte in content]
    pieces = StreamedText(tokenizer, [])
    streamed = "".join(map(pieces.add, ids)) + pieces.rest()
    assert streamed == content.decode(errors="replace").rstrip("\ufffd")


def test_a_token_of_a_long_text_decodes_few_tokens(tokenizer):
    ids, lengths = tokenizer("good 电影 film 🙂 " * 40)["input_ids"], []
    pieces = StreamedText(tokenizer, ["never"])
    decode = pieces._decode
    pieces._decode = lambda some: lengths.append(len(some)) or decode(some)
    for token in [*ids, *[ids[6]] * 50]:  # at last bytes that are no character
        pieces.add(token)
    assert max(lengths) <= 24


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_text_equals_the_generated_one(family, backbone_of):
    backbone, options = backbone_of(family), GenerationOptions(max_new_tokens=16, repetition_penalty=1.3)
    (expected,) = generate(backbone, [PROMPT], options)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected.text.rstrip("\ufffd")


def test_a_streamed_text_with_a_seed_equals_the_generated_one(backbone_of):
    backbone, options = backbone_of("llama"), GenerationOptions(max_new_tokens=16, temperature=2.0, top_p=0.9, seed=3)
    (expected,) = generate(backbone, [PROMPT], options)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected.text.rstrip("\ufffd")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("second", "new"),
    [
        ([*PROMPT, 40, 41, 42], 3),  # continues the first
        ([*PROMPT[:12], 50, 51], 2),  # shares twelve tokens with the first
        (PROMPT, 1),  # the same again: the logits after the last token are needed
        ([60, 61], 2),
    ],
)
def test_only_new_tokens_are_read_and_the_text_stays_the_same(family, second, new, backbone_of, reads):
    backbone, options = backbone_of(family), GenerationOptions(max_new_tokens=6)
    expected = "".join(Stream(backbone).text(second, options))
    stream = Stream(backbone)
    list(stream.text(PROMPT, GenerationOptions(max_new_tokens=4)))
    token_counts = reads(backbone)
    assert "".join(stream.text(second, options)) == expected
    assert token_counts[0] == new
    assert set(token_counts[1:]) <= {1}


@pytest.mark.parametrize(("long_prompt", "reads_expected"), [(len(PROMPT), [20]), (len(PROMPT) - 1, [7, 7, 6])])
def test_a_long_prompt_is_read_in_chunks(long_prompt, reads_expected, backbone_of, reads, monkeypatch):
    backbone, options = backbone_of("gemma3"), GenerationOptions(max_new_tokens=6)
    expected = "".join(Stream(backbone).text(PROMPT, options))
    monkeypatch.setattr("gptask.model.engine.decoding.LONG_PROMPT", long_prompt)
    monkeypatch.setattr("gptask.model.engine.length_bucket.PROMPT_CHUNK", 7)
    token_counts = reads(backbone)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected
    assert token_counts[: len(reads_expected)] == reads_expected
    assert set(token_counts[len(reads_expected) :]) == {1}


def test_after_an_interrupted_text_the_next_one_is_right(backbone_of, monkeypatch):
    backbone, options = backbone_of("llama"), GenerationOptions(max_new_tokens=6)
    expected = "".join(Stream(backbone).text([*PROMPT, 3], options))
    stream = Stream(backbone)
    pieces = stream.text(PROMPT, options)
    next(pieces)
    pieces.close()
    second = backbone.body.layers[1]
    with monkeypatch.context() as patch:  # Ctrl-C between two layers
        patch.setattr(second, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(stream.text([*PROMPT, 9, 9], options))
    assert "".join(stream.text([*PROMPT, 3], options)) == expected


def test_the_stream_records_whether_the_text_reached_its_limit(backbone_of):
    backbone = backbone_of("gpt2", context=32)
    stream = Stream(backbone)
    list(stream.text(PROMPT, GenerationOptions(max_new_tokens=3)))
    assert stream.reached_limit
    token = int(backbone.model(torch.tensor([PROMPT])).logits[0, -1].argmax())
    backbone.model.generation_config.eos_token_id = [0, token]
    assert list(stream.text(PROMPT, GenerationOptions(max_new_tokens=3))) == [""]
    assert not stream.reached_limit
    with pytest.raises(UserError, match="33 tokens"):
        list(stream.text(list(range(33)), GenerationOptions()))
