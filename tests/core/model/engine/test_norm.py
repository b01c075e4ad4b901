"""Frozen RMS norms equal the model's own, and norms of other formulas stay as they are."""

from copy import deepcopy

import pytest
import torch
from gptask.model.engine.forward_registry import replaced_by
from gptask.model.engine.norm import install
from torch import nn


def gradients(out, inputs, seed=0):
    torch.manual_seed(seed)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def norm_of(family, channels=8, **options):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = {"llama": LlamaRMSNorm, "gemma3": Gemma3RMSNorm}[family](channels, **options)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("size", [1.0, 1e-3])  # so small that eps counts
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_frozen_norm_is_the_models_own(family, size):
    torch.manual_seed(0)
    model_norm = norm_of(family).requires_grad_(False)
    norm = deepcopy(model_norm)
    assert install(nn.ModuleList([norm])) is None
    assert replaced_by(norm)
    x = (torch.randn(2, 3, 8) * size).requires_grad_()
    assert torch.equal(norm(x), model_norm(x))
    assert torch.equal(norm(x.detach()), model_norm(x))
    (got,), (expected,) = gradients(norm(x), x), gradients(model_norm(x), x)
    torch.testing.assert_close(got, expected, atol=1e-5 / size, rtol=1e-4)


class CentredRMSNorm(nn.LayerNorm):
    """A norm that is named like an RMS norm."""


class CappedRMSNorm(nn.RMSNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return super().forward(x).clamp(-0.5, 0.5)


def scaleless(channels):
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm

    return Gemma3nRMSNorm(channels, with_scale=False)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(CentredRMSNorm, "of another form"), (CappedRMSNorm, "of another form"), (scaleless, "no RMS norms")],
)
def test_a_norm_of_another_formula_stays_as_it_is(make, reason):
    norm = make(8).requires_grad_(False)
    assert reason in install(nn.ModuleList([norm]))
    assert "forward" not in vars(norm)


def test_a_norm_that_learns_stays_as_it_is():
    norm = norm_of("llama")
    assert "learn" in install(nn.ModuleList([norm]))
    assert "forward" not in vars(norm)
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad.abs().sum() > 0


def test_a_copy_of_a_norm_uses_its_own_weights():
    norm = norm_of("llama").requires_grad_(False)
    install(nn.ModuleList([norm]))
    copy, x = deepcopy(norm), torch.randn(2, 8, requires_grad=True)
    before, (gradient,) = copy(x), gradients(copy(x), x)
    norm.weight.zero_()
    replaced_by(norm).scale_C.zero_()
    assert torch.equal(copy(x), before)
    assert torch.equal(gradients(copy(x), x)[0], gradient)
