"""Base classes of tasks that answer in text: a prompt, a target, decoding."""

from __future__ import annotations

import string
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.task import Task, option
from gptask.plugins.types import Example, Prediction

if TYPE_CHECKING:
    from gptask.model.heads import Head
    from gptask.plugins.protocols import Backbone


def is_wide(character: str) -> bool:
    """Return whether a character is Chinese, Japanese, Korean or full-width punctuation: none has a space beside it."""
    return unicodedata.east_asian_width(character) in "WF"


@dataclass
class PromptedTask(Task):
    """A task with a prompt: the preset of a language, or the user's own template."""

    PROMPTS: ClassVar[dict[str, str]] = {}

    language: str = option("en", "language of the preset prompt and of text normalisation: en or zh")
    prompt: str | None = option(None, "prompt with {field} placeholders; null takes the preset of task.language")

    def validate(self) -> None:
        """Raise `UserError` for a language without a preset prompt, or a placeholder that is no field of the task."""
        super().validate()
        if self.language not in self.PROMPTS:
            raise UserError(
                f"task.language='{self.language}' has no preset prompt; there are {listing(self.PROMPTS)} "
                "(task.prompt=... with language=en takes any)"
            )
        fields = {f.name for f in self.inputs()}
        known_names = fields | set(self.placeholders({}))
        try:
            used_names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise UserError(f"task.prompt {self.template!r} is no template: {error}") from error
        for name in used_names:
            if name not in known_names:
                raise UserError(
                    f"task.prompt names {{{name}}}; the task's fields are {listing(sorted(known_names))}."
                    f"{nearest(name, known_names)} Write {{{{ }}}} for literal braces."
                )
        if not fields & set(used_names):
            raise UserError(f"task.prompt {self.template!r} uses no field; put {{{sorted(fields)[0]}}} into it")

    @property
    def template(self) -> str:
        r"""The prompt template that is used; a literal ``\n``, as a shell passes it, is a line break."""
        return (self.prompt or self.PROMPTS[self.language]).replace("\\n", "\n")

    def placeholders(self, example: Example) -> dict[str, str]:
        """Return values for placeholders other than the fields."""
        return {}

    def format_prompt(self, example: Example) -> str:
        """Return the prompt of an example."""
        values = {f.name: "" if example.get(f.name) is None else example[f.name] for f in self.inputs()}
        return self.template.format(**values, **self.placeholders(example))


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
        if not (self.target(example) or "").strip():
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
