"""The run folder: what a run leaves behind, and how it is loaded again."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask import config as schemas
from gptask.errors import UserError, listing, nearest
from gptask.plugins import Plugin, chosen, discover
from gptask.task import CONTRACT_VERSION, Example, Prediction, Task

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone
    from gptask.heads import Head

log = logging.getLogger("gptask")
FORMAT = 1
PACKAGES = (
    "gptask",
    "torch",
    "transformers",
    "pytorch-lightning",
    "peft",
    "sacrebleu",
    "rouge-score",
    "scikit-learn",
)


def plugin_of(task: Task) -> Plugin:
    """The plugin a task instance comes from; a class that no entry point names gets its own name."""
    for plugin in discover().values():
        if plugin.task is type(task):
            return plugin
    return Plugin(type(task).__name__.lower(), "unregistered", "", type(task))


def create(outputs: str, task: str, folder: str | None) -> Path:
    """Make a new run folder, ``<outputs>/<task>/<date>_<time>`` by default; an existing one is never reused."""
    base = Path(folder) if folder else Path(outputs) / task / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in range(1000):
        path = base if not number else base.with_name(f"{base.name}_{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if folder:
                raise UserError(f"the run folder {path} exists; choose another (or resume={path})") from error
        except OSError as error:
            raise UserError(f"the run folder {path} can't be made: {error.strerror}; set outputs=<folder>") from error
    raise UserError(f"no free run folder beside {base}")


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


def write_config(folder: Path, config: Any, plugin: Plugin, **more: Any) -> None:
    """Write config.yaml: resolved values, each group with its schema, and the plugin that understands them."""
    from omegaconf import OmegaConf

    head = {
        "format": FORMAT,
        "plugin": {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "contract": CONTRACT_VERSION,
        },
    }
    OmegaConf.save(OmegaConf.create(head | more | schemas.to_plain(config)), folder / "config.yaml")


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
    if not isinstance(values, dict) or "plugin" not in values or "task" not in values:
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
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_predictions(
    path: Path,
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    statistics: Sequence[dict[str, list[float]]],
) -> None:
    """One line per test example: id, input fields, digest, prediction, references, probabilities, statistics."""
    with path.open("w", encoding="utf-8") as stream:
        for example, prediction, numbers in zip(examples, predictions, statistics, strict=True):
            line = {
                "id": example["id"],
                "digest": f"{example['digest'] + 2**63:016x}",
                "group": f"{example['group'] + 2**63:016x}",
                **{f.name: example[f.name] for f in task.inputs()},
                "references": {f.name: example[f.name] for f in task.targets()},
                **prediction_fields(prediction),
                "statistics": numbers,
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it stands in a JSON line."""
    fields: dict[str, Any] = {"prediction": prediction.value}
    if prediction.score is not None:
        fields["score"] = round(prediction.score, 6)
    if prediction.probabilities is not None:
        fields["probabilities"] = {name: round(p, 6) for name, p in prediction.probabilities.items()}
    return fields


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit gptask's own code is at, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# --- the model part ---------------------------------------------------------------------------------------------


def save_model(folder: Path, backbone: Backbone, head: Head, tuning: Any) -> None:
    """Write ``model/``: adapter (PEFT format) or full weights, head, tokenizer, the backbone's source and hash.

    Whole or not at all: a save that fails leaves the model saved earlier as it was.
    """
    partial = folder / "model.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_model(partial, backbone, head, tuning)
        _swap(partial, folder / "model")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    """Put a folder in the place of another, which is there until the new one is."""
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _write_model(partial: Path, backbone: Backbone, head: Head, tuning: Any) -> None:
    from safetensors.torch import save_file

    scratch = backbone.origin.kind == "scratch"
    if isinstance(tuning, schemas.Lora):
        if scratch:
            _save_base(backbone, partial / "base")
        backbone.peft.peft_config["default"].base_model_name_or_path = "base" if scratch else backbone.origin.location
        backbone.peft.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)
    elif isinstance(tuning, schemas.Full) or scratch:
        backbone.model.save_pretrained(partial)
    backbone.tokenizer.save_pretrained(partial)
    if state := {name: value.contiguous() for name, value in head.state_dict().items()}:
        save_file(state, partial / "head.safetensors")
    write_json(
        partial / "backbone.json",
        {
            "source": backbone.origin.kind,
            "location": backbone.origin.location,
            "weights_hash": backbone.origin.weights_hash,
        },
    )


def _save_base(backbone: Backbone, folder: Path) -> None:
    """The frozen weights of a backbone from scratch, without adapters."""
    from safetensors.torch import save_file

    state = {
        name.replace(".base_layer", ""): value.contiguous()
        for name, value in backbone.model.state_dict().items()
        if "lora_" not in name and not name.startswith("lm_head")
    }
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    backbone.model.config.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


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
        from gptask.prediction import predict_examples

        return predict_examples(self, examples)


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
    """Load a run folder's model for prediction.

    ``task`` is needed for a class that no entry point names; an instance replaces the run's options, ``dtype`` the
    number format it was trained with. Raises `UserError` where there is no such run, where its backbone is missing or
    another than it was trained on, and where its files don't fit.
    """
    folder = Path(folder)
    values = read_config(folder)
    plugin, saved = load_task(values, task if isinstance(task, type) else type(task) if task else None)
    instance = task if isinstance(task, Task) else saved
    instance.validate()
    model = folder / "model"
    if not (model / "backbone.json").is_file():
        raise UserError(
            f"{folder} holds no model (an evaluation, or a run that was stopped before its end: "
            f"gptask train resume={folder})"
        )
    backbone = _load_backbone(model, values, dtype)
    head = instance.head(backbone)
    _load_head(head, model)
    backbone.eval()
    head.eval()
    return Run(folder, plugin, instance, backbone, head, values)


def _load_backbone(model: Path, values: dict[str, Any], choice: schemas.DType | None) -> Backbone:
    from gptask.backbone.model import Backbone, from_folder, number_format
    from gptask.backbone.source import Resolved, resolve

    options = schemas.from_plain("backbone", values["backbone"])
    known = json.loads((model / "backbone.json").read_text(encoding="utf-8"))
    dtype = number_format(choice or options.dtype)
    if (model / "model.safetensors").exists() or (model / "model.safetensors.index.json").exists():
        return from_folder(Resolved(str(model), known["source"], known["weights_hash"]), dtype)
    if (model / "base").is_dir():
        origin = Resolved(str(model / "base"), known["source"], "")
    else:
        origin = resolve(options)
        if origin.weights_hash != known["weights_hash"]:
            raise UserError(
                f"the run was trained on another backbone: weights {known['weights_hash']} ({known['source']}), but "
                f"{origin.location} has {origin.weights_hash}. Restore that backbone or train again"
            )
    backbone = from_folder(origin, dtype, tokenizer=str(model))
    if not (model / "adapter_config.json").exists():
        return backbone
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return Backbone(PeftModel.from_pretrained(backbone.model, str(model)), backbone.tokenizer, origin)
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"the adapter in {model} can't be loaded: {str(error).strip().splitlines()[-1]}") from error


def _load_head(head: Head, model: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = model / "head.safetensors"
    try:
        head.load_state_dict(load_file(file) if file.exists() else {})
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{file} does not fit the task: {str(error).strip().splitlines()[-1].strip()}") from error
