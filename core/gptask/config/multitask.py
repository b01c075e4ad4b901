"""Checks and batch counts for a run of several tasks on one backbone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gptask.config.schemas import Mixing, Sampling, TaskConfig
from gptask.errors import UserError, listing, nearest

TASK_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)  # serves as a folder, in options and in metric names
RESERVED_NAMES = {"model", "checkpoints", "tensorboard", "wandb"}  # folders that every run has


def check_tasks(tasks: Mapping[str, TaskConfig], mixing: Mixing) -> None:
    """Refuse invalid names and values; the schemas have checked the types already."""
    check_task_names(tasks)
    for name, config in tasks.items():
        if not config.weight > 0:
            raise UserError(
                f"tasks.{name}.weight={config.weight} must be above 0; leave the task out of tasks= instead"
            )
    if not mixing.temperature > 0:
        raise UserError(f"mixing.temperature={mixing.temperature} must be above 0 (1 is proportional)")
    if mixing.best is not None and mixing.best not in tasks:
        raise UserError(
            f"mixing.best={mixing.best} is not one of this run's tasks: {listing(tasks)}.{nearest(mixing.best, tasks)}"
        )


def check_task_names(names: Iterable[str]) -> None:
    """Refuse a name that can't be a folder beside those of a run or part of an option's name."""
    for name in names:
        if not TASK_NAME.fullmatch(name) or name in RESERVED_NAMES:
            problem = "is the name of a folder that every run has" if name in RESERVED_NAMES else "is not a plain name"
            raise UserError(f"tasks: '{name}' {problem}; use letters, digits and '_', as in tasks=[mine:qa]")


def batches_per_task(sizes: list[int], mixing: Mixing) -> list[int]:
    """Return how many batches of each task an epoch has: at least one, in total as many as the training sets make.

    ``sizes`` are the numbers of batches that each training set makes.
    """
    exponent = {Sampling.proportional: 1.0, Sampling.uniform: 0.0}.get(mixing.sampling, 1 / mixing.temperature)
    weights = [size**exponent for size in sizes]
    return [max(1, round(sum(sizes) * weight / sum(weights))) for weight in weights]
