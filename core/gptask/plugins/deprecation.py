"""How a part of the plugin contract goes: it works on until a date, and its users' authors are told."""

from __future__ import annotations

import warnings
from datetime import date
from typing import Any

from gptask.plugins.source_location import class_source

_told: dict[Any, Any] = {}  # where Python keeps which warnings were given


class ContractDeprecation(DeprecationWarning):
    """A plugin uses a part of the contract that will go.

    Like any `DeprecationWarning` it is not shown to people who merely run a plugin. Its author sees it in pytest, in
    ``gptask tasks --check`` and under ``python -W default``.
    """


def deprecated(user: type, what: str, *, since: str, until: date, instead: str) -> None:
    """Warn, once for each place, that the class ``user`` of a plugin uses ``what``.

    ``since`` is the contract version that has a replacement, ``until`` the last day on which a gptask is released that
    still has the part itself. A renamed hook keeps working through the default of its successor::

        def successor(self):
            if type(self).old is not Task.old:
                deprecated(type(self), "Task.old", since="1.3", until=date(2027, 12, 31), instead="Task.successor")
            return self.old()
    """
    file, line = class_source(user)
    text = f"{what} is deprecated since contract {since} and may be gone after {until.isoformat()}: {instead}"
    warnings.warn_explicit(text, ContractDeprecation, file, line, user.__module__, _told)
