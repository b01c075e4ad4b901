"""The methods of `gptask compress`."""

from __future__ import annotations

from dataclasses import fields

from gptask.analysis.compress.distil import Distilling
from gptask.analysis.compress.parent import FromParent
from gptask.analysis.compress.prune import Pruning
from gptask.config.compression import Compress, CompressionMethod
from gptask.config.engine import refuse_openvino
from gptask.errors import UserError, listing
from gptask.runs.run import Runs
from gptask.training.train import train_tasks

METHODS: dict[CompressionMethod, type[FromParent]] = {
    CompressionMethod.prune: Pruning,
    CompressionMethod.distil: Distilling,
}

OF_DISTILLING = ("student", "temperature", "weight", "input")


def compress(config: Compress, command: str | None = None) -> Runs:
    """Make a run smaller from a config, which is not changed; return the new run with its best model loaded.

    ``command`` is the command line that the config comes from, if any. Raises `UserError` for whatever the user can
    fix.
    """
    refuse_openvino(config.engine, "compress")
    if config.method is not CompressionMethod.distil:
        defaults = {f.name: f.default for f in fields(Compress)}
        if unused := [name for name in OF_DISTILLING if getattr(config, name) != defaults[name]]:
            raise UserError(f"{listing(unused)}: this is for method=distil alone; leave it out")
    return train_tasks(config, command=command, variation=METHODS[config.method](config))
