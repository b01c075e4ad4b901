"""Attention by plain products equals the fused kernel, which computes the calls that it does not support."""

from types import SimpleNamespace

import pytest
import torch
from gptask.model.engine import attention

HEADS = [(4, 4), (4, 2), (4, 1)]  # query heads, and key and value heads
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


def states(h, k, t, s, values=8):
    """Random queries, keys and values of two sequences."""
    torch.manual_seed(0)
    return [torch.randn(2, *shape, requires_grad=True) for shape in [(h, t, 8), (k, s, 8), (k, s, values)]]


def module(h=4, k=2, **options):
    """The attributes of a calling layer that attention reads."""
    return SimpleNamespace(**{"num_key_value_groups": h // k, "is_causal": True} | options)


def fused(module, states, visible, **options):
    """The fused kernel's states, from an explicit mask."""
    return attention.sdpa_attention_forward(module, *states, visible, **options)[0]


def compare(ours, expected, inputs):
    """Both have equal values and gradients."""
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(expected)
    gradients = (torch.autograd.grad(states, inputs, direction) for states in (ours, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.fixture
def kernel_calls(monkeypatch):
    """The masks that the fused kernel was called with."""
    masks = []
    kernel = attention.sdpa_attention_forward

    def spy(module, query, key, value, mask, **options):
        masks.append(mask)
        return kernel(module, query, key, value, mask, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", spy)
    return masks


@pytest.mark.parametrize(("t", "s"), [(5, 5), (1, 5), (3, 5)])
@pytest.mark.parametrize(("h", "k"), HEADS)
def test_without_a_mask_it_is_causal(h, k, t, s, kernel_calls):
    inputs = states(h, k, t, s)
    ours, weights = attention.attention(module(h, k), *inputs, None, scaling=0.3)
    assert weights is None
    assert not kernel_calls
    visible = torch.ones(1, 1, t, s, dtype=torch.bool).tril(s - t)  # the last T of S positions
    compare(ours, fused(module(h, k), inputs, visible, scaling=0.3), inputs)
    with torch.no_grad():
        torch.testing.assert_close(attention.attention(module(h, k), *inputs, None, scaling=0.3)[0], ours)
    if t in (1, s):  # here the kernel's own causal mask is the same
        torch.testing.assert_close(ours, fused(module(h, k), inputs, None, scaling=0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("t", "s"), [(5, 5), (1, 5), (3, 5)])
@pytest.mark.parametrize(("h", "k"), HEADS)
def test_an_additive_mask_is_added(h, k, t, s, kernel_calls):
    inputs = states(h, k, t, s)
    mask = torch.randn(2, 1, t, s)
    mask[1, :, :, 0] = -1e30
    ours, _ = attention.attention(module(h, k), *inputs, mask, scaling=None)
    assert not kernel_calls
    compare(ours, fused(module(h, k), inputs, mask), inputs)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize(("t", "s"), [(5, 5), (5, 8)])
@pytest.mark.parametrize("masked", [True, False])
def test_blocks_of_queries_give_the_same(block, t, s, masked, kernel_calls, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_QUERIES", block)
    inputs = states(4, 2, t, s)
    real = torch.ones(2, s)
    real[1, 1:3] = 0
    mask = attention.additive_mask(real, t, torch.float32) if masked else None
    shapes, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: shapes.append(tuple(b.shape)) or bmm(a, b))
    ours, _ = attention.attention(module(), *inputs, mask, **({"hides_later": True} if masked else {}))
    assert not kernel_calls
    ends = sorted(shape[2] for shape in shapes[::2])  # keys of each product of scores
    assert len(ends) == round(5 / block)
    assert ends[0] < ends[-1] == s
    visible = torch.ones(1, 1, t, s, dtype=torch.bool).tril(s - t)
    compare(ours, fused(module(), inputs, mask if masked else visible), inputs)


def test_values_may_be_wider_or_narrower_than_keys():
    inputs = states(4, 2, 5, 5, values=6)
    ours, _ = attention.attention(module(), *inputs, None)
    compare(ours, fused(module(), inputs, torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()), inputs)


@pytest.mark.parametrize(
    ("layer", "mask", "options"),
    [
        ({}, torch.ones(2, 1, 5, 5, dtype=torch.bool).tril(), {}),
        ({"is_causal": False}, None, {}),
        ({}, None, {"is_causal": False}),
        ({}, None, {"dropout": 0.5}),
        ({}, None, {"position_bias": torch.randn(1, 4, 5, 5)}),
        ({}, torch.randn(2, 1, 5, 5, requires_grad=True), {}),
    ],
    ids=["bool mask", "layer not causal", "call not causal", "dropout", "position bias", "mask that learns"],
)
def test_an_unsupported_call_goes_to_the_fused_kernel(layer, mask, options, kernel_calls):
    inputs = states(4, 4, 5, 5)
    torch.manual_seed(1)
    ours, _ = attention.attention(module(4, 4, **layer), *inputs, mask, **options)
    assert len(kernel_calls) == 1
    torch.manual_seed(1)
    assert torch.equal(ours, fused(module(4, 4, **layer), inputs, mask, **options))


@pytest.mark.parametrize(("max_positions", "calls"), [(5, 0), (4, 1)])
def test_too_many_positions_go_to_the_fused_kernel(max_positions, calls, kernel_calls, monkeypatch):
    monkeypatch.setattr(attention, "MAX_POSITIONS", max_positions)
    attention.attention(module(), *states(4, 2, 5, 5), None)
    assert len(kernel_calls) == calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_sees_nothing_is_the_mean_of_the_values(dtype):
    inputs = [part.detach().to(dtype).requires_grad_() for part in states(4, 2, 5, 5)]
    mask = torch.full((2, 1, 5, 5), -1e30).triu(1).to(dtype)
    mask[0] = -1e30
    ours, _ = attention.attention(module(), *inputs, mask)
    mean = inputs[2][0].repeat_interleave(2, 0).mean(1)  # (H, D)
    torch.testing.assert_close(ours[0], mean.expand(5, -1, -1), atol=1e-2, rtol=1e-2)
    assert all(part.isfinite().all() for part in torch.autograd.grad(ours.sum(), inputs))


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, attn_logit_softcapping=0.5))


def gpt_oss():
    """A model whose attention has a sink: a score that belongs to no key, in every softmax."""
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, eos_token_id=1))


@pytest.mark.parametrize("make", [gemma2, gpt_oss])
@torch.no_grad()
def test_a_model_that_no_fused_kernel_computes_keeps_its_own_attention(make, backbone_of):
    backbone_of("llama")  # the first model registers the name with transformers
    torch.manual_seed(0)
    model, ids = make().eval(), torch.arange(5, 15)[None]
    before = model(ids).logits
    attention.install(model)
    assert torch.equal(model(ids).logits, before)
    model.set_attn_implementation(attention.ATTENTION_NAME)  # which `install` refused
    assert not torch.allclose(model(ids).logits, before, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "t", "kernels"), [("llama", 20, 0), ("gpt2", 20, 0), ("gemma3", 7, 0), ("gemma3", 20, 1)]
)
@torch.no_grad()
def test_a_whole_model_gives_the_same_logits(family, t, kernels, backbone_of, kernel_calls):
    model, ids = backbone_of(family).model, torch.arange(10, 10 + 2 * t).view(2, t)
    ours = model(ids).logits
    assert len(kernel_calls) == kernels  # Gemma's layer with a window (of 8) has a mask of bools
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@torch.no_grad()
def test_a_whole_model_gives_the_same_logits_with_left_pads(family, backbone_of):
    model, ids = backbone_of(family).model, torch.arange(10, 34).view(2, 12)
    real = torch.ones_like(ids)
    real[0, :4] = 0
    ours = model(ids, attention_mask=real).logits
    assert model.config._attn_implementation == attention.ATTENTION_NAME
    model.set_attn_implementation("sdpa")
    expected = model(ids, attention_mask=real).logits
    torch.testing.assert_close(ours[real == 1], expected[real == 1], atol=1e-4, rtol=1e-4)
