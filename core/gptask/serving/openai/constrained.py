"""Texts that are JSON of a schema, by the library llguidance: which tokens may come next, for `TokenConstraint`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.serving.http.http_errors import ApiError

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.serving.openai.openai_schemas import ResponseFormat

MAX_SCHEMA_BYTES = 2**16
SCHEMAS = 64  # that stay compiled
JSON_OPTIONS = {
    "whitespace_pattern": " ?"
}  # at most a space between tokens of JSON: a model can't write spaces for ever
LIMITS = {  # of the time of compiling and of a step, and of the memory
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
}


class JsonConstraint:
    """What a schema lets follow. ``failure`` says why it was given up, where it became too complex on its way."""

    def __init__(self, matcher: Any, stop_ids: set[int]) -> None:
        self.matcher, self.stop_ids = matcher, sorted(stop_ids)
        self.failure: str | None = None

    def allowed(self, vocabulary: int) -> Tensor:
        """Return which ids may come next (V,): those that end the text alone where the constraint is given up."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=min(vocabulary, 8 * len(bits)), bitorder="little").astype(bool)
        if not self.failure and (self.matcher.is_error() or not allowed.any()):
            self.failure = self.matcher.get_error() or "no token of the model's vocabulary can follow"
        mask = torch.zeros(vocabulary, dtype=torch.bool)
        if self.failure:
            mask[self.stop_ids] = True
        else:
            mask[: len(allowed)] = torch.from_numpy(allowed)
        return mask

    def advance(self, token: int) -> None:
        """Take the next token."""
        if token not in self.stop_ids and not self.failure:
            self.matcher.consume_token(token)


class JsonGrammars:
    """Compiles schemas for tokenizers, and remembers the latest ones. Compiling may take half a second."""

    def __init__(self) -> None:
        self._compiled = lru_cache(SCHEMAS)(self._compile)
        self.tokenizer = lru_cache(8)(self._tokenizer)

    def constraints(self, backbone: GPTBackbone, wanted: ResponseFormat, count: int) -> list[JsonConstraint | None]:
        """Return a constraint for each of ``count`` texts; raises `ApiError` for a schema that can't be followed."""
        if wanted.type == "text":
            return [None] * count
        schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise _refused(f"the schema has {len(text)} bytes, at most {MAX_SCHEMA_BYTES} are compiled")
        matcher = self._compiled(text_tokenizer(backbone.tokenizer), frozenset(backbone.stop_ids), text)
        return [JsonConstraint(matcher.deep_copy(), backbone.stop_ids) for _ in range(count)]

    def _compile(self, tokenizer: Any, stop_ids: frozenset[int], schema: str) -> Any:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
        limits = LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type]
        matcher = LLMatcher(self.tokenizer(tokenizer, stop_ids), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(" ".join(matcher.get_error().split()))
        if not np.frombuffer(matcher.compute_bitmask(), np.uint8).any() or matcher.is_error():
            raise _refused("no text can follow the schema; does a $ref lead to itself?")
        return matcher

    def _tokenizer(self, tokenizer: Any, stop_ids: frozenset[int]) -> LLTokenizer:
        backend = getattr(text_tokenizer(tokenizer).raw, "backend_tokenizer", None)
        if backend is None:
            reason = "its tokenizer is none of the library tokenizers"
            raise ApiError(400, f"this model has no logprobs and no response_format: {reason}")
        state = json.loads(backend.to_str())
        state["decoder"], state["truncation"], state["padding"] = _plain_spaces(state["decoder"]), None, None
        return LLTokenizer(json.dumps(state), eos_token=sorted(stop_ids))

    def token_bytes(self, backbone: GPTBackbone) -> Callable[[int], bytes]:
        """Return what makes the bytes of a token's id."""
        tokenizer = self.tokenizer(text_tokenizer(backbone.tokenizer), frozenset(backbone.stop_ids))
        return lambda token: tokenizer.decode_bytes([token])


def _plain_spaces(decoder: Any) -> Any:
    """A tokenizer's decoder as llguidance understands it: it knows the mark of spaces by ``Replace`` alone."""
    if isinstance(decoder, dict) and decoder.get("type") == "Metaspace":
        return {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    if isinstance(decoder, dict):
        return {name: _plain_spaces(part) for name, part in decoder.items()}
    return [_plain_spaces(part) for part in decoder] if isinstance(decoder, list) else decoder


def _refused(reason: str) -> ApiError:
    return ApiError(400, f"response_format: {reason}", "response_format")
