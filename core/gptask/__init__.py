"""gptask: one GPT in memory, many NLP tasks on top of it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.config.schemas import Member, Mixing
    from gptask.config.schemas import Train as Config
    from gptask.errors import DataError, UserError
    from gptask.model.heads import GenerationHead, Head
    from gptask.model.text_task import GenerativeTask, PromptedTask, WritingTask
    from gptask.plugins.metric import AdditiveMetric, MeanMetric, Metric
    from gptask.plugins.task import Task, option
    from gptask.plugins.types import Encoded, Example, Field, Kind, Prediction
    from gptask.runs.run import load_run, load_runs
    from gptask.training.train import train, train_tasks

_MODULES = {  # where each public name is written
    "gptask.config.schemas": ("Member", "Mixing"),
    "gptask.errors": ("DataError", "UserError"),
    "gptask.model.heads": ("GenerationHead", "Head"),
    "gptask.model.text_task": ("GenerativeTask", "PromptedTask", "WritingTask"),
    "gptask.plugins.metric": ("AdditiveMetric", "MeanMetric", "Metric"),
    "gptask.plugins.task": ("Task", "option"),
    "gptask.plugins.types": ("Encoded", "Example", "Field", "Kind", "Prediction"),
    "gptask.runs.run": ("load_run", "load_runs"),
    "gptask.training.train": ("train", "train_tasks"),
}
_HOMES = {name: (module, name) for module, names in _MODULES.items() for name in names}
_HOMES["Config"] = ("gptask.config.schemas", "Train")
__all__ = [
    "AdditiveMetric",
    "Config",
    "DataError",
    "Encoded",
    "Example",
    "Field",
    "GenerationHead",
    "GenerativeTask",
    "Head",
    "Kind",
    "MeanMetric",
    "Member",
    "Metric",
    "Mixing",
    "Prediction",
    "PromptedTask",
    "Task",
    "UserError",
    "WritingTask",
    "load_run",
    "load_runs",
    "option",
    "train",
    "train_tasks",
]
__version__ = version("gptask")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gptask` stays free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gptask' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
