"""A digest of what decides a run's result (config, data, code), and the finished run that has it already."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptask.config.compression import Compress
from gptask.config.conversion import to_plain
from gptask.config.engine import OpenVino
from gptask.config.schemas import Evaluate, Pretrained, Train
from gptask.data.cache import digest
from gptask.data.code_hash import CODE_OF_ENCODING, code_hash
from gptask.data.corpus import CachedCorpus
from gptask.data.rows import Source
from gptask.errors import UserError, user_path
from gptask.model.backbone.locate import folder_hash
from gptask.plugins.discovery import plugin_of
from gptask.runs import openvino_model
from gptask.runs.folder import model_folder, numbered_alternatives, run_title
from gptask.runs.manifest import MANIFEST, manifest_digest, read_manifest
from gptask.runs.provenance import versions
from gptask.training import builder

log = logging.getLogger("gptask")
CODE_OF_RUN = (  # what computes a run's weights, predictions and metrics
    *CODE_OF_ENCODING,
    "gptask.config.multitask",
    "gptask.data.batches",
    "gptask.data.mixture",
    "gptask.data.prefixes",
    "gptask.model.backbone.backbone",
    "gptask.model.backbone.gguf",
    "gptask.model.backbone.layer_cut",
    "gptask.model.backbone.quantizing",
    "gptask.model.backbone.scratch",
    "gptask.model.backbone.tuning",
    "gptask.model.engine.activation_cache",
    "gptask.model.engine.adapters",
    "gptask.model.engine.attention",
    "gptask.model.engine.decoding",
    "gptask.model.engine.fast",
    "gptask.model.engine.forward_registry",
    "gptask.model.engine.forward_state",
    "gptask.model.engine.inference_weights",
    "gptask.model.engine.int4",
    "gptask.model.engine.interface",
    "gptask.model.engine.kv_cache",
    "gptask.model.engine.last_layer",
    "gptask.model.engine.left_padding",
    "gptask.model.engine.length_bucket",
    "gptask.model.engine.linear",
    "gptask.model.engine.loss",
    "gptask.model.engine.next_tokens",
    "gptask.model.engine.norm",
    "gptask.model.engine.openvino",
    "gptask.model.engine.packing",
    "gptask.model.engine.private",
    "gptask.model.engine.reference",
    "gptask.model.engine.rotary",
    "gptask.model.engine.sampling",
    "gptask.model.generation.generate",
    "gptask.model.heads",
    "gptask.model.out_of_memory",
    "gptask.model.predictions",
    "gptask.plugins.metric",
    "gptask.plugins.resampling",
    "gptask.runs.predictions_file",
    "gptask.runs.saved_model",
    "gptask.training.batch_trial",
    "gptask.training.builder",
    "gptask.training.checkpoint_files",
    "gptask.training.checkpoints",
    "gptask.training.context",
    "gptask.training.divergence",
    "gptask.training.evaluate",
    "gptask.training.module",
    "gptask.training.optim",
    "gptask.training.private",
    "gptask.training.resolve",
    "gptask.training.results",
    "gptask.training.resume",
    "gptask.training.resume_folder",
    "gptask.training.resume_point",
    "gptask.training.resumed_config",
    "gptask.training.task_runtime",
    "gptask.training.train",
    "gptask.training.trainer",
    "gptask.training.variation",
)
CODE_OF_COMPRESSION = (  # beside that
    "gptask.analysis.compress.distil",
    "gptask.analysis.compress.distillation",
    "gptask.analysis.compress.methods",
    "gptask.analysis.compress.parent",
    "gptask.analysis.compress.prune",
    "gptask.analysis.compress.teacher",
    "gptask.analysis.compress.teacher_scores",
    "gptask.analysis.compress.teacher_texts",
    "gptask.analysis.compress.unlabelled",
    "gptask.config.compression",
)
# options that do not change the result; an engine that rounds the weights does
NOT_DECISIVE = ("outputs", "folder", "resume", "probe", "baseline", "logger", "checkpoint", "engine")


def run_fingerprint(config: Train | Evaluate, corpora: dict[str, CachedCorpus] | None = None) -> str:
    """A digest of what decides the result of a valid config's run, with the options left open that the run chooses.

    ``corpora`` are built from the config where the caller has none. Raises `UserError` as the run itself would.
    """
    corpora = corpora or builder.build_corpora(config)
    undecisive = {*NOT_DECISIVE} - ({"engine"} if isinstance(config.engine, OpenVino) else set())
    plain = {name: value for name, value in to_plain(config).items() if name not in undecisive}
    tasks = [task_config.task for task_config in builder.task_configs(config).values()]
    code = [versions()["gptask"]]
    modules = (*CODE_OF_RUN, *CODE_OF_COMPRESSION) if isinstance(config, Compress) else CODE_OF_RUN
    modules = (*modules, *openvino_model.CODE) if isinstance(config.engine, OpenVino) else modules
    code += [part for task in tasks for part in (plugin_of(task).origin, code_hash(task, modules))]
    data = [corpus.fingerprint() for corpus in corpora.values()]
    parts = [type(config).__name__, plain, data, _weights_hash(config), code]
    parts += starting_digests(config).values()
    text = json.dumps(parts, default=str, ensure_ascii=False)
    return digest(json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False))  # now every key is a string


def starting_digests(config: Train | Evaluate) -> dict[str, str]:
    """SHA-256 of what a compression starts from: the manifest of each run, and each file without labels."""
    if not isinstance(config, Compress):
        return {}
    digests = {folder: manifest_digest(folder) for folder in config.parents}
    for file in config.input_files.values():
        with Source.parse(file).path.open("rb") as stream:
            digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _weights_hash(config: Train | Evaluate) -> str:
    """The hash of a local model, whose files may change while its name stays; empty for one that is not local."""
    folder = user_path(config.backbone.source) if isinstance(config.backbone, Pretrained) else None
    if folder and (folder / "config.yaml").is_file():
        folder = model_folder(folder)
    if isinstance(config, Evaluate) and config.run:
        folder = model_folder(config.run)
    return folder_hash(folder) if folder and folder.is_dir() else ""


def find_finished(fingerprint: str, folders: Iterable[Path]) -> Path | None:
    """The folder among ``folders`` of a finished run with this fingerprint; a damaged one is logged and passed over."""
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(folder)
            if manifest.fingerprint == fingerprint:
                manifest.verify()
                return folder
        except UserError as error:
            log.warning("not taken as finished: %s", error)
    return None


def candidate_folders(config: Any) -> list[Path]:
    """Folders in which an earlier run of the config may be: its ``folder`` and those beside, or all of its task."""
    if config.folder:
        folder = Path(config.folder)
        return [path for path in (folder, *numbered_alternatives(folder)) if path.is_dir()]
    return sorted(Path(config.outputs, run_title(config)).glob("*"))
