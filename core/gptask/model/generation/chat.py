"""A conversation with a model in memory: what was said, and the next answer as it is written."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gptask.data.messages import Message
from gptask.errors import UserError
from gptask.model.backbone.chat_template import chat_template_of
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.task import option

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone


@dataclass
class ChatOptions(GenerationOptions):
    """How a model answers in a conversation."""

    max_new_tokens: int = option(512, "tokens of an answer at most")
    temperature: float = option(0.7, "0 always takes the likeliest token")
    top_p: float = option(0.95, "draw from the smallest set of tokens with this probability mass")
    stop: list[str] = option(partial(list), "texts that end an answer; they are cut off")
    system: str | None = option(None, "the system message that stands before the conversation")
    raw: bool = option(False, "continue each text as it stands: no chat template, no turns")

    def validate(self) -> None:
        """Refuse values out of range, and what can't be streamed."""
        if self.num_beams > 1 or self.samples > 1:
            raise UserError("a chat streams one answer: num_beams and samples must be 1")
        try:
            super().validate()
        except UserError as error:
            raise UserError(str(error).replace("task.generation.", "").replace("task.generation: ", "")) from error
        if self.raw and self.system:
            raise UserError("raw=true continues texts as they stand: there is no system message then")


class Chat:
    """Turns with a backbone. Keys and values of what was said are kept, so that only new tokens are read."""

    def __init__(self, backbone: GPTBackbone, options: ChatOptions) -> None:
        from gptask.model.generation.stream import Stream

        self.template = chat_template_of(backbone.tokenizer, options.raw)
        self.options = replace(options, stop=[*options.stop, *self.template.stop])
        self.stream, self.context = Stream(backbone), backbone.context
        self.dropped = 0  # messages that the last turn had no room for
        self.messages: list[Message] = []
        self.system = options.system

    @property
    def full(self) -> bool:
        """Whether the last answer was cut for want of room."""
        return self.stream.full

    @property
    def system(self) -> str | None:
        """The message that stands before the conversation."""
        return self._head()[0]["content"] if self._head() else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[len(self._head()) :]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]

    def _head(self) -> list[Message]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = self._head()

    def say(self, text: str) -> Generator[str]:
        """Say something; yield the answer piece by piece, as much of it as is drawn is kept as said.

        The oldest turns that have no room are forgotten (``dropped``). Raises `UserError` for a text that is longer
        than the context, which is then not kept.
        """
        if self.options.raw:
            self.reset()
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        room = self.context - min(self.options.max_new_tokens, self.context // 2)
        turns, kept = self.template.fit(asked, room)
        if len(turns.ids) > self.context:
            raise UserError(f"this text takes {len(turns.ids)} tokens; the model reads {self.context}: shorten it")
        self.dropped, self.messages = len(asked) - len(kept), kept
        said = ""
        try:
            for piece in self.stream.text(turns.ids, self.options):
                piece = piece if said else piece.lstrip()
                said += piece
                yield piece
        finally:
            if said.strip():
                self.messages.append({"role": "assistant", "content": said.strip()})
            else:
                self.messages.pop()  # an unanswered text would be followed by another of the user's
