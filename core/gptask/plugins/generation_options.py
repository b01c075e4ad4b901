"""How text is decoded: the options of every task that generates."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from gptask.errors import UserError
from gptask.plugins.task import option

log = logging.getLogger("gptask")
DEFAULT_NEW_TOKENS = 64  # tokens generated at most where no targets tell
MIN_NEW_TOKENS = 16  # ... and where all are short


@dataclass
class GenerationOptions:
    """How text is decoded."""

    max_new_tokens: int | None = option(None, "tokens generated at most; null: by the targets of train, 64 without")
    min_new_tokens: int = option(0, "tokens before which a text can't end by itself")
    num_beams: int = option(1, "beams; 1 is greedy, or sampling if temperature > 0")
    temperature: float = option(0.0, "0 is greedy; else logits are divided by it and a token is drawn")
    top_k: int = option(0, "draw from the k likeliest tokens; 0 is no limit")
    top_p: float = option(1.0, "draw from the smallest set of tokens with this probability mass")
    repetition_penalty: float = option(1.0, "above 1 makes tokens that were seen less likely (Keskar et al. 2019)")
    stop: list[str] = option(list, "texts that end the answer; they are cut off")
    samples: int = option(1, "texts drawn for each prompt; the likeliest of them is the answer, all are told")
    seed: int | None = option(None, "what each prompt's draws start from; null goes on with the process's own")

    @property
    def limit(self) -> int:
        """Tokens generated at most."""
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    def resolve_max_new_tokens(self, lengths: np.ndarray, max_tokens: int) -> None:
        """Leave room for all but the longest hundredth of targets that are learned, (N,) tokens with EOS each, but no
        more than a quarter of ``max_tokens``: what is kept free for an answer is lost to its prompt."""
        if self.max_new_tokens is None and len(lengths):
            most, room = ceil(np.quantile(lengths, 0.99, method="nearest") / 8) * 8, max_tokens // 4
            self.max_new_tokens = max(min(most, room), self.min_new_tokens, MIN_NEW_TOKENS)
            log.info("left open and settled: task.generation.max_new_tokens=%d", self.max_new_tokens)
            if self.max_new_tokens < most:
                cut = np.count_nonzero(lengths > self.max_new_tokens)
                said = "%d of %d targets of train are longer: set it higher, or raise data.max_tokens"
                log.warning(said, cut, len(lengths))

    def validate(self) -> None:
        """Refuse values out of range."""
        checks = {
            "max_new_tokens": (self.limit >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.limit, f"0 to max_new_tokens={self.limit}"),
            "samples": (self.samples >= 1, "at least 1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "null, or 0 or more and below 2**63"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        if "" in self.stop:
            raise UserError("task.generation.stop holds an empty text, which would end every answer at once")
        for name, (fine, expected) in checks.items():
            if not fine:
                raise UserError(f"task.generation.{name}={getattr(self, name)} must be {expected}")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("task.generation: beams and sampling exclude each other; set temperature=0 or num_beams=1")
        if self.samples > 1 and self.temperature == 0:
            raise UserError("task.generation.samples are equal unless they are drawn: set temperature above 0 too")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UserError("task.generation.top_k and top_p choose among drawn tokens: set temperature above 0 too")

    def to_transformers(self) -> dict[str, Any]:
        """The same as values of a ``GenerationConfig`` (``stop`` apart: ``generate()`` wants it with a tokenizer)."""
        values: dict[str, Any] = {"max_new_tokens": self.limit, "num_beams": self.num_beams}
        values |= {"repetition_penalty": self.repetition_penalty, "do_sample": self.temperature > 0}
        values |= {"min_new_tokens": self.min_new_tokens} if self.min_new_tokens else {}
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return values | (sampling if self.temperature > 0 else dict.fromkeys(sampling))
