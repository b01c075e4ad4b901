"""config.yaml of a run folder."""

from __future__ import annotations

from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptask.config.conversion import to_plain
from gptask.errors import UserError, listing, nearest
from gptask.plugins.discovery import Plugin, plugin_of
from gptask.plugins.task import CONTRACT_VERSION

FORMAT = 2
CORE_COLUMNS = {"id", "digest", "group"}  # columns that core puts beside a task's fields
# and those of predictions.jsonl
PREDICTION_COLUMNS = {"references", "prediction", "score", "samples", "probabilities", "extra", "statistics"}
started_by: ContextVar[str | None] = ContextVar("started_by", default=None)  # the command line, where there is one


def write_config(folder: Path, config: Any, plugin: Plugin | None = None, **more: Any) -> None:
    """Write config.yaml: resolved values, each group with its schema, and the plugin that understands them.

    Of several tasks each has its own plugin among its values.
    """
    from omegaconf import OmegaConf

    plain = to_plain(config)
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
