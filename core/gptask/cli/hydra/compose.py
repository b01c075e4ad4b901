"""Hydra on gptask's configs: the config groups and the composed config of a verb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptask.errors import UserError


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
def hydra_instance(config_folder: str | None) -> Iterator[Any]:
    """Hydra's main object on gptask's configs; the configs in ``config_folder`` (the user's) take precedence."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    path = create_config_search_path("pkg://gptask_conf")
    if config_folder:
        if not Path(config_folder).is_dir():
            raise UserError(f"--config-dir {config_folder}: no such folder")
        path.prepend("command-line", f"file://{Path(config_folder).absolute()}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("gptask", path)
    finally:
        GlobalHydra.instance().clear()


def groups(configs: Any, verb: str) -> dict[str, list[str]]:
    """Each config group of a verb with its choices; groups that users don't choose from are left out."""
    from hydra.types import RunMode

    defaults = configs.compute_defaults_list(verb, [], RunMode.RUN).overrides.known_choices
    names = [
        name for name, choice in defaults.items() if not name.startswith("hydra/") and (choice or name == "experiment")
    ]
    return {name: choices(configs, name) for name in names}


def choices(configs: Any, group: str) -> list[str]:
    """The configs of a group that users choose from."""
    return [name for name in configs.get_group_options(group) if not name.endswith("_schema")]


def compose(configs: Any, verb: str, overrides: Sequence[str]) -> Any:
    """The config of a verb with overrides, unresolved; raises ``HydraException`` or ``OmegaConfBaseException``."""
    from hydra.types import RunMode

    return configs.load_configuration(verb, list(overrides), RunMode.MULTIRUN)
