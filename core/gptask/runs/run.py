"""Runs in memory: a run folder's model loaded again, for one task or several."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gptask.config import schemas
from gptask.config.conversion import from_plain
from gptask.config.engine import EngineOptions, Fast, OpenVino, engine_from_environment, refuse_openvino
from gptask.errors import UserError, damaged
from gptask.model.backbone.locate import folder_hash
from gptask.plugins.discovery import Plugin, discover, load_task_class
from gptask.plugins.task import Task
from gptask.plugins.types import Prediction
from gptask.runs import saved_model
from gptask.runs.config_file import read_config
from gptask.runs.folder import model_folder, refuse_multitask, verified_model
from gptask.runs.manifest import read_manifest
from gptask.runs.openvino_model import require_openvino, use_openvino
from gptask.runs.predictor import Predictor

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

T = TypeVar("T")


@dataclass
class Run:
    """A run folder's model in memory; ``config`` holds the values of its config.yaml."""

    folder: Path
    plugin: Plugin
    task: Task
    backbone: GPTBackbone
    head: Head
    config: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return read_metrics(self.folder)

    def predict(self, examples: Any) -> Iterator[Prediction]:
        """Yield a `Prediction` for each example, in order and as the iterator is drawn from.

        ``examples`` is one example or an iterable of examples (a list, a generator): dictionaries of the task's input
        fields, or texts where the task reads a single field. It may be a table too, whose columns are named like the
        fields (others are left out): a pandas DataFrame, a `datasets.Dataset`, a pyarrow Table or anything that offers
        Arrow's stream. Raises `UserError` at once for anything else, and `DataError` for an example that can't be used.
        """
        data = from_plain("data", self.config["data"])
        return Predictor(self.task, self.backbone, self.head, data).predict(examples)


@dataclass
class Runs:
    """The tasks of a run folder in memory, by name, all on one backbone."""

    folder: Path
    tasks: dict[str, Run]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json of the whole run; each task's own is ``tasks[name].metrics``."""
        return read_metrics(self.folder)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a finished run's metrics.json; raises `UserError` for a damaged one."""
    read_manifest(folder).verify("metrics.json")
    file = folder / "metrics.json"
    with damaged(file):
        metrics = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metrics, dict):
        raise UserError(f"{file} is damaged: it holds no mapping")
    return metrics


def task_from_config(values: dict[str, Any], cls: type[Task] | None = None) -> tuple[Plugin, Task]:
    """The plugin and the task of a run, its options checked against the plugin's schema again.

    ``cls`` is the task's class where no entry point names it. Raises `UserError` for options that don't fit the class.
    """
    saved_plugin = values["plugin"]
    name = saved_plugin["name"]
    if cls is None:
        plugins = discover({name})
        cls = load_task_class(plugins, name)
        plugin = plugins[name]
    else:
        plugin = Plugin(name, saved_plugin["distribution"], saved_plugin["version"], cls)
    try:
        task = from_plain("task", values["task"], cls)
    except UserError as error:
        raise UserError(
            f"the run's options for task '{plugin.name}', written by {saved_plugin['distribution']} "
            f"{saved_plugin['version']}, don't fit {plugin.origin}: {str(error.__cause__).splitlines()[0]}"
        ) from error
    return plugin, task


def load_task(folder: str | Path) -> Task:
    """The task of a run folder with the run's options, without its model."""
    values = read_config(folder)
    refuse_multitask(folder, values)
    read_manifest(folder)  # what validation chooses for the task is known of a finished run only
    task, model = task_from_config(values)[1], model_folder(folder)
    if any(model.glob("assets*")):
        saved_model.load_assets(task, verified_model(folder), values.get("task_name"))
    return task


def weights_hash(folder: str | Path) -> str:
    """A hash of the weights in a run's ``model/``: a metric that this model computes names it in its signature."""
    return folder_hash(verified_model(folder))


def load_run(
    folder: str | Path,
    task: type[Task] | Task | None = None,
    dtype: schemas.DType | None = None,
    engine: EngineOptions | None = None,
) -> Run:
    """Load a run folder's model for prediction; of a run of several tasks, the folder of one task.

    ``task`` is a class that no entry point names, or an instance, which replaces the run's options; ``dtype`` replaces
    the number format the run was trained with, and may be int4; ``engine`` is that of ``GPTASK_ENGINE`` where it is
    None. With `OpenVino`, OpenVINO writes the texts, with weights in q8_0 that are converted once; ``dtype`` may be
    float32 then, in which it computes more slowly. Raises `UserError` where there is no such run, where it is
    unfinished or damaged, where its backbone is missing or another than the run was trained on, where its files don't
    fit, where int4 can't be computed, and where the run writes no texts or has a model that OpenVINO does not compute.
    """
    engine = engine or engine_from_environment()
    writes_by_openvino = isinstance(engine, OpenVino)
    if writes_by_openvino:
        require_openvino(dtype)
    computed_by = Fast() if writes_by_openvino else engine
    run = _load_task_run(
        Path(folder), task, lambda model, values: saved_model.load_backbone(model, values, dtype, computed_by)
    )
    if writes_by_openvino:
        use_openvino(run.backbone, run.head, run.folder, run.config, exact=dtype is schemas.DType.float32)
    return run


def load_runs(
    folder: str | Path,
    tasks: Mapping[str, type[Task] | Task] | None = None,
    dtype: schemas.DType | None = None,
    engine: EngineOptions | None = None,
) -> Runs:
    """Load every task of a run folder, and the backbone they share once.

    ``tasks`` are classes or instances by name; they, ``dtype``, ``engine`` and the errors raised are those of
    `load_run`, but for `OpenVino`, which is for one task.
    """
    refuse_openvino(engine or engine_from_environment(), "gptask.load_runs")
    folder, runs = Path(folder), dict[str, Run]()
    values = read_config(folder)

    def backbone_of(model: Path, values: dict[str, Any]) -> GPTBackbone:
        shared = next((run.backbone for run in runs.values()), None)
        return shared or saved_model.load_backbone(model, values, dtype, engine)

    folders = {name: folder / name for name in values.get("tasks", {})} or {values["plugin"]["name"]: folder}
    for name, task_folder in folders.items():
        runs[name] = _load_task_run(task_folder, (tasks or {}).get(name), backbone_of)
    return Runs(folder, runs)


def call_at_once(function: Callable[[], T]) -> T:
    """Call a function here and now."""
    return function()


def load_run_onto(
    backbone: GPTBackbone,
    folder: str | Path,
    between_passes: Callable[[Callable[[], str]], str] = call_at_once,
) -> Run:
    """Load a run folder's task and head on a backbone in memory, and its adapter beside those of other runs.

    The run's ``backbone`` is a view that computes with its adapter, whose digest is ``run.backbone.adapter`` (None for
    a run without one). Runs with equal adapters, such as the tasks of one run, share it: whoever unloads a run removes
    the adapter only where no other run has it.

    ``between_passes`` calls its argument while no pass of the backbone runs, and returns what it returns; all else may
    run beside passes. Raises the errors of `load_run`, and `UserError` for a run with full weights or on another
    backbone; nothing of the run stays in memory then.
    """
    run = _load_task_run(Path(folder), None, lambda model, values: saved_model.share_backbone(backbone, model, values))
    adapter = saved_model.read_adapter_of_run(backbone, model_folder(Path(folder)))
    if adapter is not None:
        run.backbone.adapter = between_passes(lambda: backbone.engine.add_adapter(adapter))
    return run


def _load_task_run(
    folder: Path, task: type[Task] | Task | None, backbone_of: Callable[[Path, dict[str, Any]], GPTBackbone]
) -> Run:
    """Load one task's run; ``backbone_of`` loads or chooses its backbone from the model's folder and the config."""
    values = read_config(folder)
    refuse_multitask(folder, values)
    plugin, saved_task = task_from_config(values, task if isinstance(task, type) else type(task) if task else None)
    instance = task if isinstance(task, Task) else saved_task
    instance.validate()
    model = verified_model(folder)
    saved_model.load_assets(instance, model, values.get("task_name"))
    backbone = backbone_of(model, values).eval()
    head = cast("Head", instance.head(backbone)).to(backbone.device)
    saved_model.load_head(head, model, values.get("task_name"))
    head.eval()
    return Run(folder, plugin, instance, backbone, head, values)
