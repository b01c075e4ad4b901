"""The bidirectional layer: a state sees what follows it, and no pad."""

import torch
from gptask_tasks.bilstm import BiLSTM


def test_each_state_sees_the_whole_sequence_and_no_pad() -> None:
    torch.manual_seed(0)
    layer, states, lengths = BiLSTM(7), torch.randn(2, 5, 7, dtype=torch.bfloat16), torch.tensor([5, 3])
    before = layer(states, lengths)
    assert before.shape == (2, 5, layer.features)
    assert before.dtype is torch.float32

    changed = states.clone()
    changed[0, 4] += 1  # the last position of the first sequence
    changed[1, 3] += 1  # a pad of the second sequence
    after = layer(changed, lengths)
    assert (after[0, :4] != before[0, :4]).any(-1).all()
    assert torch.equal(after[1, :3], before[1, :3])
    torch.testing.assert_close(layer(states[1:, :3], lengths[1:])[0], before[1, :3])
