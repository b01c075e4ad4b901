"""The models that are served, by name."""

from __future__ import annotations

import logging
from pathlib import Path

from gptask.config.schemas import Serve
from gptask.errors import UserError, listing, nearest
from gptask.model.backbone.backbone import GPTBackbone, load_or_build_backbone
from gptask.runs.run import load_run_onto
from gptask.runs.saved_model import locate_backbone
from gptask.serving.batcher import Batcher
from gptask.serving.served_run import ServedModel, ServedRun

log = logging.getLogger("gptask")


class RunRegistry:
    """Loads the runs that the options name, and answers which model has a name."""

    def __init__(self, options: Serve, batcher: Batcher) -> None:
        self.options, self.batcher = options, batcher
        self.models: dict[str, ServedModel] = {}

    def load(self) -> None:
        """Load everything that is named; raises `UserError` for what can't be served."""
        backbone = self._load_backbone()
        for text in self.options.runs or []:
            name, _, folder = str(text).rpartition(":")
            run = load_run_onto(backbone, folder)
            self.models[name or Path(folder).name] = ServedRun(name or Path(folder).name, run.backbone, run)
        if not self.models:
            name = Path(str(self.options.backbone.source)).name
            self.models[name] = ServedModel(name, backbone)

    def _load_backbone(self) -> GPTBackbone:
        options = self.options.backbone
        return load_or_build_backbone(options, locate_backbone(options), list, self.options.engine).eval()

    def get(self, name: str) -> ServedModel:
        """The model of a name; raises `UserError` with those there are."""
        if name not in self.models:
            raise UserError(f"no model '{name}'; there are {listing(self.models)}.{nearest(name, self.models)}")
        return self.models[name]

    def close(self) -> None:
        """Stop watching folders."""
