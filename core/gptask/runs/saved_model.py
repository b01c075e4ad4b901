"""The ``model/`` part of a run folder: safetensors and JSON, saved and loaded again."""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import from_plain
from gptask.config.engine import EngineOptions
from gptask.config.schemas import DType, Full, Lora, Pretrained, Scratch
from gptask.data.cache import cache_folder, digest, replacing, seal_folder, usable
from gptask.data.hub_access import hub_switched_off
from gptask.errors import UserError, damaged, listing, user_path
from gptask.model.backbone.locate import BackboneOrigin, folder_hash, hash_of_layers, locate
from gptask.plugins.discovery import plugin_of, traceback_end
from gptask.plugins.task import Task
from gptask.runs.atomic_write import share_weights, write_json
from gptask.runs.config_file import read_config
from gptask.runs.folder import resume_hint, verified_model
from gptask.runs.manifest import MANIFEST
from gptask.runs.validation import wrong_backbone

if TYPE_CHECKING:
    import torch

    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.engine.adapter_files import AdapterFiles
    from gptask.model.heads import Head

log = logging.getLogger("gptask")
RUN_ORIGIN = "run "  # begins the description of a backbone that is the model of a run


def save_model(folder: Path, backbone: GPTBackbone, tasks: Mapping[str, tuple[Task, Head]], tuning: Any) -> None:
    """Write ``model/``: adapter (PEFT format) or full weights, heads, tokenizer, the backbone's config, source, hash.

    ``tasks`` have their heads beside them, and their own files in ``assets``; the only task of a run has the empty
    name. A save that fails leaves the model saved earlier as it was. Raises `UserError` for a task that can't save.
    """
    partial = folder / "model.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_model(partial, backbone, tasks, tuning)
        share_weights(partial, partial / "backbone.json")
        _replace_folder(folder / "model", partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(folder: Path, new: Path) -> None:
    """Move ``new`` to ``folder``; the folder that was there is deleted only after that."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_model(partial: Path, backbone: GPTBackbone, tasks: Mapping[str, tuple[Task, Head]], tuning: Any) -> None:
    from safetensors.torch import save_file

    if isinstance(tuning, Lora):
        save_adapter(backbone, partial, backbone.origin.location)
    elif isinstance(tuning, Full):
        backbone.model.save_pretrained(partial)
    backbone.model.config.save_pretrained(partial)  # of the kept layers, which a loader of the adapter needs
    backbone.tokenizer.save_pretrained(partial)
    for name, (task, head) in tasks.items():
        if state := {key: value.contiguous() for key, value in head.state_dict().items()}:
            save_file(state, _head_file(partial, name))
        assets = _assets_folder(partial, name)
        assets.mkdir()
        with _hook_errors(task, "save_assets", resume_hint(partial.parent)):
            task.save_assets(assets)
        if not any(assets.iterdir()):
            assets.rmdir()
    write_json(
        partial / "backbone.json",
        {
            "source": backbone.origin.kind,
            "location": backbone.origin.location,
            "weights_hash": backbone.origin.files_hash,
            "layers": backbone.layer_numbers,  # the backbone's layers that are kept
        },
    )


def save_adapter(backbone: GPTBackbone, folder: Path, base: str) -> None:
    """Write a backbone's own adapter in PEFT's format; ``base`` names the model that it belongs to."""
    backbone.peft.peft_config["default"].base_model_name_or_path = base
    backbone.peft.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def load_backbone(
    model: Path, values: dict[str, Any], dtype: DType | None, engine: EngineOptions | None = None
) -> GPTBackbone:
    """The backbone of a run with its adapter; ``values`` are the run's config, ``dtype`` replaces its number format.

    An adapter stays beside weights in int4, in its own format. Raises `UserError` where the backbone is missing or not
    the one the run was trained on.
    """
    from gptask.model.backbone.backbone import from_folder, number_format
    from gptask.model.backbone.quantizing import quantize

    saved = _saved_backbone(model)
    torch_dtype = number_format(dtype) if dtype else prediction_format(model, values)
    if has_full_weights(model):
        origin = BackboneOrigin(str(model), saved["source"], saved["weights_hash"])
        backbone = from_folder(origin, torch_dtype, engine=engine)
    else:
        origin = _locate_frozen(from_plain("backbone", values["backbone"]), saved)
        backbone = from_folder(origin, torch_dtype, str(model), engine)
        backbone.keep_layers(_kept_layers(saved))
    if dtype is DType.int4:
        quantize(backbone)
    if has_full_weights(model) or not (model / "adapter_config.json").exists():
        return backbone
    from peft import PeftModel, get_peft_model_state_dict

    from gptask.model.engine.adapter_files import check_ranks

    adapter = backbone.engine.read_adapter(model)  # PEFT alone would look for a missing file on the hub
    check_ranks(adapter)
    try:
        with hub_switched_off():
            backbone.set_model(PeftModel.from_pretrained(backbone.model, str(model)))
        if different := {*adapter.tensors} ^ {*get_peft_model_state_dict(backbone.peft, save_embedding_layers=False)}:
            raise ValueError(f"it has other weights than the backbone's layers need: {listing(sorted(different), 3)}")
    except Exception as error:
        raise UserError(f"the adapter in {model} can't be loaded: {_last_line(error)}") from error
    return backbone


def base_weights_hash(model: Path) -> str:
    """The hash of the weights under a run's adapter and head: its own full weights, or those it left as they were.

    A run that keeps the first layers shares a backbone that has them all; one that keeps others has its own.
    """
    layers, files_hash = kept_layers(model), files_hash_of_backbone(model)
    return files_hash if _are_first(layers) else hash_of_layers(files_hash, layers)


def files_hash_of_backbone(model: Path) -> str:
    """The hash of all weights of the backbone that a run is on, whichever of its layers the run keeps."""
    return folder_hash(model) if has_full_weights(model) else str(_saved_backbone(model)["weights_hash"])


def _are_first(layers: Sequence[int]) -> bool:
    return [*layers] == [*range(len(layers))]


def locate_base(model: Path, values: dict[str, Any]) -> BackboneOrigin:
    """Find the weights of `base_weights_hash` without loading them; ``values`` are the run's config.

    Raises `UserError` where the backbone is missing or not the one the run was trained on.
    """
    saved = _saved_backbone(model)
    if has_full_weights(model):
        return BackboneOrigin(str(model), saved["source"], folder_hash(model))
    origin = _locate_frozen(from_plain("backbone", values["backbone"]), saved)
    return replace(origin, keep=None) if _are_first(_kept_layers(saved)) else origin


def share_backbone(backbone: GPTBackbone, model: Path, values: dict[str, Any]) -> GPTBackbone:
    """A view of a backbone in memory for a run's model, still without its adapter; ``values`` are the run's config.

    It computes in the number format of that backbone, which is logged where the run alone would take another. Raises
    `UserError` for a model on other weights.
    """
    if base_weights_hash(model) != backbone.origin.weights_hash:
        source = _saved_backbone(model)["source"]
        cause = "has weights of its own" if has_full_weights(model) else f"belongs to {source}"
        raise UserError(f"the model in {model} {cause}; it can't share the backbone {backbone.origin.kind}")
    own, shared = str(prediction_format(model, values)).removeprefix("torch."), backbone.weight_format
    if own != shared:
        log.info("%s: predicts in %s, the format of the shared backbone; alone it would in %s", model, shared, own)
    view = backbone.with_adapter(None)
    if not _has_tokenizer_of(backbone, model):
        _set_tokenizer(view, model)
    return view


def _has_tokenizer_of(backbone: GPTBackbone, model: Path) -> bool:
    """Whether a backbone's tokenizer, saved, would be the files of a run's model."""
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(file).name for file in backbone.tokenizer.save_pretrained(folder)]
        return not any(filecmp.cmpfiles(folder, model, names, shallow=False)[1:])


def _set_tokenizer(view: GPTBackbone, model: Path) -> None:
    """Give a view the tokenizer of a run's model; raises `UserError` where its ids are not those of the backbone's."""
    from gptask.model.backbone.backbone import load_tokenizer

    tokenizer, stop_ids = view.tokenizer, view.stop_ids
    view.set_tokenizer(load_tokenizer(str(model)))
    if view.stop_ids != stop_ids or view.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"the tokenizer in {model} has other tokens than that of the backbone {view.origin.kind}")


def read_adapter_of_run(backbone: GPTBackbone, model: Path) -> AdapterFiles | None:
    """Read the adapter of a run's model, to be loaded beside those of other runs; None for a run that has none."""
    layers = len(_kept_layers(_saved_backbone(model)))
    if (model / "adapter_config.json").exists():
        return backbone.engine.read_adapter(model, layers)
    if layers < backbone.config.num_hidden_layers:
        raise UserError(
            f"the model in {model} has {layers} of the backbone's {backbone.config.num_hidden_layers} layers and no "
            "adapter; it can't share a backbone with all layers"
        )
    return None


def _saved_backbone(model: Path) -> dict[str, Any]:
    """The content of backbone.json; raises `UserError` for a damaged one."""
    file = model / "backbone.json"
    with damaged(file):
        saved = json.loads(file.read_text(encoding="utf-8"))
    if wrong := wrong_backbone(saved):
        raise UserError(f"{file} is damaged: {wrong}")
    return dict(saved)


def kept_layers(model: Path) -> list[int]:
    """The numbers of a run's layers in the backbone it is on; a run with full weights is its own backbone."""
    layers = _kept_layers(_saved_backbone(model))
    return [*range(len(layers))] if has_full_weights(model) else layers


def _kept_layers(saved: dict[str, Any]) -> list[int]:
    layers: list[int] | int = saved["layers"]  # earlier versions saved their number
    return [*range(layers)] if isinstance(layers, int) else layers


def prediction_format(model: Path, values: dict[str, Any]) -> torch.dtype:
    """The number format in which a run predicts on this machine; ``values`` are the run's config."""
    from gptask.model.backbone.backbone import number_format

    if has_full_weights(model):
        return number_format(DType.float32)  # full tuning works, and tests, in float32
    return number_format(from_plain("backbone", values["backbone"]).dtype)


def has_full_weights(model: Path) -> bool:
    """Whether the folder of a model holds all weights, no adapter or head alone."""
    return (model / "model.safetensors").exists() or (model / "model.safetensors.index.json").exists()


def _locate_frozen(options: Any, saved: dict[str, Any]) -> BackboneOrigin:
    """The backbone whose weights the run left as they were; ``saved`` is the content of backbone.json."""
    if isinstance(options, Scratch):
        raise UserError(
            "the run's model has no weights: all of a backbone from scratch belong to the run, so restore them"
        )
    origin = _locate(options)
    if origin.files_hash != saved["weights_hash"]:
        raise UserError(
            f"the run was trained on another backbone: weights {saved['weights_hash']} ({saved['source']}), but "
            f"{origin.location} has {origin.files_hash}. Restore that backbone or train again"
        )
    return origin


def _head_file(model: Path, task: str | None) -> Path:
    return model / (f"head.{task}.safetensors" if task else "head.safetensors")


def load_head(head: Head, model: Path, task: str | None = None) -> None:
    """Load the weights of the run's head, or of the head of one ``task`` among several.

    Raises `UserError` for weights that are damaged or don't have the names and shapes the task's options ask for.
    """
    from safetensors.torch import load_file

    file = _head_file(model, task)
    try:
        tensors = load_file(file) if file.exists() else {}
        if broken := sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all()):
            raise UserError(f"{file} has numbers that are not finite, in {listing(broken, 4)}")
        head.load_state_dict(tensors)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} does not fit the task: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _assets_folder(model: Path, task: str | None) -> Path:
    return model / (f"assets.{task}" if task else "assets")


def load_assets(task: Task, model: Path, name: str | None = None) -> None:
    """Let a task read its own files from a run's model; ``name`` is the task's among several. A run may have none."""
    folder = _assets_folder(model, name)
    if folder.is_dir():
        with _hook_errors(task, "load_assets"):
            task.load_assets(folder)


@contextmanager
def _hook_errors(task: Task, hook: str, hint: str = "") -> Iterator[None]:
    """Turn what a hook raises into a `UserError` with plugin, hook, the failing line and a hint."""
    try:
        yield
    except Exception as error:
        plugin = plugin_of(task)
        text = f"task '{plugin.name}' ({plugin.origin}): {type(task).__name__}.{hook}() fails\n{traceback_end(error)}"
        raise UserError(f"{text}\n{hint}".rstrip()) from error


def locate_backbone(options: Pretrained | Scratch) -> BackboneOrigin | None:
    """Find a pretrained backbone, which may be a run folder's, and log it; None for a backbone from scratch."""
    if isinstance(options, Scratch):
        return None
    origin = _locate(options)
    log.info("backbone: %s%s", origin.kind, f"; licence: {options.license}" if options.license else "")
    return origin


def _locate(options: Pretrained) -> BackboneOrigin:
    path = user_path(str(options.source))
    # a run folder has one of these, a Hugging Face folder a config.json
    is_run = any((path / name).is_file() for name in ("config.yaml", MANIFEST))
    return _locate_run(path).keeping(options.keep) if is_run else locate(options)


def _locate_run(folder: Path) -> BackboneOrigin:
    """A folder from which plain transformers loads the backbone that a run has tuned.

    An adapter is merged once, into the cache. Raises `UserError` for a run that is unfinished, damaged or without a
    model, and where the backbone that an adapter belongs to is missing or another.
    """
    values, model = read_config(folder), verified_model(folder)
    name = f"{RUN_ORIGIN}{folder}"
    if has_full_weights(model):
        return BackboneOrigin(str(model), name, folder_hash(model))
    if (model / "adapter_config.json").exists():
        return _merge_adapter(model, values, name)
    options = from_plain("backbone", values["backbone"])  # only the head was trained
    assert isinstance(options, Pretrained)
    origin = _locate(options)
    return replace(origin, kind=f"{name}, whose backbone is {origin.kind}")


def _merge_adapter(model: Path, values: dict[str, Any], name: str) -> BackboneOrigin:
    """The cached folder of a run's backbone with its adapter merged into the weights."""
    saved = _saved_backbone(model)
    identity = f"{folder_hash(model)} on {saved['weights_hash']}, layers {_kept_layers(saved)}"
    folder = cache_folder() / "backbones" / digest(identity)
    if not usable(folder):
        backbone = load_backbone(model, values, DType.float32)
        with replacing(folder) as part:
            backbone.peft.merge_and_unload().save_pretrained(part)
            backbone.tokenizer.save_pretrained(part)
            seal_folder(part, name)
    return BackboneOrigin(str(folder), f"{name} (adapter merged into {folder})", folder_hash(folder))
