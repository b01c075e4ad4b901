"""What is done to raw text before a model reads it; every step an option, and counted."""

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
LINE = 24  # UTF-8 bytes from which a line can be boilerplate: refrains and names of speakers are shorter
SHINGLE, HASHES = 9, 128  # characters of the pieces that near duplicates share, and MinHash functions


class Unicode(Enum):
    """A normal form of Unicode, or none."""

    none = "none"
    NFC = "NFC"
    NFKC = "NFKC"


@dataclass
class Cleaning:
    """The first two are done to every text, test sets and predictions too; the others to training data only."""

    unicode: Unicode = option(Unicode.NFC, "Unicode normal form: NFC, NFKC (full-width letters too) or none")
    control: bool = option(True, "take control and zero-width characters out, and write line ends as \\n")
    boilerplate: int = option(20, "take out lines that stand in so many documents of the training data (0: none)")
    duplicates: bool = option(True, "leave out documents that were there before")
    near_duplicates: float = option(0.8, "leave out documents as similar as this to one before (MinHash; 0: none)")

    def validate(self) -> None:
        """Refuse numbers out of range."""
        if self.boilerplate < 0 or self.boilerplate == 1:
            raise UserError(f"task.cleaning.boilerplate={self.boilerplate} must be 0 (none) or at least 2 documents")
        if not 0 <= self.near_duplicates < 1:
            raise UserError(
                f"task.cleaning.near_duplicates={self.near_duplicates} must be 0 (none) or a Jaccard similarity below 1"
            )

    def text(self, text: str) -> str:
        """A text as it is read; done twice, nothing changes."""
        return self._normal(self._printable(text))

    def _printable(self, text: str) -> str:
        return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")) if self.control else text

    def _normal(self, text: str) -> str:
        return text if self.unicode is Unicode.none else unicodedata.normalize(self.unicode.value, text)

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Every step in turn. Boilerplate is known only after all of it was seen, so that step holds the training text
        in memory."""
        cleaned = self._cleaned(examples, counts)
        if not train:
            return cleaned
        if self.boilerplate:
            cleaned = self._without_boilerplate(list(cleaned), counts)
        if self.duplicates:
            cleaned = _different(cleaned, counts)
        if self.near_duplicates:
            cleaned = self._dissimilar(cleaned, counts)
        return cleaned

    def _cleaned(self, examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
        for example in examples:
            text = self._printable(example["text"])
            counts["control characters"] += len(example["text"]) - len(text)
            normal = self._normal(text)
            counts["texts brought to normal form"] += normal != text
            if normal.strip():
                yield example | {"text": normal}
            else:
                counts["empty texts"] += 1

    def _without_boilerplate(self, examples: list[Example], counts: Counter[str]) -> Iterator[Example]:
        seen = Counter(line for example in examples for line in {*map(_folded, example["text"].split("\n"))})
        common = {line for line, times in seen.items() if times >= self.boilerplate and len(line.encode()) >= LINE}
        for example in examples:
            lines = example["text"].split("\n")
            kept = [line for line in lines if _folded(line) not in common]
            counts["boilerplate lines"] += len(lines) - len(kept)
            text = "\n".join(kept)
            if text.strip():
                yield example | {"text": text}
            else:
                counts["texts of nothing but boilerplate"] += 1

    def _dissimilar(self, examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
        """Without near duplicates (Broder 1997; locality-sensitive hashing as in Leskovec et al. 2020, chapter 3)."""
        from datasketch import MinHashLSH

        index, hashes = MinHashLSH(threshold=self.near_duplicates, num_perm=HASHES), dict[int, Any]()
        for number, example in enumerate(examples):
            own = _min_hash(example["text"])
            if any(own.jaccard(hashes[other]) >= self.near_duplicates for other in index.query(own)):
                counts["near duplicates"] += 1
                continue
            index.insert(number, own)
            hashes[number] = own
            yield example


def _folded(text: str) -> str:
    """Without the accidents of spacing."""
    return " ".join(text.split())


def _different(examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
    seen = set()
    for example in examples:
        digest = hashlib.sha256(_folded(example["text"]).encode()).digest()
        if digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            yield example


def _min_hash(text: str) -> Any:
    """Of pieces of characters, which serve languages with and without spaces."""
    from datasketch import MinHash

    text = _folded(text).lower()
    pieces = {text[k : k + SHINGLE].encode() for k in range(max(1, len(text) - SHINGLE + 1))}
    found = MinHash(num_perm=HASHES, hashfunc=zlib.crc32)
    found.update_batch(pieces)
    return found
