"""Generates one text token by token: the key-value cache is reused between prompts, and emitted text never changes.

Shapes: T positions, S positions in the cache, V vocabulary; there is one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from gptask.model.engine.decoding import decoding_mask, next_token_logits
from gptask.model.engine.kv_cache import PreallocatedKVCache
from gptask.model.engine.sampling import Sampler
from gptask.model.generation.generate import new_tokens_limit

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.generation_options import GenerationOptions

PROMPT_CHUNK = 512  # tokens of a prompt that one forward pass reads: bounds the memory of their attention


class StreamedText:
    """Decodes tokens to text and emits only what no later token can change or take back.

    An incomplete character waits for its other bytes (and is dropped if they never come), and so does text that may be
    the beginning of a stop text.
    """

    def __init__(self, tokenizer: Any, stop_texts: Sequence[str]) -> None:
        self.tokenizer, self.stop_texts = tokenizer, stop_texts
        self.ids: list[int] = []
        self.emitted = 0  # characters
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token; return the text that became final with it."""
        self.ids.append(token)
        text = self._decode()
        stop_starts = [text.index(stop) for stop in self.stop_texts if stop in text]
        self.stopped = bool(stop_starts)
        return self._emit(text[: min(stop_starts)] if stop_starts else text[: len(text) - self._held_back(text)])

    def rest(self) -> str:
        """Return the text that was held back; call it after the last token."""
        return "" if self.stopped else self._emit(self._decode())

    def _decode(self) -> str:
        """Return all text so far, without U+FFFD at its end, which stands for an incomplete character."""
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).rstrip("\ufffd")

    def _held_back(self, text: str) -> int:
        """Return the length of the longest end of the text with which a stop text begins."""
        lengths = (n for stop in self.stop_texts for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _emit(self, final_text: str) -> str:
        new_text = final_text[self.emitted :]
        self.emitted = max(self.emitted, len(final_text))
        return new_text


class Stream:
    """Continues one prompt at a time; the tokens with which the previous one begins too are not read again."""

    def __init__(self, backbone: GPTBackbone) -> None:
        self.backbone = backbone
        self.cached_ids: list[int] = []
        self.layer_caches = [PreallocatedKVCache() for _ in range(backbone.config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.layer_caches))
        self.reached_limit = False  # whether the last text ended because no further token was allowed

    def text(self, prompt: list[int], options: GenerationOptions) -> Iterator[str]:
        """Continue a prompt until EOS, a stop text or the last token there is room for; yield one piece per token.

        A piece may be empty. Decoding is greedy or by sampling; `GenerationOptions.samples` and beams are ignored.
        Raises `UserError` for a prompt that is empty or longer than the context.
        """
        tokens_left = new_tokens_limit(self.backbone, prompt, options)
        ids = list(prompt)
        text = StreamedText(self.backbone.tokenizer, options.stop)
        sampler = Sampler(options, self.backbone, len(prompt), rows=1)
        self.reached_limit = False
        while not text.stopped:
            if not tokens_left:
                self.reached_limit = True
                break
            token = self._next_token(ids, sampler)
            if token in self.backbone.stop_ids:
                break
            ids.append(token)
            tokens_left -= 1
            yield text.add(token)
        yield text.rest()

    @torch.inference_mode()
    def _next_token(self, ids: list[int], sampler: Sampler) -> int:
        logits_1V = self._logits_after(ids)
        ids_1T = torch.tensor([ids], device=self.backbone.device)
        tokens_11, _ = sampler(ids_1T, logits_1V, [0])
        return int(tokens_11)

    def _logits_after(self, ids: list[int]) -> Tensor:
        """Return the logits (1, V) of the token after ``ids``; ids at the start that are cached are not read again."""
        pairs = enumerate(zip(self.cached_ids, ids, strict=False))
        reused = next((place for place, (cached, wanted) in pairs if cached != wanted), len(self.cached_ids))
        reused = min(reused, len(ids) - 1)
        self.cached_ids = self.cached_ids[:reused]
        for layer_cache in self.layer_caches:  # an interrupted pass may have left more in some layers than in others
            layer_cache.truncate(reused)
        for start in range(reused, len(ids), PROMPT_CHUNK):
            chunk = ids[start : start + PROMPT_CHUNK]
            end = start + len(chunk)
            chunk_1T = torch.tensor([chunk], device=self.backbone.device)
            positions_1T = torch.arange(start, end, device=self.backbone.device)[None]
            mask = decoding_mask(self.backbone, chunk_1T.new_ones(1, end), len(chunk))
            logits_1V = next_token_logits(self.backbone, chunk_1T, mask, positions_1T, self.cache)
            self.cached_ids = ids[:end]
        return logits_1V
