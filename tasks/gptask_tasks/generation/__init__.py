"""Generation: what an assistant says next, learned from instructions and dialogues."""

from __future__ import annotations

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
    Metric,
    Prediction,
    UserError,
    WritingTask,
    chat_template_of,
    option,
)

from gptask_tasks import sample
from gptask_tasks.generation.records import conversation
from gptask_tasks.scores import CorpusScore, Likelihood, Rouge

if TYPE_CHECKING:
    from gptask import Backbone, Head


@dataclass
class TextGeneration(WritingTask):
    """Answer a prompt or go on with a conversation; learns from every turn of the assistant's, and from no other."""

    contract_version = "1.0"

    system: str | None = option(None, "system message of conversations that bring none")
    raw: bool = option(False, "texts as they stand, EOS behind each answer: no chat template, no turns")
    language: str = option("en", "language of ROUGE-L: en stems words, zh takes characters")
    generation: GenerationOptions = option(partial(GenerationOptions, max_new_tokens=128), "how text is decoded")

    def validate(self) -> None:
        """Refuse options that exclude each other."""
        super().validate()
        if self.raw and self.system:
            raise UserError("task.raw=true takes texts as they stand: task.system has no place then")
        if self.language not in ("en", "zh"):
            raise UserError(f"task.language='{self.language}' is unknown to ROUGE-L; expected en or zh")

    def fields(self) -> list[Field]:
        """A conversation up to the answer that is due, and that answer."""
        return [
            Field("messages", Kind.MESSAGES, help="the turns up to the last answer, or a prompt"),
            Field("answer", Kind.TEXTS, target=True, blank=True, help="what the assistant says last"),
        ]

    def convert_row(self, row: Any) -> Any:
        """Rows in the chat format, ShareGPT's, Alpaca's, as prompt and completion, or a prompt alone."""
        return conversation(row)

    def check(self, example: Example) -> None:
        """Refuse a conversation without an answer at its end."""
        super().check(example)
        if not example["answer"]:
            raise DataError("there is no answer to learn: the last message must be the assistant's, and not empty")

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Ids of the conversation by its template; every answer is learned, with what ends it.

        Where that is longer than ``max_tokens`` the oldest turns are dropped, then the last question is cut; an answer
        never is.
        """
        template, messages = chat_template_of(tokenizer, self.raw), self._messages(example)
        target = template.answer(messages, example["answer"][0]) if example.get("answer") else None
        room = max_tokens - max(len(target or []) + 1, self.reserved_tokens())
        turns, kept = template.fit(messages, room)
        cut = 0
        if len(kept) < len(messages) or len(turns.ids) > room:
            cut = len(template.turns(messages).ids)
            turns = template.shorten(kept, room)
            cut -= len(turns.ids)
        learned = turns.answers if target is not None else []
        return Encoded(turns.ids, target, truncated=cut, learned=learned)

    def _messages(self, example: Example) -> list[dict[str, str]]:
        messages = list(example["messages"])
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return messages

    def render(self, example: Example) -> tuple[str, str | None]:
        """The conversation line by line (a run's tokenizer decides how it is put to the model)."""
        lines = [f"{message['role'].title()}: {message['content']}" for message in self._messages(example)]
        answer = example["answer"][0] if example.get("answer") else None
        return "\n".join([*lines, "Assistant:"]), None if answer is None else f" {answer}"

    def demonstrate(self, example: Example) -> NoReturn:
        """Refused: solved examples are earlier turns of a conversation."""
        raise UserError("shots=k is not for conversations: put solved examples into task.system or their first turns")

    def head(self, backbone: Backbone) -> Head:
        """The language model itself."""
        from gptask_tasks.generation.head import AnswerHead

        return AnswerHead(backbone, self.generation)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """The answer written, and how likely the given ones are."""
        return replace(super().prediction(example, outputs), extra=getattr(outputs[0], "counts", {}))

    def metrics(self) -> list[Metric]:
        """Likelihood of all given answers; chrF (Popović 2015) and ROUGE-L (Lin 2004) of the one that is written."""
        import sacrebleu

        chrf = CorpusScore("chrf", sacrebleu.CHRF(), field="answer")
        turns = "assistant's turns and their ends; per"
        return [
            Likelihood("perplexity", f"{turns} token of the backbone's tokenizer"),
            Likelihood("bits_per_byte", f"{turns} UTF-8 byte of the turns"),
            chrf,
            Rouge("rougeL", self.language, field="answer"),
        ]

    def sample(self) -> dict[str, Any]:
        """Small requests with exact answers, some of them in several turns, in English."""
        return sample("generation")
