"""A conversation as token ids: by the tokenizer's own chat template, or by a plain one where it has none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gptask.data.messages import Message
from gptask.errors import DataError, UserError

log = logging.getLogger("gptask")
PLAIN = (  # "User: ...", "Assistant: ..." line by line, EOS behind every answer
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content }}\n"
    "{% else %}Assistant: {{ message.content }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
RAW = (  # the texts as they stand, EOS behind every answer
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
ASKED, SAID = "one", "two"


@dataclass
class Turns:
    """Token ids of a conversation up to where an answer is due, and the spans (start, end) of its earlier answers."""

    ids: list[int]
    answers: list[tuple[int, int]]


class ChatTemplate:
    """Renders conversations for one tokenizer. Answers are cut out with what ends them, which a model must learn.

    Texts before, in and behind answers are tokenized apart, as they are when an answer is due. Raises `DataError` for a
    conversation that the template refuses.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text
        self.own = text not in (PLAIN, RAW)
        self.stop = ["\nUser:"] if text == PLAIN else []  # what a model that was not taught to stop goes on with
        asked = [{"role": "user", "content": ASKED}]
        prompt, whole = self._render(asked, True), self._render([*asked, {"role": "assistant", "content": SAID}], False)
        if not whole.startswith(prompt) or SAID not in whole[len(prompt) :]:
            raise UserError("the tokenizer's chat template does not put an answer behind its prompt")
        tail = whole[whole.rindex(SAID) + len(SAID) :]  # behind an answer: what ends it, then what only separates
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        marks = {*tokenizer.all_special_ids, *(n for n, t in tokenizer.added_tokens_decoder.items() if t.special)}
        special = [place for place, token in enumerate(ids) if token in marks]
        self.end = ids[special[-1]] if special else None  # the id that ends an answer
        mark = tokenizer.decode(ids[: special[-1] + 1], clean_up_tokenization_spaces=False) if special else tail
        self.rest = tail[len(mark) :] if tail.startswith(mark) else ""

    def _render(self, messages: Sequence[Message], due: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), chat_template=self.text, tokenize=False, add_generation_prompt=due
                )
            )
        except TemplateError as error:
            raise DataError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    def turns(self, messages: Sequence[Message]) -> Turns:
        """Tokenize messages up to the answer that is due behind them."""
        text, found, at = self._render(messages, True), Turns([], []), 0
        for start, end in self._answers(messages, text):
            self._add(found, text[at:start])
            before = len(found.ids)
            self._add(found, text[start:end])
            found.answers.append((before, len(found.ids)))
            at = end
        self._add(found, text[at:])
        return found

    def _add(self, found: Turns, text: str) -> None:
        """Tokenize a piece; a template of ours leaves it to the tokenizer what stands before a text."""
        first = not found.ids and not self.own
        ids = self.tokenizer(text, add_special_tokens=first)["input_ids"]
        if first and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:  # some close what is to be continued
            ids = ids[:-1]
        found.ids += ids

    def _answers(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Where in the text answers begin and end; one that the template shows otherwise later on is left out."""
        at = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], True) if number else ""
            after = self._render(messages[: number + 1], False).removesuffix(self.rest)
            if text.startswith(after) and after.startswith(before) and at <= len(before):
                at = len(after)
                yield len(before), at
            else:
                _rewrites()

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """Ids of an answer behind messages, with what ends it but for EOS."""
        prompt = self._render(messages, True)
        whole = self._render([*messages, {"role": "assistant", "content": text}], False)
        if not whole.startswith(prompt):
            raise DataError("the tokenizer's chat template shows the conversation otherwise once it is answered")
        ids = self.tokenizer(whole[len(prompt) :].removesuffix(self.rest), add_special_tokens=False)["input_ids"]
        return list(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def fit(self, messages: Sequence[Message], room: int) -> tuple[Turns, list[Message]]:
        """The conversation in ``room`` tokens, and the messages that are left: the oldest turns go, the system stays.

        The last turn is never dropped, so what is left may still be longer.
        """
        head = [message for message in messages[:1] if message["role"] == "system"]
        asked = [n for n, m in enumerate(messages) if m["role"] == "user" and n > len(head)]
        for start in (len(head), *asked):
            kept = [*head, *messages[start:]]
            turns = self.turns(kept)
            if len(turns.ids) <= room:
                break
        return turns, kept

    def shorten(self, messages: Sequence[Message], room: int) -> Turns:
        """The conversation in ``room`` tokens, the end of its last message cut off where that is needed.

        Raises `DataError` where the rest alone is longer.
        """
        turns, messages = self.turns(messages), list(messages)
        for _ in range(4):  # merging tokens at the seam may leave one or two too many
            excess, text = len(turns.ids) - room, messages[-1]["content"]
            if excess <= 0 or not text:
                break
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            keep = max(len(spans) - excess, 0)
            messages[-1] = messages[-1] | {"content": text[: spans[keep - 1][1]] if keep else ""}
            turns = self.turns(messages)
        if len(turns.ids) > room:
            raise DataError(
                f"the conversation needs {len(turns.ids)} tokens without its last question and {room} are left for it: "
                "raise data.max_tokens, or lower task.generation.max_new_tokens"
            )
        return turns


@lru_cache(1)  # said once
def _rewrites() -> None:
    log.warning("the tokenizer's chat template shows earlier answers otherwise: of such only the last one is learned")


def turn_end(tokenizer: Any) -> int | None:
    """The id that ends an answer in the tokenizer's own chat template, None without one."""
    try:
        return chat_template_of(tokenizer).end if getattr(tokenizer, "chat_template", None) else None
    except UserError:
        return None  # who asks for the template itself is told


def chat_template_of(tokenizer: Any, raw: bool = False) -> ChatTemplate:
    """The tokenizer's own template, the plain one where it has none, or with ``raw`` the texts as they stand."""
    own = getattr(tokenizer, "chat_template", None)
    text = RAW if raw else tokenizer.get_chat_template() if own else PLAIN
    return _made(tokenizer, text)


@lru_cache(8)
def _made(tokenizer: Any, text: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, text)
