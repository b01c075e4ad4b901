"""Question answering on a context: the answer is generated, or is a span of the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gptask import (
    DataError,
    Encoded,
    Example,
    Field,
    GenerationOptions,
    GenerativeTask,
    Kind,
    Metric,
    Prediction,
    UserError,
    is_blank,
    option,
)

from gptask_tasks import sample

if TYPE_CHECKING:
    from gptask import Backbone, Head


class AnswerForm(Enum):
    """Where an answer comes from."""

    generate = "generate"
    span = "span"


@dataclass
class QuestionAnswering(GenerativeTask):
    """Answer a question on a context, by generating text or by choosing a span."""

    contract_version = "1.0"
    PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Context: {context}\nQuestion: {question}\nAnswer:",
        "zh": "文章：{context}\n问题：{question}\n答案：",
    }
    SPAN_PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Question: {question}\nContext: {context}\nQuestion: {question}\nAnswer:",
        "zh": "问题：{question}\n文章：{context}\n问题：{question}\n答案：",
    }
    UNKNOWN: ClassVar[dict[str, str]] = {"en": "unanswerable", "zh": "无法回答"}

    answer: AnswerForm = option(AnswerForm.generate, "generate: free text; span: the best span of the context")
    extractive: bool = option(True, "answers must occur in their context; false allows free answers (generate only)")
    unanswerable: bool = option(False, "questions without an answer are allowed, and may be predicted")
    null_threshold: float = option(0.0, "span: log-odds by which no answer must be likelier than the best span")
    max_answer_tokens: int = option(30, "span: longest answer")
    stride: int = option(128, "span: tokens by which windows over a long context overlap")
    generation: GenerationOptions = option(partial(GenerationOptions, stop=["\n"]), "how text is decoded")

    def fields(self) -> list[Field]:
        """Return a context, a question, and the answers with their offsets."""
        return [
            Field("context", truncate=True, group=True, help="the text that holds the answer"),
            Field("question", help="the question"),
            Field("answers", Kind.TEXTS, target=True, blank=True, help="the answer, or several equally good ones"),
            Field("answer_start", Kind.INTEGERS, required=False, target=True, help="character offset of each answer"),
        ]

    @property
    def template(self) -> str:
        """The prompt in force; spans need the question before the context, which a causal model reads once."""
        if self.answer is AnswerForm.span and self.prompt is None:
            return self.SPAN_PROMPTS[self.language]
        return super().template

    def needed_inputs(self) -> set[str]:
        """Return the context where answers are looked for in it."""
        return {"context"} if self.extractive or self.answer is AnswerForm.span else set()

    @property
    def examples_per_step(self) -> int:  # type: ignore[override]
        """4 for spans: with 1,400 questions, steps of 4 reach F1 65 and steps of 8 reach 60 (XQuAD English)."""
        return 4 if self.answer is AnswerForm.span else super().examples_per_step

    def validate(self) -> None:
        """Refuse options that exclude each other."""
        super().validate()
        if self.answer is AnswerForm.span and not self.extractive:
            raise UserError("task.extractive=false needs task.answer=generate: a span is part of its context")
        if self.answer is AnswerForm.span and self.template.count("{context}") != 1:
            raise UserError(f"task.prompt {self.template!r} must hold {{context}} once for task.answer=span")
        if self.stride < 1 or self.max_answer_tokens < 1:
            raise UserError("task.stride and task.max_answer_tokens must be at least 1")

    def check(self, example: Example) -> None:
        """Refuse a question without answer (unless allowed), and an answer that is not in its context."""
        answers = [text for text in example["answers"] if not is_blank(text)]
        if not answers and not self.unanswerable:
            raise DataError("the question has no answer; task.unanswerable=true allows that")
        if answers and self.extractive and not any(text in example["context"] for text in answers):
            raise DataError(
                f"the answer '{answers[0][:60]}' is not in its context "
                "(task.extractive=false with task.answer=generate allows free answers)"
            )
        super().check(example)

    def target(self, example: Example) -> str | None:
        """Return the first answer, or the word for none."""
        if example.get("answers") is None:
            return None
        return next((text for text in example["answers"] if not is_blank(text)), self.UNKNOWN[self.language])

    def demonstrate(self, example: Example) -> str:
        """Return prompt and answer; refused for spans, where no answer follows the prompt."""
        if self.answer is AnswerForm.span:
            raise UserError("shots are for task.answer=generate: a span head does not learn from answers in the prompt")
        return super().demonstrate(example)

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded | list[Encoded]:
        """Return prompt and answer, or the windows that a span is looked for in."""
        if self.answer is AnswerForm.generate:
            return super().encode(example, tokenizer, max_tokens)
        from gptask_tasks.qa.span import context_windows

        before, after = (self.fill_template(part, example) for part in self.template.split("{context}"))
        return context_windows(example, (before, after), tokenizer, max_tokens, self.stride)

    def reserved_tokens(self) -> int:
        """Return the room for a generated answer; a span needs none."""
        return super().reserved_tokens() if self.answer is AnswerForm.generate else 0

    def head(self, backbone: Backbone) -> Head:
        """Build the language model itself, or the head that scores spans."""
        if self.answer is AnswerForm.generate:
            return super().head(backbone)
        from gptask_tasks.qa.span import SpanHead

        return SpanHead(backbone, self.max_answer_tokens)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return the text of the best span over all windows, or the generated text; empty where there is no answer."""
        if self.answer is AnswerForm.generate:
            prediction = super().prediction(example, outputs)
            if self.unanswerable and str(prediction.value).strip().lower() == self.UNKNOWN[self.language]:
                return Prediction("", prediction.score)
            return prediction
        from gptask_tasks.qa.span import best_span

        span = best_span(outputs, self.unanswerable, self.null_threshold)
        return Prediction(example["context"][span.start : span.end].strip(), span.probability)

    def metrics(self) -> list[Metric]:
        """List F1, then exact match, with SQuAD's normalisation."""
        from gptask_tasks.qa.metrics import AnswerExactMatch, AnswerF1

        return [AnswerF1(), AnswerExactMatch()]

    def sample(self) -> dict[str, Any]:
        """Return the sample: short articles with questions, in English."""
        return sample("qa", "json")
