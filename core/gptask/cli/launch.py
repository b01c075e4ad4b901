"""From a verb and its overrides to a checked config object, through Hydra."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from gptask import config as schemas
from gptask.cli.explain import Line
from gptask.cli.overrides import chosen, normalize
from gptask.cli.saved import from_run, run_of
from gptask.errors import UserError, listing
from gptask.plugins import chosen as chosen_plugin
from gptask.plugins import discover
from gptask.run import main_process, started_by

log = logging.getLogger("gptask")
SWEEPING = ("train", "evaluate")


def launch(
    verb: str, arguments: Sequence[str], action: Callable[[Any], None], report: Callable[[Exception, str], int]
) -> int:
    """Compose, check and run every job of a command line; return the worst code that ``report`` gave an error.

    A failing job of a sweep doesn't stop the others.
    """
    import hydra

    program = sys.argv[0]
    line, flags = read(verb, arguments)
    codes: list[int] = []

    def job(cfg: Any) -> None:
        where = _job_name() if "--multirun" in flags else ""
        sys.argv = [program, verb, *_own_overrides()]  # what Lightning starts further processes with
        typed = None if line.run and verb == "train" else shlex.join(["gptask", *sys.argv[1:]])
        before = started_by.set(typed)
        try:
            action(_mended(line, lambda: checked(cfg, line)))
        except Exception as error:
            codes.append(report(error, where))
        finally:
            started_by.reset(before)

    if "--help" in flags:
        from gptask.cli import VERBS
        from gptask.cli.help import text

        sys.stdout.write(_mended(line, lambda: text(verb, VERBS[verb], line.overrides)))
        return 0
    main = hydra.main(version_base="1.3", config_path="pkg://gptask_conf", config_name=verb)
    with _process([*line.overrides, *flags]):
        _mended(line, main(job))
    return max(codes, default=0)


def _mended(line: Line, part: Callable[[], Any]) -> Any:
    """Run a part, its errors of Hydra or OmegaConf put into the user's words."""
    try:
        return part()
    except Exception as error:
        mended = line.mend(error)
        if mended is error:
            raise
        raise mended from error


def read(verb: str, arguments: Sequence[str], quiet: bool = False) -> tuple[Line, list[str]]:
    """Load the plugins and the saved run that a command line names, and make its overrides acceptable to Hydra."""
    plugins = discover()
    for plugin in plugins.values():
        if plugin.error and not quiet:
            sys.stderr.write(f"gptask: task '{plugin.name}' ({plugin.origin}) is {plugin.state}: {plugin.error}\n")
    schemas.store()
    _log_to_console()
    overrides, flags = split(verb, arguments)
    known = {*(f.name for f in fields(schemas.VERBS[verb])), "experiment"}
    overrides = normalize(overrides, "--multirun" in flags, known, open_keys())
    overrides += _not_of_the_preset(overrides)
    run = run_of(verb, overrides)
    if run:
        overrides = from_run(verb, run, overrides)
    line = Line(verb, overrides, run)
    for name in chosen(overrides, "task"):
        if name is None:
            raise UserError(f"task=null: choose one of {listing(plugins)}")
        line.refuse_several("task", str(name))
        try:
            chosen_plugin(plugins, str(name).strip("'\""))
        except UserError as error:
            raise UserError(f"{run}: {error}") if run else error from error.__cause__
    return line, flags


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
    from hydra.core.config_store import ConfigStore

    repo: dict[str, Any] = ConfigStore.instance().repo
    stored = [(group, node.node) for group in ("task", *schemas.GROUPS) for node in repo.get(group, {}).values()]
    return {"trainer", *(name for group, node in stored for name in _dictionaries(node, group))}


def _dictionaries(node: Any, prefix: str) -> Iterator[str]:
    from omegaconf import AnyNode, OmegaConf

    for key in node:
        child, name = node._get_node(key), f"{prefix}.{key}"
        if OmegaConf.is_dict(child) and is_dataclass(OmegaConf.get_type(child)):
            yield from _dictionaries(child, name)
        elif OmegaConf.is_dict(child) or isinstance(child, AnyNode):
            yield name


def checked(cfg: Any, line: Line) -> Any:
    """The composed config as the verb's dataclass, its task an instance of the plugin."""
    from omegaconf import OmegaConf

    _strict(cfg, "", line)
    _interpolate(cfg)
    return OmegaConf.to_object(cfg)


def _strict(node: Any, prefix: str, line: Line) -> None:
    """Refuse keys that ``+`` and ``~`` smuggled past a schema."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node) or not is_dataclass(schema := OmegaConf.get_type(node)):
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


def _job_name() -> str:
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get().job
    log.info("job %d: %s", job.num, job.override_dirname)
    return f"job {job.num} ({job.override_dirname}): "


def _own_overrides() -> list[str]:
    """The overrides of this job alone, without what a saved run put among them."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    given: list[Any] = OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[assignment]
    return given[given.index("saved=run") + 1 :] if "saved=run" in given else given


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


def _log_to_console() -> None:
    log.setLevel(logging.INFO if main_process() else logging.ERROR)
    handler = next((h for h in log.handlers if type(h) is logging.StreamHandler), None)
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    handler.stream = sys.stderr  # today's: a program may have replaced it since the last call
