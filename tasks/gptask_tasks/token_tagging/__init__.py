"""Tagging words: named entities, semantic roles, parts of speech."""

from __future__ import annotations

from collections import Counter
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
    most_frequent,
    nearest,
    option,
)

from gptask_tasks import sample

if TYPE_CHECKING:
    from gptask import Backbone, Head


class Context(Enum):
    """How a word's state comes to know what stands to its right, which a causal model has not read there."""

    none = "none"
    repeat = "repeat"
    bidirectional = "bidirectional"


MIN_ONE_WORD_ROWS = 10  # so many sentences of one word each, and no others, are words


@dataclass
class TokenTagging(Task):
    """Tag each word of a sentence: named entities, semantic roles (of a predicate), parts of speech."""

    contract_version = "1.0"
    baseline_name = "most frequent tag"

    types: list[str] = option(list, "types of spans, or plain tags, in order; empty takes the training data's, sorted")
    plain: bool | None = option(None, "tags mark no spans (parts of speech); null: unless training tags have B or I")
    context: Context = option(
        Context.bidirectional,
        "how a word sees what follows: none; repeat: the sentence is read twice; bidirectional: by a thin LSTM on top",
    )

    def fields(self) -> list[Field]:
        """Return the words of a sentence and a tag for each."""
        return [
            Field("tokens", Kind.TOKENS, help="the words, or a text that is split into words"),
            Field("predicate", Kind.INTEGERS, required=False, help="positions (from 0) of words whose roles are given"),
            Field("tags", Kind.TAGS, target=True, help="a tag a word: BIO, IOB1, BIOES, BILOU, or plain"),
        ]

    def validate(self) -> None:
        """Refuse repeated types."""
        super().validate()
        if len(set(self.types)) < len(self.types):
            raise UserError(f"task.types must be different names, got {self.types}")

    def prepare(self, train: Iterable[Example]) -> dict[str, Any]:
        """Take the types, and whether tags are plain, from the training data unless they are given."""
        from gptask_tasks.token_tagging.spans import OUTSIDE, are_plain, refuse_foreign_tags

        if self.types and self.plain is not None:
            return {}
        tags: dict[str, str] = {}  # with the file and line of each
        lengths: Counter[int] = Counter()
        for example in train:
            tags |= dict.fromkeys(example["tags"], example["id"])
            lengths[len(example["tags"])] += 1
        if lengths[1] >= MIN_ONE_WORD_ROWS and len(lengths) == 1:
            raise DataError(
                f"each of the {lengths[1]} rows of the training data has one token. If each row is a word, name the "
                "column that tells sentences apart, data.columns.sentence=<column>; tab-separated words with an empty "
                "line between sentences are data.format=conll"
            )
        plain = are_plain(tags) if self.plain is None else self.plain
        if plain and self.plain is None:
            refuse_foreign_tags(tags)
        types = self.types or sorted(tags if plain else _types_of(tags))
        if not types or types == [OUTSIDE]:
            raise DataError("training data marks no span: every tag is O")
        return {"types": types, "plain": plain}

    def check(self, example: Example) -> None:
        """Refuse a predicate outside its sentence, and a type outside the set where that is known."""
        self._predicate_positions(example)
        if self.types and self.plain is not None:
            self._tag_indices(example["tags"])

    def _predicate_positions(self, example: Example) -> list[int]:
        """Return the positions of the words whose roles are tagged."""
        words, positions = len(example["tokens"]), example.get("predicate") or []
        if outside := [position for position in positions if not 0 <= position < words]:
            raise DataError(
                f"predicate {outside[0]} is no position of its {words} tokens; they count from 0", "predicate"
            )
        return positions

    @property
    def tags(self) -> list[str]:
        """The tags that the head predicts: plain ones, or BIO."""
        if self.plain:
            return list(self.types)
        return ["O", *(f"{prefix}-{name}" for name in self.types for prefix in "BI")]

    def _tag_indices(self, tags: Sequence[str]) -> list[int]:
        """Return tags of any scheme as indices into `tags`."""
        from gptask_tasks.token_tagging.spans import ONLY_TYPE, bio, spans

        marked = spans(tags, bool(self.plain))
        if unknown := sorted({span.type for span in marked} - set(self.types)):
            if unknown[0] == ONLY_TYPE:
                raise DataError(
                    f"tag '{tags[marked[0].start]}' has no type; data.labels maps it: B to B-{self.types[0]}"
                )
            raise DataError(
                f"'{unknown[0]}' is not among the training data's types, {listing(self.types)}."
                f"{nearest(unknown[0], self.types)} Name it in task.types to have it counted"
            )
        indices = {name: index for index, name in enumerate(self.tags)}
        return [indices[tag] for tag in (tags if self.plain else bio(marked, len(tags)))]

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the words with spaces between them; there is no target text."""
        return " ".join(example["tokens"]), None

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """Return the sentence in as many windows as it needs, each with the tags of the words it predicts."""
        from gptask_tasks.token_tagging.windows import windows, word_ids

        words = word_ids(example["tokens"], self._predicate_positions(example), tokenizer)
        first_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        encoded = windows(words, first_id, 2 if self.context is Context.repeat else 1, max_tokens)
        if example.get("tags") is not None:
            indices = self._tag_indices(example["tags"])
            for window in encoded:
                first, stop = window.extra["first"], window.extra["stop"]
                labels, indices = indices[: stop - first], indices[stop - first :]
                window.label = [IGNORED] * first + labels + [IGNORED] * (len(window.extra["ends"]) - stop)
        return encoded

    def head(self, backbone: Backbone) -> Head:
        """Build a classifier of words."""
        from gptask_tasks.token_tagging.head import BidirectionalHead, TaggingHead

        cls = BidirectionalHead if self.context is Context.bidirectional else TaggingHead
        return cls(backbone, len(self.tags))

    def score_names(self) -> list[str]:
        """Return the tags."""
        return self.tags

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return the spans of the likeliest consistent tags (of plain tags, every word) with their probabilities."""
        import numpy as np

        from gptask_tasks.token_tagging.spans import decode_spans, spans

        scores = np.array([word for window in outputs for word in window])  # (N, K) log-probabilities
        path = scores.argmax(1) if self.plain else decode_spans(scores, self.tags)
        chosen = scores[np.arange(len(scores)), path]
        tags = [self.tags[index] for index in path]
        value = [
            span._asdict()
            | {"text": join_words(example["tokens"][span.start : span.end])}
            | {"score": round(float(np.exp(chosen[span.start : span.end].sum())), 4)}
            for span in spans(tags, bool(self.plain))
        ]
        return Prediction(value, float(np.exp(chosen).mean()))

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction:
        """Return the spans of a text in which every word has the most frequent tag."""
        from gptask_tasks.token_tagging.spans import spans

        tags = [most_frequent(train, "tags")] * len(example["tokens"])
        return Prediction([span._asdict() for span in spans(tags, bool(self.plain))])

    def metrics(self) -> list[Metric]:
        """List F1 of spans first; accuracy first for plain tags."""
        from gptask_tasks.token_tagging.metrics import MicroScore, TagAccuracy, TypeMacroF1

        accuracy, macro = TagAccuracy(bool(self.plain)), TypeMacroF1("f1_macro", self.types, bool(self.plain))
        if self.plain:
            return [accuracy, macro]
        return [*(MicroScore(name, self.types, False) for name in ("f1", "precision", "recall")), macro, accuracy]

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Return the scores of each type."""
        from gptask_tasks.token_tagging.metrics import per_type

        return {"per_type": per_type(self.types, bool(self.plain), predictions, examples)}

    def sample(self) -> dict[str, Any]:
        """Return the sample: news sentences with persons, places, organizations and dates, in English and Chinese."""
        return sample("token_tagging", "conll")


def _types_of(tags: dict[str, str]) -> set[str]:
    """Return the types of tags that mark spans; an error names the file and line that a tag comes from."""
    from gptask_tasks.token_tagging.spans import PREFIXES, are_bare, split_tag

    types = set()
    for tag, source in tags.items():
        try:
            types.add(split_tag(tag)[1])
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
    if not are_bare(tags) and (bare := sorted({*tags} & {*PREFIXES})):
        raise DataError(f"{tags[bare[0]]}: tag '{bare[0]}' has no type, but others have one; data.labels maps tags")
    return types - {""}


def join_words(words: Sequence[str]) -> str:
    """Join words to a text, without spaces between Chinese characters."""
    text = words[0]
    for word in words[1:]:
        text += word if is_wide(text[-1]) or is_wide(word[0]) else f" {word}"
    return text
