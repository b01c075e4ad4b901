"""The next token of every row, greedily or sampled, and when a text ends.

Shapes: B rows, b rows of a chunk, T ids so far, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptask.model.engine.interface import DecodingBatch, DecodingRow, EngineBackbone
from gptask.model.engine.left_padding import left_padded
from gptask.model.engine.loss import rows_per_chunk
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.text_tokenizer import text_tokenizer

MAX_STOP_TESTS = 256  # lists of stop texts whose tests a batch remembers


class Sampler:
    """Chooses the next tokens of rows that have the same options.

    With ``options.seed``, the samples of a prompt do not depend on the other prompts.
    """

    def __init__(self, options: GenerationOptions, stop_ids: set[int]) -> None:
        self.options, self.stop_ids = options, sorted(stop_ids)
        self.greedy = options.temperature <= 0
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            if options.temperature != 1.0:
                self.warpers.append(TemperatureLogitsWarper(options.temperature))
            if options.top_k:
                self.warpers.append(TopKLogitsWarper(options.top_k))
            if options.top_p < 1:
                self.warpers.append(TopPLogitsWarper(options.top_p))

    def __call__(self, rows: Sequence[DecodingRow], logits_BV: Tensor) -> tuple[list[int], list[float]]:
        """Return the next tokens of the rows (B), and their log-probabilities (B).

        The log-probabilities are those of the model itself, before penalty and temperature.
        """
        size = rows_per_chunk(logits_BV)
        tokens, log_probabilities = [], []
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            logits_bV = logits_BV[chunk].float()
            tokens_b1 = self._choose(rows[chunk], self._processed(rows[chunk], logits_bV))
            tokens.append(tokens_b1)
            log_probabilities.append(logits_bV.gather(1, tokens_b1) - logits_bV.logsumexp(1, keepdim=True))
        return torch.cat(tokens)[:, 0].tolist(), torch.cat(log_probabilities)[:, 0].tolist()

    def _processed(self, rows: Sequence[DecodingRow], logits_bV: Tensor) -> Tensor:
        """The logits after minimum length, repetition penalty and the warpers of sampling."""
        options, scores_bV = self.options, logits_bV
        too_short = [place for place, row in enumerate(rows) if len(row.new_ids) < options.min_new_tokens]
        if too_short:
            scores_bV = scores_bV.clone()
            scores_bV[torch.tensor(too_short)[:, None], torch.tensor(self.stop_ids, dtype=torch.long)] = float("-inf")
        if options.repetition_penalty != 1.0:
            ids_bT, _ = left_padded([row.ids for row in rows], logits_bV.device)
            scores_bV = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(ids_bT, scores_bV)
        return self.warpers(None, scores_bV) if self.warpers else scores_bV  # type: ignore[arg-type]

    def _choose(self, rows: Sequence[DecodingRow], scores_bV: Tensor) -> Tensor:
        """Tokens (b, 1): the best ones, or samples."""
        if self.greedy:
            return scores_bV.argmax(-1, keepdim=True)
        if self.options.seed is None:
            return torch.multinomial(scores_bV.softmax(-1), 1)
        drawn = []
        for row, probabilities_V in zip(rows, scores_bV.softmax(-1), strict=True):
            if row.generator is None:
                row.generator = torch.Generator(scores_bV.device).manual_seed(self.options.seed + row.draw)
            drawn.append(torch.multinomial(probabilities_V, 1, generator=row.generator))
        return torch.stack(drawn)


class SampledBatch(DecodingBatch):
    """A batch that samples what its subclass computes."""

    def __init__(self, backbone: EngineBackbone) -> None:
        self.backbone = backbone
        self.stop_tests: dict[tuple[str, ...], Callable[[list[int]], bool]] = {}
        self.interrupted = False  # whether a pass ended within the layers, which then hold different numbers of tokens

    @abstractmethod
    def next_logits(self) -> Tensor:
        """Read the rows' newest tokens; return logits (B, V) of the tokens that follow."""

    @abstractmethod
    def remove(self, rows: Sequence[DecodingRow]) -> None:
        """Let rows leave."""

    @torch.inference_mode()
    def leave(self, row: DecodingRow) -> None:
        """Drop a row before its end; a row that has left already is no error."""
        if row in self.rows:
            self.remove([row])

    @torch.inference_mode()
    def step(self) -> list[DecodingRow]:
        """Write the next token of every row; return the rows that end with it, which leave."""
        rows, stop_ids = self.rows, self.backbone.stop_ids
        if not rows:
            return []
        if self.interrupted:
            raise RuntimeError(
                "an earlier step of this batch was interrupted, and its rows are lost: open a new decoding batch"
            )
        self.interrupted = True
        logits_BV = self.next_logits()
        self.interrupted = False
        for row, token, log_probability in self._sample(rows, logits_BV, stop_ids):
            row.log_probabilities.append(log_probability)
            if token in stop_ids:
                row.finish = "stop"
                continue
            row.new_ids.append(token)
            if self._is_stopped(row):
                row.finish = "stop"
            elif len(row.new_ids) >= row.limit:
                row.finish = "length"
        ended = [row for row in rows if row.finish]
        self.remove(ended)
        return ended

    def _sample(
        self, rows: list[DecodingRow], logits_BV: Tensor, stop_ids: set[int]
    ) -> list[tuple[DecodingRow, int, float]]:
        """The rows with their next tokens and the tokens' log-probabilities; rows of the same options together."""
        groups: list[tuple[GenerationOptions, list[int]]] = []
        for place, row in enumerate(rows):
            same = (places for options, places in groups if options is row.options or options == row.options)
            places = next(same, None)
            if places is None:
                groups.append((row.options, [place]))
            else:
                places.append(place)
        sampled: list[tuple[DecodingRow, int, float]] = []
        for options, places in groups:
            group, logits = [rows[place] for place in places], logits_BV if len(groups) == 1 else logits_BV[places]
            sampled += zip(group, *Sampler(options, stop_ids)(group, logits), strict=True)
        return sampled

    def _is_stopped(self, row: DecodingRow) -> bool:
        """Whether a row's newest token completes a stop text."""
        stops = tuple(row.options.stop)
        if not stops:
            return False
        if stops not in self.stop_tests:
            if len(self.stop_tests) == MAX_STOP_TESTS:
                self.stop_tests.clear()
            self.stop_tests[stops] = stop_test(self.backbone.tokenizer, stops)
        return self.stop_tests[stops](row.new_ids)


def stop_test(tokenizer: Any, stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Return a test whether the newest token of a row's ids completes a stop text.

    It decodes only rows whose newest token may end a stop text. A stop text that is the string of a control token is
    completed by that token, which decoded texts don't show.
    """
    control_ids = text_tokenizer(tokenizer).control_ids
    stop_tokens = {control_ids[stop] for stop in stops if stop in control_ids}
    may_end: dict[int, bool] = {}  # token -> whether it may end a stop text
    window = max(len(stop.encode()) for stop in stops) + 8  # tokens: each may be a single byte

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    def is_stopped(row: list[int]) -> bool:
        token = row[-1]
        if token in stop_tokens:
            return True
        if token not in may_end:
            token_text = text([token])  # a part of a character decodes to U+FFFD
            may_end[token] = "\ufffd" in token_text or any(stop[-1] in token_text for stop in stops)
        return may_end[token] and any(stop in text(row[-window:]) for stop in stops)

    return is_stopped
