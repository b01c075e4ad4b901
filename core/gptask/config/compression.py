"""The configuration of `gptask compress`: a training that starts from a run, and what it takes over from that run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from gptask.config.option import option
from gptask.config.schemas import Train


class CompressionMethod(Enum):
    """How a run is made smaller: layers are taken out, and the others are trained on."""

    prune = "prune"


@dataclass
class Compress(Train):
    """`gptask compress`: a training that starts from the run ``run``, and is compared with it in the end."""

    run: Any = option(MISSING, "the run folder that is made smaller, of one task or of several")
    method: CompressionMethod = option(MISSING, "prune: drop layers, then train the others with LoRA")
    keep: Any = option(None, "how many layers stay (the least important go), or a list of those that stay, from 0")

    @property
    def parents(self) -> list[str]:
        """The run folders that it starts from."""
        return [str(folder) for folder in (self.run if isinstance(self.run, list) else [self.run])]


OWN_OPTIONS = tuple(sorted({f.name for f in fields(Compress)} - {f.name for f in fields(Train)}))


def values_to_compress(folder: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a compression starts with, from the config.yaml of its parent in ``folder``.

    They are the parent's, trained by LoRA: layers are kept by ``backbone.keep`` and not by ``tuning.layers``. A parent
    with full weights is the backbone itself, in the number format it predicts in, and was the only one to choose a
    precision of its own.
    """
    tuning, optimizer = dict(values["tuning"]), dict(values["optimizer"])
    if optimizer.get("lr") == tuning.get("lr"):
        optimizer["lr"] = None  # it was chosen to be tuning.lr
    changes: dict[str, Any] = {"optimizer": optimizer}
    if tuning["kind"] == "lora_schema":
        changes["tuning"] = tuning | {"layers": 1.0}
        return values | changes
    changes["tuning"] = {"kind": "lora_schema"}
    if tuning["kind"] == "full_schema":
        license_ = values["backbone"].get("license")
        changes["backbone"] = {"kind": "pretrained", "source": folder, "license": license_, "dtype": "float32"}
        changes["trainer"] = {name: v for name, v in values["trainer"].items() if name != "precision"}
    return values | changes
