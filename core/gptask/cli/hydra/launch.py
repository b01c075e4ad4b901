"""From a verb and its overrides to a checked config object, through Hydra."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from gptask.cli.hydra.compose import hydra_on, loader
from gptask.cli.hydra.error_messages import Line, mended
from gptask.cli.hydra.job import Job, log_to_console
from gptask.cli.hydra.launchers import refuse_launcher
from gptask.cli.hydra.run_overrides import from_run, run_of
from gptask.cli.hydra.task_list import several
from gptask.config import schemas
from gptask.config.conversion import register_schemas
from gptask.config.overrides import normalize_overrides, values_of
from gptask.errors import UserError, listing
from gptask.plugins.config_group import register_task_group
from gptask.plugins.discovery import discover
from gptask.plugins.discovery import load_task_class as chosen_plugin

log = logging.getLogger("gptask")
SWEEPING = ("train", "evaluate")
SHOWING = ("--cfg", "--info", "--hydra-help")


def launch(
    verb: str, arguments: Sequence[str], action: Callable[[Any], None], report: Callable[[Exception, str], int]
) -> int:
    """Compose, check and run every job of a command line; return the worst code that ``report`` gave an error.

    A failing job of a sweep doesn't stop the others, and one that is finished already is skipped.
    """
    line, flags = read(verb, arguments)
    if "--help" in flags:
        from gptask.cli import VERBS
        from gptask.cli.hydra.help import text

        sys.stdout.write(mended(line, lambda: text(verb, VERBS[verb], line.overrides)))
        return 0
    job = Job(line, action, report, sys.argv[0], "--multirun" in flags)
    with _process([*line.overrides, *flags]):
        return mended(line, lambda: _run(job, flags))


def _run(job: Job, flags: Sequence[str]) -> int:
    """Show what the flags ask for, or run the jobs; through Hydra's own object, since `hydra.main` returns nothing."""
    line = job.line
    if any(flag.startswith(SHOWING) for flag in flags):
        import hydra

        hydra.main(version_base="1.3", config_path="pkg://gptask_conf", config_name=line.verb)(job)()
        return 0
    with hydra_on(_config_folder(flags)) as hydra_:
        if not job.sweeping:
            return hydra_.run(line.verb, job, [*line.overrides, "hydra.mode=RUN"]).return_value
        return _sweep(job, hydra_)


def _config_folder(flags: Sequence[str]) -> str | None:
    """The folder of the user's own configs, if there is one."""
    return next((flag.partition("=")[2] for flag in flags if flag.startswith("--config-dir=")), None)


def _sweep(job: Job, hydra: Any) -> int:
    """Run every combination of a sweep's values; return the worst code."""
    refuse_launcher(job.line.overrides, here=True)
    try:
        batches = hydra.multirun(job.line.verb, job, [*job.line.overrides, "hydra.mode=MULTIRUN"])
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'stopped'}\nThe same command again skips the finished jobs.") from stop
    codes = [done.return_value for batch in batches for done in batch]
    if failed := [number for number, code in enumerate(codes) if code]:
        log.warning("%d of %d jobs failed: %s. The same command again runs only these", len(failed), len(codes),
                    listing(failed))  # fmt: skip
    return max(codes)


def read(verb: str, arguments: Sequence[str]) -> tuple[Line, list[str]]:
    """Load the saved run and the task that a command line names, and make its overrides acceptable to Hydra."""
    plugins = discover(())
    register_task_group(plugins)
    register_schemas()
    log_to_console()
    overrides, flags = split(verb, arguments)
    known = {*(f.name for f in fields(schemas.VERBS[verb])), "experiment"}
    overrides = normalize_overrides(overrides, "--multirun" in flags, known, open_keys())
    refuse_launcher(overrides)
    overrides += _not_of_the_preset(overrides)
    folder = _config_folder(flags)
    tasks = several(overrides, plugins, folder) if verb == "train" else None
    overrides = tasks.composed() if tasks else overrides
    run, overrides = run_of(verb, overrides)
    if run:
        overrides = from_run(verb, run, overrides)
    line = Line(verb, overrides, run, tasks.typed if tasks else ())
    for name in values_of(overrides, "task"):
        if name is None:
            raise UserError(f"task=null: choose one of {listing(plugins)}")
        line.refuse_several("task", str(name))
        try:
            chosen_plugin(plugins, str(name).strip("'\""))
        except UserError as error:
            raise UserError(f"{run}: {error}") if run else error from error.__cause__
    _load_by_default(line)
    line.overrides = normalize_overrides(overrides, "--multirun" in flags, (), open_keys())  # now with the task's own
    return line, flags


def _load_by_default(line: Line) -> None:
    """Load the task that Hydra will choose if the line doesn't, where its options may have dictionaries among them."""
    if values_of(line.overrides, "task") or not any(o.lstrip("+~").startswith("task.") for o in line.overrides):
        return
    from hydra.errors import HydraException
    from hydra.types import RunMode

    presets = [[f"experiment={name}"] for name in values_of(line.overrides, "experiment")]
    with loader() as configs:
        try:
            for preset in presets or [[]]:
                configs.compute_defaults_list(line.verb, preset, RunMode.RUN)
        except HydraException:  # a preset in a folder of the user's, or none at all: it might choose any
            discover()


def _not_of_the_preset(overrides: list[str]) -> list[str]:
    """Overrides that take away what a preset says of its own weights where the line names others."""
    named = {override.partition("=")[0] for override in overrides}
    if "backbone.source" not in named:
        return []
    return [f"{name}=null" for name in ("backbone.license", "backbone.install") if name not in named]


def split(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and Hydra's flags, the latter in their long form; raises `UserError` for what is neither."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; `gptask {verb} --help` shows what there is")

    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(list(arguments))
    if given.experimental_rerun or given.config_name or given.config_path:
        raise UserError("--experimental-rerun, --config-name and --config-path are not for gptask; see resume=")
    if given.shell_completion:
        raise UserError("-sc stands before any verb: gptask -sc install=bash")
    if (shown := sum(map(bool, (given.cfg, given.info, given.multirun)))) > 1 or (given.resolve and not given.cfg):
        raise UserError("--cfg, --info and -m exclude each other" if shown > 1 else "--resolve goes with --cfg job")
    if given.multirun and verb not in SWEEPING:
        raise UserError(f"-m is for {' and '.join(SWEEPING)}; call gptask {verb} once for each value")
    flags = [
        f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}"
        for name, value in vars(given).items()
        if value and name not in ("overrides", "run")
    ]
    return given.overrides, flags


def open_keys() -> set[str]:
    """Full names of the options that are dictionaries without fixed keys, or may be: pass-through options."""
    from gptask.plugins.config_group import stored_configs

    nodes = [(group, node) for group in ("task", *schemas.GROUPS) for node in stored_configs(group).values()]
    return {"trainer", *(name for group, node in nodes for name in _dictionaries(node, group))}


def _dictionaries(node: Any, prefix: str) -> Iterator[str]:
    from omegaconf import AnyNode, OmegaConf

    for key in node:
        child, name = node._get_node(key), f"{prefix}.{key}"
        if OmegaConf.is_dict(child) and is_dataclass(OmegaConf.get_type(child)):
            yield from _dictionaries(child, name)
        elif OmegaConf.is_dict(child) or isinstance(child, AnyNode):
            yield name


@contextmanager
def _process(arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra reads from the process: its arguments, and that errors are to reach us instead of its own exit."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["gptask", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
