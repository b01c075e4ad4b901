"""What a run is the result of: its config as given, its data and its code. A finished job needs no second run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptask.config.conversion import to_plain, validated_config
from gptask.config.schemas import Evaluate, Pretrained, Train
from gptask.data.cache import digest
from gptask.data.corpus import CachedCorpus
from gptask.data.examples import code_hash
from gptask.model.backbone.locate import folder_hash
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import model_folder, numbered_alternatives, run_title
from gptask.runs.provenance import git_commit, versions
from gptask.training import builder

NOT_DECISIVE = ("outputs", "folder", "resume", "probe", "logger")  # options that don't decide the result


def run_fingerprint(config: Train | Evaluate, corpora: dict[str, CachedCorpus] | None = None) -> str:
    """A digest of the job; take it before the run, which settles what the config left open.

    ``corpora`` are made from the config where the caller has none. Raises `UserError` as the run itself would.
    """
    config = validated_config(config)
    corpora = corpora or builder.build_corpora(config)
    plain = {name: value for name, value in to_plain(config).items() if name not in NOT_DECISIVE}
    tasks = [member.task for member in builder.task_configs(config).values()]
    code = [versions()["gptask"], git_commit(touching=True)]
    code += [part for task in tasks for part in (plugin_of(task).origin, code_hash(task))]
    data = [corpus.fingerprint() for corpus in corpora.values()]
    whole = [type(config).__name__, plain, data, _weights(config), code]
    text = json.dumps(whole, default=str, ensure_ascii=False)
    return digest(json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False))  # now every key is a string


def _weights(config: Train | Evaluate) -> str:
    """The hash of a local model: a name stays while what it stands for may change."""
    folder = Path(config.backbone.source).expanduser() if isinstance(config.backbone, Pretrained) else None
    if folder and (folder / "config.yaml").is_file():
        folder /= "model"
    if isinstance(config, Evaluate) and config.run:
        folder = model_folder(config.run)
    return folder_hash(folder) if folder and folder.is_dir() else ""


def find_finished(job: str, folders: Iterable[Path], model: bool) -> Path | None:
    """The run folder among ``folders`` that a job ended in, with its ``model`` if it has to have one."""
    for folder in folders:
        metrics = folder / "metrics.json"  # written last
        whole = metrics.is_file() and (not model or (folder / "model" / "backbone.json").is_file())
        if whole and f'"job": "{job}"' in metrics.read_text(encoding="utf-8", errors="replace"):
            return folder
    return None


def candidate_folders(config: Any) -> list[Path]:
    """Where a job of a sweep may have ended before: beside its own ``folder``, or among the runs of its task."""
    if config.folder:
        return [path for path in (Path(config.folder), *numbered_alternatives(Path(config.folder))) if path.is_dir()]
    return sorted(Path(config.outputs, run_title(config)).glob("*"))
