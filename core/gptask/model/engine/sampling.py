"""The next token, greedily or sampled.

Shapes: B rows, b rows of a chunk, T ids so far, V vocabulary.
"""

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


def _processors(options: GenerationOptions, prompt_length: int, stop_ids: set[int], device: Any) -> LogitsProcessorList:
    """Transformers' processors of the logits that follow ``prompt_length`` tokens."""
    chain = LogitsProcessorList()
    if options.min_new_tokens:
        min_length = options.min_new_tokens
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, min_length, sorted(stop_ids), str(device)))
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
    """Chooses the next tokens behind prompts of one padded length.

    With ``options.seed``, the samples of a prompt do not depend on the other prompts.
    """

    def __init__(self, options: GenerationOptions, backbone: EngineBackbone, prompt_length: int, rows: int) -> None:
        device = backbone.device
        self.processors = _processors(options, prompt_length, backbone.stop_ids, device)
        self.greedy = options.temperature <= 0
        self.generators: list[torch.Generator] = []
        if not self.greedy and options.seed is not None:
            seeds = [options.seed + row % options.samples for row in range(rows)]
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, ids_BT: Tensor, logits_BV: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[float]]:
        """Return the next tokens (B, 1) of the rows, given the ids before them, and their B log-probabilities.

        The log-probabilities are those of the model itself, before penalty and temperature.
        """
        size = rows_per_chunk(logits_BV)
        tokens, log_probabilities = [], []
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            logits_bV = logits_BV[chunk].float()
            scores_bV = self.processors(ids_BT[chunk], logits_bV)  # type: ignore[arg-type]
            tokens_b1 = self._choose(scores_bV, rows[chunk])
            tokens.append(tokens_b1)
            log_probabilities.append(logits_bV.gather(1, tokens_b1) - logits_bV.logsumexp(1, keepdim=True))
        return torch.cat(tokens), torch.cat(log_probabilities)[:, 0].tolist()

    def _choose(self, scores_bV: Tensor, rows: Sequence[int]) -> Tensor:
        """Tokens (b, 1): the best ones, or samples."""
        if self.greedy:
            return scores_bV.argmax(-1, keepdim=True)
        if not self.generators:
            return torch.multinomial(scores_bV.softmax(-1), 1)
        pairs = zip(scores_bV.softmax(-1), rows, strict=True)
        return torch.stack([torch.multinomial(row_V, 1, generator=self.generators[row]) for row_V, row in pairs])
