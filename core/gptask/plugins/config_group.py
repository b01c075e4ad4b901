"""Hydra's config group ``task``: the installed plugins, each loaded when it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from gptask.plugins.discovery import Plugin, load_task_class

GROUP = "task"


class TaskNode(ConfigNode):
    """A node of the `ConfigStore` whose config is made from the plugin's class when Hydra asks for it.

    Hydra copies its store often, and launchers hand it to other processes: a copy shares the choice, and what is
    pickled is a plain node (with nothing in it if it was not chosen), since those processes get composed configs.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.made: DictConfig | None = None
        self.name, self.group, self.package, self.provider = f"{plugin.name}.yaml", GROUP, None, "gptask plugin"

    @property
    def node(self) -> DictConfig:  # type: ignore[override]
        """The schema of the task; raises `UserError` for one that can't be used."""
        if self.made is None:
            self.made = OmegaConf.structured(load_task_class({self.plugin.name: self.plugin}, self.plugin.name))
        return self.made

    def __copy__(self) -> ConfigNode:
        return ConfigNode(self.name, self.node, self.group, self.package, self.provider)

    def __deepcopy__(self, memo: Any) -> TaskNode:
        return self

    def __reduce__(self) -> Any:
        return ConfigNode, (self.name, self.made, self.group, self.package, self.provider)


def register_task_group(plugins: Mapping[str, Plugin]) -> None:
    """Make these the choices of the group, beside what others stored there."""
    repo = ConfigStore.instance().repo
    others = {file: node for file, node in repo.get(GROUP, {}).items() if not isinstance(node, TaskNode)}
    repo[GROUP] = others | {f"{name}.yaml": TaskNode(plugin) for name, plugin in plugins.items()}


def stored_configs(group: str) -> dict[str, DictConfig]:
    """The configs that are in the store for a group, by name; tasks that were not loaded are left out."""
    nodes = ConfigStore.instance().repo.get(group, {}).items()
    return {
        file.removesuffix(".yaml"): node.node
        for file, node in nodes
        if not isinstance(node, TaskNode) or node.plugin.task
    }
