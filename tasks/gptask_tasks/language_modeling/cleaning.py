"""Cleaning of raw text before a model reads it; every step is an option, and is counted."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptask import Example, UserError, option

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")
MIN_BOILERPLATE_BYTES = 24  # of a line in UTF-8: refrains and names of speakers are shorter
SHINGLE_LENGTH, MINHASH_FUNCTIONS = 9, 128  # a shingle is a piece of text, in characters


class Unicode(Enum):
    """A normal form of Unicode, or none."""

    none = "none"
    NFC = "NFC"
    NFKC = "NFKC"


@dataclass
class Cleaning:
    """The steps of cleaning: ``unicode`` and ``control`` for every text, test sets and predictions included, the others
    for training data only."""

    unicode: Unicode = option(Unicode.NFC, "Unicode normal form: NFC, NFKC (full-width letters too) or none")
    control: bool = option(True, "remove control and zero-width characters, and write line ends as \\n")
    boilerplate: int = option(20, "remove lines that occur in at least so many training documents (0: none)")
    duplicates: bool = option(True, "leave out documents that repeat an earlier one")
    near_duplicates: float = option(0.8, "leave out documents as similar as this to an earlier one (MinHash; 0: none)")

    def validate(self) -> None:
        """Refuse numbers out of range."""
        if self.boilerplate < 0 or self.boilerplate == 1:
            raise UserError(f"task.cleaning.boilerplate={self.boilerplate} must be 0 (none) or at least 2 documents")
        if not 0 <= self.near_duplicates < 1:
            raise UserError(
                f"task.cleaning.near_duplicates={self.near_duplicates} must be 0 (none) or a Jaccard similarity below 1"
            )

    def text(self, text: str) -> str:
        """Return a text as the model reads it; a cleaned text stays as it is."""
        return self._normalized(self._printable(text))

    def _printable(self, text: str) -> str:
        return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")) if self.control else text

    def _normalized(self, text: str) -> str:
        return text if self.unicode is Unicode.none else unicodedata.normalize(self.unicode.value, text)

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Apply every step in turn.

        The boilerplate step holds the training text in memory, since it has to see all of it first.
        """
        cleaned = self._clean_texts(examples, counts)
        if not train:
            return cleaned
        if self.boilerplate:
            cleaned = self._without_boilerplate(list(cleaned), counts)
        if self.duplicates:
            cleaned = _without_duplicates(cleaned, counts)
        if self.near_duplicates:
            cleaned = self._without_near_duplicates(cleaned, counts)
        return cleaned

    def _clean_texts(self, examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
        for example in examples:
            printable = self._printable(example["text"])
            counts["control characters"] += len(example["text"]) - len(printable)
            text = self._normalized(printable)
            counts["texts brought to normal form"] += text != printable
            if text.strip():
                yield example | {"text": text}
            else:
                counts["empty texts"] += 1

    def _without_boilerplate(self, examples: list[Example], counts: Counter[str]) -> Iterator[Example]:
        documents = Counter(line for example in examples for line in {*map(_fold_spaces, example["text"].split("\n"))})
        boilerplate = {
            line
            for line, count in documents.items()
            if count >= self.boilerplate and len(line.encode()) >= MIN_BOILERPLATE_BYTES
        }
        for example in examples:
            lines = example["text"].split("\n")
            other_lines = [line for line in lines if _fold_spaces(line) not in boilerplate]
            counts["boilerplate lines"] += len(lines) - len(other_lines)
            text = "\n".join(other_lines)
            if text.strip():
                yield example | {"text": text}
            else:
                counts["texts of nothing but boilerplate"] += 1

    def _without_near_duplicates(self, examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
        """Leave out documents that are similar to an earlier one.

        They are found by MinHash (Broder 1997) and locality-sensitive hashing (as in Leskovec et al. 2020, chapter 3).
        """
        from datasketch import MinHashLSH

        index, hashes = MinHashLSH(threshold=self.near_duplicates, num_perm=MINHASH_FUNCTIONS), dict[int, Any]()
        for number, example in enumerate(examples):
            min_hash = _min_hash(example["text"])
            if any(min_hash.jaccard(hashes[other]) >= self.near_duplicates for other in index.query(min_hash)):
                counts["near duplicates"] += 1
                continue
            index.insert(number, min_hash)
            hashes[number] = min_hash
            yield example


def _fold_spaces(text: str) -> str:
    """Write every run of white space as one space."""
    return " ".join(text.split())


def _without_duplicates(examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
    digests = set()
    for example in examples:
        digest = hashlib.sha256(_fold_spaces(example["text"]).encode()).digest()
        if digest in digests:
            counts["duplicates"] += 1
        else:
            digests.add(digest)
            yield example


def _min_hash(text: str) -> Any:
    """Hash a text's shingles; they are of characters, to serve languages with and without spaces."""
    from datasketch import MinHash

    text = _fold_spaces(text).lower()
    starts = range(max(1, len(text) - SHINGLE_LENGTH + 1))
    min_hash = MinHash(num_perm=MINHASH_FUNCTIONS, hashfunc=zlib.crc32)
    min_hash.update_batch({text[start : start + SHINGLE_LENGTH].encode() for start in starts})
    return min_hash
