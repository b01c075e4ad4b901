"""Generates one text token by token: the key-value cache is reused between prompts, and emitted text never changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.generate import new_tokens_limit

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.generation_options import GenerationOptions


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
        self._open_batch()
        self.reached_limit = False  # whether the last text ended because no further token was allowed

    def _open_batch(self) -> None:
        self.batch_engine = self.backbone.engine
        self.batch = self.batch_engine.decoding_batch(keep=1)

    def text(self, prompt: list[int], options: GenerationOptions) -> Iterator[str]:
        """Continue a prompt until EOS, a stop text or the last token there is room for; yield one piece per token.

        A piece may be empty. Decoding is greedy or by sampling; `GenerationOptions.samples` and beams are ignored.
        Raises `UserError` for a prompt that is empty or longer than the context.
        """
        if self.batch_engine is not self.backbone.engine:  # it was changed
            self._open_batch()
        limit = new_tokens_limit(self.backbone, prompt, options)
        row = DecodingRow(prompt, limit, options, self.backbone.adapter)
        text = StreamedText(self.backbone.tokenizer, options.stop)
        self.reached_limit = False
        try:
            self.batch.admit([row])
            while self.batch.rows and not text.stopped:
                self.batch.step()
                for token in row.new_ids[len(text.ids) :]:
                    yield text.add(token)
            self.reached_limit = row.finish == "length" and not text.stopped
            yield text.rest()
        finally:
            self.batch.leave(row)  # where the text is broken off, or its stop text is complete
