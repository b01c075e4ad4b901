"""config.yaml of a run folder."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptask.config.conversion import escaped, to_plain
from gptask.config.multitask import check_task_names
from gptask.config.yaml_text import read_yaml
from gptask.errors import UserError, damaged, listing, nearest
from gptask.plugins.discovery import Plugin, plugin_of
from gptask.plugins.task import CONTRACT_VERSION
from gptask.runs.atomic_write import write_text
from gptask.runs.manifest import MANIFEST, RUN_FORMAT, read_manifest, remove_manifest
from gptask.runs.validation import wrong_config


def config_values(
    config: Any, plugin: Plugin | None = None, command: str | None = None, **extra: Any
) -> dict[str, Any]:
    """What config.yaml holds: resolved values, each group with the name of its schema, and the plugin that reads them.

    In a run of several tasks, each task's values name its own plugin. ``command`` is the command line that started the
    run, None for a run from Python; ``extra`` holds more top-level entries.
    """
    plain = to_plain(config)
    for name, task_values in plain.get("tasks", {}).items():
        plain["tasks"][name] = {"plugin": _plugin_entry(plugin_of(config.tasks[name].task)), **task_values}
    header: dict[str, Any] = {"format": RUN_FORMAT, "command": command}
    if not plain.get("tasks"):
        header["plugin"] = _plugin_entry(plugin or plugin_of(config.task))
    return header | extra | plain


def write_config(
    folder: Path, config: Any, plugin: Plugin | None = None, command: str | None = None, **extra: Any
) -> None:
    """Write config.yaml with `config_values`.

    Manifests in the folder are removed first: a finished run that goes on is not finished any more.
    """
    from omegaconf import OmegaConf

    values = config_values(config, plugin, command, **extra)
    for run_folder in (folder, *(folder / name for name in values.get("tasks", {}))):
        remove_manifest(run_folder)
    text = OmegaConf.to_yaml(OmegaConf.create(escaped(values)), resolve=True)
    write_text(folder / "config.yaml", text, durable=True)


def _plugin_entry(plugin: Plugin) -> dict[str, Any]:
    origin = {"distribution": plugin.distribution, "version": plugin.version}
    return {"name": plugin.name, **origin, "contract": CONTRACT_VERSION}


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.yaml of a run folder; what looks like an interpolation in it is text.

    Raises `UserError` where there is none, where it is damaged or, in a finished run, edited, and where it has another
    run format.
    """
    folder = Path(folder)
    file = folder / "config.yaml"
    if (folder / MANIFEST).is_file():
        read_manifest(folder).verify("config.yaml")
    if not file.is_file():
        nearby = _nearby_run_folders(folder)
        raise UserError(
            f"no run folder at {folder}: it has no config.yaml.{nearest(str(folder), nearby)} "
            f"The latest run folders: {listing(nearby[-4:])}"
        )
    with damaged(file):
        values = read_yaml(file)
    if not isinstance(values, dict) or not (values.keys() >= {"plugin", "task"} or values.get("tasks")):
        raise UserError(f"{file} is not the config of a gptask run")
    if values.get("format") != RUN_FORMAT:
        raise UserError(
            f"{folder} has run format {values.get('format')}; gptask {version('gptask')} reads format {RUN_FORMAT}: "
            "train again with this version, or read it with the commit named in its metrics.json"
        )
    if wrong := wrong_config(values):
        raise UserError(f"{file} is damaged, it is not the config of a gptask run: {wrong}")
    check_task_names([str(name) for name in (*(values.get("tasks") or ()), values.get("task_name") or "x")])
    return {str(name): value for name, value in values.items()}


def _nearby_run_folders(missing: Path) -> list[str]:
    """Run folders below or beside a missing one, else those in ./outputs; the latest last."""
    for base, pattern in ((missing, "*"), (missing, "*/*"), (missing.parent, "*"), (Path("outputs"), "*/*")):
        if files := sorted(base.glob(f"{pattern}/config.yaml"), key=lambda file: file.stat().st_mtime):
            return [str(file.parent) for file in files]
    return []
