"""Question generation: from a context and an answer in it to the question it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar

from gptask import (
    DataError,
    Encoded,
    Example,
    Field,
    GenerationOptions,
    GenerativeTask,
    Kind,
    MeanMetric,
    Metric,
    Prediction,
    Task,
    UserError,
    listing,
    load_run,
    load_task,
    option,
    weights_hash,
)

from gptask_tasks import sample
from gptask_tasks.text import published_start


class AnswerPlacement(Enum):
    """Where the prompt shows the answer."""

    behind = "behind"
    before = "before"
    marked = "marked"


@dataclass
class QuestionGeneration(GenerativeTask):
    """Ask the question that a part of a context answers."""

    contract_version = "1.0"
    PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Context: {context}\nAnswer: {answers}\nQuestion:",
        "zh": "文章：{context}\n答案：{answers}\n问题：",
    }
    ANSWER_FIRST_PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Answer: {answers}\nContext: {context}\nQuestion:",
        "zh": "答案：{answers}\n文章：{context}\n问题：",
    }

    answer: AnswerPlacement = option(
        AnswerPlacement.behind,
        "where the answer stands: behind or before the context, or marked: behind, and in [ ] inside it",
    )
    qa_run: str | None = option(None, "run folder of a qa task that answers the generated questions, for round_trip_f1")
    generation: GenerationOptions = option(partial(GenerationOptions, stop=["\n"]), "how text is decoded")

    def fields(self) -> list[Field]:
        """Return a context, its answers with their offsets, and the question: the data of `qa` with another target."""
        return [
            Field("context", truncate=True, group=True, help="the text that holds the answer"),
            Field("answers", Kind.TEXTS, help="the answer, or several equally good ones; the first is asked about"),
            Field("answer_start", Kind.INTEGERS, required=False, help="character offset of each answer"),
            Field("question", Kind.TEXTS, target=True, help="the question, or several equally good ones"),
        ]

    @property
    def template(self) -> str:
        """The prompt in force."""
        if self.answer is AnswerPlacement.before and self.prompt is None:
            return self.ANSWER_FIRST_PROMPTS[self.language]
        return super().template

    def needed_inputs(self) -> set[str]:
        """Return what marks the answer, and what the qa run reads."""
        return {"context", "answers"} if self.answer is AnswerPlacement.marked or self.qa_run is not None else set()

    def prepare(self, train: Iterable[Example]) -> dict[str, Any]:
        """Load the task of the qa run, so that a wrong one is refused before anything is trained; choose no option."""
        if self.qa_run is not None:
            qa_task(self.qa_run)
        return {}

    def check(self, example: Example) -> None:
        """Refuse an answer that is to be marked and is not in its context."""
        super().check(example)
        if self.answer is AnswerPlacement.marked and answer_span(example) is None:
            raise DataError(
                f"the answer '{example['answers'][0][:60]}' is not in its context, so it can't be marked", "answers"
            )

    def target(self, example: Example) -> str | None:
        """Return the first question, which is learned; all of them are references."""
        return example["question"][0] if example.get("question") else None

    def format_prompt(self, example: Example) -> str:
        """Return the prompt with the first answer."""
        span = answer_span(example)
        if self.answer is AnswerPlacement.marked and span:
            text, (start, end) = example["context"], span
            example = example | {"context": f"{text[:start]}[{text[start:end]}]{text[end:]}"}
        if "answers" in example:
            example = example | {"answers": example["answers"][0].strip()}
        return super().format_prompt(example)

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Return prompt and question; a context that is too long is cut on both sides of the answer."""
        encoded, span = self._encode(example, tokenizer, max_tokens), answer_span(example)
        order = self.truncation_order()
        cut_before = [example[name] for name in order[: order.index("context")]] if span else []
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in cut_before]
        excess = encoded.truncated - sum(lengths)  # tokens that the context loses
        if excess <= 0 or not span:
            return encoded
        text, length = example["context"], len(encoded.ids) + encoded.truncated
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        tokens_before = sum(left < span[0] for left, _ in offsets)
        tokens_kept = len(offsets) - excess
        first_token = max(0, min(tokens_before - tokens_kept // 2, excess))
        left, right = offsets[first_token]
        together = [token for token, span in enumerate(offsets) if span == (left, right)]  # of unknown characters
        first = left + (right - left) * together.index(first_token) // len(together)
        shortened = example | {"context": text[first:], "answer_start": [span[0] - first]}
        encoded = self._encode(shortened, tokenizer, max_tokens)
        return replace(encoded, truncated=length - len(encoded.ids))

    def _encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Return prompt and question; a context that is too long is cut at its end."""
        return super().encode(example, tokenizer, max_tokens)  # type: ignore[return-value]

    def metrics(self) -> list[Metric]:
        """List BLEU by sacreBLEU, ROUGE-L, and with a qa run the round trip."""
        import sacrebleu

        from gptask_tasks.scores import CorpusScore, Rouge

        bleu = CorpusScore("bleu", sacrebleu.BLEU(), "question", by_characters=True)
        metrics: list[Metric] = [bleu, Rouge("rougeL", "question")]
        return metrics if self.qa_run is None else [*metrics, RoundTrip(self.qa_run)]

    def annotate_predictions(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> Sequence[Prediction]:
        """Let the qa run answer the questions; ``extra`` holds each answer and its F1 with the given ones."""
        if self.qa_run is None:
            return predictions
        metric, run = f1_of(qa_task(self.qa_run)), load_run(self.qa_run)
        pairs = list(zip(predictions, examples, strict=True))
        answers = run.predict({"context": e["context"], "question": p.value} for p, e in pairs if p.value)
        annotated = []
        for prediction, example in pairs:
            answer = next(answers) if prediction.value else Prediction("")  # an empty question gets no answer
            (f1,) = metric.statistics(answer, {"answers": example["answers"]})
            annotated.append(replace(prediction, extra={"answer": answer.value, RoundTrip.name: f1}))
        return annotated

    def sample(self) -> dict[str, Any]:
        """Return the sample of `qa`: short articles with questions, in English."""
        return sample("qa", "json")


def answer_span(example: Example) -> tuple[int, int] | None:
    """Return the character span of the first answer: of its occurrences the one nearest to ``answer_start``.

    It is None where the answer is not in the context, or where the prompt shows only one of them.
    """
    if not {"context", "answers"} <= example.keys():
        return None
    text, answer = example["context"], example["answers"][0]
    starts = [start for start in range(len(text)) if text.startswith(answer, start)]
    if not starts:
        return None
    start = published_start(example, 0, starts)
    return start, start + len(answer)


class RoundTrip(MeanMetric):
    """SQuAD F1 between a qa run's answer to the generated question and the answer it was generated for, in percent."""

    name, final = "round_trip_f1", True

    def __init__(self, qa_run: str) -> None:
        self.qa_run, self.scale = qa_run, 100.0

    @property
    def signature(self) -> str:  # type: ignore[override]
        """The signature of the qa run's F1, and a hash of its model: another model makes another metric."""
        return f"{f1_of(qa_task(self.qa_run)).signature}; answers by model {weights_hash(self.qa_run)}"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """Return the F1 of one answer, which `QuestionGeneration.annotate_predictions` computed."""
        return [prediction.extra[self.name]]


def qa_task(folder: str) -> Task:
    """Load the task of a qa run without its model; raise `UserError` for a run of another kind of task."""
    task = load_task(folder)
    inputs, targets = ({field.name for field in fields} for fields in (task.inputs(), task.targets()))
    if inputs != {"context", "question"} or "answers" not in targets or f1_of(task) is None:
        raise UserError(
            f"task.qa_run={folder} is a run of {type(task).__name__}, which takes {listing(sorted(inputs))}; "
            "expected one that answers a question on a context, such as gptask train task=qa leaves"
        )
    return task


def f1_of(task: Task) -> Any:
    """Return a task's metric ``f1``, None where it has none."""
    return next((metric for metric in task.metrics() if metric.name == "f1"), None)
