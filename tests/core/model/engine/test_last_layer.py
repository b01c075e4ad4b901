"""The last feed-forward part skips states that nobody reads, and the others stay the same."""

import pytest
import torch
from gptask.data.datamodule import collate
from gptask.model.engine import packing
from gptask.model.engine.forward_registry import replaced_by

from tests.support.tiny_models import FAMILIES

CONTEXTS = [[5, 6, 7, 8], [5, 9, 5]]
ROWS = [[*CONTEXTS[0], 11, 12], [*CONTEXTS[1], 13], [*CONTEXTS[0], 14], [*CONTEXTS[1], 11, 12], [20, 21, 22], [30]]


@pytest.mark.parametrize("packed", [True, False], ids=["one row", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_needed_states_and_gradients_are_the_same_and_the_last_mlp_skips_other_states(
    family, packed, adapted_backbone_of
):
    batch = collate([{"ids": ids, "target": None, "label": None, "extra": None} for ids in ROWS])
    ids, lengths = batch.input_ids, batch.lengths
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    backbone = adapted_backbone_of(family)
    mlp = backbone.layers[-1].mlp
    needed = torch.arange(ids.shape[1]) == lengths[:, None] - 1
    needed[0, 1:3] = True
    weights, rows, results = torch.randn(int(needed.sum()), backbone.channels), [], []
    getattr(mlp, "c_proj" if family == "gpt2" else "down_proj").register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[:-1].numel())
    )
    for needed_states in (None, needed):
        backbone.zero_grad()
        states = backbone.hidden(ids, lengths if packed else None, needed_states)
        assert torch.isfinite(states[real]).all()
        (states[needed] * weights).sum().backward()
        results.append((states[needed].detach(), [p.grad.clone() for p in backbone.parameters() if p.requires_grad]))
    (expected_states, expected_gradients), (states, gradients) = results
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-4)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)
    assert rows == [packing.split_prefixes(ROWS).size if packed else ids.numel(), needed.sum()]


def test_a_feed_forward_part_that_mixes_positions_is_computed_for_all(backbone_of):
    backbone = backbone_of("llama")
    mlp = backbone.layers[-1].mlp
    assert replaced_by(mlp)
    mlp.act_fn = torch.nn.Softmax(dim=1)  # over positions
    backbone.engine.install()
    assert "mixes positions" in backbone.engine.off["last_layer"]
    assert replaced_by(mlp) is None
