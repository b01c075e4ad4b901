"""What is served under a name: the bare backbone, or a run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import from_plain
from gptask.model.heads import GenerationHead
from gptask.runs.predictor import Predictor
from gptask.runs.run import Run

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone


@dataclass(eq=False)
class ServedModel:
    """The bare backbone under a name. ``backbone`` is a view that computes with the model's adapter."""

    name: str
    backbone: GPTBackbone

    @property
    def writes(self) -> bool:
        """Whether it continues prompts, for chat and completions."""
        return True

    def description(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "gptask",
        }  # minimal: the registry's replaces it


@dataclass(eq=False)
class ServedRun(ServedModel):
    """A finished run; a run folder that is replaced in place becomes another object."""

    run: Run

    def __post_init__(self) -> None:
        """Build what predicts."""
        self.predictor = Predictor(
            self.run.task, self.backbone, self.run.head, from_plain("data", self.run.config["data"])
        )

    @property
    def writes(self) -> bool:
        """Whether it continues prompts, for chat and completions."""
        return isinstance(self.run.head, GenerationHead)

    @property
    def decodes_in_batches(self) -> bool:
        """Whether its texts can be written together with those of other runs."""
        head: Any = self.run.head
        own_predict = type(head).predict is not GenerationHead.predict
        return isinstance(head, GenerationHead) and not own_predict and head.options.num_beams == 1
