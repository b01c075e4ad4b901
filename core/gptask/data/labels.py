"""What a label is called: its spelling, its name in ``data.labels``, and the labels of a list or a vector."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gptask.config.schemas import Data, Files
from gptask.config.yaml_text import MAX_BYTES, load_yaml
from gptask.data.cells import is_blank_cell, plain_cell, present, text
from gptask.data.literals import not_a_literal, parse_container
from gptask.data.reading import read
from gptask.data.rows import Source, is_index
from gptask.errors import DataError, UserError, damaged, listing

WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0*", re.ASCII)
NULL_WORDS = {"nan", "null", "nat", "<na>", "#n/a"}  # what programs write for a missing value, in any case
YAML_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # words that YAML reads without quotes
BOOLEANS = {"false": "0", "true": "1"}
BINARY = {*BOOLEANS, *BOOLEANS.values()}
FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
SPACED_FLAGS = re.compile(r"[01](\.0*)?(\s+[01](\.0*)?)+", re.ASCII)


def canonical_label(label: str) -> str:
    """A label without space around it, in one spelling: ``True`` is ``true``, and ``1.0`` is ``1``."""
    label = label.strip()
    if label[:1].isalpha():
        return label.lower() if label.lower() in BOOLEANS else label
    match = WHOLE.fullmatch(label)
    return label if match is None else "0" if match[1] == "-0" else match[1]


class LabelReader:
    """Turns cells into the names of labels, by ``data.labels`` and ``data.label_separator``."""

    def __init__(self, options: Data) -> None:
        self.separator = options.label_separator
        self.names = label_names(options)  # label id → name
        self.unambiguous_names = set(self.names.values()) - set(self.names)  # names that are not an id as well
        is_renumbered = all(is_index(label) and is_index(name) for label, name in self.names.items())
        self.both = sorted({*self.names} & {*self.names.values()}, key=int) if is_renumbered else []

    def name(self, raw: Any) -> str:
        """The name of a label, from its id or name in the file; raises `DataError` for an unknown or missing one.

        Raises `UserError` for a number that is only a name where other numbers are ids and names, and are read as ids.
        """
        label = canonical_label(text(raw))
        if self.both and label in self.unambiguous_names:
            raise UserError(
                f"the label {label} is a name in data.labels, where {listing(self.both)} are names and ids, and ids go "
                f"first, by which {self.both[0]} is called {self.names[self.both[0]]}: if the file has ids from 1, set "
                "data.label_start=1; if it has names, leave data.labels out"
            )
        if not label or label in self.unambiguous_names:
            return label
        if label in self.names:
            return self.names[label]
        if (number := BOOLEANS.get(label)) in self.names:  # ids 0 and 1 of a file that has booleans
            return self.names[str(number)]
        if label.lower() in NULL_WORDS:
            raise DataError(
                f"the label '{label}' stands for a missing value: leave out such rows (data.on_bad=skip); if it is a "
                "class, name it with all others in data.labels"
            )
        if self.names:
            raise DataError(f"label {label[:40]!r} is not in data.labels: {listing(self.names)}{self._hint(label)}")
        return label

    def _hint(self, label: str) -> str:
        if label in BOOLEANS.values() and self.names.keys() >= BOOLEANS.keys():
            return "; the file has numbers: name 0 and 1 in place of false and true"
        if is_index(label):
            return " (ids counted from 1? data.label_start=1)"
        if YAML_BOOLEANS.get(label.lower()) in {*self.names, *self.names.values()}:
            return "; YAML reads yes, no, on and off without quotes as true and false: put quotes around them"
        return ""

    def label(self, cell: Any) -> str:
        """The name of the one label in a cell; raises `TypeError` for several, or none, in a list."""
        content = _content(cell)
        if isinstance(content, list) and len(content) == 1:
            (content,) = present("label", content)
        return self.name(content)

    def labels(self, cell: Any) -> list[str]:
        """The names of a row's labels: a list, a separated text, a vector of 0 and 1, or an object of 0 and 1 by label.

        Raises `DataError` for what may be read in two ways, such as the vector [0, 1] where 0 and 1 are also ids.
        """
        content = _content(cell)
        if isinstance(content, dict):
            return self._flagged(content)
        if isinstance(content, str):
            content = self._split(content)
        parts = content if isinstance(content, list) else [content]
        parts = present("label", [part for part in parts if not is_blank_cell(part)])
        spelled = [canonical_label(text(part)) for part in parts]
        if len(parts) > 1 and BINARY.issuperset(spelled) and self._is_vector(spelled):
            return self._vector([FLAGS[label] for label in spelled])
        return list(dict.fromkeys(self.name(part) for part in parts))

    def _split(self, cell: str) -> list[str]:
        """The parts of a separated text; raises `DataError` for one in brackets that is no list."""
        if SPACED_FLAGS.fullmatch(cell.strip()):
            return cell.split()
        parts = cell.split(self.separator or None)
        if len(parts) > 1 and cell.lstrip().startswith(("[", "{")) and cell.rstrip().endswith(("]", "}")):
            raise DataError(f"a list without quotes: {cell.strip()[:40]!r}; write ['a', 'b'], or a, b without brackets")
        return parts

    def _is_vector(self, parts: list[str]) -> bool:
        """Whether several parts, each 0 or 1, say of every label whether it is set, and are no ids.

        Ids don't repeat: with three labels or more, a vector always has 0 or 1 twice. Booleans are no ids, nor is a
        number that data.labels does not know. With two labels, [0, 1] may be both, and is refused.
        """
        names = list(dict.fromkeys(self.names.values()))
        if len({*parts}) < len(parts) or BOOLEANS.keys() >= {*parts}:
            return True
        if len(parts) != len(names):
            return False
        if not all(part in self.names or part in self.unambiguous_names for part in parts):
            return True
        raise DataError(
            f"[{parts[0]}, {parts[1]}] may be a vector or the ids of both labels. If it is a vector, set "
            f"data.labels={{{names[0]}: {names[0]}, {names[1]}: {names[1]}}}; if not, write names in place of ids"
        )

    def _vector(self, flags: list[bool]) -> list[str]:
        """The names that a vector of zeros and ones sets, in the order of ``data.labels``."""
        ids = sorted(self.names, key=int) if all(map(is_index, self.names)) else [*self.names]
        names = list(dict.fromkeys(self.names[label] for label in ids))
        if len(names) != len(flags):
            count = f"data.labels has {len(names)}" if names else "their names are needed"
            raise DataError(
                f"a vector of 0 and 1 for {len(flags)} labels, but {count}: set data.labels=[<name>, ...], "
                "the labels in the vector's order"
            )
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    def _flagged(self, cells: dict[Any, Any]) -> list[str]:
        """The labels whose cell is 1 or true, of cells by label: an object, or the columns that a field is read from.

        Columns that are given by their position take their names from ``data.labels``, in order.
        """
        flags = []
        for column, cell in cells.items():
            cell = plain_cell(cell)
            flag = FLAGS.get("" if cell is None else canonical_label(text(cell)).lower())
            if flag is None:
                raise DataError(f"the label '{column}' has {str(cell)[:40]!r}; expected 0, 1, true, false or nothing")
            flags.append(flag)
        if cells and all(is_index(str(column)) for column in cells):
            return self._vector(flags)
        return [self.name(column) for column, flag in zip(cells, flags, strict=True) if flag]

    def tags(self, cell: Any) -> list[str]:
        """The names of the words' labels, from a list (also written as text) or a text with spaces or commas."""
        content = _content(cell)
        parts = content if isinstance(content, list) else text(content).split()
        if isinstance(content, str) and len(parts) > 1:
            if all(len(part) > 1 and part.endswith(",") for part in parts[:-1]):
                parts = [part.removesuffix(",") for part in parts]
            if len(parts[0]) > 1 and len(parts[-1]) > 1 and parts[0][0] == "[" and parts[-1][-1] == "]":
                raise DataError(f"a list without quotes: {content.strip()[:40]!r}; write ['O', 'O'], or O O")
        return [self.name(part) for part in present("tag", parts)]


def _content(cell: Any) -> Any:
    """A cell, or the list or object that it is the written form of; raises `DataError` for one that is not closed."""
    if not isinstance(cell, str):
        return cell
    content = parse_container(cell)
    if content is None and re.match(r"\s*[\[{]\s*['\"]", cell):
        raise not_a_literal(cell)
    return cell if content is None else content


def label_names(options: Data) -> dict[str, str]:
    """``data.labels`` as id → name: a map, a list, one of both as text, or a file (JSON, ``id TAB name``, names)."""
    labels = options.labels
    if isinstance(labels, str):
        is_text = labels.lstrip().startswith(("{", "["))
        labels = _parse_labels(labels) if is_text else _read_label_file(labels, options)
    if isinstance(labels, list):
        labels = dict(enumerate(labels, options.label_start))
    if not isinstance(labels, Mapping | None):
        raise UserError(f"data.labels must be a map, a list or a file with one, got {str(options.labels)[:40]!r}")
    names: dict[str, str] = {}
    for key, value in (labels or {}).items():
        try:
            label = canonical_label(text(key))
            if value is None or isinstance(value, list | Mapping):
                raise ValueError
            name = canonical_label(text(value))
        except UnicodeEncodeError as error:
            raise UserError(
                f"data.labels holds {key!r}: {value!r}, half a surrogate pair, which is no character"
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(
                f"data.labels gives {str(key)!r} the name {value!r}; expected a text, null in quotes"
            ) from error
        if names.setdefault(label, name) != name:
            raise UserError(f"data.labels names the label '{label}' twice: {names[label]}, {name} (spelled '{key}')")
    return names


def _parse_labels(labels: str) -> Any:
    """A map or list in JSON or YAML, as the command line hands on what Hydra's grammar has no form for."""
    import yaml

    try:
        return json.loads(labels)
    except (ValueError, RecursionError):
        pass
    try:
        return load_yaml(labels, "data.labels", texts_only=True)  # no and null are texts too
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"data.labels={labels[:60]} is neither JSON nor YAML: {cause}") from error


def _read_label_file(file_name: str, options: Data) -> Any:
    path = Source.parse(file_name, getattr(options, "root", None)).path
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(
            f"data.labels: {path} has {size:,} bytes; expected names of labels, at most {MAX_BYTES:,} bytes"
        )
    if path.suffix.lower() == ".json":
        with damaged(f"data.labels: {path}"):
            return json.loads(path.read_text(encoding="utf-8-sig"))
    rows = list(read(Source(path), Files(format="lines", encoding=getattr(options, "encoding", None)), ()))
    if bad := next((row for row in rows if isinstance(row.value, DataError)), None):
        raise DataError(f"data.labels: {bad.location(path)}: {bad.value}")
    lines = [line for row in rows if (line := str(row.value).strip())]
    pairs = [line.split("\t", 1) for line in lines]
    return {key: name.strip() for key, name in pairs} if all(len(pair) == 2 for pair in pairs) else lines
