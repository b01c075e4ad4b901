"""Tagging words: named entities, semantic roles, parts of speech."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from gptask import (
    IGNORED,
    DataError,
    Encoded,
    Example,
    Field,
    Kind,
    Metric,
    Prediction,
    Task,
    UserError,
    is_wide,
    listing,
    nearest,
    option,
)

from gptask_tasks import sample

if TYPE_CHECKING:
    from gptask import Backbone, Head


class Context(Enum):
    """How a word's state learns what stands to its right, which a causal model has not read there."""

    none = "none"
    repeat = "repeat"
    bidirectional = "bidirectional"


@dataclass
class TokenTagging(Task):
    """Tag each word of a sentence: named entities, semantic roles (of a predicate), parts of speech."""

    contract_version = "1.0"

    types: list[str] = option(list, "types of spans, or plain tags, in order; empty takes the training data's, sorted")
    plain: bool | None = option(None, "tags mark no spans (parts of speech); null: unless some in train are B-, I-")
    context: Context = option(
        Context.bidirectional,
        "how a word sees its right: none; repeat: the sentence is read twice; bidirectional: a thin layer both ways",
    )

    def fields(self) -> list[Field]:
        """The words of a sentence and a tag for each."""
        return [
            Field("tokens", Kind.TOKENS, help="the words, or a text that is divided into them"),
            Field("predicate", Kind.INTEGERS, required=False, help="positions (from 0) of the words the roles are of"),
            Field("tags", Kind.TAGS, target=True, help="a tag a word: BIO, IOB1, BIOES, BILOU, or plain"),
        ]

    def validate(self) -> None:
        """Refuse doubled types."""
        super().validate()
        if len(set(self.types)) < len(self.types):
            raise UserError(f"task.types must be different names, got {self.types}")

    def prepare(self, train: Iterable[Example]) -> None:
        """Take types, and whether they are of spans, from the training data unless they are given."""
        from gptask_tasks.token_tagging.spans import are_plain

        if self.types and self.plain is not None:
            return
        tags = {tag: example["id"] for example in train for tag in example["tags"]}  # and where each is found
        if self.plain is None:
            self.plain = are_plain(tags)
        if not self.types:
            self.types = sorted(tags if self.plain else {_type(tag, place) for tag, place in tags.items()} - {""})
        if not self.types:
            raise DataError("training data marks no span: every tag is O")

    def check(self, example: Example) -> None:
        """Refuse a predicate outside its sentence, and a type outside the set where that is known."""
        self._predicate(example)
        if self.types and self.plain is not None:
            self._numbers(example["tags"])

    def _predicate(self, example: Example) -> list[int]:
        """Positions of the words that the roles are of."""
        words, places = len(example["tokens"]), example.get("predicate") or []
        if wrong := [place for place in places if not 0 <= place < words]:
            raise DataError(f"predicate {wrong[0]} is no position of its {words} tokens; they count from 0")
        return places

    @property
    def tags(self) -> list[str]:
        """What the head tells apart."""
        return list(self.types) if self.plain else ["O", *(f"{p}-{name}" for name in self.types for p in "BI")]

    def _numbers(self, tags: Sequence[str]) -> list[int]:
        """Tags as numbers of `tags`, however the file writes spans."""
        from gptask_tasks.token_tagging.spans import bio, spans

        found = spans(tags, bool(self.plain))
        if unknown := sorted({span.type for span in found} - set(self.types)):
            raise DataError(
                f"'{unknown[0]}' is not among the training data's types, {listing(self.types)}."
                f"{nearest(unknown[0], self.types)} task.types can name more, to have them counted"
            )
        known = {name: number for number, name in enumerate(self.tags)}
        return [known[tag] for tag in (tags if self.plain else bio(found, len(tags)))]

    def render(self, example: Example) -> tuple[str, str | None]:
        """The words with spaces between them; there is no target text."""
        return " ".join(example["tokens"]), None

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """The sentence in as many windows as it needs, and the tags of the words that are each window's own."""
        from gptask_tasks.token_tagging.windows import pieces, windows

        parts = pieces(example["tokens"], self._predicate(example), tokenizer)
        before = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        found = windows(parts, before, 2 if self.context is Context.repeat else 1, max_tokens)
        if example.get("tags") is not None:
            numbers, own = self._numbers(example["tags"]), 0
            for window in found:
                first, stop = window.extra["first"], window.extra["stop"]
                rest = len(window.extra["ends"]) - stop
                window.label = [IGNORED] * first + numbers[own : own + stop - first] + [IGNORED] * rest
                own += stop - first
        return found

    def head(self, backbone: Backbone) -> Head:
        """A classifier of words."""
        from gptask_tasks.token_tagging.head import BidirectionalHead, TaggingHead

        cls = BidirectionalHead if self.context is Context.bidirectional else TaggingHead
        return cls(backbone.channels, len(self.tags))

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """The spans (of plain tags, every word) of the likeliest sound tags, each with the probability of its tags."""
        import numpy as np

        from gptask_tasks.token_tagging.spans import decode, spans

        scores = np.array([row for rows in outputs for row in rows])  # (N, K)
        path = scores.argmax(1) if self.plain else decode(scores, self.tags)
        chosen = scores[np.arange(len(scores)), path]
        found = spans([self.tags[number] for number in path], bool(self.plain))
        value = [
            span._asdict()
            | {"text": joined(example["tokens"][span.start : span.end])}
            | {"score": round(float(np.exp(chosen[span.start : span.end].sum())), 4)}
            for span in found
        ]
        return Prediction(value, float(np.exp(chosen).mean()))

    def metrics(self) -> list[Metric]:
        """F1 of spans first; accuracy first for plain tags."""
        from gptask_tasks.token_tagging.metrics import Macro, Micro, TagAccuracy

        accuracy, macro = TagAccuracy(bool(self.plain)), Macro("f1_macro", self.types, bool(self.plain))
        if self.plain:
            return [accuracy, macro]
        return [*(Micro(name, self.types, False) for name in ("f1", "precision", "recall")), macro, accuracy]

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Scores of each type."""
        from gptask_tasks.token_tagging.metrics import per_type

        return {"per_type": per_type(self.types, bool(self.plain), predictions, examples)}

    def sample(self) -> dict[str, Any]:
        """Short news sentences with persons, places, organizations and dates, in English and Chinese."""
        return sample("token_tagging", "conll")


def _type(tag: str, place: str) -> str:
    from gptask_tasks.token_tagging.spans import split

    try:
        return split(tag)[1]
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def joined(words: Sequence[str]) -> str:
    """Words as a text: no spaces between Chinese characters."""
    text = words[0]
    for word in words[1:]:
        text += word if is_wide(text[-1]) or is_wide(word[0]) else f" {word}"
    return text
