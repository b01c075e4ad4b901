"""Text helpers shared by the built-in tasks."""

from __future__ import annotations

import re
import unicodedata

CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
MIXED = re.compile(rf"{CHINESE}|(?:(?!{CHINESE})[^\W_])+")


def characters(text: str) -> list[str]:
    """Chinese by characters, other scripts by words, lower-cased, punctuation left out."""
    return MIXED.findall(unicodedata.normalize("NFKC", text).lower().replace("_", " "))


def sentences(text: str) -> str:
    """One sentence a line, as ROUGE-Lsum wants it; sentence ends are . ! ? and their full-width forms."""
    return re.sub(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)", "\n", text.strip())
