"""The run folder: what a run leaves behind, and how it is loaded again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gptask.config import schemas
from gptask.config.conversion import from_plain
from gptask.errors import UserError
from gptask.model.backbone.locate import folder_hash
from gptask.plugins.discovery import Plugin, discover, load_task_class
from gptask.plugins.task import Task
from gptask.plugins.types import Prediction
from gptask.runs.config_file import read_config
from gptask.runs.folder import model_folder, refuse_multitask
from gptask.runs.predictor import Predictor

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")


@dataclass
class Run:
    """A run folder's model in memory."""

    folder: Path
    plugin: Plugin
    task: Task
    backbone: GPTBackbone
    head: Head
    values: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    def predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
        """Predict examples given as dictionaries of the task's input fields; lazily, in order."""
        data = from_plain("data", self.values["data"])
        return Predictor(self.task, self.backbone, self.head, data).predict(examples)


@dataclass
class Runs:
    """A run folder's tasks in memory, by name, all on one backbone."""

    folder: Path
    tasks: dict[str, Run]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json of the whole run; each task's own is ``tasks[name].metrics``."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


def task_from_config(values: dict[str, Any], cls: type[Task] | None = None) -> tuple[Plugin, Task]:
    """The task of a run, its options checked against the plugin's schema again."""
    from omegaconf.errors import OmegaConfBaseException

    written = values["plugin"]
    if cls is None:
        plugins = discover({written["name"]})
        cls = load_task_class(plugins, written["name"])
        plugin = plugins[written["name"]]
    else:
        plugin = Plugin(written["name"], written["distribution"], written["version"], cls)
    try:
        task = from_plain("task", values["task"], cls)
    except OmegaConfBaseException as error:
        raise UserError(
            f"the run's options for task '{plugin.name}' (written by {written['distribution']} {written['version']}) "
            f"don't fit {plugin.origin}: {str(error).splitlines()[0]}"
        ) from error
    return plugin, task


def load_task(folder: str | Path) -> Task:
    """The task of a run folder with the run's options, without its model."""
    return task_from_config(read_config(folder))[1]


def weights_hash(folder: str | Path) -> str:
    """A hash of the weights in a run's ``model/``: another model is another measure."""
    return folder_hash(model_folder(folder))


def load_run(folder: str | Path, task: type[Task] | Task | None = None, dtype: schemas.DType | None = None) -> Run:
    """Load a run folder's model for prediction; of a run of several tasks, the folder of one.

    ``task`` is needed for a class that no entry point names; an instance replaces the run's options, ``dtype`` the
    number format it was trained with. Raises `UserError` where there is no such run, where its backbone is missing or
    another than it was trained on, and where its files don't fit.
    """
    return _load(Path(folder), task, dtype, None)


def load_runs(
    folder: str | Path,
    tasks: Mapping[str, type[Task] | Task] | None = None,
    dtype: schemas.DType | None = None,
) -> Runs:
    """Load every task of a run folder, its backbone once.

    ``tasks`` are classes or instances by name, as `load_run` takes one. Raises `UserError` as that does.
    """
    folder, loaded = Path(folder), dict[str, Run]()
    values = read_config(folder)
    places = {name: folder / name for name in values.get("tasks", {})} or {values["plugin"]["name"]: folder}
    for name, place in places.items():
        backbone = next((run.backbone for run in loaded.values()), None)
        loaded[name] = _load(place, (tasks or {}).get(name), dtype, backbone)
    return Runs(folder, loaded)


def _load(
    folder: Path, task: type[Task] | Task | None, dtype: schemas.DType | None, backbone: GPTBackbone | None
) -> Run:
    values = read_config(folder)
    refuse_multitask(folder, values)
    plugin, saved = task_from_config(values, task if isinstance(task, type) else type(task) if task else None)
    instance = task if isinstance(task, Task) else saved
    instance.validate()
    model = model_folder(folder)
    if not (model / "backbone.json").is_file():
        if values.get("member"):
            raise UserError(f"the model of {folder} is not at {model}, where it is kept for all tasks of its run")
        raise UserError(
            f"{folder} holds no model (an evaluation, or a run that was stopped before its end: "
            f"gptask train resume={folder})"
        )
    from gptask.runs import saved_model

    backbone = backbone or saved_model.load_backbone(model, values, dtype)
    head = cast("Head", instance.head(backbone))
    saved_model.load_head(head, model, values.get("member"))
    backbone.eval()
    head.eval()
    return Run(folder, plugin, instance, backbone, head, values)
