"""Conversations as token ids, by the tokenizer's own chat template or by a plain one where it has none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gptask.data.messages import Message, is_learned
from gptask.errors import DataError, UserError
from gptask.plugins.text_tokenizer import rendered_in_time, text_tokenizer
from gptask.plugins.truncation import longest_prefix

log = logging.getLogger("gptask")
PLAIN_TEMPLATE = (  # "User: ...", "Assistant: ..." line by line, EOS after every answer
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content }}\n"
    "{% else %}Assistant: {{ message.content }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
RAW_TEMPLATE = (  # the texts as they stand, EOS after every answer
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
PROBE_QUESTION, PROBE_ANSWER = "one", "two"


@dataclass
class TokenizedConversation:
    """Token ids of a conversation up to the next answer, and the spans (start, end) of earlier answers to learn."""

    ids: list[int]
    answer_spans: list[tuple[int, int]]


class ChatTemplate:
    """Renders conversations for one tokenizer. The span of an answer includes what ends it, which a model must learn.

    The texts before, in and after answers are tokenized separately, as they are when a model generates an answer. The
    string of a control token in a message is text; control tokens are written by the template alone.
    Methods raise `DataError` for a conversation that the template refuses; the constructor raises `UserError` for a
    template that does not put an answer after its prompt.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = text_tokenizer(tokenizer), text
        self.from_tokenizer = text not in (PLAIN_TEMPLATE, RAW_TEMPLATE)
        self.stop_texts = (
            ["\nUser:"] if text == PLAIN_TEMPLATE else []
        )  # what a model writes on that did not learn to stop
        question = [{"role": "user", "content": PROBE_QUESTION}]
        answer = {"role": "assistant", "content": PROBE_ANSWER}
        prompt = rendered_in_time(lambda: self._render(question, answer_due=True))
        answered = rendered_in_time(lambda: self._render([*question, answer], answer_due=False))
        if not answered.startswith(prompt) or PROBE_ANSWER not in answered[len(prompt) :]:
            raise UserError("the tokenizer's chat template does not put an answer after its prompt")
        tail = answered[answered.rindex(PROBE_ANSWER) + len(PROBE_ANSWER) :]  # end mark, then a separator
        tail_ids = self.tokenizer.encode_marked(tail, add_special_tokens=False)
        control_ids = {*self.tokenizer.control_ids.values()}
        end = max((place for place, token in enumerate(tail_ids) if token in control_ids), default=None)
        self.end_id = None if end is None else tail_ids[end]  # ends an answer
        end_mark = tail
        if end is not None:
            end_mark = tokenizer.decode(tail_ids[: end + 1], clean_up_tokenization_spaces=False)
        self.separator = tail[len(end_mark) :] if tail.startswith(end_mark) else ""

    def _render(self, messages: Sequence[Message], answer_due: bool) -> str:
        marked = self.tokenizer.mark(messages)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    marked, chat_template=self.text, tokenize=False, add_generation_prompt=answer_due
                )
            )
        except MemoryError:
            raise
        except Exception as error:  # a template raises whatever its operations do
            raise DataError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    def tokenize(self, messages: Sequence[Message]) -> TokenizedConversation:
        """Tokenize messages up to the answer that follows them."""
        text = self._render(messages, answer_due=True)
        conversation, position = TokenizedConversation([], []), 0
        for start, end, learned in self._answer_spans(messages, text):
            self._append(conversation, text[position:start])
            first_id = len(conversation.ids)
            self._append(conversation, text[start:end])
            if learned:
                conversation.answer_spans.append((first_id, len(conversation.ids)))
            position = end
        self._append(conversation, text[position:])
        return conversation

    def _append(self, conversation: TokenizedConversation, text: str) -> None:
        """Tokenize a piece of text; before gptask's own templates the tokenizer adds what it puts before any text."""
        add_bos = not conversation.ids and not self.from_tokenizer
        ids = self.tokenizer.encode_marked(text, add_special_tokens=add_bos)
        if add_bos and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers add EOS too
            ids = ids[:-1]
        conversation.ids += ids

    def _answer_spans(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int, bool]]:
        """Yield start and end of each answer in the rendered text, and whether it is learned, except of answers that
        the template rewrites once messages follow them."""
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], answer_due=True) if number else ""
            through = self._render(messages[: number + 1], answer_due=False).removesuffix(self.separator)
            if text.startswith(through) and through.startswith(before) and position <= len(before):
                position = len(through)
                yield len(before), position, is_learned(message)
            else:
                _warn_once_of_rewritten_answers()

    def answer_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """Return the ids of an answer to messages, including what ends it, but without EOS."""
        prompt = self._render(messages, answer_due=True)
        answered = self._render([*messages, {"role": "assistant", "content": text}], answer_due=False)
        if not answered.startswith(prompt):
            raise DataError("the tokenizer's chat template renders the conversation differently once it is answered")
        answer = answered[len(prompt) :].removesuffix(self.separator)
        ids = self.tokenizer.encode_marked(answer, add_special_tokens=False)
        return list(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def drop_oldest_turns(self, messages: Sequence[Message], room: int) -> tuple[TokenizedConversation, list[Message]]:
        """Drop the oldest turns until the conversation fits into ``room`` tokens; return it and the remaining messages.

        The system message and the last turn are never dropped, so the result may still be longer.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        later_questions = [n for n, message in enumerate(messages) if message["role"] == "user" and n > len(system)]
        for start in (len(system), *later_questions):
            remaining = [*system, *messages[start:]]
            conversation = self.tokenize(remaining)
            if len(conversation.ids) <= room:
                break
        return conversation, remaining

    def cut_last_message(self, messages: Sequence[Message], room: int) -> TokenizedConversation:
        """Cut the end of the last message off, as far as needed for the conversation to fit into ``room`` tokens.

        Raises `DataError` if the rest alone is longer.
        """
        conversation, last = self.tokenize(messages), messages[-1]
        if (excess := len(conversation.ids) - room) > 0:

            def cut(text: str) -> TokenizedConversation:
                return self.tokenize([*messages[:-1], last | {"content": text}])

            encoding = self.tokenizer(last["content"], add_special_tokens=False, return_offsets_mapping=True)
            text = longest_prefix(
                last["content"], encoding["offset_mapping"], excess, lambda text: len(cut(text).ids) - room
            )
            conversation = cut(text)
        if len(conversation.ids) > room:
            raise DataError(
                f"the conversation needs {len(conversation.ids)} tokens without its last question, but only {room} are "
                "left for it: raise data.max_tokens, or lower task.generation.max_new_tokens"
            )
        return conversation


@lru_cache(1)
def _warn_once_of_rewritten_answers() -> None:
    log.warning(
        "the tokenizer's chat template rewrites earlier answers; a rewritten one is learned only where it is the last"
    )


def turn_end(tokenizer: Any) -> int | None:
    """Return the id that ends an answer in the tokenizer's own chat template, None if it has no usable template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return chat_template_of(tokenizer).end_id
    except UserError as error:
        log.debug("no id ends an answer: %s", error, exc_info=error)
        return None  # a task that needs the template raises the error itself


def chat_template_of(tokenizer: Any, raw: bool = False) -> ChatTemplate:
    """Return the tokenizer's own template, or `PLAIN_TEMPLATE` if it has none; ``raw``: one without added text."""
    if raw:
        return _cached_template(tokenizer, RAW_TEMPLATE)
    has_template = getattr(tokenizer, "chat_template", None)
    return _cached_template(tokenizer, tokenizer.get_chat_template() if has_template else PLAIN_TEMPLATE)


@lru_cache(8)
def _cached_template(tokenizer: Any, text: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, text)
