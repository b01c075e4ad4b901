"""The plugin contract: a task is one dataclass whose fields are its options and whose methods build its parts.

This module does not import torch, and a task's module should not either (its methods import it).

The names in ``__all__`` are stable: a minor version of the contract only adds parts that have a default. A plugin
states the version it is made for, ``contract_version = "1.0"``; docs/plugins.md has the rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gptask.config.option import option
from gptask.config.schemas import Documents
from gptask.errors import DataError, UserError
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.plugins.truncation import longest_prefix
from gptask.plugins.types import Encoded, Example, Field, Prediction

if TYPE_CHECKING:
    from gptask.plugins.metric import Metric
    from gptask.plugins.protocols import Backbone, Corpus, TaskHead

__all__ = ["CONTRACT_VERSION", "Encoded", "Example", "Field", "Prediction", "Task", "most_frequent", "option"]
CONTRACT_VERSION = "1.0"


@dataclass
class Task(ABC):
    """The fields are the options that a user sets on the command line; the methods build the parts of a run.

    The docstring of a subclass is its help text: the first line describes the task in `gptask tasks`, and each option's
    ``metadata={"help": ...}`` describes the option.
    """

    contract_version: ClassVar[str] = CONTRACT_VERSION  # a plugin states the version it is made for
    demonstrations: ClassVar[str] = ""  # solved examples before every prompt (`evaluate shots=k` sets it on a copy)
    supervised: ClassVar[bool] = True  # False: no field is a target, the model learns the inputs
    documents: ClassVar[Documents] = Documents.line  # how plain text files split into examples
    examples_per_step: ClassVar[int] = 16  # least number of examples in an optimizer step
    baseline_name: ClassVar[str] = "baseline"  # what `baseline_prediction` predicts, in a word or two

    @abstractmethod
    def fields(self) -> list[Field]:
        """List the fields of an example, which determine reading, column mapping, checks and prediction input."""

    @abstractmethod
    def render(self, example: Example) -> tuple[str, str | None]:
        """Return an example's prompt and, for tasks that generate, the target text (None if unknown)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> TaskHead:
        """Build the head, which turns hidden states into a loss and into outputs."""

    def score_names(self) -> list[str] | None:
        """Return the names of the classes or tags that the head scores, in its order; None: they have numbers only."""
        return None

    @abstractmethod
    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Turn the head's outputs, one for each `Encoded` of an example, into the prediction."""

    @abstractmethod
    def metrics(self) -> list[Metric]:
        """List the metrics; the first one selects the checkpoint and controls early stopping."""

    @abstractmethod
    def sample(self) -> dict[str, Any]:
        """Return the location of the bundled sample as options of ``data=files`` (``train``, ``validation``, ...)."""

    def validate(self) -> None:  # noqa: B027 (a hook, not an oversight)
        """Raise `UserError` for invalid options that their types allow; called before anything is loaded."""

    def prepare(self, train: Iterable[Example]) -> dict[str, Any]:
        """Return values of options that depend on all training data (such as a label set), before anything is encoded.

        The task stays as it is: the run goes on with a copy of it that has these values.
        """
        return {}

    def convert_row(self, row: Any) -> Any:
        """Turn a row (named cells, cells by position or a line of text) into cells named like the fields.

        This serves data that is not published as columns; cells that ``data.columns`` maps have their field's name.
        Raises `DataError` for a row it can't use; the reader adds file and line.
        """
        return row

    def check(self, example: Example) -> None:  # noqa: B027
        """Raise `DataError` for an example that a run can't use; the reader adds file and line to the message."""

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Clean the examples that passed `check`, and drop those that a model should not learn from.

        Called once with all rows of a file, in order; in prediction once for each example, with ``train=False`` and
        None for its targets. Only training data (from which missing splits are cut) may lose
        examples; a test set must keep them all, so that scores stay comparable. ``counts`` collects how often each kind
        of change was made, for the log.
        """
        return iter(examples)

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded | list[Encoded]:
        """Turn one example into prompt and target token ids, or into several `Encoded` if its text is cut into windows.

        The default renders the example, tokenizes prompt and target separately (as at prediction), and shortens the
        fields marked ``truncate`` until prompt + target + EOS fit in ``max_tokens``. The target is never shortened.
        """
        _, target_text = self.render(example)
        target = tokenizer(target_text, add_special_tokens=False)["input_ids"] if target_text is not None else None
        room = max_tokens - max(len(target or []) + 1, self.reserved_tokens())
        ids, truncated = self.truncate_prompt(example, tokenizer, room)
        return Encoded(ids, target=target, truncated=truncated)

    def demonstrate(self, example: Example) -> str:
        """Return a solved example as text, to stand before prompts (``shots=k``).

        Raises `UserError` if the task has no target text.
        """
        prompt, target = self.render(example)
        if target is None:
            raise UserError("this task has no target text to demonstrate; use shots=0")
        return prompt + target

    def reserved_tokens(self) -> int:
        """Return how many tokens after a prompt are reserved for the text that the head generates."""
        return 0

    def truncate_prompt(self, example: Example, tokenizer: Any, room: int) -> tuple[list[int], int]:
        """Tokenize the prompt, shortening its ``truncate`` fields until ``room`` tokens hold it.

        Returns the prompt's ids and the number of tokens cut. Raises `DataError` if the prompt does not fit.
        """
        ids = self._prompt_ids(example, tokenizer)
        length, example = len(ids), dict(example)
        for name in self.truncation_order():
            if len(ids) <= room or not example[name]:
                continue
            tried: dict[str, list[int]] = {}  # prompts by the text they hold

            def surplus(text: str, name: str = name, tried: dict[str, list[int]] = tried) -> int:
                tried[text] = self._prompt_ids(example | {name: text}, tokenizer)
                return len(tried[text]) - room

            encoding = tokenizer(example[name], add_special_tokens=False, return_offsets_mapping=True)
            example[name] = longest_prefix(example[name], encoding["offset_mapping"], len(ids) - room, surplus)
            ids = tried.get(example[name]) or self._prompt_ids(example, tokenizer)
        if len(ids) > room:
            shorter_text = ", or lower task.generation.max_new_tokens" if self.reserved_tokens() else ""
            raise DataError(
                f"the prompt alone needs {len(ids)} tokens and {room} are left for it: "
                f"raise data.max_tokens or shorten the prompt{shorter_text}"
            )
        return ids, length - len(ids)

    def truncation_order(self) -> list[str]:
        """Return the text inputs that may be shortened when a prompt is too long, in the order in which they are."""
        return [f.name for f in self.inputs() if f.truncate]

    def _prompt_ids(self, example: Example, tokenizer: Any) -> list[int]:
        ids = text_tokenizer(tokenizer).encode_template(lambda e: self.demonstrations + self.render(e)[0], example)
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:  # some tokenizers append EOS, but a prompt continues
            ids = ids[:-1]
        return ids

    def datamodule(self, corpus: Corpus, tokenizer: Any, options: Any, seed: int) -> Any:
        """Build the task's own data module; None selects gptask's, which encodes, caches and batches by length."""
        return None

    def annotate_predictions(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> Sequence[Prediction]:
        """Annotate all predictions of a test set before they are scored (not in validation, nor in `predict`).

        A task can query another model here, for its ``final`` metrics; the answers belong in `Prediction.extra`.
        """
        return predictions

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction | None:
        """Predict an example without a model; the run's main metric is shown beside that of these predictions.

        ``train`` are the training examples, the same object for every example (`most_frequent` counts them once). None:
        the task has no such baseline.
        """
        return None

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Return results for metrics.json beyond the metrics, such as per-class scores or a confusion matrix."""
        return {}

    def tune_on_validation(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Any]:
        """Choose values for unset options (such as a threshold) from the validation split's predictions.

        A copy of the task with these values predicts from then on; they are stored with the checkpoint, and saved with
        the run. Each validation chooses anew, on the task as it was configured.
        """
        return {}

    def save_assets(self, folder: Path) -> None:  # noqa: B027
        """Write the task's own files beside the run's model, such as a gazetteer or a label tree; default: none.

        ``folder`` is empty, and is removed again if it stays so. Encoded data are cached by the options, and `compare`
        reads stored statistics, so neither `encode` nor `metrics` may depend on what only these files hold.
        """

    def load_assets(self, folder: Path) -> None:  # noqa: B027
        """Read what `save_assets` wrote; called when a run is loaded, before `head`, if the run has such files."""

    def inputs(self) -> list[Field]:
        """Return the fields that a prediction needs."""
        return [f for f in self.fields() if not f.target]

    def targets(self) -> list[Field]:
        """Return the fields that a prediction is compared with."""
        return [f for f in self.fields() if f.target]


def most_frequent(train: Sequence[Example], field: str) -> Any:
    """Return the most frequent value of a field, or member where its values are lists; of equal ones the first seen.

    It is counted once for the same ``train``.
    """
    if not _counted or _counted[0] is not train:
        _counted[:] = [train, {}]
    if field not in _counted[1]:
        values = (example[field] for example in train)
        members = (member for value in values for member in (value if isinstance(value, list) else [value]))
        _counted[1][field] = Counter(members).most_common(1)[0][0]
    return _counted[1][field]


_counted: list[Any] = []  # the examples that `most_frequent` counted last, and the most frequent values of their fields


def with_options(task: Task, values: dict[str, Any]) -> Any:
    """Return a copy of a task with other values of some options.

    What else its hooks have put on it comes along (such as words that `Task.prepare` collects for `Task.save_assets`),
    but for cached properties, which may follow from the options.
    """
    copy = replace(task, **values)
    options, derived = {f.name for f in fields(task)}, {*vars(copy)}
    for name, value in vars(task).items():
        if name not in options | derived and not isinstance(getattr(type(task), name, None), cached_property):
            setattr(copy, name, value)
    return copy
