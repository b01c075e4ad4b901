"""Several threads through one backbone get what each gets alone: what layers read in a pass is not shared."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions

ROUNDS = 15
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 20, 0, 0], [30, 31, 32, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([8, 6, 3])


@pytest.fixture(params=[Fast(), Reference()], ids=["fast", "reference"])
def backbone(request, backbone_of):
    """A backbone with adapters that change its states."""
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    backbone.use_engine(request.param)
    return backbone.eval()


def packed(backbone):
    """States of a batch without pads, whose prefixes are read once."""
    with torch.no_grad():
        hidden = backbone.hidden(IDS, LENGTHS)
    return torch.cat([row[:length] for row, length in zip(hidden, LENGTHS, strict=True)])


def padded(backbone):
    """States of a padded batch, right at the last token only."""
    needed = torch.arange(IDS.shape[1]) == (LENGTHS - 1)[:, None]
    with torch.no_grad():
        return backbone.hidden(IDS, needed=needed)[needed]


def differentiated(backbone):
    """Gradients of the adapters."""
    loss = backbone.hidden(IDS, LENGTHS)[:, 0].square().sum()
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, [p for p in backbone.parameters() if p.requires_grad])]
    )


def decoded(backbone):
    """Greedy texts, as token ids."""
    rows = [DecodingRow(IDS[row, :length].tolist(), 6, GenerationOptions()) for row, length in enumerate(LENGTHS)]
    backbone.engine.decode(rows)
    return torch.tensor([token for row in rows for token in [*row.new_ids, -1]])


@pytest.mark.parametrize("others", [(padded,), (decoded,), (padded, decoded, differentiated)])
def test_threads_get_what_each_gets_alone(backbone, others):
    actions = (packed, *others)
    alone = [action(backbone) for action in actions]
    start = threading.Barrier(len(actions))

    def repeat(action):
        start.wait()
        return [action(backbone) for _ in range(ROUNDS)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns within a pass
    try:
        with ThreadPoolExecutor(len(actions)) as pool:
            results = list(pool.map(repeat, actions))
    finally:
        sys.setswitchinterval(interval)
    for expected, of_thread in zip(alone, results, strict=True):
        assert len(of_thread) == ROUNDS
        for got in of_thread:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
