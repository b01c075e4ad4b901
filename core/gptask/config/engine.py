"""The engine: the form in which the backbone is computed; an option of each verb, or ``GPTASK_ENGINE``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from gptask.config.overrides import values_of
from gptask.errors import UserError, listing, nearest

VARIABLE = "GPTASK_ENGINE"
TRUTH_VALUES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass
class Fast:
    """gptask's own faster forms; each component that is off, or doesn't fit the backbone, is left to transformers."""

    attention: bool = True  # attention as plain matrix products
    packing: bool = True  # no pads, and shared prefixes are read once (needs attention)
    rotary: bool = True  # rotary embeddings with a backward pass that is a rotation
    linear: bool = True  # fused LoRA, merged and packed weights
    norm: bool = True  # RMS norms that save only their input
    loss: bool = True  # cross-entropy in chunks
    last_layer: bool = True  # the last feed-forward part for the needed positions alone
    activation_cache: bool = True  # states of frozen layers are read from disk in later epochs
    decoding: bool = True  # rows in buckets of similar length, and shared prompts are read once


@dataclass
class Reference:
    """transformers, PEFT and torch as they are."""


@dataclass
class OpenVino:
    """OpenVINO writes the texts of a run, with weights in q8_0; all else is computed as `Fast` does."""


EngineOptions = Fast | Reference | OpenVino
ENGINES: dict[str, type[EngineOptions]] = {"fast": Fast, "reference": Reference, "openvino": OpenVino}
COMPONENTS = tuple(f.name for f in fields(Fast))
SYNTAX = f"expected fast, reference or openvino ({VARIABLE} takes fast,packing=off too)"


def refuse_openvino(engine: EngineOptions, use: str) -> None:
    """Raise `UserError` where an engine that only writes the texts of a finished run is to do more."""
    if isinstance(engine, OpenVino):
        origin = f" ({VARIABLE} names it)" if os.environ.get(VARIABLE, "").strip().lower() == "openvino" else ""
        raise UserError(
            f"engine=openvino{origin} writes the texts of a finished run: predict, evaluate, chat and gptask.load_run "
            f"take it, {use} does not: choose engine=fast"
        )


def engine_from_environment() -> EngineOptions:
    """The engine that ``GPTASK_ENGINE`` names, the fast one without it; raises `UserError` for what names none."""
    text = os.environ.get(VARIABLE, "").strip()
    name, *components = (part.strip() for part in (text or "fast").split(","))
    name = name.lower()
    where = f"{VARIABLE}={text}"
    return _with_components(_engine(name, where), components, where)


def engine_from_overrides(overrides: Sequence[str]) -> EngineOptions:
    """The engine of ``engine=<name>`` and ``engine.<component>=<truth value>``, for verbs that Hydra doesn't compose.

    Without ``engine=`` it is the environment's, as the overrides change it. Raises `UserError` for what names none.
    """
    names = [override.partition("=")[2] for override in overrides if override.startswith("engine=")]
    engine = _engine(names[-1], f"engine={names[-1]}") if names else engine_from_environment()
    for override in (override for override in overrides if override.startswith("engine.")):
        origin = "" if names else f" (from {VARIABLE})"
        engine = _with_components(engine, [override.removeprefix("engine.")], override, origin)
    return engine


def environment_overrides(overrides: Sequence[str]) -> list[str]:
    """The environment's engine as overrides to be put before the user's, none where the user chooses an engine.

    They name every component, so that they replace those of a preset. Raises `UserError` where the user sets one and
    the environment names another engine than the fast one: they have none.
    """
    if not os.environ.get(VARIABLE, "").strip() or values_of(overrides, "engine"):
        return []
    engine = engine_from_environment()
    if isinstance(engine, Fast):
        return ["engine=fast", *(f"engine.{name}={str(value).lower()}" for name, value in asdict(engine).items())]
    for override in overrides:
        if override.lstrip("+~").startswith("engine."):
            _with_components(engine, [override.lstrip("+~").removeprefix("engine.")], override, f" (from {VARIABLE})")
    return [f"engine={_name(engine)}"]


def _name(engine: EngineOptions) -> str:
    return next(name for name, options in ENGINES.items() if type(engine) is options)


def _engine(name: str, where: str) -> EngineOptions:
    if name not in ENGINES:
        raise UserError(f"{where}: unknown engine '{name}'; {SYNTAX}.{nearest(name, ENGINES)}")
    return ENGINES[name]()


def _with_components(engine: EngineOptions, components: Sequence[str], where: str, origin: str = "") -> EngineOptions:
    """The engine with components set by texts such as ``packing=off``."""
    for component in components:
        name, _, value = (part.strip() for part in component.partition("="))
        if not isinstance(engine, Fast):
            raise UserError(f"{where}: the {_name(engine)} engine{origin} has no components, as engine=fast has")
        if name not in COMPONENTS:
            hint = nearest(name, COMPONENTS)
            raise UserError(f"{where}: unknown component '{name}'; available: {listing(COMPONENTS)}.{hint}")
        if value.lower() not in TRUTH_VALUES:
            raise UserError(f"{where}: {name} takes {listing(TRUTH_VALUES)}, got '{value}'")
        engine = replace(engine, **{name: TRUTH_VALUES[value.lower()]})
    return engine
