"""A thin layer that reads both ways on top of a causal backbone, whose states know only what stands to their left."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class BiLSTM(nn.Module):
    """States (B, T, C), normed, beside what an LSTM (Hochreiter & Schmidhuber 1997) over them makes of them, both ways.

    ``features`` is the width F of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.features = channels + 2 * half
        self.norm = nn.LayerNorm(channels)
        self.lstm = nn.LSTM(channels, half, batch_first=True, bidirectional=True)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) float32 from states of sequences of ``lengths`` (B,); no pad is read."""
        states = self.norm(states.float())
        packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
        around, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=states.shape[1])
        return torch.cat([states, around], -1)
