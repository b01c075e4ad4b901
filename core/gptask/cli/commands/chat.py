"""`gptask chat`: which model, and how it answers; `gptask.cli.chat_repl` holds the conversation."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.cli.arguments import Parser
from gptask.errors import UserError, listing, nearest

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.generation.chat import ChatOptions

log = logging.getLogger("gptask")
DEFAULT = "smollm2"
HIDDEN = {"num_beams", "samples"}  # not for a chat
ABOUT = """Talk to a model in the terminal; what it says appears as it is written.
Input that is piped is taken line by line."""
COMMANDS = """/reset          forget the conversation
/system [TEXT]  show the system message, or set another
/save FILE      write the conversation as a line of JSON ({"messages": [...]})
/exit           leave (so does Ctrl-D)
\"\"\"             begins a text of several lines, and ends it
Ctrl-C stops an answer; pressed again, or where there is none, it leaves."""


def chat(arguments: Sequence[str]) -> int:
    """Read the line, load the model, talk; return the exit code."""
    model, given = _split(_parser().parse_args(list(arguments)).arguments)
    from gptask.cli.hydra.job import log_to_console

    log_to_console()
    options = _options(given)
    backbone = _backbone(model, options)
    from gptask.cli.chat_repl import talk
    from gptask.model.backbone.chat_template import PLAIN
    from gptask.model.generation.chat import Chat

    session = Chat(backbone, options)
    if session.template.text == PLAIN:
        log.warning("%s has no chat template: turns are put to it as 'User: ...' and 'Assistant: ...' lines", model)
    return talk(session)


def _parser() -> Parser:
    made = Parser(
        "chat",
        usage="gptask chat [MODEL] [option=value ...]",
        description=ABOUT,
        epilog=f"how it answers:\n{_described()}\nin a conversation:\n{COMMANDS}",
    )
    about = f"run folder of a task that generates, preset, folder, .gguf, package or hub id (default {DEFAULT})"
    made.add_argument("arguments", nargs="*", metavar="MODEL", help=about)
    return made


def _described() -> str:
    from gptask.model.generation.chat import ChatOptions

    default = ChatOptions()
    shown = [f for f in dataclasses.fields(default) if f.name not in HIDDEN]
    rows = [(f"{f.name}={json.dumps(getattr(default, f.name))}", f.metadata["help"]) for f in shown]
    return "".join(f"  {name:<24}{about}\n" for name, about in rows)


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The model and the options of a line."""
    models = [a for a in arguments if "=" not in a or Path(a).exists()]
    if len(models) > 1:
        raise UserError(f"one model at a time, got {listing(models)}; an option is written name=value")
    return (models or [DEFAULT])[0], [a for a in arguments if a not in models]


def _options(given: Sequence[str]) -> ChatOptions:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gptask.config.overrides import parse_override, quote_if_needed
    from gptask.model.generation.chat import ChatOptions

    options = OmegaConf.structured(ChatOptions)
    known = [f.name for f in dataclasses.fields(ChatOptions) if f.name not in HIDDEN]
    for override in given:
        key, _, value = override.partition("=")
        if key not in known:
            raise UserError(f"gptask chat has no option '{key}'; there are {listing(known, 20)}.{nearest(key, known)}")
        try:
            options[key] = parse_override(f"{key}={quote_if_needed(value)}").value()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{override}: {str(error).splitlines()[0]}") from error
    made: Any = OmegaConf.to_object(options)
    if made.temperature == 0 and not any(override.startswith("top_p=") for override in given):
        made.top_p = 1.0  # the default is for draws
    made.validate()
    return made


def _backbone(model: str, options: ChatOptions) -> GPTBackbone:
    """The model to talk to, where there is a GPU on it; a run's texts end as its task says."""
    import torch

    path = Path(model).expanduser()
    backbone = _of_run(path, options) if _is_run(path) else _pretrained(model)
    return backbone.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _is_run(path: Path) -> bool:
    return path.is_dir() and not (path / "config.json").exists()


def _of_run(path: Path, options: ChatOptions) -> GPTBackbone:
    from gptask.model.heads import GenerationHead
    from gptask.runs.run import load_run

    run = load_run(path)
    if not isinstance(run.head, GenerationHead):
        raise UserError(f"{path} is a run of task '{run.plugin.name}', which writes no text; take one that generates")
    options.stop = options.stop or list(run.head.options.stop)
    return run.backbone


def _pretrained(model: str) -> GPTBackbone:
    from omegaconf import OmegaConf

    from gptask.config.schemas import Pretrained
    from gptask.model.backbone.backbone import load_backbone_from
    from gptask.runs.saved_model import locate_backbone

    presets = {Path(str(file)).stem: file for file in _presets()}
    options = Pretrained(source=model)
    if model in presets and not Path(model).exists():
        values = OmegaConf.create(presets[model].read_text(encoding="utf-8"))
        del values["defaults"]
        if "source" not in values:
            raise UserError(f"backbone '{model}' is made from scratch: train it first, then talk to its run folder")
        options = Pretrained(**OmegaConf.to_container(values))  # type: ignore[arg-type]
    try:
        return load_backbone_from(options, locate_backbone(options), list)
    except UserError as error:
        raise UserError(f"{error}{nearest(model, presets)}") from error


def _presets() -> list[Any]:
    from importlib.resources import files

    folder = files("gptask_conf") / "backbone"
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]
