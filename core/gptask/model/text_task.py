"""The base of tasks that answer in text: a prompt, a target, decoding."""

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
    """Whether a character is Chinese, Japanese or Korean, or full-width punctuation (no spaces are written there)."""
    return unicodedata.east_asian_width(character) in "WF"


@dataclass
class PromptedTask(Task):
    """A task with a prompt: a preset chosen by language, or the user's own template."""

    PROMPTS: ClassVar[dict[str, str]] = {}

    language: str = option("en", "language of the preset prompt and of text normalisation: en or zh")
    prompt: str | None = option(None, "prompt with {field} placeholders; null takes the preset of task.language")

    def validate(self) -> None:
        """Refuse a language without preset, and placeholders that are no field of the task."""
        super().validate()
        if self.language not in self.PROMPTS:
            raise UserError(
                f"task.language='{self.language}' has no preset prompt; there are {listing(self.PROMPTS)} "
                "(task.prompt=... with language=en takes any)"
            )
        fields = {f.name for f in self.inputs()}
        names = fields | set(self.placeholders({}))
        try:
            used = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise UserError(f"task.prompt {self.template!r} is no template: {error}") from error
        for name in used:
            if name not in names:
                raise UserError(
                    f"task.prompt names {{{name}}}; the task's fields are {listing(sorted(names))}."
                    f"{nearest(name, names)} Write {{{{ }}}} for literal braces."
                )
        if not fields & set(used):
            raise UserError(f"task.prompt {self.template!r} uses no field; put {{{sorted(fields)[0]}}} into it")

    @property
    def template(self) -> str:
        r"""The prompt in force; a literal ``\n`` from a shell is a line break."""
        return (self.prompt or self.PROMPTS[self.language]).replace("\\n", "\n")

    def placeholders(self, example: Example) -> dict[str, str]:
        """Values for placeholders besides the fields."""
        return {}

    def format_prompt(self, example: Example) -> str:
        """The prompt of an example."""
        values = {f.name: "" if example.get(f.name) is None else example[f.name] for f in self.inputs()}
        return self.template.format(**values, **self.placeholders(example))


@dataclass
class WritingTask(Task):
    """A task whose head is the language model itself, so that its predictions are texts."""

    generation: GenerationOptions = option(GenerationOptions, "how text is decoded")

    def validate(self) -> None:
        """Refuse options out of range."""
        super().validate()
        self.generation.validate()

    def reserved_tokens(self) -> int:
        """Room for what is generated."""
        return self.generation.limit

    def head(self, backbone: Backbone) -> Head:
        """The language model itself."""
        from gptask.model.heads import GenerationHead

        return GenerationHead(backbone, self.generation)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """The generated text, with the mean probability of its tokens as score, and all that were drawn."""
        (said,) = outputs
        samples = None if said.samples is None else [text.strip() for text in said.samples]
        return Prediction(said.text.strip(), said.score, samples=samples)


@dataclass
class GenerativeTask(PromptedTask, WritingTask):
    """A task that answers in text behind a prompt; subclasses say the fields, the target and the metrics."""

    @abstractmethod
    def target(self, example: Example) -> str | None:
        """The text to be learned, None where the example has none."""

    def check(self, example: Example) -> None:
        """Refuse an example without a text to learn: an empty target would teach to say nothing."""
        super().check(example)
        if not (self.target(example) or "").strip():
            raise DataError(f"the {listing(f.name for f in self.targets() if f.required)} is empty")

    def render(self, example: Example) -> tuple[str, str | None]:
        """The prompt, and the target behind a space where one would be written there."""
        prompt, target = self.format_prompt(example), self.target(example)
        if target is None:
            return prompt, None
        target = target.strip()
        seam = prompt[-1:] + target[:1]
        return prompt, target if seam[:1].isspace() or any(is_wide(c) for c in seam) else f" {target}"
