"""One text while it is being written: what was read once is not read again, and what is handed on is final."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from gptask.model.engine.decoding import mask_of, next_token_logits
from gptask.model.engine.kv_cache import PreallocatedKVCache
from gptask.model.engine.sampling import Sampler
from gptask.model.generation.generate import new_tokens_limit

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.generation_options import GenerationOptions

AT_ONCE = 512  # tokens of a prompt that are read together: bounds the memory of their attention


class StreamedText:
    """Text from tokens, as far as no later token can change or take back any of it.

    Half a character waits for its other bytes (and is dropped if they never come), and so does what may be the
    beginning of a stop text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.told = 0  # characters handed on
        self.stopped = False

    def add(self, token: int) -> str:
        """What one more token makes certain."""
        self.ids.append(token)
        text = self._text()
        found = [text.index(stop) for stop in self.stops if stop in text]
        self.stopped = bool(found)
        return self._tell(text[: min(found)] if found else text[: len(text) - self._held(text)])

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        return "" if self.stopped else self._tell(self._text())

    def _text(self) -> str:
        """All text so far; what is left of U+FFFD at its end is part of a character."""
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).rstrip("\ufffd")

    def _held(self, text: str) -> int:
        """The longest end of the text that begins a stop text."""
        ends = (n for stop in self.stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(ends, default=0)

    def _tell(self, text: str) -> str:
        new = text[self.told :]
        self.told = max(self.told, len(text))
        return new


class Stream:
    """Texts behind prompts, one prompt at a time; prompts that begin alike are read from where they differ."""

    def __init__(self, backbone: GPTBackbone) -> None:
        self.backbone = backbone
        self.ids: list[int] = []  # what the cache holds
        self.buffers = [PreallocatedKVCache() for _ in range(backbone.config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.buffers))
        self.full = False  # whether the last text ended for want of room

    def text(self, prompt: list[int], options: GenerationOptions) -> Iterator[str]:
        """Continue a prompt until EOS, a stop text or the last token there is room for: a piece, maybe empty, a token.

        Greedy or by sampling; `GenerationOptions.samples` and beams are not for this. Raises `UserError` for a prompt that is
        empty or longer than the context.
        """
        left = new_tokens_limit(self.backbone, prompt, options)
        said = list(prompt)
        pieces = StreamedText(self.backbone.tokenizer, options.stop)
        draw = Sampler(options, self.backbone, len(prompt), rows=1)
        self.full = False
        while not pieces.stopped:
            if not left:
                self.full = True
                break
            token = self._next(said, draw)
            if token in self.backbone.stop_ids:
                break
            said.append(token)
            left -= 1
            yield pieces.add(token)
        yield pieces.rest()

    @torch.inference_mode()
    def _next(self, ids: list[int], draw: Sampler) -> int:
        logits = self._read(ids)
        seen = torch.tensor([ids], device=self.backbone.device)
        return int(draw(seen, logits, [0])[0])

    def _read(self, ids: list[int]) -> Tensor:
        """Scores (1, V) behind ids; those at the start that the cache holds already are not read."""
        known = next((n for n, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), len(self.ids))
        known = min(known, len(ids) - 1)
        self.ids = self.ids[:known]
        for buffer in self.buffers:  # also what a stopped pass left in some of them
            buffer.cut(known)
        for start in range(known, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE]
            end = start + len(part)
            step = torch.tensor([part], device=self.backbone.device)
            real, position = step.new_ones(1, end), torch.arange(start, end, device=self.backbone.device)[None]
            logits = next_token_logits(
                self.backbone, step, mask_of(self.backbone, real, len(part)), position, self.cache
            )
            self.ids = ids[:end]
        return logits
