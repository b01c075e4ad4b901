"""The methods of `gptask compress`."""

from __future__ import annotations

from gptask.analysis.compress.parent import FromParent
from gptask.analysis.compress.prune import Pruning
from gptask.config.compression import Compress, CompressionMethod
from gptask.runs.run import Runs
from gptask.training.train import train_tasks

METHODS: dict[CompressionMethod, type[FromParent]] = {CompressionMethod.prune: Pruning}


def compress(config: Compress, command: str | None = None) -> Runs:
    """Make a run smaller from a config, which is not changed; return the new run with its best model loaded.

    ``command`` is the command line that the config comes from, if any. Raises `UserError` for whatever the user can
    fix.
    """
    return train_tasks(config, command=command, variation=METHODS[config.method](config))
