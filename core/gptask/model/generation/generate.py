"""Text generation, shared by every task that generates: its options, and texts from prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from typing import TYPE_CHECKING

from gptask.errors import UserError
from gptask.plugins.generation_options import GenerationOptions

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.engine.decoding import Decoded


log = logging.getLogger("gptask")
KV_BYTES = 2**30  # bytes of keys and values that are held at once


@dataclass
class GeneratedText:
    """A generated text, and the geometric mean of the probabilities of its tokens and EOS (None for beams).

    Of several that were drawn it is the one with the highest mean; ``samples`` are all of them.
    """

    text: str
    score: float | None
    samples: list[str] | None = None


def generate(backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions) -> list[GeneratedText]:
    """Continue every prompt until EOS, a stop text, ``max_new_tokens`` or the end of the model's context.

    Prompts are left-padded with their true position ids, so a row's text does not depend on its neighbours.
    Raises `UserError` for a prompt that is empty or longer than the context.
    """
    count = options.samples
    found: list[GeneratedText] = []
    for rows in _parts(backbone, prompts, options):
        texts = _texts(backbone, [prompts[row] for row in rows for _ in range(count)], options)
        found += [_likeliest(texts[k : k + count]) for k in range(0, len(texts), count)]
    return found


def _parts(backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions) -> list[list[int]]:
    """Numbers of neighbouring prompts that are decoded at once: parts of about the same memory for keys and values."""
    from gptask.model.engine.decoding import decodes_in_buckets

    lengths = [len(prompt) + options.limit for prompt in prompts]
    longest = max(lengths, default=0)
    if options.num_beams > 1 or not decodes_in_buckets(backbone, longest):
        lengths = [longest] * len(lengths)  # padded
    start = [0, *accumulate(lengths)]
    total = start[-1] * position_bytes(backbone) * options.num_beams * options.samples
    size = start[-1] / max(1, ceil(total / KV_BYTES))
    return [[*rows] for _, rows in groupby(range(len(prompts)), lambda row: start[row] // size)]


def position_bytes(backbone: GPTBackbone) -> int:
    """Bytes that the keys and values of one position take."""
    config = backbone.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * channels * backbone.model.dtype.itemsize)


def _texts(backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions) -> list[GeneratedText]:
    """One text behind every prompt; equal prompts that are neighbours are one prompt's samples."""
    import torch

    from gptask.model.engine.decoding import decode

    rooms = [new_tokens_limit(backbone, prompt, options) for prompt in prompts]
    search = _beams if options.num_beams > 1 else decode
    with torch.inference_mode():
        found = search(backbone, prompts, rooms, options)
    texts = backbone.tokenizer.batch_decode([tokens for tokens, _ in found], skip_special_tokens=True)
    return [GeneratedText(_cut(text, options.stop), score) for text, (_, score) in zip(texts, found, strict=True)]


def _likeliest(texts: Sequence[GeneratedText]) -> GeneratedText:
    if len(texts) == 1:
        return texts[0]
    best = max(texts, key=lambda text: text.score or 0.0)
    return GeneratedText(best.text, best.score, [text.text for text in texts])


def new_tokens_limit(backbone: GPTBackbone, prompt: list[int], options: GenerationOptions) -> int:
    """How many tokens may follow a prompt; the last one is not read again, so it needs no position."""
    if not 0 < len(prompt) <= backbone.context:
        raise UserError(
            f"a prompt has {len(prompt)} tokens; the backbone reads 1 to {backbone.context}: shorten or fill the prompt"
        )
    return min(options.limit, backbone.context - len(prompt) + 1)


def _cut(text: str, stops: Sequence[str]) -> str:
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


def _beams(
    backbone: GPTBackbone, prompts: Sequence[list[int]], rooms: list[int], options: GenerationOptions
) -> list[Decoded]:
    """Beam search is transformers' own; rows with equal room go together."""
    from gptask.model.engine.decoding import left_padded

    found: dict[int, Decoded] = {}
    for room in set(rooms):
        places = [place for place, other in enumerate(rooms) if other == room]
        ids, mask = left_padded([prompts[place] for place in places], backbone.device)
        out = backbone.model.generate(
            input_ids=ids,
            attention_mask=mask,
            eos_token_id=sorted(backbone.stop_ids),
            pad_token_id=backbone.tokenizer.eos_token_id,
            stop_strings=options.stop or None,
            tokenizer=backbone.tokenizer,
            **options.to_transformers() | {"max_new_tokens": room},
        )
        for place, row in zip(places, out[:, ids.shape[1] :].tolist(), strict=True):
            found[place] = row[: _first(row, backbone.stop_ids)], None
    return [found[place] for place in range(len(prompts))]


def _first(row: list[int], stops: set[int]) -> int:
    return next((place for place, token in enumerate(row) if token in stops), len(row))
