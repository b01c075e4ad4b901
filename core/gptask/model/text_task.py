"""Base classes of tasks that answer in text: a prompt, a target, decoding."""

from __future__ import annotations

import string
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from gptask.data.words import is_blank, is_unspaced
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.task import Task, option
from gptask.plugins.types import CORE_COLUMNS, PREDICTION_COLUMNS, Example, Field, Kind, Prediction

if TYPE_CHECKING:
    from gptask.model.heads import Head
    from gptask.plugins.protocols import Backbone


def is_wide(character: str) -> bool:
    """Return whether a character has no space beside it: one of a script without spaces, or full-width punctuation.

    Such scripts are Chinese, Japanese, Thai and others; Korean has spaces.
    """
    is_korean = unicodedata.name(character, "").startswith("HANGUL")
    return is_unspaced(character) or (unicodedata.east_asian_width(character) in "WF" and not is_korean)


class PromptFormatter(string.Formatter):
    """Takes every placeholder as one name: ``{meta.title}`` is a column of that path, not an attribute of ``meta``.

    It raises ``ValueError`` for a format or a conversion behind a name: ``{text:>1000000000}`` would fill the memory.
    """

    def parse(self, format_string: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
        """Yield each literal text with the name behind it."""
        for literal, name, specification, conversion in super().parse(format_string):
            if specification or conversion:
                rest = f"!{conversion}" if conversion else f":{specification}"
                raise ValueError(f"'{{{name}{rest}}}' has a format behind its name, which prompts don't take")
            yield literal, name, specification, conversion

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Any) -> tuple[Any, str]:
        """Return the value of a name."""
        return kwargs[field_name], field_name


@lru_cache(256)
def placeholder_names(template: str) -> tuple[str, ...]:
    """Return the names in the braces of a template, in the order in which they first occur.

    Raises ``ValueError`` for braces that don't match, and for a format behind a name.
    """
    return tuple(dict.fromkeys(name for _, name, _, _ in PromptFormatter().parse(template) if name is not None))


@dataclass
class PromptedTask(Task):
    """A task with a prompt: the preset of a language, or the user's own template.

    A name in the user's template that is no field of the task is a column of the data: a required text input.
    """

    PROMPTS: ClassVar[dict[str, str]] = {}

    language: str = option("en", "language of the preset prompt: en or zh")
    prompt: str | None = option(
        None, "prompt with {field} or {column of the data} as placeholders; null takes the preset of task.language"
    )

    def validate(self) -> None:
        """Raise `UserError` for a language without a preset prompt, or a template without a usable placeholder."""
        super().validate()
        if self.language not in self.PROMPTS:
            raise UserError(
                f"task.language='{self.language}' has no preset prompt; there are {listing(self.PROMPTS)} "
                "(task.prompt=... with language=en takes any)"
            )
        try:
            names = placeholder_names(self.template)
        except ValueError as error:
            raise UserError(
                f"task.prompt {self.prompt!r} is no template: {error}. A placeholder is a name in braces; write "
                "{{ }} for literal ones"
            ) from error
        for name in names:
            self._check_placeholder(name)
        if not self.shown_inputs(self.template):
            first = next(f.name for f in self.fields() if not f.target)
            raise UserError(f"task.prompt {self.template!r} uses no field; put {{{first}}} into it")

    def _check_placeholder(self, name: str) -> None:
        """Raise `UserError` for a placeholder that names neither an input nor a possible column."""
        inputs = {f.name for f in self.fields() if not f.target}
        known_names = inputs | set(self.placeholders({}))
        if name in known_names:
            return
        if any(f.name == name for f in self.targets()):
            raise UserError(
                f"task.prompt names {{{name}}}, which is what the model has to predict: take it out. "
                f"The task's inputs are {listing(sorted(known_names))}"
            )
        if self.prompt is None:
            raise UserError(
                f"the preset prompt of {type(self).__name__} names {{{name}}}; the task's fields are "
                f"{listing(sorted(known_names))}.{nearest(name, known_names)}"
            )
        if not name.strip() or name.isdigit() or name in CORE_COLUMNS | PREDICTION_COLUMNS:
            cause = "a name that gptask's own files use" if name.isidentifier() else "which is no name"
            raise UserError(
                f"task.prompt holds {{{name}}}, {cause}: write {{my_column}} and data.columns.my_column="
                f"{name.strip() or '<column>'}. Write {{{{ }}}} for literal braces."
            )

    def inputs(self) -> list[Field]:
        """Return the fields that a prediction needs: the task's own, and the columns that the user's prompt names.

        A text of the task is left out if the user's prompt does not name it and `needed_inputs` does not either.
        """
        own_inputs = super().inputs()
        if self.prompt is None:
            return own_inputs
        shown = self.shown_inputs(self.template)
        needed = {*shown, *self.needed_inputs()}
        kept = [f for f in own_inputs if f.name in needed or f.kind not in (Kind.TEXT, Kind.TEXTS)]
        columns = (name for name in shown if name not in {f.name for f in self.fields()})
        return [*kept, *(Field(name, truncate=True, help="a column that task.prompt names") for name in columns)]

    def shown_inputs(self, template: str) -> list[str]:
        """Return the fields and columns that a template shows, in the order in which they first occur."""
        others = self.placeholders({})
        return [name for name in placeholder_names(template) if name not in others]

    def needed_inputs(self) -> set[str]:
        """Return the names of inputs that are read even if the user's prompt does not name them.

        The default has the fields that form a group, and those that the preset prompt does not name either.
        """
        shown = self.shown_inputs(self.PROMPTS.get(self.language, ""))
        return {f.name for f in self.fields() if not f.target and (f.group or f.name not in shown)}

    def truncation_order(self) -> list[str]:
        """Return the text inputs that may be shortened, the last named in the prompt first."""
        position = {name: number for number, name in enumerate(self.shown_inputs(self.template))}
        return sorted(super().truncation_order(), key=lambda name: -position.get(name, -1))

    @property
    def template(self) -> str:
        r"""The prompt template that is used; a literal ``\n``, as a shell passes it, is a line break."""
        return (self.prompt or self.PROMPTS[self.language]).replace("\\n", "\n")

    def placeholders(self, example: Example) -> dict[str, str]:
        """Return values for placeholders other than the fields."""
        return {}

    def format_prompt(self, example: Example) -> str:
        """Return the prompt of an example."""
        return self.fill_template(self.template, example)

    def fill_template(self, template: str, example: Example) -> str:
        """Return a template with the values of an example in place of its placeholders."""
        values = {f.name: "" if example.get(f.name) is None else example[f.name] for f in self.inputs()}
        return PromptFormatter().vformat(template, (), values | self.placeholders(example))


@dataclass
class WritingTask(Task):
    """A task whose head is the language model itself; it predicts texts."""

    baseline_name: ClassVar[str] = "empty text"

    generation: GenerationOptions = option(GenerationOptions, "how text is decoded")

    def validate(self) -> None:
        """Raise `UserError` for options out of range."""
        super().validate()
        self.generation.validate()

    def reserved_tokens(self) -> int:
        """Return the number of tokens that the generated text may take."""
        return self.generation.limit

    def head(self, backbone: Backbone) -> Head:
        """Return a head that is the language model itself."""
        from gptask.model.heads import GenerationHead

        return GenerationHead(backbone, self.generation)

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction | None:
        """Return an empty text."""
        return Prediction("")

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return the generated text, the mean probability of its tokens as its score, and all sampled texts."""
        (generated,) = outputs
        samples = None if generated.samples is None else [text.strip() for text in generated.samples]
        return Prediction(generated.text.strip(), generated.score, samples=samples)


@dataclass
class GenerativeTask(PromptedTask, WritingTask):
    """A task that answers a prompt in text; subclasses define the fields, the target and the metrics."""

    @abstractmethod
    def target(self, example: Example) -> str | None:
        """Return the text to learn, None if the example has none."""

    def check(self, example: Example) -> None:
        """Raise `DataError` for an empty target: learning it would teach the model to answer nothing."""
        super().check(example)
        if is_blank(self.target(example) or ""):
            raise DataError(f"the {listing(f.name for f in self.targets() if f.required)} is empty")

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the prompt, and the target with a space in front where one is written between the two."""
        prompt, target = self.format_prompt(example), self.target(example)
        if target is None:
            return prompt, None
        target = target.strip()
        seam = prompt[-1:] + target[:1]
        needs_no_space = seam[:1].isspace() or any(is_wide(character) for character in seam)
        return prompt, target if needs_no_space else f" {target}"
