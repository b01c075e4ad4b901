"""From a verb and its overrides to a checked config object, through Hydra."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from gptask import config as schemas
from gptask.cli.overrides import chosen, normalize
from gptask.errors import UserError
from gptask.plugins import chosen as chosen_plugin
from gptask.plugins import discover
from gptask.run import read_config

SHOW = {"--help", "-h", "--hydra-help", "--info", "-i", "--cfg", "-c", "--shell-completion", "-sc"}


def launch(verb: str, arguments: list[str], action: Callable[[Any], None]) -> list[BaseException]:
    """Compose, check and run every job of a command line; return the jobs' errors."""
    import hydra

    multirun = "-m" in arguments or "--multirun" in arguments
    arguments = prepare(verb, arguments, multirun)
    errors: list[BaseException] = []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own exit

    def job(cfg: Any) -> None:
        try:
            action(checked(cfg))
        except Exception as error:
            errors.append(error)

    sys.argv = ["gptask", *arguments]
    hydra.main(version_base="1.3", config_path="pkg://gptask_conf", config_name=verb)(job)()
    return errors


def prepare(verb: str, arguments: list[str], multirun: bool = False) -> list[str]:
    """Load plugins and saved runs that the overrides name, and make the overrides acceptable to Hydra."""
    plugins = discover()
    for plugin in plugins.values():
        if plugin.error:
            sys.stderr.write(f"gptask: task '{plugin.name}' ({plugin.origin}) is broken: {plugin.error}\n")
    schemas.store()
    arguments = normalize(arguments, multirun)
    run = chosen(arguments, "resume" if verb == "train" else "run")
    if verb != "export" and run and run != "null":
        arguments = from_run(verb, run.strip("'\""), arguments)
    for name in (chosen(arguments, "task") or "").split(","):
        if name:
            chosen_plugin(plugins, name.strip("'\""))
    _log_to_console()
    return arguments


def from_run(verb: str, folder: str, arguments: list[str]) -> list[str]:
    """Put a run's values between the defaults and the user's overrides, so that these are checked against both."""
    from hydra.core.config_store import ConfigStore

    values = read_config(folder)
    name = values["plugin"]["name"]
    given = chosen(arguments, "task")
    if given and given != name:
        raise UserError(f"{folder} is a run of task '{name}', not '{given}'; leave task= out")
    groups = {"task": name}
    saved: dict[str, Any] = {"task": values["task"]}
    shared = {"train": list(schemas.GROUPS) + ["schedule", "early_stopping", "trainer", "seed", "probe"]}
    for group in shared.get(verb, ["backbone", "data", "seed"] if verb == "evaluate" else []):
        if group not in values:
            continue
        value = values[group]
        if group in schemas.GROUPS:
            value = dict(value)
            kind = value.pop("kind")
            if chosen(arguments, group):  # the user asks for another: nothing of the run's is kept
                continue
            groups[group] = kind
        saved[group] = value
    if verb == "predict":
        saved["data"] = {"max_tokens": values["data"]["max_tokens"], "labels": None}
    ConfigStore.instance().store(group="saved", name="run", node=saved, package="_global_")
    flags = [a for a in arguments if "=" not in a or a.startswith("-")]
    rest = [a for a in arguments if a not in flags]
    return [
        *flags,
        *(f"{group}={kind}" for group, kind in groups.items() if not chosen(rest, group)),
        "saved=run",
        *rest,
    ]


def checked(cfg: Any) -> Any:
    """The composed config as the verb's dataclass, its task an instance of the plugin."""
    from omegaconf import OmegaConf

    OmegaConf.resolve(cfg)
    return OmegaConf.to_object(cfg)


def _log_to_console() -> None:
    log = logging.getLogger("gptask")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.propagate = False
