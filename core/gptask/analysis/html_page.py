"""HTML in one file: templates by jinja2, with a policy that lets nothing run but the page's own script."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup


def rendered(template: Path, style: str, script: str, **variables: Any) -> str:
    """The HTML of a template, which also gets the ``version`` of gptask, ``style``, ``script`` and ``script_hash``.

    Every variable is escaped but `Markup`; the template sets the Content-Security-Policy with the hash. Half
    a surrogate pair from a data file becomes a question mark.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    html: str = environment.get_template(template.name).render(
        version=version("gptask"),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **variables,
    )
    return html.encode("utf-8", errors="replace").decode("utf-8")


def json_in_html(text: str) -> Markup:
    """JSON for a script element that holds data: no ``<`` in it, which could end the element."""
    return Markup(text.replace("<", "\\u003c"))


def _number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for None and nan."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"
