"""Hydra on gptask's configs: what the groups hold, a composed config, and that config checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.errors import UserError

if TYPE_CHECKING:
    from gptask.cli.hydra.error_messages import Line


@contextmanager
def loader() -> Iterator[Any]:
    """Hydra's config loader on gptask's configs."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():  # within a job
        yield GlobalHydra.instance().config_loader()
        return
    with initialize_config_module("gptask_conf", version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@contextmanager
def hydra_on(folder: str | None) -> Iterator[Any]:
    """Hydra's own object on gptask's configs, and before them on a ``folder`` of the user's."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    path = create_config_search_path("pkg://gptask_conf")
    if folder:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: no such folder")
        path.prepend("command-line", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("gptask", path)
    finally:
        GlobalHydra.instance().clear()


def groups(configs: Any, verb: str) -> dict[str, list[str]]:
    """The config groups of a verb and what can be chosen in each; schemas and what users don't choose left out."""
    from hydra.types import RunMode

    known = configs.compute_defaults_list(verb, [], RunMode.RUN).overrides.known_choices
    names = [
        name for name, choice in known.items() if not name.startswith("hydra/") and (choice or name == "experiment")
    ]
    return {name: choices(configs, name) for name in names}


def choices(configs: Any, group: str) -> list[str]:
    """The configs of a group that users choose from."""
    return [name for name in configs.get_group_options(group) if not name.endswith("_schema")]


def compose(configs: Any, verb: str, overrides: Sequence[str]) -> Any:
    """The config of a verb with overrides, unresolved; raises ``HydraException`` or ``OmegaConfBaseException``."""
    from hydra.types import RunMode

    return configs.load_configuration(verb, list(overrides), RunMode.MULTIRUN)


def checked(cfg: Any, line: Line) -> Any:
    """The composed config as the verb's dataclass, its task an instance of the plugin."""
    from omegaconf import OmegaConf

    _strict(cfg, "", line)
    _interpolate(cfg)
    return OmegaConf.to_object(cfg)


def _strict(node: Any, prefix: str, line: Line) -> None:
    """Refuse keys that ``+`` and ``~`` smuggled past a schema."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node):
        return
    if not is_dataclass(schema := OmegaConf.get_type(node)):
        for key in node:
            _strict(node._get_node(key), f"{prefix}{key}.", line)
        return
    names = {f.name for f in fields(schema)}
    for key in node.keys() - names:
        raise UserError(line.unknown(f"{prefix}{key}"))
    for key in names - node.keys():
        raise UserError(f"~{prefix}{key}: this option can't be taken away; set it to null or leave it alone")
    for key in names:
        _strict(node._get_node(key), f"{prefix}{key}.", line)


def _interpolate(node: Any) -> None:
    """Try interpolations one by one, so that an error names the option that holds it."""
    from omegaconf import OmegaConf

    for key in range(len(node)) if OmegaConf.is_list(node) else list(node):
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_config(value := node[key]):
            _interpolate(value)
