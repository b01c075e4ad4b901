"""gptask: one GPT in memory, many NLP tasks on top of it.

A plugin may rely on `__all__` and on `gptask.testing`; every other module may change with any version.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptask.config.engine import Fast, OpenVino, Reference
    from gptask.config.schemas import (
        Documents,
        Files,
        Full,
        HeadOnly,
        Hub,
        Limit,
        Lora,
        Mixing,
        Pretrained,
        Sample,
        Scratch,
        TaskConfig,
    )
    from gptask.config.schemas import Train as Config
    from gptask.data.labels import canonical_label
    from gptask.data.messages import Message, parse_messages
    from gptask.data.words import WORDS_SIGNATURE, is_blank, normalized_words, space_characters
    from gptask.errors import DataError, UserError, listing, nearest
    from gptask.model.backbone.chat_template import chat_template_of
    from gptask.model.generation.generate import GeneratedText
    from gptask.model.heads import GenerationHead, Head
    from gptask.model.text_task import GenerativeTask, PromptedTask, WritingTask, is_wide
    from gptask.plugins.generation_options import GenerationOptions
    from gptask.plugins.metric import AdditiveMetric, MeanMetric, Metric
    from gptask.plugins.protocols import Backbone, Batch, Corpus, TaskHead
    from gptask.plugins.resampling import RESAMPLES_PER_BLOCK
    from gptask.plugins.task import Task, most_frequent, option
    from gptask.plugins.types import IGNORED, Encoded, Example, Field, Kind, Prediction
    from gptask.runs.run import Run, Runs, load_run, load_runs, load_task, weights_hash
    from gptask.serving.client import Client
    from gptask.training.train import train, train_tasks

_MODULES = {  # the module that defines each public name
    "gptask.config.engine": ("Fast", "OpenVino", "Reference"),
    "gptask.config.schemas": (
        "Documents",
        "Files",
        "Full",
        "HeadOnly",
        "Hub",
        "Limit",
        "Lora",
        "Mixing",
        "Pretrained",
        "Sample",
        "Scratch",
        "TaskConfig",
    ),
    "gptask.data.labels": ("canonical_label",),
    "gptask.data.messages": ("Message", "parse_messages"),
    "gptask.data.words": ("WORDS_SIGNATURE", "is_blank", "normalized_words", "space_characters"),
    "gptask.errors": ("DataError", "UserError", "listing", "nearest"),
    "gptask.model.backbone.chat_template": ("chat_template_of",),
    "gptask.model.generation.generate": ("GeneratedText",),
    "gptask.model.heads": ("GenerationHead", "Head"),
    "gptask.model.text_task": ("GenerativeTask", "PromptedTask", "WritingTask", "is_wide"),
    "gptask.plugins.generation_options": ("GenerationOptions",),
    "gptask.plugins.metric": ("AdditiveMetric", "MeanMetric", "Metric"),
    "gptask.plugins.protocols": ("Backbone", "Batch", "Corpus", "TaskHead"),
    "gptask.plugins.resampling": ("RESAMPLES_PER_BLOCK",),
    "gptask.plugins.task": ("Task", "most_frequent", "option"),
    "gptask.plugins.types": ("IGNORED", "Encoded", "Example", "Field", "Kind", "Prediction"),
    "gptask.runs.run": ("Run", "Runs", "load_run", "load_runs", "load_task", "weights_hash"),
    "gptask.serving.client": ("Client",),
    "gptask.training.train": ("train", "train_tasks"),
}
_LOCATIONS = {name: (module, name) for module, names in _MODULES.items() for name in names}
_LOCATIONS["Config"] = ("gptask.config.schemas", "Train")
__all__ = [
    "IGNORED",
    "RESAMPLES_PER_BLOCK",
    "WORDS_SIGNATURE",
    "AdditiveMetric",
    "Backbone",
    "Batch",
    "Client",
    "Config",
    "Corpus",
    "DataError",
    "Documents",
    "Encoded",
    "Example",
    "Fast",
    "Field",
    "Files",
    "Full",
    "GeneratedText",
    "GenerationHead",
    "GenerationOptions",
    "GenerativeTask",
    "Head",
    "HeadOnly",
    "Hub",
    "Kind",
    "Limit",
    "Lora",
    "MeanMetric",
    "Message",
    "Metric",
    "Mixing",
    "OpenVino",
    "Prediction",
    "Pretrained",
    "PromptedTask",
    "Reference",
    "Run",
    "Runs",
    "Sample",
    "Scratch",
    "Task",
    "TaskConfig",
    "TaskHead",
    "UserError",
    "WritingTask",
    "canonical_label",
    "chat_template_of",
    "is_blank",
    "is_wide",
    "listing",
    "load_run",
    "load_runs",
    "load_task",
    "most_frequent",
    "nearest",
    "normalized_words",
    "option",
    "parse_messages",
    "space_characters",
    "train",
    "train_tasks",
    "weights_hash",
]
__version__ = version("gptask")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gptask` stays free of torch."""
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'gptask' has no attribute {name!r}")
    module, attribute = _LOCATIONS[name]
    return getattr(import_module(module), attribute)
