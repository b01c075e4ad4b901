"""Generates one text token by token: the key-value cache is reused between prompts, and emitted text never changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.generate import new_tokens_limit

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.generation_options import GenerationOptions

REPLACEMENT = "\ufffd"  # what bytes decode to that are no character, or not yet
MAX_CHARACTER_BYTES = 4
MAX_PENDING = 16  # tokens that may be incomplete together


class StreamedText:
    """Decodes tokens to text and emits only what no later token can change or take back.

    An incomplete character waits for its other bytes (and is dropped if they never come), and so does text that may be
    the beginning of a stop text. The time of a token does not grow with the text: only the newest tokens are decoded.
    """

    def __init__(self, tokenizer: Any, stop_texts: Sequence[str]) -> None:
        self.tokenizer, self.stop_texts = tokenizer, [stop for stop in stop_texts if stop]
        self.special_ids = special_ids(tokenizer)
        self.ids: list[int] = []
        self.starts: list[int] = []  # of each token, in characters; tokens of one character start where it does
        self.emitted = 0  # characters
        self.stopped = False
        self._window: list[int] = []  # the newest ids: those of ``_context``, then those that may be incomplete
        self._context = 0  # ids that are decoded again, as a decoder may treat the first token of a text in its own way
        self._waiting = ""  # decoded, not emitted

    def add(self, token: int) -> str:
        """Add a token; return the text that became final with it."""
        self.ids.append(token)
        self.starts.append(self.emitted + len(self._waiting))
        if token in self.special_ids or self.stopped:
            return ""
        self._window.append(token)
        return self._emit(self._decoded())

    def rest(self) -> str:
        """Return the text that was held back; call it after the last token."""
        if self.stopped:
            return ""
        text = self._emit(self._decode(self._window)[len(self._decode(self._window[: self._context])) :])
        if self.stopped:
            return text
        rest, self._waiting = self._waiting.rstrip(REPLACEMENT), ""
        self.emitted += len(rest)
        return text + rest

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _decoded(self) -> str:
        """The text that the newest tokens complete; they become the context of the next ones."""
        context, text = self._decode(self._window[: self._context]), self._decode(self._window)
        complete = len(self._window)
        if text.endswith(REPLACEMENT):
            complete = self._complete_tokens(text)
            text = self._decode(self._window[:complete])
        if complete == self._context or len(text) <= len(context):  # the character or the space is still to come
            return ""
        self._window, self._context = self._window[self._context :], complete - self._context
        return text[len(context) :]

    def _complete_tokens(self, text: str) -> int:
        """How many tokens of the window no later byte changes, where it ends amidst a character or in broken bytes."""
        pending = len(self._window) - self._context
        if pending <= MAX_CHARACTER_BYTES:
            return self._context
        for last in range(MAX_CHARACTER_BYTES - 1, 0, -1):  # an incomplete character has fewer bytes than a whole one
            if self._decode(self._window[:-last]) + self._decode(self._window[-last:]) == text:
                return len(self._window) - last
        return self._context if pending <= MAX_PENDING else len(self._window)

    def _emit(self, new_text: str) -> str:
        """Add decoded text; return what is final: all before a stop text, and before what may be the begin of one."""
        longest = max(map(len, self.stop_texts), default=1)
        start = max(0, len(self._waiting) - longest + 1)  # no stop text ends before the new text
        self._waiting += new_text
        stop_starts = [place for stop in self.stop_texts if (place := self._waiting.find(stop, start)) >= 0]
        self.stopped = bool(stop_starts)
        end = min(stop_starts) if stop_starts else len(self._waiting) - self._held_back()
        final, self._waiting = self._waiting[:end], "" if stop_starts else self._waiting[end:]
        self.emitted += len(final)
        return final

    def _held_back(self) -> int:
        """The length of the end of the text that may begin a stop text, or that later bytes may replace."""
        text = self._waiting
        begun = (n for stop in self.stop_texts for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(len(text) - len(text.rstrip(REPLACEMENT)), max(begun, default=0))


@lru_cache(8)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a tokenizer that decoded text does not show."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, entry in added.items() if entry.special)


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
