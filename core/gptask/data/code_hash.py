"""Hashes of the code that cached data and finished runs depend on, so that an edit is never answered from a cache."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from gptask.plugins.task import Task

CODE_OF_EXAMPLES = (  # from files to checked examples
    "gptask.config.schemas",
    "gptask.data.cache",
    "gptask.data.cells",
    "gptask.data.column_lookup",
    "gptask.data.columns",
    "gptask.data.conll",
    "gptask.data.corpus",
    "gptask.data.documents",
    "gptask.data.encoding",
    "gptask.data.examples",
    "gptask.data.files",
    "gptask.data.header",
    "gptask.data.hub",
    "gptask.data.json_rows",
    "gptask.data.labels",
    "gptask.data.languages",
    "gptask.data.line_pattern",
    "gptask.data.literals",
    "gptask.data.messages",
    "gptask.data.opening",
    "gptask.data.parquet",
    "gptask.data.reading",
    "gptask.data.rows",
    "gptask.data.splitting",
    "gptask.data.squad",
    "gptask.data.store",
    "gptask.data.tables",
    "gptask.data.word_rows",
    "gptask.data.words",
    "gptask.errors",
    "gptask.model.text_task",
    "gptask.plugins.task",
    "gptask.plugins.types",
)
CODE_OF_ENCODING = (  # from examples to token ids
    *CODE_OF_EXAMPLES,
    "gptask.data.datamodule",
    "gptask.model.backbone.chat_template",
    "gptask.plugins.generation_options",
    "gptask.plugins.text_tokenizer",
    "gptask.plugins.time_limit",
    "gptask.plugins.truncation",
)


def code_hash(task: Task, modules: Iterable[str]) -> str:
    """A hash of gptask's ``modules`` and of the code of a task.

    The latter is each module in the task's ancestry outside of gptask, with the modules beside it. A class without a
    file (typed into a notebook) has another hash each time.
    """
    total = hashlib.sha256()
    paths = _paths(modules)
    for cls in type(task).__mro__:
        if issubclass(cls, Task) and cls.__module__.partition(".")[0] != "gptask":
            module = sys.modules[cls.__module__]
            if file := getattr(module, "__file__", None):
                paths.update(Path(file).parent.glob("*.py") if module.__package__ else [Path(file)])
            else:
                total.update(os.urandom(16))
    for path in sorted(paths):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def source_hash(modules: Iterable[str]) -> str:
    """A hash of the code of gptask's ``modules``."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_paths(modules)))).hexdigest()[:16]


def _paths(modules: Iterable[str]) -> set[Path]:
    root = Path(str(files("gptask")))
    return {root.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in modules}
