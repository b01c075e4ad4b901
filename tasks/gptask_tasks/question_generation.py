"""Question generation: a context and an answer in it, and the question it answers."""

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


class Place(Enum):
    """Where the model reads the answer."""

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
    BEFORE: ClassVar[dict[str, str]] = {
        "en": "Answer: {answers}\nContext: {context}\nQuestion:",
        "zh": "答案：{answers}\n文章：{context}\n问题：",
    }

    answer: Place = option(
        Place.behind, "where the answer stands: behind or before the context, or marked: behind, and in [ ] inside it"
    )
    qa_run: str | None = option(None, "run folder of a qa task that answers the test's questions, for round_trip_f1")
    generation: GenerationOptions = option(partial(GenerationOptions, stop=["\n"]), "how text is decoded")

    def fields(self) -> list[Field]:
        """A context, its answers with their places, and the question: what `qa` reads, with another target."""
        return [
            Field("context", truncate=True, group=True, help="the text that holds the answer"),
            Field("answers", Kind.TEXTS, help="the answer, or several equally good ones; the first is asked about"),
            Field("answer_start", Kind.INTEGERS, required=False, help="character offset of each answer"),
            Field("question", Kind.TEXTS, target=True, help="the question, or several equally good ones"),
        ]

    @property
    def template(self) -> str:
        """The prompt in force."""
        if self.answer is Place.before and self.prompt is None:
            return self.BEFORE[self.language]
        return super().template

    def prepare(self, train: Iterable[Example]) -> None:
        """Look at the qa run, so that a wrong one is told before anything is trained."""
        if self.qa_run is not None:
            qa_task(self.qa_run)

    def check(self, example: Example) -> None:
        """Refuse an answer that is to be marked and is not there."""
        super().check(example)
        if self.answer is Place.marked and place(example) is None:
            raise DataError(f"the answer '{example['answers'][0][:60]}' is not in its context, so it can't be marked")

    def target(self, example: Example) -> str | None:
        """The first question is learned; all count when scoring."""
        return example["question"][0] if example.get("question") else None

    def format_prompt(self, example: Example) -> str:
        """The prompt with the first answer."""
        answer, found = example["answers"][0].strip(), place(example)
        if self.answer is Place.marked and found:
            text, (start, end) = example["context"], found
            example = example | {"context": f"{text[:start]}[{text[start:end]}]{text[end:]}"}
        return super().format_prompt(example | {"answers": answer})

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Prompt and question; of a context that is too long, what stands around the answer is kept."""
        encoded, found = self._encode(example, tokenizer, max_tokens), place(example)
        if not encoded.truncated or not found:
            return encoded
        text = example["context"]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        before = sum(left < found[0] for left, _ in offsets)
        first = max(0, min(before - (len(offsets) - encoded.truncated) // 2, encoded.truncated))
        cut = offsets[first][0]
        nearer = {"context": text[cut:], "answer_start": [found[0] - cut]}
        encoded = self._encode(example | nearer, tokenizer, max_tokens)
        return replace(encoded, truncated=encoded.truncated + first)

    def _encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        return super().encode(example, tokenizer, max_tokens)  # type: ignore[return-value]

    def metrics(self) -> list[Metric]:
        """BLEU by sacreBLEU, ROUGE-L, and with a qa run the round trip."""
        import sacrebleu

        from gptask_tasks.scores import CorpusScore, Rouge

        bleu = sacrebleu.BLEU(tokenize="zh" if self.language == "zh" else "13a")
        found: list[Metric] = [CorpusScore("bleu", bleu, "question"), Rouge("rougeL", self.language, "question")]
        return found if self.qa_run is None else [*found, RoundTrip(self.qa_run)]

    def annotate_predictions(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> Sequence[Prediction]:
        """Let the qa run answer the questions; ``extra`` holds each answer and its F1 with the given ones."""
        if self.qa_run is None:
            return predictions
        task = qa_task(self.qa_run)
        run, f1 = load_run(self.qa_run), f1_of(task)
        contexts = [example["context"] for example in examples]
        asked = zip(contexts, predictions, strict=True)
        answers = run.predict({"context": text, "question": said.value} for text, said in asked if said.value)
        found = []
        for said, example in zip(predictions, examples, strict=True):
            answer = next(answers) if said.value else Prediction("")  # nothing was asked
            (value,) = f1.statistics(answer, {"answers": example["answers"]})
            found.append(replace(said, extra={"answer": answer.value, RoundTrip.name: value}))
        return found

    def sample(self) -> dict[str, Any]:
        """The short articles with questions of qa's sample, in English."""
        return sample("qa", "json")


def place(example: Example) -> tuple[int, int] | None:
    """Character span of the first answer: of its occurrences the one nearest to ``answer_start``."""
    text, answer = example["context"], example["answers"][0]
    told = next(iter(example.get("answer_start") or []), 0)
    starts = [start for start in range(len(text)) if text.startswith(answer, start)]
    if not starts:
        return None
    start = min(starts, key=lambda start: abs(start - told))
    return start, start + len(answer)


class RoundTrip(MeanMetric):
    """SQuAD F1 between the answer a qa run gives to the question and the answer it was asked for, in percent."""

    name, final = "round_trip_f1", True

    def __init__(self, qa_run: str) -> None:
        self.qa_run, self.scale = qa_run, 100.0

    @property
    def signature(self) -> str:  # type: ignore[override]
        """That of the qa run's F1, and a hash of its model: another model is another measure."""
        return f"{f1_of(qa_task(self.qa_run)).signature}; answers by model {weights_hash(self.qa_run)}"

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        """F1 of one answer, as `QuestionGeneration.annotate_predictions` found it."""
        return [prediction.extra[self.name]]


def qa_task(folder: str) -> Task:
    """The task of a qa run without its model; raises `UserError` for a run that answers no questions on contexts."""
    task = load_task(folder)
    inputs, targets = ({f.name for f in part} for part in (task.inputs(), task.targets()))
    if inputs != {"context", "question"} or "answers" not in targets or f1_of(task) is None:
        raise UserError(
            f"task.qa_run={folder} is a run of {type(task).__name__}, which takes {listing(sorted(inputs))}; "
            "expected one that answers a question on a context, such as gptask train task=qa leaves"
        )
    return task


def f1_of(task: Task) -> Any:
    """A task's metric ``f1``, None where it has none."""
    return next((metric for metric in task.metrics() if metric.name == "f1"), None)
