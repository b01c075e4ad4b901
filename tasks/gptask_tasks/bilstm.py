"""A thin bidirectional layer on top of a causal backbone, whose states know only what stands to their left.

Shapes: B sequences, T positions, C channels, F features of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class BiLSTM(nn.Module):
    """Layer norm, then a bidirectional LSTM (Hochreiter & Schmidhuber 1997) whose output is appended to its input.

    ``features`` is the width F of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.features = channels + 2 * half
        self.norm = nn.LayerNorm(channels)
        self.lstm = nn.LSTM(channels, half, batch_first=True, bidirectional=True)

    def forward(self, states_BTC: Tensor, lengths_B: Tensor) -> Tensor:
        """Return float32 states (B, T, F) of sequences of the given lengths; no pad is read."""
        normed_BTC = self.norm(states_BTC.float())
        packed = pack_padded_sequence(normed_BTC, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        context, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=normed_BTC.shape[1])
        return torch.cat([normed_BTC, context], -1)
