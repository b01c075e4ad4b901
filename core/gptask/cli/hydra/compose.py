"""Hydra on gptask's configs: the config groups and the composed config of a verb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from gptask.config.overrides import quote_if_needed, values_of
from gptask.errors import UserError

CONFIG_MODULE = "gptask_conf"
SEARCH_PATH = "hydra.searchpath"


@contextmanager
def initialized() -> Iterator[None]:
    """Initialize Hydra on gptask's configs."""
    from hydra import initialize_config_module

    with initialize_config_module(CONFIG_MODULE, "gptask", version_base="1.3"):
        yield


@contextmanager
def loader() -> Iterator[Any]:
    """Hydra's config loader on gptask's configs."""
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():  # within a job of a multirun
        yield GlobalHydra.instance().config_loader()
        return
    with initialized():
        yield GlobalHydra.instance().config_loader()


def with_config_folder(folder: str, overrides: Sequence[str]) -> list[str]:
    """The overrides with the user's folder in ``hydra.searchpath``: its configs are found behind gptask's.

    Raises `UserError` for a folder that is none, and for a config that gptask's of the same name would hide.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder; it holds configs of your own: experiment/mine.yaml")
    shipped = Path(str(files(CONFIG_MODULE)))
    names = (config.relative_to(shipped) for config in sorted(shipped.rglob("*.yaml")))
    if hidden := next((name for name in names if (path / name).is_file()), None):
        raise UserError(f"--config-dir {folder}: gptask has a {hidden} too, which would hide yours; rename yours")
    typed = [value for value in values_of(overrides, SEARCH_PATH) if isinstance(value, list)]
    folders = [f"file://{path}", *(str(source) for value in typed for source in value)]
    others = [override for override in overrides if override not in search_path(overrides)]
    return [f"{SEARCH_PATH}=[{','.join(map(quote_if_needed, folders))}]", *others]


def search_path(overrides: Sequence[str]) -> list[str]:
    """The overrides that say where Hydra searches for configs besides gptask's."""
    return [override for override in overrides if override.partition("=")[0].lstrip("+") == SEARCH_PATH]


def groups(configs: Any, verb: str, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """Each config group of a verb with its choices; groups that users don't choose from are left out."""
    from hydra.types import RunMode

    defaults = configs.compute_defaults_list(verb, [], RunMode.RUN).overrides.known_choices
    names = [
        name
        for name, choice in defaults.items()
        if not name.startswith("hydra/") and (choice or name in ("experiment", "backbone"))
    ]
    return {name: choices(configs, name, overrides) for name in names}


def choices(configs: Any, group: str, overrides: Sequence[str] = ()) -> list[str]:
    """The configs of a group that users choose from, on the search path of the overrides."""
    names = configs.get_group_options(group, overrides=search_path(overrides))
    return [name for name in names if not name.endswith("_schema")]


def compose(configs: Any, verb: str, overrides: Sequence[str]) -> Any:
    """The config of a verb with overrides, unresolved; raises ``HydraException`` or ``OmegaConfBaseException``."""
    from hydra.types import RunMode

    return configs.load_configuration(verb, list(overrides), RunMode.MULTIRUN)
