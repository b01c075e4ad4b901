"""The run folder: what a run leaves behind, and how it is loaded again."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config import schemas
from gptask.errors import UserError, listing, nearest
from gptask.plugins.discovery import Plugin, chosen, discover
from gptask.plugins.task import CONTRACT_VERSION, Prediction, Task

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import Backbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")
FORMAT = 1
OURS = {"id", "digest", "group"}  # columns that core puts beside a task's fields
# and those of predictions.jsonl
WRITTEN = {"references", "prediction", "score", "samples", "probabilities", "extra", "statistics"}
started_by: ContextVar[str | None] = ContextVar("started_by", default=None)  # the command line, where there is one


def plugin_of(task: Task) -> Plugin:
    """The plugin a task instance comes from; a class that no entry point names gets its own name."""
    plugins = discover(()).values()
    for plugin in [plugin for plugin in plugins if plugin.brings(type(task))] or plugins:
        if plugin.load().task is type(task):
            return plugin
    return Plugin(type(task).__name__.lower(), "unregistered", "", type(task))


def title(config: Any) -> str:
    """What the runs of a config are called: by its task, or by all its tasks."""
    return "+".join(getattr(config, "tasks", {})) or plugin_of(config.task).name


def create(outputs: str, task: str, folder: str | None) -> Path:
    """Make a new run folder, ``<outputs>/<task>/<date>_<time>`` by default; an existing one is never reused."""
    base = Path(folder) if folder else Path(outputs) / task / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for path in chain([base], siblings(base)):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if folder:
                raise UserError(f"the run folder {path} exists; choose another (or resume={path})") from error
        except OSError as error:
            raise UserError(f"the run folder {path} can't be made: {error.strerror}; set outputs=<folder>") from error
    raise UserError(f"no free run folder beside {base}")


def siblings(base: Path) -> Iterator[Path]:
    """``base_1``, ``base_2``, ...: where runs go that find ``base`` taken."""
    return (base.with_name(f"{base.name}_{number}") for number in range(1, 1000))


@contextmanager
def folder_for(outputs: str, task: str, folder: str | None, resume: str | None = None) -> Iterator[Path]:
    """A new run folder (or the one to go on in) with its log; one that nothing came of is taken back."""
    if not main_process():
        yield _main_folder(folder, resume)
        return
    path = Path(resume) if resume else create(outputs, task, folder)
    os.environ["GPTASK_RUN_FOLDER"] = str(path)  # for the processes that Lightning starts
    handler = logging.FileHandler(path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.info("run folder: %s", path)
    try:
        yield path
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise UserError(f"{error.strerror} while writing {path}. {kept(path)}") from error
        raise
    finally:
        os.environ.pop("GPTASK_RUN_FOLDER")
        log.removeHandler(handler)
        handler.close()
        if {file.name for file in path.iterdir()} <= {"train.log"}:
            (path / "train.log").unlink(missing_ok=True)
            path.rmdir()


def main_process() -> bool:
    """Whether this process writes: the only one, or the first of several (ranks as Lightning reads them)."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _main_folder(folder: str | None, resume: str | None) -> Path:
    """The folder the first process works in: from its environment, or given by the user."""
    known = os.environ.get("GPTASK_RUN_FOLDER") or resume or folder
    if not known:
        raise UserError("several processes started from outside need to agree on a run folder: set folder=<folder>")
    return Path(known)


def kept(folder: Path) -> str:
    """Which checkpoints a stopped run left, and how to go on."""
    found = sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))
    if not found:
        return "No checkpoint had been written yet."
    return f"Kept in {folder / 'checkpoints'}: {', '.join(found)}. Go on with: gptask train resume={folder}"


def write_config(folder: Path, config: Any, plugin: Plugin | None = None, **more: Any) -> None:
    """Write config.yaml: resolved values, each group with its schema, and the plugin that understands them.

    Of several tasks each has its own plugin among its values.
    """
    from omegaconf import OmegaConf

    plain = schemas.to_plain(config)
    for name, member in plain.get("tasks", {}).items():
        plain["tasks"][name] = {"plugin": _written(plugin_of(config.tasks[name].task)), **member}
    head: dict[str, Any] = {"format": FORMAT, "command": started_by.get()}
    if not plain.get("tasks"):
        head["plugin"] = _written(plugin or plugin_of(config.task))
    OmegaConf.save(OmegaConf.create(head | more | plain), folder / "config.yaml")


def _written(plugin: Plugin) -> dict[str, Any]:
    origin = {"distribution": plugin.distribution, "version": plugin.version}
    return {"name": plugin.name, **origin, "contract": CONTRACT_VERSION}


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read and check config.yaml of a run folder."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder = Path(folder)
    file = folder / "config.yaml"
    if not file.is_file():
        there = _run_folders(folder)
        raise UserError(
            f"no run folder at {folder} (no config.yaml there).{nearest(str(folder), there)} "
            f"The latest: {listing(there[-4:])}"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict) or not (values.keys() >= {"plugin", "task"} or values.get("tasks")):
        raise UserError(f"{file} is not the config of a gptask run")
    if values.get("format") != FORMAT:
        raise UserError(
            f"{folder} was written in run format {values.get('format')}; gptask {version('gptask')} reads format "
            f"{FORMAT}. Use the version it names in metrics.json, or train again"
        )
    return {str(k): v for k, v in values.items()}


def _run_folders(missing: Path) -> list[str]:
    """Run folders below or beside one that is missing, or in ./outputs, the latest last."""
    for base, pattern in ((missing, "*"), (missing, "*/*"), (missing.parent, "*"), (Path("outputs"), "*/*")):
        if found := sorted(base.glob(f"{pattern}/config.yaml"), key=lambda file: file.stat().st_mtime):
            return [str(file.parent) for file in found]
    return []


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@dataclass
class Run:
    """A run folder's model in memory."""

    folder: Path
    plugin: Plugin
    task: Task
    backbone: Backbone
    head: Head
    values: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    def predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
        """Predict examples given as dictionaries of the task's input fields; lazily, in order."""
        from gptask.runs.predict_file import predict_examples

        return predict_examples(self, examples)


@dataclass
class Runs:
    """A run folder's tasks in memory, by name, all on one backbone."""

    folder: Path
    tasks: dict[str, Run]

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json of the whole run; each task's own is ``tasks[name].metrics``."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


def load_task(values: dict[str, Any], cls: type[Task] | None = None) -> tuple[Plugin, Task]:
    """The task of a run, its options checked against the plugin's schema again."""
    from omegaconf.errors import OmegaConfBaseException

    written = values["plugin"]
    if cls is None:
        plugins = discover({written["name"]})
        cls = chosen(plugins, written["name"])
        plugin = plugins[written["name"]]
    else:
        plugin = Plugin(written["name"], written["distribution"], written["version"], cls)
    try:
        task = schemas.from_plain("task", values["task"], cls)
    except OmegaConfBaseException as error:
        raise UserError(
            f"the run's options for task '{plugin.name}' (written by {written['distribution']} {written['version']}) "
            f"don't fit {plugin.origin}: {str(error).splitlines()[0]}"
        ) from error
    return plugin, task


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


def model_folder(folder: str | Path) -> Path:
    """Where a run's model lies: in it, or beside the folders of several tasks."""
    own = Path(folder) / "model"
    return own if own.is_dir() or not read_config(folder).get("member") else Path(folder).parent / "model"


def refuse_several(folder: str | Path, values: dict[str, Any]) -> None:
    """Raise `UserError` for the folder of several tasks where one is needed."""
    if names := list(values.get("tasks", {})):
        raise UserError(f"{folder} is a run of several tasks: {listing(names)}. Take {Path(folder) / names[0]}, say")


def _load(folder: Path, task: type[Task] | Task | None, dtype: schemas.DType | None, backbone: Backbone | None) -> Run:
    values = read_config(folder)
    refuse_several(folder, values)
    plugin, saved = load_task(values, task if isinstance(task, type) else type(task) if task else None)
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
    head = instance.head(backbone)
    saved_model.load_head(head, model, values.get("member"))
    backbone.eval()
    head.eval()
    return Run(folder, plugin, instance, backbone, head, values)
