"""Generation: an assistant's next answer, learned from instructions and dialogues."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from gptask import (
    DataError,
    Encoded,
    Example,
    Field,
    GenerationOptions,
    Kind,
    Message,
    Metric,
    Prediction,
    UserError,
    WritingTask,
    chat_template_of,
    option,
)

from gptask_tasks import sample
from gptask_tasks.generation.conversations import conversation
from gptask_tasks.scores import CorpusScore, Likelihood, Rouge

if TYPE_CHECKING:
    from gptask import Backbone, Head


@dataclass
class TextGeneration(WritingTask):
    """Answer a prompt or continue a conversation; only the assistant's turns are learned, all of them."""

    contract_version = "1.0"

    system: str | None = option(None, "system message of conversations without one")
    raw: bool = option(False, "join texts as they stand, EOS behind each answer, without a chat template")
    language: str = option("en", "code of the conversations' language, which the model card names")
    generation: GenerationOptions = option(partial(GenerationOptions, max_new_tokens=128), "how text is decoded")

    def validate(self) -> None:
        """Refuse options that exclude each other."""
        super().validate()
        if self.raw and self.system:
            raise UserError("task.raw=true takes texts as they stand, without task.system: unset one of them")
        if not re.fullmatch("[a-z]{2,3}(-.+)?", self.language):
            raise UserError(f"task.language='{self.language}' is no language code; expected one such as en or pt-BR")

    def fields(self) -> list[Field]:
        """Return a conversation up to the answer that is due, and that answer."""
        return [
            Field("messages", Kind.MESSAGES, help="the turns up to the last answer, or a prompt"),
            Field("answer", Kind.TEXTS, target=True, blank=True, help="what the assistant says last"),
        ]

    def convert_row(self, row: Any) -> Any:
        """Read rows in the chat format, ShareGPT's, Alpaca's, as prompt and completion, or a prompt alone."""
        return conversation(row)

    def check(self, example: Example) -> None:
        """Refuse a conversation without an answer at its end."""
        super().check(example)
        if not example["answer"]:
            raise DataError(
                "there is no answer to learn: the last message must be the assistant's, and not empty, and its weight "
                "not 0 unless an earlier answer is learned"
            )

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Return the ids of the conversation by its template; every answer is learned, with what ends it.

        In a conversation longer than ``max_tokens`` the oldest turns are dropped, then the last question is cut; the
        last answer never is.
        """
        template, messages = chat_template_of(tokenizer, self.raw), self._messages(example)
        target = template.answer_ids(messages, example["answer"][0]) if example.get("answer") else None
        room = max_tokens - max(len(target or []) + 1, self.reserved_tokens())
        turns, recent_messages = template.drop_oldest_turns(messages, room)
        tokens_cut = 0
        if len(recent_messages) < len(messages) or len(turns.ids) > room:
            turns = template.cut_last_message(recent_messages, room)
            tokens_cut = len(template.tokenize(messages).ids) - len(turns.ids)
        learned = turns.answer_spans if target is not None else []
        return Encoded(turns.ids, target, truncated=tokens_cut, learned=learned)

    def _messages(self, example: Example) -> list[Message]:
        """Return the turns of an example behind ``task.system`` unless they bring a system message."""
        messages = list(example["messages"])
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return messages

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the conversation line by line (the model reads it as the run's tokenizer formats it)."""
        lines = [f"{message['role'].title()}: {message['content']}" for message in self._messages(example)]
        answer = example["answer"][0] if example.get("answer") else None
        return "\n".join([*lines, "Assistant:"]), None if answer is None else f" {answer}"

    def demonstrate(self, example: Example) -> NoReturn:
        """Refuse: solved examples are earlier turns of a conversation."""
        raise UserError("shots=k is not for conversations: put solved examples into task.system or their first turns")

    def head(self, backbone: Backbone) -> Head:
        """Build the language model itself."""
        from gptask_tasks.generation.head import AnswerHead

        return AnswerHead(backbone, self.generation)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return the generated answer, and the likelihood of the given ones."""
        return replace(super().prediction(example, outputs), extra=getattr(outputs[0], "counts", {}))

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> None:
        """Return None: only a language model has a likelihood, which is the main metric."""

    def metrics(self) -> list[Metric]:
        """List the likelihood of the given answers; chrF (Popović 2015) and ROUGE-L (Lin 2004) of the generated one."""
        import sacrebleu

        chrf = CorpusScore("chrf", sacrebleu.CHRF(), field="answer")
        turns = "assistant's turns and their ends; per"
        return [
            Likelihood("perplexity", f"{turns} token of the backbone's tokenizer"),
            Likelihood("bits_per_byte", f"{turns} UTF-8 byte of the turns"),
            chrf,
            Rouge("rougeL", field="answer"),
        ]

    def sample(self) -> dict[str, Any]:
        """Return the sample: small requests with exact answers, some of them in several turns, in English."""
        return sample("generation")
