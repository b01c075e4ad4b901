"""The one place where the engine replaces the ``forward`` of a module, and puts back what was there.

A module may have got another ``forward`` before (accelerate's hooks, torchao, a profiler): then the engine does not
replace it by a function that computes something of its own, and one that calls what was there may wrap it. What wraps
the engine's function later stays too when the engine is removed: the function inside then calls what was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn


@dataclass
class Replacement:
    """A module's replaced forward function: ``function(module, *args)``, and the module's own entry before it."""

    function: Callable[..., Any]
    before: Callable[..., Any] | None  # None: that of the module's class
    active: bool = True


def replace_forward(module: nn.Module, function: Callable[..., Any], wraps: bool = False) -> bool:
    """Let ``function(module, *args, **kwargs)`` compute a module's forward pass; return whether it does.

    A function that ``wraps`` calls `original_forward` for the computation itself. Another one is not installed where
    somebody else has replaced the forward function.
    """
    replacement, before = _replacement(module), vars(module).get("forward")
    if replacement is None or before is None:
        if before is not None and not wraps:
            return False
        replacement = Replacement(function, before)
        # not a closure: a copy of the module gets its own
        vars(module).update(forward=MethodType(_replaced_forward, module), engine_forward=replacement)
    replacement.function, replacement.active = function, True
    return True


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """What a module's forward pass was before the engine replaced it."""
    replacement = _replacement(module)
    before = replacement.before if replacement else None
    return before or MethodType(type(module).forward, module)


def replaced_by(module: nn.Module) -> Callable[..., Any] | None:
    """The function that computes a module's forward pass in place of its own."""
    replacement = _replacement(module)
    return replacement.function if replacement and replacement.active else None


def is_wrapped_by(module: nn.Module, kind: type) -> bool:
    """Whether a function of this kind computes a module's forward pass, or is the ``before`` of one that does."""
    function: Any = replaced_by(module)
    while function is not None and not isinstance(function, kind):
        function = getattr(function, "before", None)
    return function is not None


def restore_forwards(model: nn.Module) -> None:
    """Put back what every module of a model had before the engine."""
    for module in model.modules():
        if (replacement := _replacement(module)) is None:
            continue
        if not _is_outermost(module):
            replacement.active = False
            continue
        del module.forward
        if replacement.before is not None:
            module.forward = replacement.before
        del vars(module)["engine_forward"]


def _replacement(module: nn.Module) -> Replacement | None:
    return vars(module).get("engine_forward")


def _is_outermost(module: nn.Module) -> bool:
    """Whether nobody has replaced the engine's function in turn."""
    return getattr(vars(module).get("forward"), "__func__", None) is _replaced_forward


def _replaced_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    replacement: Replacement = module.engine_forward
    if replacement.active:
        return replacement.function(module, *args, **kwargs)
    return original_forward(module)(*args, **kwargs)
