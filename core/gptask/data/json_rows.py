"""Rows of JSON: a line each, or the list in a file; names that occur twice in an object are refused where wanted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from gptask.data.encoding import MARK, has_mark
from gptask.data.literals import MAX_DEPTH, is_deep
from gptask.data.rows import EVERY_NAME, Lines, RepeatedNames, Row, Source
from gptask.data.squad import flatten
from gptask.errors import DataError, listing


class Parser:
    """Parses JSON texts; ``any_repeated`` tells whether an object with repeated names was among them."""

    def __init__(self) -> None:
        self.any_repeated = False
        self.decode = json.JSONDecoder(object_pairs_hook=self._members).decode

    def _members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) == len(pairs):
            return members
        self.any_repeated = True
        repeated = RepeatedNames(members)
        names = [name for name, _ in pairs]
        repeated.repeated = {name for name in members if names.count(name) > 1}
        return repeated


def json_lines(lines: Lines, wanted: set[str]) -> Iterator[Row]:
    """The rows of a file with a JSON object, or list, a line."""
    parser, any_good = Parser(), False
    for number, text in lines:
        text = text.strip(" \t\r\n")  # what JSON takes for blanks
        if not text:
            continue
        value: Any
        try:
            value = parser.decode(text)
            if text.count("[") + text.count("{") > MAX_DEPTH and isinstance(value, list | dict) and is_deep(value):
                raise RecursionError
        except (ValueError, RecursionError) as error:
            cause = _problem(error, text)
            hint = "; if the file is one JSON list, set data.format=json" if text[0] == "[" and not any_good else ""
            yield Row(number, DataError(f"broken JSON: {cause}{hint}"))
            continue
        any_good = True
        yield Row(number, _checked(value, parser, wanted, "a JSON object"))


def json_records(stream: io.BufferedIOBase, source: Source, encoding: str, wanted: set[str]) -> Iterator[Row]:
    """The rows of a JSON file: the objects of its list, or SQuAD's questions."""
    raw, parser = stream.read(), Parser()
    first_error = None
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        first_error = f"line {line}: byte {raw[error.start]:#04x} is not valid {encoding} (see data.encoding)"
        text = raw.decode(encoding, "gptask.mark")
    records = _records(_parse(text.removeprefix("\ufeff"), source, parser, first_error), source)
    if records and isinstance(records[0], dict) and "paragraphs" in records[0]:
        try:
            records = list(flatten(records))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{source} has 'paragraphs' like SQuAD, but not its shape: {error!r}") from error
    for number, value in enumerate(records, 1):
        if first_error and has_mark(value):
            value = DataError(f"it can't be decoded; the file's first such place is {first_error}")
        yield Row(number, _checked(value, parser, wanted, "an object"), "record")


def _checked(value: Any, parser: Parser, wanted: set[str], expected: str) -> Any:
    """A row's value, or what is wrong with it."""
    if isinstance(value, DataError):
        return value
    if not isinstance(value, dict | list):
        return DataError(f"expected {expected}, got {json.dumps(value, ensure_ascii=False)[:40]}")
    if parser.any_repeated:
        repeated = next((path for path in _repeated_paths(value) if _is_wanted(path, wanted)), None)
        if repeated:
            return DataError(f"the member '{repeated}' occurs twice in one object; remove or rename one of them")
    return value


def _repeated_paths(value: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every repeated name in a JSON value; a list has the path of its members."""
    if isinstance(value, list):
        for member in value:
            yield from _repeated_paths(member, path)
    elif isinstance(value, dict):
        for name in getattr(value, "repeated", ()):
            yield path + name
        for name, member in value.items():
            if isinstance(member, dict | list):
                yield from _repeated_paths(member, f"{path}{name}.")


def _is_wanted(path: str, wanted: set[str]) -> bool:
    """Whether a path is a wanted one, or lies within one, or holds one."""
    inner = f"{path}."
    return EVERY_NAME in wanted or any(inner.startswith(f"{name}.") or name.startswith(inner) for name in wanted)


def _problem(error: Exception, text: str) -> str:
    """What is wrong with a JSON text, and where."""
    if not isinstance(error, json.JSONDecodeError):
        # the other error of Python's parser
        return "it is nested too deeply" if isinstance(error, RecursionError) else "a number of more than 4,300 digits"
    where = f"{error.msg.removesuffix(' at')} at column {error.colno}"  # some of json's messages end in "at"
    is_cut = error.pos >= len(text) or error.msg.startswith("Unterminated string")
    return f"{where} (it ends in the middle, at column {len(text) - text.rfind(chr(10))})" if is_cut else where


def _parse(text: str, source: Source, parser: Parser, decoding_error: str | None) -> Any:
    try:
        content = parser.decode(text)
        if isinstance(content, list | dict) and is_deep(content):
            raise RecursionError
        return content
    except (ValueError, RecursionError) as error:
        if not isinstance(error, json.JSONDecodeError):
            raise DataError(f"{source.path}: broken JSON: {_problem(error, text)}") from error
        if decoding_error and MARK in text[max(0, error.pos - 1) : error.pos + 2]:
            raise DataError(f"{source.path}: {decoding_error}") from error
        hint = "; if each line is an object, set data.format=jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{source.path}:{error.lineno}: broken JSON: {_problem(error, text)}{hint}") from error


def _records(content: Any, source: Source) -> list[Any]:
    """The list of records in a JSON file: all of it, its ``data`` (SQuAD), or the part the user names."""
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        part = source.part or ("data" if "data" in lists else None)
        if part in lists:
            if part in getattr(content, "repeated", ()):
                raise DataError(f"{source.path}: the list '{part}' occurs twice; rename one of them")
            return lists[part]
        if lists:
            got = f" (got '#{part}')" if part else ""
            raise DataError(
                f"{source.path} is an object of lists: name one as {source.path.name}#{next(iter(lists))}{got}; "
                f"there are {listing(lists)}"
            )
    elif isinstance(content, list) and not source.part:
        return content
    got = f"a list, which has no '#{source.part}'" if isinstance(content, list) else f"{json.dumps(content)[:40]}"
    raise DataError(f"{source.path}: expected a list of objects, an object of lists, or SQuAD JSON; got {got}")
