"""A conversation with a model in memory: its messages, and the next answer as a stream of pieces."""

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
    system: str | None = option(None, "system message, put before the conversation")
    raw: bool = option(False, "continue each text as it stands: no chat template, no turns")

    def validate(self) -> None:
        """Raise `UserError` for values out of range, and for options that a streamed answer can't have."""
        if self.num_beams > 1 or self.samples > 1:
            raise UserError("a chat streams one answer: num_beams and samples must be 1")
        try:
            super().validate()
        except UserError as error:
            raise UserError(str(error).replace("task.generation.", "").replace("task.generation: ", "")) from error
        if self.raw and self.system:
            raise UserError("raw=true continues each text as it stands and takes no system message; remove one of them")


class Chat:
    """A conversation with a backbone. Keys and values of earlier turns stay cached, so only new tokens are read."""

    def __init__(self, backbone: GPTBackbone, options: ChatOptions) -> None:
        from gptask.model.generation.stream import Stream

        self.template = chat_template_of(backbone.tokenizer, options.raw)
        self.options = replace(options, stop=[*options.stop, *self.template.stop_texts])
        self.stream, self.context = Stream(backbone), backbone.context
        self.dropped_messages = 0  # messages that the last turn had no room for
        self.messages: list[Message] = []
        self.system = options.system

    @property
    def reached_limit(self) -> bool:
        """Whether the last answer was cut because it reached the limit of its tokens."""
        return self.stream.reached_limit

    @property
    def system(self) -> str | None:
        """The system message, which stands before the conversation."""
        return self._system_messages()[0]["content"] if self._system_messages() else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = self.messages[len(self._system_messages()) :]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *turns]

    def _system_messages(self) -> list[Message]:
        """Return a list that is empty or holds the system message."""
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.messages = self._system_messages()

    def say(self, text: str) -> Generator[str]:
        """Add a user's message and yield the answer piece by piece; an answer that is broken off is kept so far.

        The oldest turns that have no room are forgotten (``dropped_messages`` counts them). Raises `UserError` for what
        is no text and for a text that is longer than the context; it is not added to the conversation.
        """
        if not isinstance(text, str):
            raise UserError(f"say() takes a user's message, a text; got {type(text).__name__} {str(text)[:40]!r}")
        if self.options.raw:
            self.reset()
        with_question: list[Message] = [*self.messages, {"role": "user", "content": text}]
        room = self.context - min(self.options.max_new_tokens, self.context // 2)
        prompt, remaining = self.template.drop_oldest_turns(with_question, room)
        if len(prompt.ids) > self.context:
            raise UserError(f"this text takes {len(prompt.ids)} tokens; the model reads {self.context}: shorten it")
        self.dropped_messages, self.messages = len(with_question) - len(remaining), remaining
        answer = ""
        try:
            for piece in self.stream.text(prompt.ids, self.options):
                piece = piece if answer else piece.lstrip()
                answer += piece
                yield piece
        finally:
            if answer.strip():
                self.messages.append({"role": "assistant", "content": answer.strip()})
            else:
                self.messages.pop()  # without an answer, two messages of the user would follow each other
