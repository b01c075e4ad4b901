"""The values that pass between a task, its data, its head and its metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

IGNORED = -100  # stands in a list of labels where there is none, as in torch's cross-entropy
Example = dict[str, Any]


class Kind(Enum):
    """What a field of an example holds; readers check and convert by it."""

    TEXT = "text"
    TEXTS = "texts"  # one text or several equally good ones (references)
    LABEL = "label"
    LABELS = "labels"  # any number of labels, none included
    INTEGERS = "integers"
    NUMBER = "number"  # finite
    MESSAGES = "messages"  # the turns of a conversation, each {"role": system | user | assistant, "content": text}
    TOKENS = "tokens"  # a text as its words
    TAGS = "tags"  # a label for each word: as many as there are TOKENS


@dataclass(frozen=True)
class Field:
    """One part of an example.

    ``target``: what the model is to predict, so absent from prediction input. ``blank``: a required text may be
    empty (a question without answer). ``truncate``: may be shortened when the prompt is too long. ``group``: examples
    that share its value stay in one split (a context with many questions).
    """

    name: str
    kind: Kind = Kind.TEXT
    required: bool = True
    target: bool = False
    blank: bool = False
    truncate: bool = False
    group: bool = False
    help: str = ""


@dataclass
class Encoded:
    """One model input.

    ``ids`` are the prompt's token ids; ``target`` the token ids to be generated (without EOS, the data module adds
    it) or None; ``learned`` the spans (start, end) of ``ids`` that are learned like a target (a conversation's earlier
    answers); ``label`` a number or a list of numbers for heads that classify or score (lists of whole numbers may
    differ in length, and `IGNORED` in them is no label); ``extra`` whatever the head or `Task.prediction` needs besides
    (numbers or lists of numbers); ``truncated`` the tokens cut off.
    """

    ids: list[int]
    target: list[int] | None = None
    label: int | float | list[int] | list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0
    learned: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Prediction:
    """What a task says about one example: a value a user reads, its score in [0, 1] where there is one.

    ``samples`` are all the values drawn, where there are several; ``extra`` is what else is written beside it, as JSON.
    """

    value: Any
    score: float | None = None
    probabilities: dict[str, float] | None = None
    samples: list[Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
