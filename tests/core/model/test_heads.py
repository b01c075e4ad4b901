"""The loss of the generation head; test_backbone compares it with the loss of transformers."""

import pytest
import torch
from gptask.data.datamodule import collate
from gptask.model.engine import loss
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


def test_a_loss_in_chunks_equals_the_loss_in_one_piece(backbone, monkeypatch):
    batch = collate(ITEMS)
    expected_loss, expected_gradient = loss_of(backbone, batch), gradient(backbone, batch)
    chunk_sizes = []
    logits = type(backbone).logits
    monkeypatch.setattr(type(backbone), "logits", lambda self, h: chunk_sizes.append(len(h)) or logits(self, h))
    monkeypatch.setattr(loss, "MAX_LOGITS", 2 * 320)
    torch.testing.assert_close(loss_of(backbone, batch), expected_loss)
    assert chunk_sizes == [2, 2, 2, 2, 1]  # nine target tokens
    torch.testing.assert_close(gradient(backbone, batch), expected_gradient)


def test_the_loss_depends_on_eos_but_not_on_prompt_or_pads(backbone):
    batch = collate(ITEMS)
    hidden = backbone.hidden(batch.input_ids)
    head = GenerationHead(backbone, GenerationOptions())
    loss = head.loss(hidden, batch)
    changed = hidden.clone()
    changed[0, :2] += 1  # states inside a prompt
    changed[0, 5:] += 1  # the state at EOS, and pads
    torch.testing.assert_close(head.loss(changed, batch), loss)
    changed[0, 4] += 1  # the state that must predict EOS
    assert head.loss(changed, batch) != loss
    batch.input_ids[0, 7:] = 99
    torch.testing.assert_close(head.loss(hidden, batch), loss)


@pytest.mark.parametrize("packed", [False, True])
def test_only_the_learned_spans_of_a_prompt_are_in_the_loss(packed, backbone):
    start = list(range(30, 50))
    prompts = [start + list(range(5, 15)), [*start, 15, 16, 17]]
    items = [ITEMS[0] | {"ids": ids, "learned": [20, 23] if ids is prompts[0] else []} for ids in prompts]
    batch = collate(items)
    hidden = backbone.hidden(batch.input_ids, batch.lengths if packed else None).detach().requires_grad_()
    loss = GenerationHead(backbone, GenerationOptions()).loss(hidden, batch)
    log_probs = backbone.model(batch.input_ids).logits.log_softmax(-1)
    places = [(0, n) for n in (20, 21, 22, 30, 31, 32)] + [(1, n) for n in (23, 24, 25)]
    expected = -sum(log_probs[row, n - 1, batch.input_ids[row, n]] for row, n in places) / len(places)
    torch.testing.assert_close(loss, expected)
    (gradient_of_states,) = torch.autograd.grad(loss, hidden)
    assert gradient_of_states.abs().sum(-1).nonzero().tolist() == [[row, n - 1] for row, n in places]


def test_the_head_owns_no_weights(backbone):
    assert not list(GenerationHead(backbone, GenerationOptions()).parameters())


def test_exported_values_configure_the_decoding_of_transformers(backbone):
    from transformers import GenerationConfig

    weights, values = GenerationHead(backbone, GenerationOptions(max_new_tokens=9, num_beams=3)).export()
    config = GenerationConfig(**values)
    assert weights == {}
    assert (config.max_new_tokens, config.num_beams, config.do_sample) == (9, 3, False)
    _, values = GenerationHead(backbone, GenerationOptions(temperature=0.7, top_k=5)).export()
    config = GenerationConfig(**values)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 5, 1.0)
