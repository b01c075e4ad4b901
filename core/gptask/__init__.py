"""gptask: one GPT in memory, many NLP tasks on top of it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.config import Train as Config
    from gptask.errors import DataError, UserError
    from gptask.metric import AdditiveMetric, MeanMetric, Metric
    from gptask.run import load_run
    from gptask.task import Encoded, Field, Kind, Prediction, Task, option
    from gptask.training import train

_HOMES = {
    "Config": ("gptask.config", "Train"),
    **{name: ("gptask.errors", name) for name in ("DataError", "UserError")},
    **{name: ("gptask.metric", name) for name in ("AdditiveMetric", "MeanMetric", "Metric")},
    **{name: ("gptask.task", name) for name in ("Encoded", "Example", "Field", "Kind", "Prediction", "Task", "option")},
    "load_run": ("gptask.run", "load_run"),
    "train": ("gptask.training", "train"),
}
__all__ = [
    "AdditiveMetric",
    "Config",
    "DataError",
    "Encoded",
    "Field",
    "Kind",
    "MeanMetric",
    "Metric",
    "Prediction",
    "Task",
    "UserError",
    "load_run",
    "option",
    "train",
]
__version__ = version("gptask")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gptask` stays free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gptask' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
