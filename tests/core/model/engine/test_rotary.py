"""The rotation gives what the model's own function gives, and takes its place where it is the same."""

from copy import deepcopy

import pytest
import torch
from gptask.model.engine import linear, rotary
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.llama import modeling_llama as llama

IDS = torch.arange(5, 35).view(2, 15)


@pytest.fixture
def rotations(monkeypatch):
    """States that `Rotation` turned."""
    seen, apply = [], rotary.Rotation.apply

    def noted(x, cos, sin):
        seen.append(x)
        return apply(x, cos, sin)

    monkeypatch.setattr(rotary.Rotation, "apply", noted)
    return seen


def states(channels=8, dtype=torch.float64):
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 8, dtype=dtype, requires_grad=True) for heads in (4, 2))
    return q, k, *(torch.randn(2, 5, channels, dtype=dtype) for _ in "cs")


def outcome(function, q, k, *others):
    outs = function(q, k, *others)
    return [*outs, *torch.autograd.grad([(out**2).sum() for out in outs], (q, k))]


def test_values_and_gradients_are_the_models_own(rotations):
    ours = outcome(lambda *args: rotary.rotate(llama.apply_rotary_pos_emb, *args), *states())
    assert len(rotations) == 2
    torch.testing.assert_close(ours, outcome(llama.apply_rotary_pos_emb, *states()))


@pytest.mark.parametrize("case", ["a part of the channels", "cosines in another format", "no gradient", "other axis"])
def test_what_it_does_not_do_the_models_own_does(case, rotations):
    q, k, cos, sin = states(4 if case == "a part of the channels" else 8)
    more = ()
    if case == "cosines in another format":
        cos, sin = cos.float(), sin.float()
    if case == "no gradient":
        q, k = q.detach(), k.detach()
    if case == "other axis":
        q, k, more = q.transpose(1, 2), k.transpose(1, 2), (2,)
    got = rotary.rotate(partial, q, k, cos, sin, *more)
    assert not rotations
    torch.testing.assert_close(got, partial(q, k, cos, sin, *more))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_training_rotates_this_way_and_scoring_as_before(family, backbone_of, rotations):
    model = backbone_of(family).peft
    layers = model.config.num_hidden_layers
    rotations.clear()  # of the trial
    with torch.inference_mode():
        model(IDS)
    assert not rotations
    slopes = []
    for form in (model, deepcopy(model)):
        rotations.clear()
        form(IDS, labels=IDS).loss.backward()
        slopes.append([p.grad for p in form.parameters()])
        assert len(rotations) == 2 * layers
    rotations.clear()
    model.zero_grad()
    linear.remove(model)
    model(IDS, labels=IDS).loss.backward()
    assert not rotations
    for expected, *got in zip([p.grad for p in model.parameters()], *slopes, strict=True):
        assert all((slope - expected).abs().max() <= 1e-4 * expected.abs().max() for slope in got)


def test_a_copy_uses_its_own_weights(backbone_of):
    model = backbone_of("llama").peft
    copy = deepcopy(model)
    before = model(IDS).logits
    torch.nn.init.zeros_(copy.model.layers[0].self_attn.o_proj.weight)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.allclose(copy(IDS).logits, before)


def test_the_models_module_stays_as_it_is(backbone_of):
    backbone_of("llama")
    assert llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] is llama.apply_rotary_pos_emb
    assert not rotary._rotates(interleaved)
    assert not rotary._rotates(lambda x, cos, sin: x)


def test_a_model_without_rotation_stays_as_it_is(backbone_of):
    model = backbone_of("gpt2").peft
    rotary.install(model)
    assert not any("forward" in vars(module) for name, module in model.named_modules() if name.endswith("attn"))
