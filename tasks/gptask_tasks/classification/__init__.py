"""Text classification: binary, multi-class or multi-label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gptask import (
    DataError,
    Encoded,
    Example,
    Field,
    Kind,
    Prediction,
    PromptedTask,
    UserError,
    canonical_label,
    listing,
    most_frequent,
    nearest,
    option,
)

from gptask_tasks import sample

if TYPE_CHECKING:
    from gptask import Backbone, Head, Metric


@dataclass
class Classification(PromptedTask):
    """Sort texts into classes: one per text, or any number (task.multi_label=true)."""

    contract_version = "1.0"
    baseline_name = "most frequent label"
    PROMPTS: ClassVar[dict[str, str]] = {"en": "Text: {text}\nTopic:", "zh": "文本：{text}\n类别："}

    labels: list[str] = option(list, "class names in order; empty takes those of the training data, sorted")
    label_words: dict[str, str] = option(dict, "class name -> word whose embedding its output starts from")
    multi_label: bool = option(False, "a text may have any number of labels, each predicted from task.threshold on")
    readings: int = option(1, "times an input that fits is in its prompt: a causal model rereads it knowing its end")
    threshold: float | None = option(None, "multi_label: lowest probability of a predicted label; null: by validation")

    def fields(self) -> list[Field]:
        """Return the text, and its label or labels."""
        name, kind = ("labels", Kind.LABELS) if self.multi_label else ("label", Kind.LABEL)
        return [
            Field("text", truncate=True, help="the text to sort"),
            Field(name, kind, target=True, help="its class" + (" or classes" if self.multi_label else "")),
        ]

    def validate(self) -> None:
        """Refuse repeated labels, label words of unknown labels, numbers out of range, and a renamed target.

        Labels are spelled as they are read from data: `canonical_label`.
        """
        super().validate()
        self.labels = [canonical_label(name) for name in self.labels]
        self.label_words = {canonical_label(name): word for name, word in self.label_words.items()}
        target, targets = "labels" if self.multi_label else "label", [f.name for f in self.targets()]
        if target not in targets:
            raise UserError(
                f"{type(self).__name__}.fields() must keep Classification's target '{target}', got {listing(targets)}"
            )
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"task.labels must be at least two different names, got {self.labels}")
        if self.readings < 1:
            raise UserError(f"task.readings={self.readings} must be at least 1")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(f"task.threshold={self.threshold} must lie between 0 and 1")
        for name in self.label_words:
            if self.labels and name not in self.labels:
                raise UserError(f"task.label_words.{name}: no such label; there are {listing(self.labels)}")
            if not self.label_words[name].strip():
                raise UserError(f"task.label_words.{name} is empty; give the word that stands for the label")

    def prepare(self, train: Iterable[Example]) -> dict[str, Any]:
        """Take the label set of the training data unless it is given."""
        if self.labels:
            return {}
        labels = sorted({name for example in train for name in self.gold_labels(example)})
        if len(labels) < 2:
            raise DataError(f"training data has the label(s) {listing(labels)}; at least two are needed")
        return {"labels": labels}

    def label_vector(self, example: Example) -> list[float]:
        """Return the labels of an example as K zeros and ones."""
        gold = self.gold_labels(example)
        return [float(name in gold) for name in self.labels]

    def gold_labels(self, example: Example) -> list[str]:
        """Return the true labels of an example."""
        return example.get("labels") or [] if self.multi_label else [example["label"]]

    def check(self, example: Example) -> None:
        """Refuse a label outside the set."""
        for name in self.gold_labels(example):
            if self.labels and name not in self.labels:
                hint = nearest(name, self.labels)
                names = {name.lower(), *(label.lower() for label in self.labels)}
                if names & {"yes", "no", "on", "off"} and names & {"true", "false"}:
                    hint = " YAML reads yes, no, on and off without quotes as true and false: put quotes around them."
                raise DataError(
                    f"label {name!r} is not in task.labels: {listing(self.labels)}.{hint} data.labels maps ids to names"
                )

    def label_word(self, label: str) -> str:
        """Return the word that stands for a label behind the prompt."""
        word = self.label_words.get(label, label.replace("_", " "))
        return word if self.language == "zh" else f" {word}"

    @property
    def template(self) -> str:
        """The prompt in force; all of it up to the last input is repeated ``readings`` times."""
        template = super().template
        places = [f"{{{name}}}" for name in self.shown_inputs(template)]
        end = max((template.rindex(place) + len(place) for place in places if place in template), default=0)
        repeated = template[:end]
        return f"{repeated}\n" * (self.readings - 1 if repeated else 0) + template

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the prompt, and the label words as the text that would follow it."""
        is_labelled = example.get("labels" if self.multi_label else "label") is not None
        target = ",".join(self.label_word(name) for name in self.gold_labels(example)) if is_labelled else None
        return self.format_prompt(example), target

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
        """Return the prompt's ids, and the label as an index or as a vector of zeros and ones."""
        ids, tokens_cut = self.truncate_prompt(example, tokenizer, max_tokens)
        if tokens_cut and self.readings > 1:  # a long text is better read once and whole
            single_reading = copy(self)
            single_reading.readings = 1
            ids, tokens_cut = single_reading.truncate_prompt(example, tokenizer, max_tokens)
        if self.render(example)[1] is None:
            return Encoded(ids, truncated=tokens_cut)
        gold = self.gold_labels(example)
        for name in gold:
            if name not in self.labels:
                raise DataError(f"label {name!r} does not occur in the training data: {listing(self.labels)}")
        if self.multi_label:
            return Encoded(ids, label=self.label_vector(example), truncated=tokens_cut)
        return Encoded(ids, label=self.labels.index(gold[0]), truncated=tokens_cut)

    def head(self, backbone: Backbone) -> Head:
        """Build a linear layer on the last real token, started from the label words."""
        from gptask_tasks.classification.head import ClassificationHead

        return ClassificationHead(
            backbone, self.labels, [self.label_word(name) for name in self.labels], self.multi_label
        )

    def score_names(self) -> list[str]:
        """Return the labels."""
        return self.labels

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return the likeliest label (or all from the threshold on) with the probabilities of all."""
        probabilities = dict(zip(self.labels, outputs[0], strict=True))
        if self.multi_label:
            threshold = 0.5 if self.threshold is None else self.threshold
            labels = [name for name, probability in probabilities.items() if probability >= threshold]
            return Prediction(labels, probabilities=probabilities)
        label = max(probabilities, key=probabilities.__getitem__)
        return Prediction(label, probabilities[label], probabilities)

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction:
        """Return the most frequent label."""
        label = most_frequent(train, "labels" if self.multi_label else "label")
        return Prediction([label] if self.multi_label else label)

    def tune_on_validation(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Choose the threshold of the best micro-F1 unless the user set one."""
        if not self.multi_label or self.threshold is not None:
            return {}
        from gptask_tasks.classification.metrics import best_threshold

        probabilities = [list((p.probabilities or {}).values()) for p in predictions]
        return {"threshold": best_threshold(probabilities, [self.label_vector(e) for e in examples])}

    def metrics(self) -> list[Metric]:
        """List accuracy first; micro-F1 first where a text may have several labels."""
        from gptask_tasks.classification import metrics

        if self.multi_label:
            return metrics.multi_label(self.labels)
        return metrics.single_label(self.labels)

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Return the scores of each class and the confusion matrix."""
        from gptask_tasks.classification import metrics

        predicted = [p.value if self.multi_label else [p.value] for p in predictions]
        return metrics.per_class(self.labels, [self.gold_labels(e) for e in examples], predicted, self.multi_label)

    def sample(self) -> dict[str, Any]:
        """Return the sample: questions to a shop's service desk, in English and Chinese."""
        return sample("classification", columns={"labels": "label"} if self.multi_label else {})
