"""The engine: the form in which the backbone is computed; an option of each verb, or ``GPTASK_ENGINE``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from gptask.errors import UserError, listing, nearest

VARIABLE = "GPTASK_ENGINE"
SYNTAX = "expected 'reference', 'fast', or 'fast' without components: 'fast,packing=off,norm=off'"
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


COMPONENTS = tuple(f.name for f in fields(Fast))


def engine_from_environment() -> Fast | Reference:
    """The engine that ``GPTASK_ENGINE`` names, the fast one without it; raises `UserError` for what names none."""
    text = os.environ.get(VARIABLE, "").strip()
    name, *components = (part.strip() for part in (text or "fast").split(","))
    if name not in ("fast", "reference"):
        raise UserError(f"{VARIABLE}={text}: unknown engine '{name}'; {SYNTAX}.{nearest(name, ('fast', 'reference'))}")
    if name == "reference":
        if components:
            raise UserError(
                f"{VARIABLE}={text}: the reference engine has no components, got '{components[0]}'; {SYNTAX}"
            )
        return Reference()
    return Fast(**dict(_component(text, component) for component in components))


def _component(text: str, component: str) -> tuple[str, bool]:
    """The name of a component and whether it is on, of a part such as ``packing=off``."""
    name, _, value = (part.strip() for part in component.partition("="))
    if name not in COMPONENTS:
        hint = nearest(name, COMPONENTS)
        raise UserError(f"{VARIABLE}={text}: unknown component '{name}'; available: {listing(COMPONENTS)}.{hint}")
    if value.lower() not in TRUTH_VALUES:
        raise UserError(f"{VARIABLE}={text}: {name} takes {listing(TRUTH_VALUES)}, got '{value}'")
    return name, TRUTH_VALUES[value.lower()]
