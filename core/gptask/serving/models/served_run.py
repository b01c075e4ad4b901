"""What is served under a name: the bare backbone, or a run on it."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import from_plain
from gptask.config.explain_options import ExplainMethod
from gptask.errors import UserError
from gptask.model.heads import GenerationHead, Head
from gptask.plugins.metric import value_text
from gptask.runs.manifest import MANIFEST, read_manifest
from gptask.runs.prediction_identity import run_digest
from gptask.runs.predictor import Predictor
from gptask.runs.run import Run
from gptask.runs.validation import wrong_entry, wrong_value
from gptask.serving.remote_run import input_description

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone


@dataclass(eq=False)
class ServedModel:
    """The bare backbone under a name. ``backbone`` is a view that computes with the model's adapter.

    Nothing of it changes once it is made. The adapter stays in memory as long as anybody holds the model or the view.
    ``backbone_name`` is the name of the backbone that it computes with, empty for the model's own.
    """

    name: str
    backbone: GPTBackbone
    backbone_name: str = field(default="", kw_only=True)
    loaded: float = field(default_factory=time.time, kw_only=True)  # seconds since 1970

    @property
    def writes(self) -> bool:
        """Whether it continues prompts, for chat and completions."""
        return True

    @property
    def decodes_in_batches(self) -> bool:
        """Whether its texts can be written together with those of other runs."""
        return True

    @property
    def digest(self) -> str | None:
        """The digest of the adapter's bytes; None without an adapter."""
        return self.backbone.adapter

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer together that the backbone sees."""
        return self.backbone.context

    @property
    def max_tokens(self) -> int:
        """The most tokens that are read of an example; longer ones are truncated."""
        return self.context

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template of its own."""
        return bool(getattr(self.backbone.tokenizer, "chat_template", None))

    @property
    def created(self) -> int:
        """The time it was made, in seconds since 1970."""
        return int(self.loaded)

    @property
    def parameter_bytes(self) -> int:
        """The bytes of the weights that it has beside the backbone's."""
        return 0

    def summary(self) -> list[str]:
        """Name, task and metric for people."""
        return [self.name, "(bare backbone)", ""]

    def description(self) -> dict[str, Any]:
        """What `/v1/models` says of it."""
        backbone = self.backbone_name or self.name
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gptask",
            "task": None,
            "description": f"The backbone {backbone} itself, without a task.",
            "writes": self.writes,
            "chat_template": self.has_chat_template,
            "metric": None,
            "fields": [],
            "targets": [],
            "columns": {},
            "documents": "line",
            "converts_rows": False,
            "labels": None,
            "explains": [],
            "max_tokens": self.max_tokens,
            "context": self.context,
            "adapter": self.digest,
            "manifest": None,
            "backbone": backbone,
            "loaded": datetime.fromtimestamp(self.loaded, UTC).isoformat(timespec="seconds"),
        }


@dataclass(eq=False)
class ServedRun(ServedModel):
    """A finished run; a run folder that is replaced in place becomes another object.

    Raises `UserError` where the run's metrics.json is not what the run wrote.
    """

    run: Run

    def __post_init__(self) -> None:
        """Build what predicts, and read what the folder says of the run: it may be replaced later."""
        self.data = from_plain("data", self.run.config["data"])
        self.predictor = Predictor(self.run.task, self.backbone, self.run.head, self.data)
        self.metric = main_metric(self.run)
        self._manifest = run_digest(self.run.folder)
        self._created = int((self.run.folder / MANIFEST).stat().st_mtime)

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

    @property
    def explains(self) -> bool:
        """Whether there are scores behind its predictions, which words can speak for."""
        head = self.run.head
        return bool(head.decodes) or type(head).scores is not Head.scores

    @property
    def max_tokens(self) -> int:
        """The most tokens that are read of an example; longer ones are truncated."""
        return min(int(self.data.max_tokens), self.context)

    @property
    def created(self) -> int:
        """The time the run was finished, in seconds since 1970."""
        return self._created

    @property
    def parameter_bytes(self) -> int:
        """The bytes of the weights that it has beside the backbone's: of its adapter and its head."""
        named = self.backbone.peft.named_parameters()
        adapter = [weight for name, weight in named if self.digest and f".{self.digest}." in name]
        return sum(weight.numel() * weight.itemsize for weight in [*adapter, *self.run.head.parameters()])

    def summary(self) -> list[str]:
        """Name, task and metric for people."""
        score = ""
        if self.metric is not None:
            low, high = self.metric["low"], self.metric["high"]
            interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
            score = f"{self.metric['name']} {value_text(self.metric['value'])}{interval}"
        return [self.name, self.run.plugin.name, score]

    def description(self) -> dict[str, Any]:
        """What `/v1/models` says of it."""
        task = self.run.task
        labels = getattr(task, "labels", None) or getattr(task, "tags", None)
        return super().description() | {
            "task": self.run.plugin.name,
            "description": (inspect.getdoc(type(task)) or "").partition("\n")[0],
            "metric": self.metric,
            "explains": [method.value for method in ExplainMethod] if self.explains else [],
            "manifest": self._manifest,
            **input_description(task, self.run.config["data"]),
            "labels": [str(label) for label in labels] if isinstance(labels, list | tuple) and labels else None,
        }


def main_metric(run: Run) -> dict[str, Any] | None:
    """A run's first metric as it was measured on the run's test set, None where it was not.

    ``value`` is None where it is no finite number, ``low`` and ``high`` where it has no interval.
    """
    if "metrics.json" not in read_manifest(run.folder).files:
        return None
    measured = run.metrics
    name = run.task.metrics()[0].name
    if wrong := wrong_entry(measured, {"metrics": dict, "split": str}):
        raise UserError(f"{run.folder}/metrics.json is damaged: {wrong}")
    if not (entry := measured["metrics"].get(name)):
        return None
    if wrong := wrong_value(entry):
        raise UserError(f"{run.folder}/metrics.json is damaged: the entry of '{name}': {wrong}")
    low, high = entry["interval"] or (None, None)
    return {
        "name": name,
        "value": entry["value"],
        "low": low,
        "high": high,
        "n": entry["n"],
        "higher_is_better": {"higher": True, "lower": False}.get(entry["direction"]),
        "split": measured["split"],
    }
