"""The first pass of a model, before anybody waits for it."""

from __future__ import annotations

import torch

from gptask.plugins.generation_options import GenerationOptions
from gptask.serving.batching.batcher import Batcher
from gptask.serving.models.served_run import ServedModel

WARM_UP_TEXT = "This is the first text that this model reads."
NEW_TOKENS = 2


def warm_up(batcher: Batcher, model: ServedModel) -> None:
    """Read a text with a model between two steps and, where it writes, write a few tokens."""
    batcher.call(lambda: _compute(model)).result()


@torch.inference_mode()
def _compute(model: ServedModel) -> None:
    from gptask.model.engine.interface import DecodingRow

    backbone = model.backbone
    ids = backbone.tokenizer(WARM_UP_TEXT, add_special_tokens=False)["input_ids"] or [0]
    ids_1T = torch.tensor([ids[: backbone.context - NEW_TOKENS]], device=backbone.device)
    backbone.hidden(ids_1T, torch.tensor([ids_1T.shape[1]], device=backbone.device))
    if model.writes:
        options = GenerationOptions(max_new_tokens=NEW_TOKENS)
        backbone.engine.decode([DecodingRow(ids_1T[0].tolist(), NEW_TOKENS, options, backbone.adapter)])
