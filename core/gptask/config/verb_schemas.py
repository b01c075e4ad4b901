"""The table of schemas by verb, and the verbs that train."""

from __future__ import annotations

from typing import Any

from gptask.config.compression import Compress
from gptask.config.explain_options import Explain
from gptask.config.schemas import Evaluate, Export, Predict, Serve, Train

VERB_SCHEMAS: dict[str, type] = {
    "train": Train,
    "compress": Compress,
    "evaluate": Evaluate,
    "predict": Predict,
    "explain": Explain,
    "export": Export,
    "serve": Serve,
}
TRAINING_VERBS = ("train", "compress")


def verb_of_run(config: dict[str, Any]) -> str:
    """The verb that made a run, by the content of its config.yaml."""
    if "optimizer" not in config:
        return "evaluate"
    return "compress" if "method" in config else "train"
