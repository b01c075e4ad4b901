"""gptask: one GPT in memory, many NLP tasks on top of it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.config.multitask import Member, Mixing
    from gptask.config.schemas import Train as Config
    from gptask.errors import DataError, UserError
    from gptask.plugins.metric import AdditiveMetric, MeanMetric, Metric
    from gptask.plugins.task import Encoded, Field, Kind, Prediction, Task, option
    from gptask.runs.run import load_run, load_runs
    from gptask.training.train import train, train_tasks

_HOMES = {
    "Config": ("gptask.config.schemas", "Train"),
    **{name: ("gptask.errors", name) for name in ("DataError", "UserError")},
    **{name: ("gptask.plugins.metric", name) for name in ("AdditiveMetric", "MeanMetric", "Metric")},
    **{
        name: ("gptask.plugins.task", name)
        for name in ("Encoded", "Example", "Field", "Kind", "Prediction", "Task", "option")
    },
    **{name: ("gptask.runs.run", name) for name in ("load_run", "load_runs")},
    **{name: ("gptask.config.multitask", name) for name in ("Member", "Mixing")},
    **{name: ("gptask.training.train", name) for name in ("train", "train_tasks")},
}
__all__ = [
    "AdditiveMetric",
    "Config",
    "DataError",
    "Encoded",
    "Field",
    "Kind",
    "MeanMetric",
    "Member",
    "Metric",
    "Mixing",
    "Prediction",
    "Task",
    "UserError",
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
