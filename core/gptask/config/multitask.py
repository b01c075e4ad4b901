"""The options of a run of several tasks on one backbone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gptask.config.schemas import Mixing, Sampling, TaskConfig
from gptask.errors import UserError, listing, nearest

TASK_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)  # of a folder, of an option and in a metric's name
RESERVED_NAMES = {"model", "checkpoints", "tensorboard", "wandb"}  # folders that a run has anyway


def check_tasks(members: Mapping[str, TaskConfig], mixing: Mixing) -> None:
    """Refuse names and values that can't be; types were checked before."""
    check_names(members)
    for name, member in members.items():
        if not member.weight > 0:
            raise UserError(f"tasks.{name}.weight={member.weight} must be above 0; leave a task out of tasks= instead")
    if not mixing.temperature > 0:
        raise UserError(f"mixing.temperature={mixing.temperature} must be above 0 (1 is proportional)")
    if mixing.best is not None and mixing.best not in members:
        raise UserError(
            f"mixing.best={mixing.best} is none of this run's tasks: {listing(members)}.{nearest(mixing.best, members)}"
        )


def check_names(names: Iterable[str]) -> None:
    """Refuse a name that can't be a folder beside those of a run, or part of an option's name."""
    for name in names:
        if not TASK_NAME.fullmatch(name) or name in RESERVED_NAMES:
            what = "is the name of a folder that every run has" if name in RESERVED_NAMES else "is no plain name"
            raise UserError(f"tasks: '{name}' {what}; use letters, digits and '_', as in tasks=[mine:qa]")


def batches_per_task(sizes: list[int], mixing: Mixing) -> list[int]:
    """Batches of each task in an epoch, which has as many in all as the training sets make; at least one each."""
    power = {Sampling.proportional: 1.0, Sampling.uniform: 0.0}.get(mixing.sampling, 1 / mixing.temperature)
    weights = [size**power for size in sizes]
    return [max(1, round(sum(sizes) * weight / sum(weights))) for weight in weights]
