"""Batched decoding equals ``model.generate()`` one prompt at a time, and follows its options."""

import math

import numpy as np
import pytest
import torch
from gptask.errors import UserError
from gptask.model.generation import generate as generation
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions

from tests.support.tiny_models import FAMILIES

PROMPTS = [[40, 41, 42], list(range(5, 25)), [7], list(range(60, 72)), [99, 98, 97, 96, 95]]


class SpellingTokenizer:
    """A tokenizer whose text is the token ids, so that different rows have different texts."""

    eos_token_id = 0

    def decode(self, row, **options):
        return " ".join(map(str, row))

    def batch_decode(self, rows, **options):
        return [self.decode(row) for row in rows]


def reference(backbone, prompt, **options):
    """Return what transformers generates after one prompt."""
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0} | options
    ids = torch.tensor([prompt])
    return backbone.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()


def texts(backbone, prompts, **options):
    return [text.text for text in generate(backbone, prompts, GenerationOptions(**{"max_new_tokens": 16} | options))]


def decoded(backbone, rows):
    return backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)


@pytest.fixture
def spelled(backbone_of):
    def load(*arguments, **options):
        backbone = backbone_of(*arguments, **options)
        backbone.tokenizer = SpellingTokenizer()
        return backbone

    return load


@pytest.fixture
def llama(backbone_of):
    return backbone_of("llama")


@pytest.fixture
def sizes(llama, monkeypatch):
    """The batch sizes of the decoder's calls."""
    batch_sizes = []
    forward = llama.body.forward

    def spy(*args, **kwargs):
        batch_sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama.body, "forward", spy)
    return batch_sizes


def ending_early(backbone, prompts=PROMPTS):
    """Make an EOS of a token that some rows reach soon, others late or never; return what each row then generates."""
    rows = [reference(backbone, prompt) for prompt in prompts]
    token = max(set(rows[0]), key=lambda t: len({row.index(t) if t in row else 99 for row in rows}))
    backbone.model.generation_config.eos_token_id = [0, token]
    return [row[: row.index(token)] if token in row else row for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_of_a_batch_equals_transformers_one_by_one(family, backbone_of):
    backbone = backbone_of(family)
    rows = [reference(backbone, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in rows}) == len(rows)  # the tiny model's text depends on its prompt
    assert texts(backbone, PROMPTS) == decoded(backbone, rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_do_not_change_the_others(family, spelled):
    backbone = spelled(family)
    rows = ending_early(backbone)
    assert len({len(row) for row in rows}) > 1
    assert texts(backbone, PROMPTS) == decoded(backbone, rows)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_beam_search_of_a_batch_equals_transformers_one_by_one(family, spelled):
    backbone = spelled(family)
    rows = [reference(backbone, prompt, num_beams=3, max_new_tokens=10) for prompt in PROMPTS]
    assert texts(backbone, PROMPTS, num_beams=3, max_new_tokens=10) == decoded(backbone, rows)
    assert rows != [reference(backbone, prompt, max_new_tokens=10) for prompt in PROMPTS]


@pytest.mark.parametrize("beams", [1, 2])
def test_repetition_penalty_equals_transformers(beams, llama):
    rows = [reference(llama, p, repetition_penalty=1.8, num_beams=beams) for p in PROMPTS]
    assert rows != [reference(llama, p, num_beams=beams) for p in PROMPTS]
    assert texts(llama, PROMPTS, repetition_penalty=1.8, num_beams=beams) == decoded(llama, rows)


def test_finished_rows_leave_the_batch(llama, sizes):
    rows = ending_early(llama)
    sizes.clear()
    texts(llama, PROMPTS)
    expected = [sum(len(row) >= step for row in rows) for step in range(1, max(map(len, rows)) + 1)]
    assert sizes[1:] == expected[: len(sizes) - 1]
    assert len(PROMPTS) >= sizes[1] > sizes[-1] > 0


def test_the_batch_size_is_bounded_by_the_memory_of_keys_and_values(llama, sizes, monkeypatch):
    in_one_batch = texts(llama, PROMPTS, max_new_tokens=4)
    config = llama.model.config
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4  # bytes, in float32
    monkeypatch.setattr(generation, "MAX_KV_BYTES", position * (sum(len(prompt) + 4 for prompt in PROMPTS) // 2))
    sizes.clear()
    assert texts(llama, PROMPTS, max_new_tokens=4) == in_one_batch
    assert max(sizes) == 2, "three batches: half of all prompts is a bit more than there is room for"
    monkeypatch.setattr(generation, "MAX_KV_BYTES", 1)
    assert texts(llama, PROMPTS, max_new_tokens=4) == in_one_batch, "one at a time, if need be"


def test_a_stop_text_ends_the_row_and_is_cut_off(llama, sizes):
    (text,) = texts(llama, PROMPTS[:1])
    stop = text[5:8]
    sizes.clear()
    assert texts(llama, PROMPTS[:1], stop=["never there", stop]) == [text[: text.index(stop)]]
    assert len(sizes) < 16


def test_a_stop_text_is_cut_off_in_beam_search(llama):
    (text,) = texts(llama, PROMPTS[:1], num_beams=2)
    stop = text[3:6]
    (cut_text,) = texts(llama, PROMPTS[:1], num_beams=2, stop=[stop])
    assert stop not in cut_text


@torch.no_grad()
def test_the_score_is_the_geometric_mean_over_tokens_and_eos(llama):
    rows = ending_early(llama)
    eos_id = llama.model.generation_config.eos_token_id[1]
    generated = generate(llama, PROMPTS, GenerationOptions(max_new_tokens=16))
    for text, prompt, row in zip(generated, PROMPTS, rows, strict=True):
        scored_ids = row if len(row) == 16 else [*row, eos_id]
        logits = llama.model(torch.tensor([prompt + scored_ids])).logits[0, len(prompt) - 1 : -1]
        mean = logits.log_softmax(-1).gather(1, torch.tensor(scored_ids)[:, None]).mean()
        assert text.score == pytest.approx(math.exp(mean), rel=1e-4)


def test_sampling_is_reproducible_with_the_seed_of_torch(llama):
    def draw(seed):
        torch.manual_seed(seed)
        return texts(llama, PROMPTS, temperature=1.5)

    assert draw(1) == draw(1) != draw(2)


def test_top_k_and_top_p_restrict_the_sampled_tokens(spelled):
    llama, prompt, temperature = spelled("llama"), PROMPTS[0], 4.0
    logits = llama.model(torch.tensor([prompt])).logits[0, -1]
    probability, order = (logits / temperature).softmax(-1).sort(descending=True)
    nucleus = int((probability.cumsum(0) < 0.6).sum()) + 1
    assert nucleus > 3
    torch.manual_seed(0)
    for options, count in [({"top_k": 3}, 3), ({"top_p": 0.6}, nucleus)]:
        drawn = set(texts(llama, [prompt] * 300, temperature=temperature, max_new_tokens=1, **options))
        assert len(drawn) > 1
        assert drawn <= {str(token) for token in order[:count].tolist()}
    assert texts(llama, PROMPTS, temperature=1.0, top_k=1) == texts(llama, PROMPTS)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_ends_at_the_end_of_the_context(family, beams, spelled):
    backbone = spelled(family, context=32)
    full, near, short = list(range(10, 42)), list(range(50, 79)), [5, 6]
    rows = [
        reference(backbone, prompt, max_new_tokens=new, num_beams=beams)
        for prompt, new in [(full, 1), (near, 4), (short, 16)]
    ]
    assert texts(backbone, [full, near, short], num_beams=beams) == decoded(backbone, rows)


@pytest.mark.parametrize(("prompt", "message"), [([], "0 tokens"), (list(range(33)), "33 tokens")])
def test_an_empty_or_too_long_prompt_is_refused(prompt, message, backbone_of):
    with pytest.raises(UserError, match=f"{message}.*1 to 32"):
        texts(backbone_of("gpt2", context=32), [[5], prompt])


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ([20] * 99 + [500], {}, 24),  # one in a hundred may be cut off
        ([20] * 98 + [100] * 2, {}, 104),
        ([20] * 98 + [500] * 2, {}, 128),  # a quarter of 512
        ([2, 3], {}, 16),
        ([2, 3], {"min_new_tokens": 30}, 30),
    ],
)
def test_max_new_tokens_follows_the_lengths_of_training_targets(lengths, options, expected, caplog):
    assert GenerationOptions(**options).covering_limit(np.array(lengths), 512) == expected
    assert ("2 of 100 training targets exceed max_new_tokens" in caplog.text) == (expected == 128)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"num_beams": 0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"stop": [""]},
        {"num_beams": 2, "temperature": 1.0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 65},
        {"samples": 0},
        {"samples": 2},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=r"task\.generation"):
        GenerationOptions(**options).validate()
    GenerationOptions().validate()
