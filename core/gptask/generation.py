"""Text generation: its options, and the decoding loop shared by every task that generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptask.errors import UserError
from gptask.task import option

if TYPE_CHECKING:
    from torch import Tensor

    from gptask.backbone.model import Backbone


@dataclass
class Generation:
    """How text is decoded."""

    max_new_tokens: int = option(64, "tokens generated at most")
    num_beams: int = option(1, "beams; 1 is greedy, or sampling if temperature > 0")
    temperature: float = option(0.0, "0 is greedy; else logits are divided by it and a token is drawn")
    top_k: int = option(0, "draw from the k likeliest tokens; 0 is no limit")
    top_p: float = option(1.0, "draw from the smallest set of tokens with this probability mass")
    repetition_penalty: float = option(1.0, "above 1 makes tokens that were seen less likely (Keskar et al. 2019)")
    stop: list[str] = option(list, "texts that end the answer; they are cut off")

    def validate(self) -> None:
        """Refuse values out of range."""
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (fine, expected) in checks.items():
            if not fine:
                raise UserError(f"task.generation.{name}={getattr(self, name)} must be {expected}")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("task.generation: beams and sampling exclude each other; set temperature=0 or num_beams=1")


@dataclass
class Text:
    """A generated text, and the geometric mean of its tokens' probabilities (None for beams)."""

    text: str
    score: float | None


def generate(backbone: Backbone, prompts: Sequence[list[int]], options: Generation) -> list[Text]:
    """Continue every prompt until EOS, a stop text or ``max_new_tokens``.

    Prompts are left-padded with their true position ids, so a row's text does not depend on its neighbours.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[p[0]] * (width - len(p)) + p for p in prompts], device=backbone.device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=backbone.device)
    with torch.inference_mode():
        if options.num_beams > 1:
            tokens, scores = _beams(backbone, ids, mask, options), None
        else:
            tokens, scores = _decode(backbone, ids, mask, options)
    texts = []
    for number, row in enumerate(tokens):
        text = backbone.tokenizer.decode(row, skip_special_tokens=True)
        texts.append(Text(_cut(text, options.stop), None if scores is None else scores[number]))
    return texts


def _cut(text: str, stops: Sequence[str]) -> str:
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


def _beams(backbone: Backbone, ids: Tensor, mask: Tensor, options: Generation) -> list[list[int]]:
    """Beam search is transformers' own."""
    out = backbone.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        do_sample=False,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=sorted(backbone.stop_ids),
        pad_token_id=backbone.tokenizer.eos_token_id,
    )
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: _first(row, backbone.stop_ids)] for row in rows]


def _first(row: list[int], stops: set[int]) -> int:
    return next((place for place, token in enumerate(row) if token in stops), len(row))


def _processors(options: Generation) -> Any:
    from transformers import LogitsProcessorList
    from transformers.generation.logits_process import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList()
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


def _decode(backbone: Backbone, ids: Tensor, mask: Tensor, options: Generation) -> tuple[list[list[int]], list[float]]:
    """Greedy or sampled decoding with a key-value cache that finished rows leave."""
    import torch
    from transformers import DynamicCache

    chain = _processors(options)
    rows: list[list[int]] = [[] for _ in range(len(ids))]
    logs = [0.0] * len(ids)
    alive = list(range(len(ids)))
    cache = DynamicCache(config=backbone.model.config)
    step, position = ids, (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
    padded = bool((mask == 0).any())
    for _ in range(options.max_new_tokens):
        out = backbone.body(
            input_ids=step,
            attention_mask=mask if padded else None,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = backbone.logits(out.last_hidden_state[:, -1]).float()  # (B, V)
        scores = chain(ids, logits)
        if options.temperature > 0:
            token = torch.multinomial(scores.softmax(-1), 1)
        else:
            token = scores.argmax(-1, keepdim=True)  # (B, 1)
        chosen = (logits.gather(1, token) - logits.logsumexp(1, keepdim=True))[:, 0].tolist()
        keep = []
        for place, (row, value, logp) in enumerate(zip(alive, token[:, 0].tolist(), chosen, strict=True)):
            logs[row] += logp
            if value in backbone.stop_ids:
                continue
            rows[row].append(value)
            if not (options.stop and _stopped(backbone, rows[row], options.stop)):
                keep.append(place)
        if not keep:
            break
        ids, position = torch.cat([ids, token], 1), position[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        if len(keep) < len(alive):
            index = torch.tensor(keep, device=ids.device)
            cache.batch_select_indices(index)
            ids, mask, position, token = ids[index], mask[index], position[index], token[index]
            alive = [alive[place] for place in keep]
        step = token
    means = [float(torch.tensor(total / max(len(row), 1)).exp()) for total, row in zip(logs, rows, strict=True)]
    return rows, means


def _stopped(backbone: Backbone, row: list[int], stops: Sequence[str]) -> bool:
    tail = backbone.tokenizer.decode(row[-(max(map(len, stops)) + 8) :], skip_special_tokens=True)
    return any(stop in tail for stop in stops)
