"""The options of `gptask explain`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from gptask.config.engine import engine_from_environment
from gptask.config.option import option
from gptask.errors import UserError

AUTO_STEPS = "auto"


class ExplainMethod(Enum):
    """How words are weighed: by integrated gradients, by leaving each out, or by attention rollout."""

    ig = "ig"
    occlusion = "occlusion"
    attention = "attention"


@dataclass
class Explain:
    """`gptask explain`."""

    task: Any = None  # null: the run's
    run: str = MISSING
    input: str = option(MISSING, "a file; worst or surprising: the run's own test examples, into its explain.html")
    output: str | None = option(None, "a .html or .jsonl file; - is standard output; null: see input")
    method: ExplainMethod = option(ExplainMethod.ig, "ig (integrated gradients) | occlusion | attention")
    against: str | None = option(None, "a class or a tag: why the predicted one and not this one")
    steps: Any = option(AUTO_STEPS, "ig: auto doubles 16 to 256 until less than 5% is missing; or a number")
    places: int = option(16, "most tagged or written words of an input that are explained, the first ones")
    other_classes: int = option(2, "classes that are explained beside the predicted one, the likeliest ones")
    examples: int = option(100, "most test examples of input=worst or surprising that are explained")
    attention_maps: bool = option(False, "keep the attention of every head between the words, too")
    data: Any = None
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()

    def __post_init__(self) -> None:
        """Fill in the engine a Python caller left out."""
        self.engine = self.engine or engine_from_environment()

    def check(self) -> int | None:
        """Return the number of steps, None for ``auto``; raises `UserError` for a value out of range."""
        if self.examples < 1:
            raise UserError(f"examples={self.examples} must be at least 1")
        if self.places < 1:
            raise UserError(f"places={self.places} must be at least 1")
        if self.other_classes < 0:
            raise UserError(f"other_classes={self.other_classes} must be at least 0")
        if self.steps == AUTO_STEPS:
            return None
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise UserError(f"steps={self.steps} must be auto or a whole number from 2 on, such as 32")
        if self.method is not ExplainMethod.ig:
            raise UserError(f"steps={self.steps} is for method=ig, not for method={self.method.value}: leave it out")
        return self.steps
