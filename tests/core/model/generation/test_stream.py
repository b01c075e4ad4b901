"""A streamed text is the text: nothing half, nothing behind a stop text, nothing read twice."""

import pytest
import torch
from gptask.errors import UserError
from gptask.model.backbone.scratch import train_tokenizer
from gptask.model.generation.generate import generate
from gptask.model.generation.stream import Stream, StreamedText
from gptask.plugins.generation_options import GenerationOptions

from tests.support.tiny_models import FAMILIES

PROMPT = list(range(5, 25))  # longer than gemma3's window of 8


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and a few words of several letters."""
    return train_tokenizer(["good film, good film\n\n"] * 3, 270)


@pytest.fixture
def reads(monkeypatch):
    """``reads(backbone)``: how many tokens each of its passes reads."""

    def spy(backbone):
        seen, forward = [], backbone.body.forward

        def counted(*args, **kwargs):
            seen.append(kwargs["input_ids"].shape[1])
            return forward(*args, **kwargs)

        monkeypatch.setattr(backbone.body, "forward", counted)
        return seen

    return spy


TEXTS = [
    ("a good film is on END of it", ["ND o"]),  # several tokens
    ("a good film, good film", ["oo"]),  # inside a token
    ("good\n\nfilm", ["\n"]),
    ("电影很好。这部电影", ["。"]),  # three bytes, a token each
    ("这部电影很好", ["影很"]),
    ("film 🙂 good", ["🙂"]),
    ("film 🙂🙃 good", ["🙃 goo", "🙃 g"]),
    ("aab aaab good", ["aaab"]),  # begins anew within its own beginning
    ("这部电影很好 🙂 good film", []),
    ("这部电影很好 🙂 good film", ["never", "filmy"]),
]


@pytest.mark.parametrize(("text", "stops"), TEXTS)
def test_pieces_are_whole_and_never_taken_back(text, stops, tokenizer):
    end = min((text.index(stop) for stop in stops if stop in text), default=len(text))
    pieces, told = StreamedText(tokenizer, stops), ""
    for token in tokenizer(text)["input_ids"]:
        piece = pieces.add(token)
        assert "\ufffd" not in piece
        told += piece
        assert text[:end].startswith(told)
        if pieces.stopped:
            break
    assert told + pieces.rest() == text[:end]
    assert pieces.stopped == (end < len(text))


def test_text_that_no_stop_text_can_begin_with_is_told_at_once(tokenizer):
    pieces = StreamedText(tokenizer, ["\n\n"])
    ids = tokenizer("a good film")["input_ids"]
    assert [pieces.add(token) for token in ids] == [tokenizer.decode([token]) for token in ids]


def test_half_a_character_at_the_end_is_dropped(tokenizer):
    pieces = StreamedText(tokenizer, [])
    assert "".join(map(pieces.add, tokenizer("ok 🙂")["input_ids"][:-1])) + pieces.rest() == "ok "


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_text_is_the_generated_one(family, backbone_of):
    backbone, options = backbone_of(family), GenerationOptions(max_new_tokens=16, repetition_penalty=1.3)
    (expected,) = generate(backbone, [PROMPT], options)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected.text.rstrip("\ufffd")


def test_a_seeded_text_is_the_generated_one(backbone_of):
    backbone, options = backbone_of("llama"), GenerationOptions(max_new_tokens=16, temperature=2.0, top_p=0.9, seed=3)
    (expected,) = generate(backbone, [PROMPT], options)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected.text.rstrip("\ufffd")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("second", "new"),
    [
        ([*PROMPT, 40, 41, 42], 3),  # goes on
        ([*PROMPT[:12], 50, 51], 2),  # leaves the first at its twelfth token
        (PROMPT, 1),  # the same again: the last token's scores are wanted
        ([60, 61], 2),
    ],
)
def test_only_what_is_new_is_read_and_the_text_is_that_of_a_whole_reading(family, second, new, backbone_of, reads):
    backbone, options = backbone_of(family), GenerationOptions(max_new_tokens=6)
    expected = "".join(Stream(backbone).text(second, options))
    stream = Stream(backbone)
    list(stream.text(PROMPT, GenerationOptions(max_new_tokens=4)))
    seen = reads(backbone)
    assert "".join(stream.text(second, options)) == expected
    assert seen[0] == new
    assert set(seen[1:]) <= {1}


def test_a_long_prompt_is_read_in_parts(backbone_of, reads, monkeypatch):
    backbone, options = backbone_of("gemma3"), GenerationOptions(max_new_tokens=6)
    expected = "".join(Stream(backbone).text(PROMPT, options))
    monkeypatch.setattr("gptask.model.generation.stream.AT_ONCE", 7)
    seen = reads(backbone)
    assert "".join(Stream(backbone).text(PROMPT, options)) == expected
    assert seen[:3] == [7, 7, 6]


def test_a_text_that_is_broken_off_leaves_nothing_wrong_behind(backbone_of, monkeypatch):
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


def test_it_knows_whether_there_was_room(backbone_of):
    backbone = backbone_of("gpt2", context=32)
    stream = Stream(backbone)
    list(stream.text(PROMPT, GenerationOptions(max_new_tokens=3)))
    assert stream.full
    token = int(backbone.model(torch.tensor([PROMPT])).logits[0, -1].argmax())
    backbone.model.generation_config.eos_token_id = [0, token]
    assert list(stream.text(PROMPT, GenerationOptions(max_new_tokens=3))) == [""]
    assert not stream.full
    with pytest.raises(UserError, match="33 tokens"):
        list(stream.text(list(range(33)), GenerationOptions()))
