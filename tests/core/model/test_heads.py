"""The base class of heads, and the loss of the generation head (test_backbone compares it with transformers')."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from gptask.data.datamodule import collate
from gptask.model.engine import loss
from gptask.model.heads import GenerationHead, Head
from gptask.plugins.generation_options import GenerationOptions

ITEMS = [
    {"ids": [5, 6, 7], "target": [8, 9, 0], "label": None, "extra": None},
    {"ids": [15], "target": [16, 17, 18, 19, 0], "label": None, "extra": None},
    {"ids": [25, 26, 27, 28, 29, 30], "target": [0], "label": None, "extra": None},
]


class MeanHead(Head):
    """A layer on the mean of all states."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.linear = torch.nn.Linear(backbone.channels, 1)

    def loss(self, hidden, batch):
        return self.linear(hidden).mean()

    def predict(self, hidden, batch):
        return self.linear(hidden).mean((1, 2)).tolist()


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


def test_the_backbone_is_no_part_of_the_head(backbone):
    head = MeanHead(backbone)
    assert head.backbone is backbone
    assert {name for name, _ in head.named_parameters()} == {*head.state_dict()} == {"linear.weight", "linear.bias"}
    assert [name for name, _ in head.named_modules()] == ["", "linear"]
    head.double().requires_grad_(False).train()
    backbone.eval()
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in backbone.parameters())
    assert head.linear.training
    assert not list(GenerationHead(backbone, GenerationOptions()).parameters())


def test_a_copy_has_weights_of_its_own_and_the_same_backbone(backbone):
    head = MeanHead(backbone)
    clone = copy.deepcopy(head)
    assert clone.backbone is backbone
    assert clone.linear.weight is not head.linear.weight
    new_backbone, new_head = copy.deepcopy((backbone, head))
    assert new_head.backbone is new_backbone is not backbone
    assert head.backbone is backbone


def test_head_and_backbone_that_are_pickled_together_stay_together():
    backbone = SimpleNamespace(channels=4)
    new_backbone, new_head = pickle.loads(pickle.dumps((backbone, MeanHead(backbone))))
    assert new_head.backbone is new_backbone is not backbone


def test_a_head_has_no_scores_unless_it_defines_them(backbone):
    batch = collate(ITEMS)
    hidden = backbone.hidden(batch.input_ids)
    assert MeanHead(backbone).scores(hidden, batch) is None
    assert GenerationHead(backbone, GenerationOptions()).scores(hidden, batch) is None


def test_exported_values_configure_the_decoding_of_transformers(backbone):
    from transformers import GenerationConfig

    weights, values = GenerationHead(backbone, GenerationOptions(max_new_tokens=9, num_beams=3)).export()
    config = GenerationConfig(**values)
    assert weights == {}
    assert (config.max_new_tokens, config.num_beams, config.do_sample) == (9, 3, False)
    _, values = GenerationHead(backbone, GenerationOptions(temperature=0.7, top_k=5)).export()
    config = GenerationConfig(**values)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 5, 1.0)
