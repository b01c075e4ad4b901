"""The values that a task, its data, its head and its metrics exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

IGNORED = -100  # marks a missing label in a list of labels, as in torch's cross-entropy
CORE_COLUMNS = {"id", "digest", "group"}  # columns that core adds to a task's fields
# columns that predictions.jsonl has besides them
PREDICTION_COLUMNS = {"references", "prediction", "score", "samples", "probabilities", "extra", "statistics"}
Example = dict[str, Any]


class Kind(Enum):
    """What a field of an example holds; readers check and convert cells accordingly."""

    TEXT = "text"
    TEXTS = "texts"  # one text, or several equally good ones (references)
    LABEL = "label"
    LABELS = "labels"  # any number of labels, none included
    INTEGERS = "integers"
    NUMBER = "number"  # finite
    # the turns of a conversation, each {"role": system | user | assistant, "content": text}; an answer that is not
    # learned has {"weight": "0"} too
    MESSAGES = "messages"
    TOKENS = "tokens"  # the words of a text
    TAGS = "tags"  # one label for each word of TOKENS


@dataclass(frozen=True)
class Field:
    """One part of an example.

    ``target``: the model predicts this field, so prediction input lacks it. ``blank``: a required text may be empty (a
    question without answer). ``truncate``: the text may be shortened when the prompt is too long. ``group``: examples
    that share the field's value stay in one split (such as the questions on one context).
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

    ``ids`` are the prompt's token ids; ``target`` the token ids to generate (without EOS, which the data module adds)
    or None; ``learned`` the spans (start, end) of ``ids`` that are learned like a target (a conversation's earlier
    answers); ``label`` a number or a list of numbers for heads that classify or score (lists of integers may differ in
    length, and `IGNORED` in them marks a missing label); ``extra`` whatever else the head or `Task.prediction` needs
    (numbers or lists of numbers); ``truncated`` the number of tokens cut off.
    """

    ids: list[int]
    target: list[int] | None = None
    label: int | float | list[int] | list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0
    learned: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Prediction:
    """A task's prediction for one example: the value that a user reads and, if there is one, its score in [0, 1].

    ``samples`` are all the values drawn, if there are several; ``extra`` is written beside the value, as JSON.
    """

    value: Any
    score: float | None = None
    probabilities: dict[str, float] | None = None
    samples: list[Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
