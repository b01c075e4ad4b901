"""Cross-entropy in chunks is torch's."""

import pytest
import torch
from gptask.model.engine import loss
from gptask.model.engine.loss import ChunkedCrossEntropy
from torch import nn

IDS = torch.arange(5, 35).view(2, 15)


def gradients(out, inputs, seed=0):
    torch.manual_seed(seed)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


@pytest.mark.parametrize("chunk", [192, 3, 1])  # of seven states
def test_chunked_cross_entropy_is_torchs(chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_STATES", chunk)
    torch.manual_seed(0)
    states, weight, next_ids = torch.randn(7, 6, requires_grad=True), torch.randn(11, 6), torch.arange(7)
    got = ChunkedCrossEntropy.apply(states, weight, next_ids)
    expected = nn.functional.cross_entropy(states @ weight.T, next_ids, reduction="none")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, [states]), gradients(expected, [states]))
    assert ChunkedCrossEntropy.apply(states[:0], weight, next_ids[:0]).shape == (0,)


def test_cross_entropy_of_a_token_without_probability_is_finite():
    states, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    got = ChunkedCrossEntropy.apply(states, weight, torch.tensor([1]))
    assert got.tolist() == [400.0]
    assert torch.autograd.grad(got, states)[0].tolist() == [[2.0]]


def test_cross_entropy_in_bfloat16_is_about_as_exact_as_torchs(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_STATES", 20)
    torch.manual_seed(0)
    states, weight = torch.randn(50, 64).bfloat16().requires_grad_(), (torch.randn(300, 64) * 0.2).bfloat16()
    next_ids = torch.randint(300, (50,))
    exact = states.detach().float().requires_grad_()
    truth = nn.functional.cross_entropy(exact @ weight.float().T, next_ids, reduction="none")
    (true_gradient,) = torch.autograd.grad(truth.mean(), exact)

    def errors(nats):
        assert nats.dtype is torch.float32
        (gradient,) = torch.autograd.grad(nats.mean(), states)
        return float((nats.detach() - truth.detach()).norm()), float((gradient - true_gradient).norm())

    torch_errors = errors(nn.functional.cross_entropy((states @ weight.T).float(), next_ids, reduction="none"))
    for got, usual in zip(errors(ChunkedCrossEntropy.apply(states, weight, next_ids)), torch_errors, strict=True):
        assert got < 1.5 * usual


def test_only_a_frozen_plain_projection_uses_the_chunked_loss(backbone_of):
    backbone = backbone_of("llama")
    weight, next_ids = backbone.model.get_output_embeddings().weight, IDS.roll(-1, 1).flatten()
    states = backbone.hidden(IDS).flatten(0, 1).detach().requires_grad_()

    def mean_and_gradient():
        mean = backbone.token_nll(states, next_ids).mean()
        return mean, torch.autograd.grad(mean, states)

    assert loss.frozen_projection(backbone, states) is None
    plain_mean, plain_gradient = mean_and_gradient()
    weight.requires_grad_(False)
    assert loss.frozen_projection(backbone, states) is weight
    mean, gradient = mean_and_gradient()
    torch.testing.assert_close(mean, plain_mean)
    torch.testing.assert_close(gradient, plain_gradient)
    assert loss.frozen_projection(backbone, states.bfloat16()) is None
    backbone.model.config.final_logit_softcapping = 5.0
    assert loss.frozen_projection(backbone, states) is None
    assert abs(mean_and_gradient()[0] - plain_mean) > 1e-3
