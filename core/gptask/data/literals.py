"""Lists and objects that a file holds as text: JSON, a Python literal, or an array as numpy and pandas print it."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from gptask.errors import DataError

MAX_DEPTH = 100  # of lists and objects; Python's own limit depends on how deep the caller is
MAX_CHARACTERS = 200_000  # of a Python literal: its syntax tree takes some hundred bytes a character
CLOSING = {"[": "]", "{": "}", "(": ")"}
STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# a string, a word or a closing bracket, and the space before a next value: numpy prints no commas
VALUE = re.compile(
    rf"""({STRING})(\s*(?=['"\w.+\-\[({{]))?  |  ([^\s'"\[\](){{}},:=]+|[\])}}])(\s+(?=['"\w.+\-\[({{]))?""",
    re.DOTALL | re.VERBOSE,
)
# no prose begins and ends like this
BROKEN = re.compile(r"""\[\s*['"].*['"]\s*\]|\[\s*\{\s*['"].*\}\s*\]""", re.DOTALL)
CONSTANTS = {"nan": None, "NaN": None, "null": None, "true": True, "false": False, "True_": True, "False_": False}


def parse_container(text: str) -> list[Any] | dict[Any, Any] | None:
    """The list or dictionary that a text is the written form of, else None (``[sic]``, or a text that goes on).

    Tuples and sets become lists; ``array(..., dtype=...)`` and numpy's scalars what they hold; ``nan`` None. Raises
    `DataError` for a list of quoted texts or of objects that is broken, or that numpy cut short (``...``).
    """
    text = text.strip()
    if len(text) < 2 or (CLOSING.get(text[0]) != text[-1] and not text.startswith("array(")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_value(text)
    if value is None and BROKEN.fullmatch(text):
        raise not_a_literal(text)
    if (
        not isinstance(value, list | dict) or is_deep(value) or (value == [] and text[0] == "(")
    ):  # a smiley, or two tags of brackets
        return None
    return value


def is_deep(value: Any) -> bool:
    """Whether a list or an object is nested deeper than `MAX_DEPTH`; what walks such a value may fail."""
    nodes = [value]
    for _ in range(MAX_DEPTH):
        members = (node.values() if isinstance(node, dict) else node for node in nodes)
        nodes = [member for node in members for member in node if isinstance(member, list | dict)]
        if not nodes:
            return False
    return True


def not_a_literal(text: str) -> DataError:
    """The error for a text that begins like a list and is broken."""
    text = text.strip()
    shown = text if len(text) <= 60 else f"{text[:40]} ... {text[-10:]}"
    return DataError(f"a list written as text is neither JSON nor a Python literal: {shown}")


def _python_value(text: str) -> Any:
    """The value of a literal of Python or numpy; None where the text is none."""
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            tree = ast.parse(VALUE.sub(_with_comma, text), mode="eval")
        return _evaluate(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _with_comma(match: re.Match[str]) -> str:
    between = match[2] if match[1] else match[4]
    return f"{match[1] or match[3]}{'' if between is None else ', '}"


def _evaluate(node: ast.expr) -> Any:
    """The value of an expression made of constants; raises `ValueError` for any other."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return [_evaluate(element) for element in elements]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {key.value: _evaluate(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[union-attr]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="np"), attr=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.Call(func=ast.Name(id="array") | ast.Attribute(value=ast.Name(id="np")), args=[content, *_]):
            return _evaluate(content)
    raise ValueError("not a literal")
