"""Hydra launchers that are packages of their own, and what each needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from gptask.config.overrides import values_of
from gptask.errors import UserError

EXTRAS = {  # launcher -> gptask's extra, the plugin's module
    "joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "submitit_local": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "submitit_slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
}


def check_launcher(overrides: Sequence[str], about_to_run: bool = False) -> None:
    """Raise `UserError` for a launcher that is not installed or, ``about_to_run``, can't work on this machine."""
    for launcher in values_of(overrides, "hydra/launcher"):
        extra, module = EXTRAS.get(str(launcher), ("", ""))
        if extra and not (find_spec("hydra_plugins") and find_spec(module)):
            raise UserError(
                f"hydra/launcher={launcher} needs a package that is not installed: pip install 'gptask[{extra}]'"
            )
        if about_to_run and launcher == "submitit_slurm" and not shutil.which("srun"):
            raise UserError(
                "hydra/launcher=submitit_slurm needs a Slurm cluster, and there is no srun on the PATH; "
                "hydra/launcher=joblib runs the jobs in parallel on this machine"
            )
