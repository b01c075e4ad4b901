"""A GPT and its training loop in the style of nanoGPT (github.com/karpathy/nanoGPT), in plain PyTorch: the reference
for pre-training. Its CPU example's settings: no dropout, no biases, tied embeddings, AdamW, half-cosine from 1e-3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LR, MIN_LR, WARMUP, CLIP = 1e-3, 1e-4, 100, 1.0


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(channels, bias=False) for _ in range(2))
        self.attend, self.project = nn.Linear(channels, 3 * channels, False), nn.Linear(channels, channels, False)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels, False), nn.Linear(4 * channels, channels, False)

    def forward(self, x: Tensor) -> Tensor:
        """States (B, T, C) to states."""
        b, t, c = x.shape
        parts = self.attend(self.norm1(x)).split(c, dim=2)
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in parts)  # (B, H, T, D)
        states = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(states.transpose(1, 2).reshape(b, t, c))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class GPT(nn.Module):
    """The model; `forward` gives the loss."""

    def __init__(self, vocabulary: int, block: int, layers: int, heads: int, channels: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, channels), nn.Embedding(block, channels)
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(channels, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = "project" in name or "narrow" in name
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens (B, T) that follow ids (B, T)."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), following.view(-1))


class Loop:
    """A training that is continued for a given number of steps at a time."""

    def __init__(self, model: GPT, ids: Tensor, batch: int, block: int, steps: int) -> None:
        self.model, self.ids, self.batch, self.block, self.steps = model, ids, batch, block, steps
        self.steps_done = 0
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), fused=True)

    def rate(self) -> float:
        """The learning rate of the next step."""
        if self.steps_done < WARMUP:
            return LR * (self.steps_done + 1) / (WARMUP + 1)
        share = (self.steps_done - WARMUP) / (self.steps - WARMUP)
        return MIN_LR + 0.5 * (1 + math.cos(math.pi * share)) * (LR - MIN_LR)

    def random_blocks(self) -> tuple[Tensor, Tensor]:
        """Blocks (B, T) from random places of the text, and the tokens that follow each of theirs."""
        starts = torch.randint(len(self.ids) - self.block, (self.batch,)).tolist()
        parts = ((self.ids[s + k : s + k + self.block] for s in starts) for k in (0, 1))
        ids, following = (torch.stack(list(part)) for part in parts)
        return ids, following

    def run(self, steps: int) -> None:
        """Train for some steps."""
        self.model.train()
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            loss = self.model(*self.random_blocks())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.steps_done += 1

    @torch.inference_mode()
    def loss(self, ids: Tensor) -> float:
        """Mean cross-entropy of a text of which every token but the first is predicted once, block by block."""
        self.model.eval()
        total = 0.0
        for start in range(0, len(ids) - 1, self.block):
            part = ids[start : start + self.block + 1][None]
            total += self.model(part[:, :-1], part[:, 1:]).item() * (part.shape[1] - 1)
        return total / (len(ids) - 1)
