"""Answers of chat and completions, whole or in chunks, from the rows that are written."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.stream import StreamedText, special_ids
from gptask.serving.http.http_errors import ApiError

LEAST_LOG_PROBABILITY = -9999.0  # stands for minus infinity, which JSON can't hold


@dataclass
class ShownToken:
    """A token with its log-probability. A control token has no bytes: texts don't show it."""

    text: str
    content: bytes
    log_probability: float


@dataclass
class TokenEntry:
    """A token of a text, where it begins (in characters), and the likeliest tokens of its place."""

    token: ShownToken
    offset: int
    top: list[ShownToken]


@dataclass
class Piece:
    """What became final of a text. ``finish`` is set in the last one."""

    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    finish: str | None = None


class TokenTable:
    """Tokens as they stand in a text."""

    def __init__(self, tokenizer: Any, token_bytes: Callable[[int], bytes]) -> None:
        self.tokenizer, self.token_bytes, self.hidden = tokenizer, token_bytes, special_ids(tokenizer)

    def entry(self, row: DecodingRow, place: int, offset: int, drop_space: bool) -> TokenEntry:
        """Return the entry of a row's token; the first token of a text may lose its space."""
        drop_space = not place and (drop_space or not self.tokenizer.decode(row.new_ids[:1]).startswith(" "))
        token = self._shown(row.new_ids[place], row.log_probabilities[place], drop_space)
        best = row.top_tokens[place] if row.top_count else []
        return TokenEntry(token, offset, [self._shown(other, value, drop_space) for other, value in best])

    def _shown(self, token: int, log_probability: float, drop_space: bool) -> ShownToken:
        log_probability = max(log_probability, LEAST_LOG_PROBABILITY)
        if token in self.hidden:
            return ShownToken(self.tokenizer.decode([token]), b"", log_probability)
        content = self.token_bytes(token)
        content = content.removeprefix(b" ") if drop_space else content
        try:
            text = content.decode()
        except UnicodeDecodeError:  # a part of a character
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return ShownToken(text, content, log_probability)


class ChoiceText:
    """The text of a row as its tokens come; ``prefix`` is put before it. `update` may be called beside the batcher."""

    def __init__(
        self,
        row: DecodingRow,
        tokenizer: Any,
        stops: Sequence[str],
        table: TokenTable | None,
        drop_space: bool = False,
        prefix: str = "",
    ) -> None:
        self.row, self.table, self.drop_space, self.prefix = row, table, drop_space, prefix
        self.stream = StreamedText(tokenizer, stops)
        self.finish: str | None = None
        self.reported = 0  # tokens whose entries are in a piece

    def update(self) -> Piece:
        """Return what became final since the last call; raises `ApiError` where the text can't be written."""
        if self.finish:
            return Piece()
        ended = self.row.finish  # before the tokens: after it, no more of them come
        at_start, text = not self.stream.emitted, ""
        for token in self.row.new_ids[len(self.stream.ids) :]:
            text += self.stream.add(token)
        if ended:
            text += self.stream.rest()
            self._check()
            self.finish = "stop" if self.stream.stopped else ended
        if at_start and self.drop_space:
            text = text.removeprefix(" ")
        if self.prefix and (text or ended):
            text, self.prefix = self.prefix + text, ""
        return Piece(text, self._entries(), self.finish)

    def _check(self) -> None:
        """Raise `ApiError` where the constraint was given up, and where the model computes no numbers."""
        failure = getattr(self.row.constraint, "failure", None)
        if failure:
            raise ApiError(400, f"response_format: the schema became too complex: {failure}", "response_format")
        if any(map(isnan, self.row.log_probabilities)):
            raise ApiError(500, "the model computes numbers that are not finite", kind="server_error")

    def _entries(self) -> list[TokenEntry]:
        """The entries of tokens that begin in the text that is out; at the end of a text, of all that are left."""
        stream, entries = self.stream, []
        while self.table and self.reported < len(stream.ids):
            offset = stream.starts[self.reported]
            if offset >= stream.emitted and (not self.finish or stream.stopped):
                break
            entries.append(self.table.entry(self.row, self.reported, offset, self.drop_space))
            self.reported += 1
        return entries


def usage_of(choices: Sequence[ChoiceText], n: int) -> dict[str, int]:
    """Return the tokens that were read and written; the token that ends a text counts."""
    prompt = sum(len(choice.row.prompt) for choice in choices[::n])
    written = sum(len(choice.row.log_probabilities) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


class AnswerFormat:
    """The answers of one request, in the format of `/v1/completions`."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, log_probabilities: bool) -> None:
        self.log_probabilities = log_probabilities
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer, from the whole text of each choice."""
        choices = [self.choice(number, piece) for number, piece in enumerate(pieces)]
        return self.head | {"object": self.kind, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a chunk of a stream."""
        return self.head | {"object": self.chunk_kind, "choices": choices} | more

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """Return a choice with its whole text."""
        logprobs = _completion_logprobs(piece.entries) if self.log_probabilities else None
        return {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def first_choices(self, number: int) -> list[dict[str, Any]]:
        """Return the choices of the chunk with which a choice begins."""
        return []

    def next_choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """Return a choice that goes on with a piece."""
        return self.choice(number, piece)


class ChatFormat(AnswerFormat):
    """The same for `/v1/chat/completions`."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """Return a choice with its whole text."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }

    def first_choices(self, number: int) -> list[dict[str, Any]]:
        """Return the choices of the chunk with which a choice begins: it says whose turn it is."""
        return [
            {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ]

    def next_choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """Return a choice that goes on with a piece."""
        delta = {"content": piece.text} if piece.text else {}
        return {"index": number, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return {"content": _chat_logprobs(piece.entries), "refusal": None} if self.log_probabilities else None


def _chat_logprobs(entries: Sequence[TokenEntry]) -> list[dict[str, Any]]:
    def named(token: ShownToken) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.log_probability, "bytes": [*token.content]}

    return [named(entry.token) | {"top_logprobs": [*map(named, entry.top)]} for entry in entries]


def _completion_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    def top(entry: TokenEntry) -> dict[str, float]:  # the token itself is there too
        return {token.text: token.log_probability for token in reversed([*entry.top, entry.token])}

    return {
        "tokens": [entry.token.text for entry in entries],
        "token_logprobs": [entry.token.log_probability for entry in entries],
        "top_logprobs": [top(entry) for entry in entries] if any(entry.top for entry in entries) else None,
        "text_offset": [entry.offset for entry in entries],
    }
