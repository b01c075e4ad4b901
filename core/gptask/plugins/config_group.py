"""Hydra's config group ``task``: the installed plugins, each loaded once it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from gptask.plugins.discovery import Plugin, load_task_class

TASK_GROUP = "task"


class TaskNode(ConfigNode):
    """A node of the `ConfigStore` that builds its config from the plugin's class when Hydra asks for it.

    Hydra copies its store often, so a deep copy is the node itself, which loads the plugin once. Launchers pickle the
    store for other processes, which get composed configs: there a plain node is enough, empty if it was not chosen.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.schema: DictConfig | None = None  # once it is built
        self.name, self.group, self.package, self.provider = f"{plugin.name}.yaml", TASK_GROUP, None, "gptask plugin"

    @property
    def node(self) -> DictConfig:  # type: ignore[override]
        """The schema of the task; raises `UserError` for a task that can't be used."""
        if self.schema is None:
            self.schema = OmegaConf.structured(load_task_class({self.plugin.name: self.plugin}, self.plugin.name))
        return self.schema

    def __copy__(self) -> ConfigNode:
        return ConfigNode(self.name, self.node, self.group, self.package, self.provider)

    def __deepcopy__(self, memo: Any) -> TaskNode:
        return self

    def __reduce__(self) -> Any:
        return ConfigNode, (self.name, self.schema, self.group, self.package, self.provider)


def register_task_group(plugins: Mapping[str, Plugin]) -> None:
    """Make these plugins the choices of the group, beside the nodes that other packages stored there."""
    repo = ConfigStore.instance().repo
    foreign_nodes = {file: node for file, node in repo.get(TASK_GROUP, {}).items() if not isinstance(node, TaskNode)}
    repo[TASK_GROUP] = foreign_nodes | {f"{name}.yaml": TaskNode(plugin) for name, plugin in plugins.items()}


def stored_configs(group: str) -> dict[str, DictConfig]:
    """Return the configs that the store holds for a group, by name, without tasks that are not loaded yet."""
    nodes = ConfigStore.instance().repo.get(group, {}).items()
    return {
        file.removesuffix(".yaml"): node.node
        for file, node in nodes
        if not isinstance(node, TaskNode) or node.plugin.task
    }
