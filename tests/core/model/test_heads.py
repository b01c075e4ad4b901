"""The generation head's loss; its parity with transformers is tested beside the backbone."""

import pytest
import torch
from gptask.data.datamodule import collate
from gptask.model import heads
from gptask.model.heads import GenerationHead
from gptask.plugins.generation_options import GenerationOptions

ITEMS = [
    {"ids": [5, 6, 7], "target": [8, 9, 0], "label": None, "extra": None},
    {"ids": [15], "target": [16, 17, 18, 19, 0], "label": None, "extra": None},
    {"ids": [25, 26, 27, 28, 29, 30], "target": [0], "label": None, "extra": None},
]


@pytest.fixture
def backbone(backbone_of):
    return backbone_of("llama")


def loss_of(backbone, batch):
    return GenerationHead(backbone, GenerationOptions()).loss(backbone.hidden(batch.input_ids), batch)


def gradient(backbone, batch):
    return torch.autograd.grad(loss_of(backbone, batch), backbone.model.get_input_embeddings().weight)[0]


def test_loss_made_part_by_part_is_the_same(backbone, monkeypatch):
    batch = collate(ITEMS)
    whole, slope = loss_of(backbone, batch), gradient(backbone, batch)
    sizes = []
    logits = type(backbone).logits
    monkeypatch.setattr(type(backbone), "logits", lambda self, h: sizes.append(len(h)) or logits(self, h))
    monkeypatch.setattr(heads, "MAX_LOGITS", 2 * 320)
    torch.testing.assert_close(loss_of(backbone, batch), whole)
    assert sizes == [2, 2, 2, 2, 1]  # nine target tokens
    torch.testing.assert_close(gradient(backbone, batch), slope)


def test_a_frozen_projection_takes_the_lean_loss_and_one_that_learns_or_computes_more_does_not(backbone):
    batch, weight = collate(ITEMS), backbone.model.get_output_embeddings().weight
    hidden = backbone.hidden(batch.input_ids).detach().requires_grad_()
    head = GenerationHead(backbone, GenerationOptions())
    assert backbone.frozen_projection(hidden) is None
    usual = head.loss(hidden, batch)
    weight.requires_grad_(False)
    assert backbone.frozen_projection(hidden) is weight
    loss = head.loss(hidden, batch)
    torch.testing.assert_close(loss, usual)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(usual, hidden))
    assert backbone.frozen_projection(hidden.bfloat16()) is None
    backbone.model.config.final_logit_softcapping = 5.0
    assert backbone.frozen_projection(hidden) is None
    assert abs(head.loss(hidden, batch) - usual) > 1e-3


def test_loss_sees_the_end_but_neither_prompt_nor_pads(backbone):
    batch = collate(ITEMS)
    hidden = backbone.hidden(batch.input_ids)
    head = GenerationHead(backbone, GenerationOptions())
    whole = head.loss(hidden, batch)
    other = hidden.clone()
    other[0, :2] += 1  # states inside a prompt
    other[0, 5:] += 1  # the state at EOS, and pads
    torch.testing.assert_close(head.loss(other, batch), whole)
    other[0, 4] += 1  # the state that must say EOS
    assert head.loss(other, batch) != whole
    batch.input_ids[0, 7:] = 99
    torch.testing.assert_close(head.loss(hidden, batch), whole)


@pytest.mark.parametrize("together", [False, True])
def test_learned_spans_of_a_prompt_are_in_the_loss_and_nothing_else_of_it(together, backbone):
    start = list(range(30, 50))
    ids = [start + list(range(5, 15)), [*start, 15, 16, 17]]
    items = [ITEMS[0] | {"ids": row, "learned": [20, 23] if row is ids[0] else []} for row in ids]
    batch = collate(items)
    hidden = backbone.hidden(batch.input_ids, batch.lengths if together else None).detach().requires_grad_()
    loss = GenerationHead(backbone, GenerationOptions()).loss(hidden, batch)
    logs = backbone.model(batch.input_ids).logits.log_softmax(-1)
    places = [(0, n) for n in (20, 21, 22, 30, 31, 32)] + [(1, n) for n in (23, 24, 25)]
    expected = -sum(logs[row, n - 1, batch.input_ids[row, n]] for row, n in places) / len(places)
    torch.testing.assert_close(loss, expected)
    (moved,) = torch.autograd.grad(loss, hidden)
    assert moved.abs().sum(-1).nonzero().tolist() == [[row, n - 1] for row, n in places]


def test_the_head_owns_no_weights(backbone):
    assert not list(GenerationHead(backbone, GenerationOptions()).parameters())


def test_export_tells_transformers_how_to_decode(backbone):
    from transformers import GenerationConfig

    weights, values = GenerationHead(backbone, GenerationOptions(max_new_tokens=9, num_beams=3)).export()
    config = GenerationConfig(**values)
    assert weights == {}
    assert (config.max_new_tokens, config.num_beams, config.do_sample) == (9, 3, False)
    _, values = GenerationHead(backbone, GenerationOptions(temperature=0.7, top_k=5)).export()
    config = GenerationConfig(**values)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 5, 1.0)
