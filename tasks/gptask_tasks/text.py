"""Text helpers shared by the built-in tasks."""

from __future__ import annotations

import re
import unicodedata

CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
CHARACTER_OR_WORD = re.compile(rf"{CHINESE}|(?:(?!{CHINESE})[^\W_])+")


def characters(text: str) -> list[str]:
    """Split Chinese into characters and other scripts into words, lower-cased and without punctuation."""
    return CHARACTER_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("_", " "))


def sentences(text: str) -> str:
    """Put each sentence on a line of its own, as ROUGE-Lsum wants it; it ends with . ! ? or their full-width forms."""
    return re.sub(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)", "\n", text.strip())
