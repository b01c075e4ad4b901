"""From a verb and its overrides to jobs with a validated config, through Hydra."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from io import StringIO
from typing import Any, NoReturn

from gptask.cli.hydra.compose import CONFIG_MODULE, initialized, loader, search_path, with_config_folder
from gptask.cli.hydra.error_messages import CommandLine, with_user_errors
from gptask.cli.hydra.help import help_text
from gptask.cli.hydra.job import Job, log_to_console
from gptask.cli.hydra.launchers import check_launcher
from gptask.cli.hydra.private import argument_parser, child_node, multirun
from gptask.cli.hydra.run_overrides import locate_run, with_run_overrides, with_student
from gptask.cli.hydra.task_list import read_task_list
from gptask.cli.output import write_out
from gptask.cli.verbs import MULTIRUN, VERBS
from gptask.config import schemas
from gptask.config.conversion import register_schemas
from gptask.config.engine import environment_overrides
from gptask.config.overrides import normalize_overrides, values_of
from gptask.config.verb_schemas import VERB_SCHEMAS
from gptask.errors import UserError, listing
from gptask.plugins.config_group import register_task_group, stored_configs
from gptask.plugins.discovery import Plugin, discover, load_task_class

log = logging.getLogger("gptask")
DISPLAY_FLAGS = ("--cfg", "--info", "--hydra-help")  # Hydra prints something instead of running a job


def launch(verb: str, arguments: Sequence[str], action: Callable[[Any, str | None], None]) -> int:
    """Compose, validate and run every job of a command line; return the highest exit code.

    ``action`` gets the config, and the command line that is recorded with the run (None for a resumed one).
    A failing job of a multirun doesn't stop the others, and a job that an earlier start finished is skipped.
    """
    command_line, flags = read_command_line(verb, arguments)
    if "--help" in flags:
        text = with_user_errors(command_line, lambda: help_text(VERBS[verb], command_line.overrides))
        write_out(text)
        return 0
    if any(flag.startswith(DISPLAY_FLAGS) for flag in flags):
        with_user_errors(command_line, lambda: _display(command_line, flags))
        return 0
    job = Job(command_line, action, sys.argv[0])
    if "--multirun" in flags:
        return with_user_errors(command_line, lambda: _multirun(job))
    return job.run(with_user_errors(command_line, lambda: composed(command_line)), command_line.overrides)


def composed(command_line: CommandLine) -> Any:
    """The config of a single run, without Hydra's own options, of which only ``hydra.searchpath`` bears on it."""
    from hydra import compose

    for override in command_line.overrides:
        if re.match(r"[~+]*hydra\b", override) and not search_path([override]):
            raise UserError(
                f"{override} has no effect on a single run: of Hydra's own options it takes only hydra.searchpath, the "
                "others are for -m (a run for each combination of values). Leave this out"
            )
    with initialized():
        return compose(command_line.verb, list(command_line.overrides))


def _multirun(job: Job) -> int:
    """Run every combination of values; return the highest exit code."""
    command_line = job.command_line
    check_launcher(command_line.overrides, about_to_run=True)
    try:
        with initialized():
            codes = multirun(command_line.verb, job, command_line.overrides)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{str(stop) or 'stopped'}\nThe same command again skips the finished jobs.") from stop
    if failed := [number for number, code in enumerate(codes) if code]:
        log.warning("%d of %d jobs failed: %s. The same command again runs only these", len(failed), len(codes),
                    listing(failed))  # fmt: skip
    if not codes:
        raise UserError(
            "no run is asked for: one of the overrides gives no value, such as a glob() that matches nothing"
        )
    return max(codes)


def _display(command_line: CommandLine, flags: Sequence[str]) -> None:
    """Let Hydra print what the flags ask for."""
    import hydra

    main = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=command_line.verb)
    with _hydra_process([*command_line.overrides, *flags]), redirect_stdout(StringIO()) as printed:
        main(lambda config: None)()
    write_out(printed.getvalue())


def read_command_line(verb: str, arguments: Sequence[str]) -> tuple[CommandLine, list[str]]:
    """Load the saved run and the task that a command line names, and make its overrides acceptable to Hydra."""
    plugins = discover(())
    register_task_group(plugins)
    register_schemas()
    log_to_console()
    overrides, flags, config_folder = _split_flags(verb, arguments)
    overrides, several = with_student(verb, overrides), "--multirun" in flags
    top_keys = {*(f.name for f in fields(VERB_SCHEMAS[verb])), "experiment"}
    overrides = normalize_overrides(overrides, several, top_keys, open_keys())
    overrides = with_config_folder(config_folder, overrides) if config_folder else overrides
    check_launcher(overrides)
    environment = environment_overrides(overrides)
    overrides += _reset_preset_license(overrides)
    task_list = read_task_list(overrides, plugins) if verb == "train" else None
    overrides = task_list.hydra_overrides() if task_list else overrides
    run, overrides = locate_run(verb, overrides)
    if run:
        overrides = with_run_overrides(verb, run, overrides, environment)
    typed = task_list.typed if task_list else ()
    command_line = CommandLine(verb, [*environment, *overrides], run, typed, environment)
    _load_chosen_tasks(command_line, plugins)
    _load_default_task(command_line)
    # Once more: only now are the dictionaries among the tasks' options known.
    command_line.overrides = normalize_overrides(command_line.overrides, several, (), open_keys())
    return command_line, flags


def _load_chosen_tasks(command_line: CommandLine, plugins: Mapping[str, Plugin]) -> None:
    """Load the tasks that the overrides name; raises `UserError` for one that can't be used."""
    run = command_line.run
    for name in values_of(command_line.overrides, "task"):
        if name is None:
            raise UserError(f"task=null: choose one of {listing(plugins)}")
        command_line.refuse_sweep_values("task", str(name))
        try:
            load_task_class(dict(plugins), str(name).strip("'\""))
        except UserError as error:
            raise UserError(f"{run}: {error}") if run else error from error.__cause__


def _load_default_task(command_line: CommandLine) -> None:
    """Load the task that Hydra chooses by default where an override sets an option of it: it may be a dictionary."""
    overrides = command_line.overrides
    if values_of(overrides, "task") or not any(o.lstrip("+~").startswith("task.") for o in overrides):
        return
    from hydra.errors import HydraException
    from hydra.types import RunMode

    presets = [[f"experiment={name}"] for name in values_of(overrides, "experiment")]
    with loader() as configs:
        try:
            for preset in presets or [[]]:
                configs.compute_defaults_list(command_line.verb, preset, RunMode.RUN)
        except HydraException:  # the preset is unknown here or in the user's folder, and may choose any task
            discover()


def _reset_preset_license(overrides: list[str]) -> list[str]:
    """Overrides that remove a preset's notes on its own weights where the command line names other weights."""
    keys = {override.partition("=")[0] for override in overrides}
    if "backbone.source" not in keys:
        return []
    return [f"{name}=null" for name in ("backbone.license", "backbone.install") if name not in keys]


def _split_flags(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """Overrides, Hydra's flags in their long form, and the folder of --config-dir.

    Raises `UserError` for anything else.
    """
    parser = argument_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; `gptask {verb} --help` shows the options")

    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(list(arguments))
    if parsed.experimental_rerun or parsed.config_name or parsed.config_path:
        raise UserError("gptask has no --experimental-rerun, --config-name or --config-path; resume= continues a run")
    if parsed.shell_completion:
        raise UserError("-sc stands before any verb: gptask -sc install=bash")
    if sum(map(bool, (parsed.cfg, parsed.info, parsed.multirun))) > 1:
        raise UserError("--cfg, --info and -m exclude each other")
    if parsed.resolve and not parsed.cfg:
        raise UserError("--resolve goes with --cfg job")
    if parsed.multirun and verb not in MULTIRUN:
        raise UserError(f"-m is for {' and '.join(MULTIRUN)}; call gptask {verb} once for each value")
    flags = [
        f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}"
        for name, value in vars(parsed).items()
        if value and name not in ("overrides", "run", "config_dir")
    ]
    return parsed.overrides, flags, parsed.config_dir


def open_keys() -> set[str]:
    """Full names of the options that are, or may be, dictionaries without fixed keys, of the loaded plugins too."""
    schema_nodes = [
        (group, node) for group in ("task", *schemas.GROUP_SCHEMAS) for node in stored_configs(group).values()
    ]
    return {"trainer", *(key for group, node in schema_nodes for key in _open_dictionaries(node, group))}


def _open_dictionaries(node: Any, prefix: str) -> Iterator[str]:
    from omegaconf import AnyNode, OmegaConf

    for name in node:
        child, key = child_node(node, name), f"{prefix}.{name}"
        if OmegaConf.is_dict(child) and is_dataclass(OmegaConf.get_type(child)):
            yield from _open_dictionaries(child, key)
        elif OmegaConf.is_dict(child) or isinstance(child, AnyNode):
            yield key


@contextmanager
def _hydra_process(arguments: Sequence[str]) -> Iterator[None]:
    """Set what Hydra reads from the process: its arguments, and that it raises errors instead of exiting."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["gptask", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
