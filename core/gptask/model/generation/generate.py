"""Text generation that all generating tasks share: a batch of prompts in, texts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import ceil
from typing import TYPE_CHECKING

from gptask.errors import UserError
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.text_tokenizer import text_tokenizer

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.engine.interface import DecodingRow

MAX_KV_BYTES = 2**30  # bytes of keys and values that are held at once


@dataclass
class GeneratedText:
    """A generated text, and the geometric mean of the probabilities of its tokens and EOS (None for beams).

    If several texts were sampled, it is the one with the highest mean, and ``samples`` are all of them.
    """

    text: str
    score: float | None
    samples: list[str] | None = None


def generate(backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions) -> list[GeneratedText]:
    """Continue every prompt until EOS, a stop text, ``max_new_tokens`` or the end of the model's context.

    Prompts are left-padded with their true position ids, so a row's text does not depend on its neighbours.
    Raises `UserError` for a prompt that is empty or longer than the context, and for options that the engine can't
    honour.
    """
    backbone.engine.check_generation(options)
    generated: list[GeneratedText] = []
    for numbers in _split_by_memory(backbone, prompts, options):
        rows = decoding_rows(backbone, [prompts[number] for number in numbers], options)
        if options.num_beams > 1:
            _beam_search(backbone, rows, options)
        else:
            backbone.engine.decode(rows)
        generated += generated_texts(backbone, rows, options)
    return generated


def _split_by_memory(
    backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions
) -> list[list[int]]:
    """Split the prompts, by number, into batches whose keys and values take about the same memory."""
    lengths = [len(prompt) + options.limit for prompt in prompts]
    longest = max(lengths, default=0)
    if options.num_beams > 1 or not backbone.engine.decodes_in_buckets(longest):
        lengths = [longest] * len(lengths)  # padded
    starts = [0, *accumulate(lengths)]
    total_bytes = starts[-1] * backbone.engine.position_bytes() * options.num_beams * options.samples
    positions_per_batch = starts[-1] / max(1, ceil(total_bytes / MAX_KV_BYTES))
    return [[*rows] for _, rows in groupby(range(len(prompts)), lambda row: starts[row] // positions_per_batch)]


def decoding_rows(backbone: GPTBackbone, prompts: Sequence[list[int]], options: GenerationOptions) -> list[DecodingRow]:
    """Return a row for each sample of each prompt, those of one prompt beside each other.

    Raises `UserError` for a prompt that is empty or longer than the context.
    """
    from gptask.model.engine.interface import DecodingRow

    return [
        DecodingRow(prompt, new_tokens_limit(backbone, prompt, options), options, backbone.adapter, draw)
        for prompt in prompts
        for draw in range(options.samples)
    ]


def generated_texts(
    backbone: GPTBackbone, rows: Sequence[DecodingRow], options: GenerationOptions
) -> list[GeneratedText]:
    """Return the text of each prompt from the rows of `decoding_rows` once they are written to their end."""
    texts = backbone.tokenizer.batch_decode([row.new_ids for row in rows], skip_special_tokens=True)
    samples = [
        GeneratedText(_cut_at_stop(text, options.stop), row.score) for text, row in zip(texts, rows, strict=True)
    ]
    return [_best_of(samples[start : start + options.samples]) for start in range(0, len(samples), options.samples)]


def _best_of(samples: Sequence[GeneratedText]) -> GeneratedText:
    if len(samples) == 1:
        return samples[0]
    best = max(samples, key=lambda sample: sample.score or 0.0)
    return GeneratedText(best.text, best.score, [sample.text for sample in samples])


def new_tokens_limit(backbone: GPTBackbone, prompt: list[int], options: GenerationOptions) -> int:
    """Return how many tokens may follow a prompt; the last one is not read again, so it needs no position.

    Raises `UserError` for a prompt that is empty or longer than the context.
    """
    if not 0 < len(prompt) <= backbone.context:
        raise UserError(
            f"a prompt has {len(prompt)} tokens; the backbone reads 1 to {backbone.context}: shorten or fill the prompt"
        )
    return min(options.limit, backbone.context - len(prompt) + 1)


def _cut_at_stop(text: str, stop_texts: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stop_texts if stop in text), default=len(text))]


def _beam_search(backbone: GPTBackbone, rows: Sequence[DecodingRow], options: GenerationOptions) -> None:
    """Write the rows' texts by the beam search of transformers; rows with one limit of new tokens are one batch."""
    import torch

    from gptask.model.engine.left_padding import left_padded

    stop_ids = backbone.stop_ids
    for limit in {row.limit for row in rows}:
        batch = [row for row in rows if row.limit == limit]
        prompt_ids, mask = left_padded([row.prompt for row in batch], backbone.device)
        with torch.inference_mode(), backbone.engine.running(backbone.adapter):
            output_ids = backbone.model.generate(
                input_ids=prompt_ids,
                attention_mask=mask,
                eos_token_id=sorted(stop_ids),
                pad_token_id=backbone.tokenizer.eos_token_id,
                stop_strings=options.stop or None,
                tokenizer=text_tokenizer(backbone.tokenizer).raw,
                **options.to_transformers() | {"max_new_tokens": limit},
            )
        for row, new_ids in zip(batch, output_ids[:, prompt_ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(new_ids) if token in stop_ids), len(new_ids))
            row.new_ids = new_ids[:end]
