"""The plugin contract: a task is one dataclass whose fields are its options and whose methods build its parts.

Nothing here imports torch, and a task's module should not either (import it inside the methods).

The names in ``__all__`` are stable: within a major version of the contract they only grow, by what has a default. A
plugin states the version it was made for, ``contract_version = "1.0"``; CONTRIBUTING.md has the rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from gptask.config.schemas import Documents
from gptask.errors import DataError, UserError
from gptask.plugins.types import Encoded, Example, Field, Prediction

if TYPE_CHECKING:
    from gptask.plugins.metric import Metric
    from gptask.plugins.protocols import Backbone, Corpus, TaskHead

__all__ = ["CONTRACT_VERSION", "Encoded", "Example", "Field", "Prediction", "Task", "option"]
CONTRACT_VERSION = "1.0"


@dataclass
class Task(ABC):
    """Fields are the options a user sets on the command line; methods build the parts of a run.

    Docstrings of subclasses are the help text: the first line describes the task in `gptask tasks`, and each option's
    ``metadata={"help": ...}`` describes the option.
    """

    contract_version: ClassVar[str] = CONTRACT_VERSION  # a plugin states the one it was made for
    demonstrations: ClassVar[str] = ""  # solved examples put before every prompt (`evaluate shots=k` sets it)
    supervised: ClassVar[bool] = True  # False: no field is a target, the inputs themselves are learned
    documents: ClassVar[Documents] = Documents.line  # what one example of a plain text file is
    examples_per_step: ClassVar[int] = 16  # at least, that a step of the optimizer learns from

    @abstractmethod
    def fields(self) -> list[Field]:
        """Say what an example consists of; drives reading, column mapping, checks and prediction input."""

    @abstractmethod
    def render(self, example: Example) -> tuple[str, str | None]:
        """Turn an example into the prompt and, for tasks that generate, the target text (None if unknown)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> TaskHead:
        """Build the part between hidden states and predictions."""

    @abstractmethod
    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Turn what the head said about each `Encoded` of an example into the prediction."""

    @abstractmethod
    def metrics(self) -> list[Metric]:
        """List the metrics; the first is the main one (checkpoint choice and early stopping)."""

    @abstractmethod
    def sample(self) -> dict[str, Any]:
        """Say where the bundled sample lies: options of ``data=files`` (``train``, ``validation``, ``test``, ...)."""

    def validate(self) -> None:  # noqa: B027 (a hook, not an oversight)
        """Raise `UserError` for options that types alone can't refuse; called before anything is loaded."""

    def prepare(self, train: Iterable[Example]) -> None:  # noqa: B027
        """Settle options that training data decides (a label set, say), from all of it, before anything is encoded."""

    def convert_row(self, row: Any) -> Any:
        """Turn a row (named cells, cells by position or a line of text) into cells named like the fields.

        For data that is published in other shapes than columns; what ``data.columns`` maps is under its field's name.
        Raises `DataError` for a row it can't use; the reader adds file and line.
        """
        return row

    def check(self, example: Example) -> None:  # noqa: B027
        """Raise `DataError` for an example that a run can't use; the reader adds file and line."""

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Clean examples that passed `check`, and leave out what a model should not learn from.

        Called once on all rows of a file, in order. Of ``train`` (from which splits that are not given are cut)
        examples may be left out; of a test set none, or its scores could not be compared. ``counts`` takes what was
        done and how often, for the log.
        """
        return iter(examples)

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded | list[Encoded]:
        """Turn one example into token ids: prompt, and target ids; several for a text cut into windows.

        The default renders, tokenizes prompt and target apart (as they are at prediction), and shortens the fields
        marked ``truncate`` until prompt + target + EOS fit in ``max_tokens``. The target is never shortened.
        """
        _, target_text = self.render(example)
        target = tokenizer(target_text, add_special_tokens=False)["input_ids"] if target_text is not None else None
        room = max_tokens - max(len(target or []) + 1, self.reserved_tokens())
        ids, cut = self.truncate_prompt(example, tokenizer, room)
        return Encoded(ids, target=target, truncated=cut)

    def demonstrate(self, example: Example) -> str:
        """A solved example as text, to be put before prompts (``shots=k``)."""
        prompt, target = self.render(example)
        if target is None:
            raise UserError("this task has no target text to demonstrate; use shots=0")
        return prompt + target

    def reserved_tokens(self) -> int:
        """Tokens kept free behind a prompt for what the head generates."""
        return 0

    def truncate_prompt(self, example: Example, tokenizer: Any, room: int) -> tuple[list[int], int]:
        """Tokenize the prompt, shortening its ``truncate`` fields to ``room`` tokens; return ids and tokens cut."""
        ids = self._prompt_ids(example, tokenizer)
        over, example = len(ids) - room, dict(example)
        for name in [f.name for f in self.fields() if f.truncate and not f.target]:
            for _ in range(4):  # merging tokens at the seam may leave one or two too many
                excess = len(ids) - room
                if excess <= 0 or not example[name]:
                    break
                spans = tokenizer(example[name], add_special_tokens=False, return_offsets_mapping=True)
                offsets = spans["offset_mapping"]
                keep = max(len(offsets) - excess, 0)
                example[name] = example[name][: offsets[keep - 1][1]] if keep else ""
                ids = self._prompt_ids(example, tokenizer)
        if len(ids) > room:
            raise DataError(
                f"the prompt alone needs {len(ids)} tokens and {room} are left for it: "
                "raise data.max_tokens, or shorten the prompt or task.generation.max_new_tokens"
            )
        return ids, max(over, 0)

    def _prompt_ids(self, example: Example, tokenizer: Any) -> list[int]:
        ids = tokenizer(self.demonstrations + self.render(example)[0])["input_ids"]
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close what is to be continued
            ids = ids[:-1]
        return ids

    def datamodule(self, corpus: Corpus, tokenizer: Any, options: Any, seed: int) -> Any:
        """Build a data module of the task's own; None takes core's, which encodes, caches and batches by length."""
        return None

    def annotate_predictions(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> Sequence[Prediction]:
        """Look at all predictions of a test together before they are scored (not in validation, nor in `predict`).

        The place to ask another model, for metrics that are ``final``; what it says stands in `Prediction.extra`.
        """
        return predictions

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Say more than the metrics do (per-class scores, a confusion matrix); goes into metrics.json."""
        return {}

    def tune_on_validation(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Choose values for options that were left open (a threshold, say) by the validation split's predictions.

        They are set as options before that split is scored, kept with its checkpoint, and saved with the run.
        """
        return {}

    def inputs(self) -> list[Field]:
        """The fields a prediction needs."""
        return [f for f in self.fields() if not f.target]

    def targets(self) -> list[Field]:
        """The fields a prediction is compared with."""
        return [f for f in self.fields() if f.target]


def option(default: Any, help: str) -> Any:
    """Declare a task option: its default (a class or function makes a fresh one each time) and its help line."""
    if callable(default) and not isinstance(default, Enum):
        return field(default_factory=default, metadata={"help": help})
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})
