"""What the config groups hold, asked of Hydra: for help, completion and error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


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
