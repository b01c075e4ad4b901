"""Deprecation of parts of the plugin contract: a part works until a date, and the plugins' authors are warned."""

from __future__ import annotations

import warnings
from datetime import date
from typing import Any

from gptask.plugins.source_location import class_source

_warning_registry: dict[Any, Any] = {}  # in which Python records the warnings already given


class ContractDeprecation(DeprecationWarning):
    """A plugin uses a part of the contract that will be removed.

    Like any `DeprecationWarning` it is hidden from people who merely run a plugin. The author sees it in pytest, in
    ``gptask tasks --check`` and under ``python -W default``.
    """


def deprecated(user: type, what: str, *, since: str, until: date, instead: str) -> None:
    """Warn, once per location, that the class ``user`` of a plugin uses ``what``.

    ``since`` is the contract version that has a replacement; gptask releases up to the day ``until`` still have the
    deprecated part; ``instead`` tells the author what to write. A renamed hook keeps working through the default of its
    successor::

        def successor(self):
            if type(self).old is not Task.old:
                deprecated(type(self), "Task.old", since="1.3", until=date(2027, 12, 31), instead="Task.successor")
            return self.old()
    """
    file, line = class_source(user)
    message = f"{what} is deprecated since contract {since} and may be gone after {until.isoformat()}: {instead}"
    warnings.warn_explicit(message, ContractDeprecation, file, line, user.__module__, _warning_registry)
