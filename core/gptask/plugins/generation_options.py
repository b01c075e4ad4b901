"""The decoding options of every task that generates text."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from gptask.errors import UserError
from gptask.plugins.task import option

log = logging.getLogger("gptask")
DEFAULT_NEW_TOKENS = 64  # max_new_tokens without training targets
MIN_NEW_TOKENS = 16  # least max_new_tokens that is chosen from training targets


@dataclass
class GenerationOptions:
    """How a task decodes text."""

    max_new_tokens: int | None = option(None, "most tokens to generate; null: from the training targets, else 64")
    min_new_tokens: int = option(0, "least tokens to generate before a text can end by itself")
    num_beams: int = option(1, "beams; 1 is greedy, or sampling if temperature > 0")
    temperature: float = option(0.0, "0 is greedy; else the logits are divided by it and a token is drawn")
    top_k: int = option(0, "draw from the k likeliest tokens; 0: no limit")
    top_p: float = option(1.0, "draw from the smallest set of tokens with this probability mass")
    repetition_penalty: float = option(1.0, "above 1 makes earlier tokens less likely again (Keskar et al. 2019)")
    stop: list[str] = option(list, "texts that end the answer and are cut off")
    samples: int = option(1, "texts to draw for each prompt; the likeliest is the answer, all are written")
    seed: int | None = option(None, "random seed of each prompt's draws; null: continue the process's random state")

    def __post_init__(self) -> None:
        r"""Read a literal ``\n`` in a stop text, as a shell passes it, as a line break, like in ``task.prompt``."""
        self.stop = [text.replace("\\n", "\n") for text in self.stop]

    @property
    def limit(self) -> int:
        """The most tokens that are generated for a prompt."""
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    def covering_limit(self, lengths: np.ndarray, max_tokens: int) -> int:
        """Return the ``max_new_tokens`` for training targets of ``lengths`` (N,), N > 0, in tokens, with EOS.

        The value covers all but the longest 1% of the targets, but is at most a quarter of ``max_tokens``, since tokens
        reserved for an answer are lost to its prompt.
        """
        covering = ceil(np.quantile(lengths, 0.99, method="nearest") / 8) * 8
        limit: int = max(min(covering, max_tokens // 4), self.min_new_tokens, MIN_NEW_TOKENS)
        if limit < covering:
            longer = np.count_nonzero(lengths > limit)
            message = "%d of %d training targets exceed max_new_tokens; raise it or data.max_tokens"
            log.warning(message, longer, len(lengths))
        return limit

    def validate(self) -> None:
        """Raise `UserError` for values out of range and for options that contradict each other."""
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
        for name, (valid, expected) in checks.items():
            if not valid:
                raise UserError(f"task.generation.{name}={getattr(self, name)} must be {expected}")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("task.generation: beams and sampling exclude each other; set temperature=0 or num_beams=1")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                "task.generation.samples above 1 needs sampling, or all are equal: set temperature above 0 too"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UserError("task.generation.top_k and top_p only affect sampling: set temperature above 0 too")

    def to_transformers(self) -> dict[str, Any]:
        """Return the options of transformers' ``GenerationConfig``; ``stop`` is missing, as it needs a tokenizer."""
        values: dict[str, Any] = {"max_new_tokens": self.limit, "num_beams": self.num_beams}
        values |= {"repetition_penalty": self.repetition_penalty, "do_sample": self.temperature > 0}
        values |= {"min_new_tokens": self.min_new_tokens} if self.min_new_tokens else {}
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return values | (sampling if self.temperature > 0 else dict.fromkeys(sampling))
