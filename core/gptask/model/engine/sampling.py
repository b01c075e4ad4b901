"""Writes the next token of every row, and says when a text ends.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gptask.model.engine.interface import DecodingBatch, DecodingRow, EngineBackbone
from gptask.model.engine.next_tokens import Sampler
from gptask.plugins.text_tokenizer import text_tokenizer

MAX_STOP_TESTS = 256  # lists of stop texts whose tests a batch remembers


class TokenBatch(DecodingBatch):
    """A batch whose rows get a token at a time, and end where a stop token, a stop text or the limit ends them."""

    def __init__(self, backbone: EngineBackbone) -> None:
        self.backbone = backbone
        self.stop_tests: dict[tuple[str, ...], Callable[[list[int]], bool]] = {}

    def write(self, row: DecodingRow, token: int, log_probability: float, stop_ids: set[int]) -> None:
        """Add a token to a row, or end it."""
        row.log_probabilities.append(log_probability)
        if token in stop_ids:
            row.finish = "stop"
            return
        row.new_ids.append(token)
        if self._is_stopped(row):
            row.finish = "stop"
        elif len(row.new_ids) >= row.limit:
            row.finish = "length"

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


class SampledBatch(TokenBatch):
    """A batch that samples what its subclass computes."""

    def __init__(self, backbone: EngineBackbone) -> None:
        super().__init__(backbone)
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
        for row, token, log_probability in zip(rows, *Sampler(stop_ids)(rows, logits_BV), strict=True):
            self.write(row, token, log_probability, stop_ids)
        ended = [row for row in rows if row.finish]
        self.remove(ended)
        return ended


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
