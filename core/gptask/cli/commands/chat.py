"""`gptask chat`: the model and its options; `gptask.cli.chat_repl` reads and answers."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptask.cli.arguments import VerbParser
from gptask.cli.chat_repl import COMMANDS, ChatRepl
from gptask.cli.hydra.job import log_to_console
from gptask.config.engine import EngineOptions, engine_from_overrides, refuse_openvino
from gptask.config.overrides import parse_override, quote_if_needed
from gptask.config.schemas import LOADED_DTYPES, DType, Pretrained
from gptask.errors import UserError, listing, nearest, user_path
from gptask.model.backbone.chat_template import PLAIN_TEMPLATE
from gptask.model.generation.chat import Chat, ChatOptions
from gptask.runs.run import load_run
from gptask.runs.saved_model import locate_backbone

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

log = logging.getLogger("gptask")
DEFAULT_MODEL = "smollm2"
UNSUPPORTED = {"num_beams", "samples"}  # generation options that a chat can't have
DESCRIPTION = """Talk to a model in the terminal; its answers appear as they are generated.
Piped input is read line by line."""


def main(arguments: Sequence[str]) -> int:
    """Read the command line, load the model, talk; return the exit code."""
    model, overrides = _split_arguments(_parser().parse_args(list(arguments)).arguments)
    log_to_console()
    engine_overrides = [override for override in overrides if re.match(r"engine[.=]", override)]
    engine = engine_from_overrides(engine_overrides)
    dtype_overrides = [override for override in overrides if override.startswith("dtype=")]
    dtype = _dtype(dtype_overrides[-1].removeprefix("dtype=")) if dtype_overrides else None
    others = [override for override in overrides if override not in (*engine_overrides, *dtype_overrides)]
    options = _chat_options(others)
    chat = Chat(_load_backbone(model, options, engine, dtype), options)
    if chat.template.text == PLAIN_TEMPLATE:
        log.warning("%s has no chat template: turns are written as 'User: ...' and 'Assistant: ...' lines", model)
    return ChatRepl(chat, sys.stdin.isatty()).run()


def _parser() -> VerbParser:
    default = ChatOptions()
    option_rows = "".join(
        f"  {f'{field.name}={json.dumps(getattr(default, field.name))}':<24}{field.metadata['help']}\n"
        for field in dataclasses.fields(default)
        if field.name not in UNSUPPORTED
    )
    engines = "fast, reference or openvino (for a run); engine.packing=off (also $GPTASK_ENGINE)"
    option_rows += f"  {'engine=fast':<24}{engines}\n"
    option_rows += f"  {'dtype=null':<24}{LOADED_DTYPES}\n"
    parser = VerbParser(
        "chat",
        usage="gptask chat [MODEL] [option=value ...]",
        description=DESCRIPTION,
        epilog=f"chat options:\n{option_rows}\nin a conversation:\n{COMMANDS}",
    )
    sources = "run folder of a task that generates, preset, folder, .gguf, package or hub id"
    parser.add_argument("arguments", nargs="*", metavar="MODEL", help=f"{sources} (default {DEFAULT_MODEL})")
    return parser


def _split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The model and the overrides."""
    models = [a for a in arguments if "=" not in a or Path(a).exists()]
    if len(models) > 1:
        raise UserError(f"one model at a time, got {listing(models)}; an option is written name=value")
    return (models or [DEFAULT_MODEL])[0], [a for a in arguments if a not in models]


def _dtype(text: str) -> DType | None:
    """The number format that ``dtype=`` names; raises `UserError` for what names none."""
    names = [*(dtype.name for dtype in DType), "null"]
    if text not in names:
        raise UserError(f"dtype={text}: expected {listing(names)}.{nearest(text, names)}")
    return None if text == "null" else DType[text]


def _chat_options(overrides: Sequence[str]) -> ChatOptions:
    from hydra.errors import HydraException  # for start-up time

    config = OmegaConf.structured(ChatOptions)
    available = [*(f.name for f in dataclasses.fields(ChatOptions) if f.name not in UNSUPPORTED), "engine", "dtype"]
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in available:
            hint = nearest(key, available)
            raise UserError(f"gptask chat has no option '{key}'; available: {listing(available, 20)}.{hint}")
        try:
            config[key] = parse_override(f"{key}={quote_if_needed(value)}").value()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{override}: {str(error).splitlines()[0]}") from error
    options: ChatOptions = OmegaConf.to_object(config)  # type: ignore[assignment]
    if options.temperature == 0 and not any(override.startswith("top_p=") for override in overrides):
        options.top_p = 1.0  # the default is for sampling
    options.validate()
    return options


def _load_backbone(model: str, options: ChatOptions, engine: EngineOptions, dtype: DType | None) -> GPTBackbone:
    """The backbone of a run or a pretrained one, on a GPU if there is one."""
    import torch

    path = user_path(model)
    is_run = path.is_dir() and not (path / "config.json").exists()
    backbone = _run_backbone(path, options, engine, dtype) if is_run else _pretrained_backbone(model, engine, dtype)
    log.info("%s", backbone.engine.summary())
    return backbone.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _run_backbone(path: Path, options: ChatOptions, engine: EngineOptions, dtype: DType | None) -> GPTBackbone:
    """The backbone of a run; sets the texts that end an answer to those of the run's task, unless the user did."""
    from gptask.model.heads import GenerationHead  # imports torch

    run = load_run(path, dtype=dtype, engine=engine)
    if not isinstance(run.head, GenerationHead):
        raise UserError(f"{path} is a run of task '{run.plugin.name}', which generates no text; choose another run")
    options.stop = options.stop or list(run.head.options.stop)
    return run.backbone


def _pretrained_backbone(model: str, engine: EngineOptions, dtype: DType | None) -> GPTBackbone:
    """The backbone of a preset, or of a source such as a folder, a GGUF file or a hub id."""
    refuse_openvino(engine, "a backbone without a run")
    from gptask.model.backbone.backbone import load_or_build_backbone  # imports torch

    preset_folder = files("gptask_conf") / "backbone"
    presets = {Path(file.name).stem: file for file in preset_folder.iterdir() if file.name.endswith(".yaml")}
    options = Pretrained(source=model)
    if model in presets and not Path(model).exists():
        values: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
            OmegaConf.create(presets[model].read_text(encoding="utf-8"))
        )
        del values["defaults"]
        if "source" not in values:
            raise UserError(
                f"backbone '{model}' is trained from scratch: train it first, then chat with its run folder"
            )
        options = Pretrained(**values)
    try:
        return load_or_build_backbone(options, locate_backbone(options), list, engine, dtype)
    except UserError as error:
        raise UserError(f"{error}{nearest(model, presets)}") from error
