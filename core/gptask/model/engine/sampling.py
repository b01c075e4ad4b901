"""The next token, greedily or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptask.model.engine.loss import rows_per_chunk

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone
    from gptask.plugins.generation_options import GenerationOptions


def _processors(options: GenerationOptions, prompt: int, stop_ids: set[int], device: Any) -> LogitsProcessorList:
    """What is done to the logits behind ``prompt`` tokens, by transformers' own."""
    chain = LogitsProcessorList()
    if options.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(prompt, options.min_new_tokens, sorted(stop_ids), str(device)))
    if options.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature > 0:
        if options.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            chain.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            chain.append(TopPLogitsWarper(options.top_p))
    return chain


class Sampler:
    """Chooses the next tokens behind prompts; with ``options.seed``, what a prompt's samples get depends on no other
    prompt."""

    def __init__(self, options: GenerationOptions, backbone: EngineBackbone, prompt: int, rows: int) -> None:
        device = backbone.device
        self.chain = _processors(options, prompt, backbone.stop_ids, device)
        self.sample = options.temperature > 0
        self.generators: list[torch.Generator] = []
        if self.sample and options.seed is not None:
            seeds = [options.seed + row % options.samples for row in range(rows)]
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, ids: Tensor, logits: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[float]]:
        """Tokens (B, 1) of the rows by logits (B, V) and the ids (B, T) before them, and their log-probabilities under
        the model itself (before penalty and temperature)."""
        size = rows_per_chunk(logits)
        tokens, logs = [], []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            own = logits[part].float()
            token = self._token(self.chain(ids[part], own), rows[part])  # type: ignore[arg-type]
            tokens.append(token)
            logs.append(own.gather(1, token) - own.logsumexp(1, keepdim=True))
        return torch.cat(tokens), torch.cat(logs)[:, 0].tolist()

    def _token(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        if not self.sample:
            return scores.argmax(-1, keepdim=True)
        if not self.generators:
            return torch.multinomial(scores.softmax(-1), 1)
        pairs = zip(scores.softmax(-1), rows, strict=True)
        return torch.stack([torch.multinomial(p, 1, generator=self.generators[row]) for p, row in pairs])
