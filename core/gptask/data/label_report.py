"""What labels the data has: a table of the classes for the log, and warnings of labels that are likely mistakes."""

from __future__ import annotations

import json
import logging
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from gptask.data.corpus import CachedCorpus
from gptask.data.examples import Examples
from gptask.data.labels import BOOLEANS, label_names
from gptask.data.words import is_blank
from gptask.errors import aligned, listing
from gptask.plugins.task import Task
from gptask.plugins.types import Field, Kind

log = logging.getLogger("gptask")
LABEL_KINDS = {Kind.LABEL: ("class", "classes"), Kind.LABELS: ("label", "labels"), Kind.TAGS: ("tag", "tags")}
MAX_ROWS, RAREST_ROWS = 20, 6  # of a table; the rarest labels stand at its end
MAX_NAME = 40  # characters of a label in a table or a message
MIN_SUSPICIOUS = 10  # classes: fewer may well have one example each in a small file
SEPARATORS = ";|,"  # of labels, which may stand within one where data.label_separator is another
MISSING_NAMES = {"None", "NONE", "NA", "N/A", "n/a"}  # maybe a missing value, maybe a class


@dataclass(frozen=True)
class LabelReport:
    """How often each label of a field occurs: in the splits as limited, and in all rows of the first of them.

    ``names`` is ``data.labels`` in force, ``named`` all labels that the user names in options, and ``prefix`` what
    stands before the names of options (``tasks.<task>.``).
    """

    field: Field
    splits: Mapping[str, Counter[str]]
    all_rows: Counter[str]
    examples: int  # of all rows; of tags, the words
    names: Mapping[str, str]
    named: Collection[str]
    prefix: str

    @property
    def labels(self) -> list[str]:
        """All labels, the most frequent of the first split first."""
        first, *others = self.splits.values()
        labels = set(self.all_rows).union(first, *others)
        return sorted(labels, key=lambda label: (-first[label], label))

    def table(self) -> str:
        """A table of the labels with their count in each split, of at most `MAX_ROWS` rows."""
        labels, cut = self.labels, len(self.labels) > MAX_ROWS
        shown = [*labels[: MAX_ROWS - RAREST_ROWS], *labels[-RAREST_ROWS:]] if cut else labels
        rows = [[self.field.name, *self.splits]]
        rows += [[_shown(label), *(f"{counts[label]:,}" for counts in self.splits.values())] for label in shown]
        lines = [f"  {line}" for line in aligned(rows)]
        if cut:
            lines.insert(1 + MAX_ROWS - RAREST_ROWS, f"  … {len(labels) - MAX_ROWS} more")
        noun = LABEL_KINDS[self.field.kind][len(labels) != 1]
        return "\n".join([f"{self.prefix}{self.field.name}: {len(labels):,} {noun}", *lines])

    def remarks(self) -> Iterator[str]:
        """Sentences on labels that are too rare to be learned or measured, which is common and no mistake."""
        for split, counts in self.splits.items():
            absent = [_shown(label) for label in self.labels if not counts[label]]
            if absent and len(self.splits) > 1:
                yield f"{split} has no example of {listing(absent, 6)}"
        if single := [_shown(label) for label, count in self.splits.get("train", {}).items() if count == 1]:
            yield f"train has one example each of {listing(sorted(single), 6)}"

    def warnings(self) -> Iterator[str]:
        """Sentences on what is likely a mistake in the data, with the option that mends it."""
        yield from self._variants()
        yield from self._booleans_and_numbers()
        yield from self._missing_names()
        yield from self._unseparated()
        yield from self._no_labels()

    def _variants(self) -> Iterator[str]:
        """Labels that differ only by case, blanks, invisible characters or Unicode form."""
        groups: dict[str, list[str]] = {}
        for label in sorted(self.labels, key=lambda label: escaped(label) != label):  # the first gives its name
            groups.setdefault(folded(label), []).append(label)
        alike = [group for group in groups.values() if len(group) > 1]
        if alike:
            shown = listing((" = ".join(f"'{_shown(label)}'" for label in group) for group in alike), 6)
            renamed = {label: group[0] for group in alike for label in group}
            yield (
                "labels differ only by case, blanks, invisible characters or Unicode form, and count as different "
                f"classes: {shown}. If they are the same, set {self._option(renamed)}"
            )

    def _booleans_and_numbers(self) -> Iterator[str]:
        booleans = sorted(label for label in self.labels if label in BOOLEANS)
        numbers = sorted(label for label in self.labels if re.fullmatch(r"-?\d+(\.\d+)?", label))
        if booleans and numbers:
            yield (
                f"some labels are booleans ({listing(booleans)}) and some are numbers ({listing(numbers)}), and count "
                f"as different classes. If true means 1 and false 0, set {self._option(BOOLEANS)}"
            )

    def _missing_names(self) -> Iterator[str]:
        if names := sorted(MISSING_NAMES & {*self.labels} - {*self.named}):
            yield (
                f"the label '{names[0]}' may stand for a missing one; leave out such rows then. If it is a class, "
                f"set {self._option({})}"
            )

    def _unseparated(self) -> Iterator[str]:
        """Labels that are several ones, parted by another mark than ``data.label_separator``."""
        if self.field.kind is not Kind.LABELS or self.named:
            return
        for mark in SEPARATORS:
            parts = {label: [part.strip() for part in label.split(mark)] for label in self.labels}
            counts = Counter(part for label in parts for part in parts[label])
            joined = [
                label for label in self.labels if len(parts[label]) > 1 and any(counts[p] > 1 for p in parts[label])
            ]
            if joined:
                yield (
                    f"the label '{_shown(joined[0])}' seems to be several, parted by '{mark}'; set "
                    f"{self.prefix}data.label_separator='{mark}' if it is"
                )

    def _no_labels(self) -> Iterator[str]:
        """Signs that the column does not hold what is learned, in all rows of the first split."""
        split, classes = next(iter(self.splits)), len(self.all_rows)
        if classes >= MIN_SUSPICIOUS and classes > self.examples / 2:
            yield (
                f"{split} has {classes:,} labels for {self.examples:,} examples, such as '{_shown(min(self.all_rows))}'"
                f": does {self.prefix}data.columns.{self.field.name} name the right column?"
            )
        if self.field.kind is Kind.LABELS and classes > 1 and min(self.all_rows.values()) == self.examples:
            yield (
                f"every example of {split} has every label ({listing(self.all_rows)}). If the cells are vectors of 0 "
                f"and 1, set {self.prefix}data.labels={{<name>: <name>, ...}}, the labels in the vector's order"
            )

    def _option(self, renamed: Mapping[str, str]) -> str:
        """``data.labels`` for a command line, with all labels of the data, some under another name.

        It is JSON, whose escapes keep what can't be seen.
        """
        names = self.names or {label: label for label in sorted(self.labels)}
        pairs = (f"{_json(key)}: {_json(renamed.get(name, name))}" for key, name in names.items())
        return shlex.quote(f"{self.prefix}data.labels={{{', '.join(pairs)}}}")


def log_labels(task: Task, corpus: CachedCorpus, splits: Sequence[str], prefix: str = "") -> None:
    """Log a table of the labels in every field that has some, then what is rare, and warn of likely mistakes.

    ``task`` has the options that the user gave: a label that one of them lists is no mistake. The first of the splits
    is the one that is trained on, or scored.
    """
    names = label_names(corpus.options)
    options = (value for f in fields(task) if isinstance(value := getattr(task, f.name), list))
    named = {*names.values(), *(label for option in options for label in option if isinstance(label, str))}
    for field in task.fields():
        if field.kind in LABEL_KINDS:
            counts = {split: _count(field, corpus.split(split))[0] for split in splits}
            source = "train" if corpus.split_source(splits[0]) is None else splits[0]  # a split may be cut from train
            all_rows, examples = _count(field, corpus.all_rows(source))
            report = LabelReport(field, counts, all_rows, examples, names, named, prefix)
            log.info("%s", "\n".join([report.table(), *(f"  {remark}" for remark in report.remarks())]))
            for warning in report.warnings():
                log.warning("%s%s: %s", prefix, field.name, warning)


def _count(field: Field, examples: Examples) -> tuple[Counter[str], int]:
    """How often each label occurs, and in how many examples (of tags: words)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = examples.store.table.column(field.name).take(pa.array(examples.rows)).drop_null()
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    pairs = pc.value_counts(values).to_pylist()
    counts = Counter({pair["values"]: pair["counts"] for pair in pairs})
    return counts, len(values if field.kind is Kind.TAGS else column)


def folded(label: str) -> str:
    """A label without what readers don't see or care for: case, blanks, invisible characters and Unicode form."""
    text = unicodedata.normalize("NFKC", label)
    visible = "".join(character for character in text if not is_blank(character))
    return unicodedata.normalize("NFKC", visible.casefold())


def escaped(text: str) -> str:
    r"""A text in which whatever can't be seen is written as its escape, such as ``neg\u200b`` or ``e\u0301``."""
    composed = unicodedata.is_normalized("NFC", text)

    def is_hidden(character: str) -> bool:
        return (is_blank(character) and character != " ") or not (composed or character.isascii())

    return "".join(json.dumps(character)[1:-1] if is_hidden(character) else character for character in text)


def _shown(label: str) -> str:
    text = escaped(label)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"


def _json(label: str) -> str:
    return escaped(json.dumps(label, ensure_ascii=False))
