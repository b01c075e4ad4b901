"""A tokenizer to which text is text: the string of a control token, such as ``<|im_end|>``, never becomes that token.

Who writes control tokens on purpose (a chat template, ``task.prompt``) has it tokenize what the template makes of texts
that are marked as data: `TextTokenizer.encode_template`, or `mark` and `encode_marked`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

from gptask.errors import UserError
from gptask.plugins.time_limit import within_seconds

log = logging.getLogger("gptask")
LEAK_CONTEXTS = ("{}", "a{}a", " {} ", "\n{}\n")  # a model may have a piece only behind a space, or only within a word

TEMPLATE_SECONDS = 0.5  # of a first rendering of a few words; hundreds of times what templates take


def rendered_in_time(render: Callable[[], str]) -> str:
    """What rendering a chat template returns: it is a program in a sandbox, which reaches nothing but may not end.

    Raises `UserError` where it takes longer than `TEMPLATE_SECONDS`.
    """
    try:
        return within_seconds(TEMPLATE_SECONDS, render)
    except TimeoutError as error:
        raise UserError(f"the tokenizer's chat template does not end within {TEMPLATE_SECONDS:g} s") from error


def text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """Return a tokenizer of transformers as one that reads text as text; it may be one already."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    return _cached_text_tokenizer(tokenizer, str(getattr(tokenizer, "chat_template", None)))


@lru_cache(8)
def _cached_text_tokenizer(tokenizer: Any, template: str) -> TextTokenizer:
    return TextTokenizer(tokenizer)


class TextTokenizer:
    """Behaves like the tokenizer ``raw`` but that it reads control tokens in a text as ordinary text.

    Control tokens are those that are declared special, and those that the chat template writes around a turn. Texts
    without their strings get the ids that ``raw`` gives them. Attributes are those of ``raw``, which also saves itself;
    ``split_special_tokens=False`` has a text read as ``raw`` reads it. Several threads may tokenize: ``raw`` is called
    under a lock, since how it treats control tokens is a state of it.
    """

    raw: Any

    def __init__(self, raw: Any) -> None:
        vars(self).update(raw=raw, _lock=threading.RLock())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.raw, name, value)
        for derived in vars(self).keys() - {"raw", "_lock"}:  # cached properties may follow from it
            del vars(self)[derived]

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"TextTokenizer({self.raw!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokenizer, (self.raw,)

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        """Tokenize a text or a list of texts with the arguments of transformers' tokenizers."""
        options = ({"split_special_tokens": True} if self.control_ids else {}) | kwargs
        encoding = self._encoding(text, *args, **options)
        if not options.get("split_special_tokens") or not self._leaks or not self.mentions_control(text):
            return encoding
        options.pop("return_attention_mask", None)
        with_offsets = options.pop("return_offsets_mapping", False)
        if args or not options.keys() <= {"split_special_tokens", "add_special_tokens"}:
            raise UserError(f"a text with a control token of this tokenizer can't be tokenized with {sorted(options)}")
        rows = [self._without_leaks(row, options) for row in ([text] if isinstance(text, str) else text)]
        columns: dict[str, list[Any]] = {"input_ids": [ids for ids, _ in rows]}
        columns["attention_mask"] = [[1] * len(ids) for ids, _ in rows]
        if with_offsets:
            columns["offset_mapping"] = [offsets for _, offsets in rows]
        return type(encoding)({name: rows[0] if isinstance(text, str) else rows for name, rows in columns.items()})

    def _encoding(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            return self.raw(*args, **options)

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Return the ids of a text."""
        return list(self(text, **kwargs)["input_ids"])

    def tokenize(self, text: str, add_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Return the tokens of a text as strings."""
        ids = self.encode(text, add_special_tokens=add_special_tokens, **kwargs)
        return list(self.raw.convert_ids_to_tokens(ids))

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a conversation as transformers does; in its ids, control tokens are those of the template alone."""
        if kwargs.get("tokenize", True):
            kwargs = {"sanitize_control_tokens": True} | kwargs
        with self._lock:
            return self.raw.apply_chat_template(conversation, *args, **kwargs)

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """The control tokens: string to id."""
        raw = self.raw
        added = {token.content: token.special for token in getattr(raw, "added_tokens_decoder", {}).values()}
        declared = {*getattr(raw, "all_special_tokens", []), *(getattr(raw, "chat_control_tokens", None) or [])}
        declared |= {content for content, special in added.items() if special}
        turns = self._rendered_turns()
        marks = {content for content in added if content in turns and not re.fullmatch(r"[\w\s]*", content)}
        return {content: raw.convert_tokens_to_ids(content) for content in sorted(declared | marks) if content}

    def _rendered_turns(self) -> str:
        """Two turns by the chat template, and the beginning of a third one; empty without a usable template."""
        if not getattr(self.raw, "chat_template", None):
            return ""
        turns = [{"role": role, "content": "0"} for role in ("user", "assistant", "user")]
        try:
            return rendered_in_time(lambda: str(self.raw.apply_chat_template(turns, tokenize=False)))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a template raises whatever its operations do
            log.debug("the chat template renders no plain turns: %r", error)
            return ""

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _leaks(self) -> frozenset[int]:
        """The control ids that ``raw`` makes of text although it is told to split them.

        They are added tokens that are not declared special, and pieces of a SentencePiece vocabulary.
        """
        texts = [context.format(string) for context in LEAK_CONTEXTS for string in self.control_ids]
        rows = self._encoding(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
        return frozenset({*self.control_ids.values()} & {token for row in rows for token in row})

    def mentions_control(self, text: Any) -> bool:
        """Return whether a text, or one of a list, holds the string of a control token."""
        return any(map(self._control_pattern.search, [text] if isinstance(text, str) else text))

    def _without_leaks(self, text: str, options: dict[str, Any]) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text and their offsets; each token that stands for a control string has the string's."""
        encoding = self._encoding(text, return_offsets_mapping=True, **options)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            string = text[start:end]
            leaked = token in self._leaks and self._control_pattern.search(string)
            pieces = self._encode_unjoined(self.mark(string)) if leaked else [token]
            ids += pieces
            offsets += [(start, end)] * len(pieces)
        return ids, offsets

    def mark(self, value: Any) -> Any:
        """Return a text, or a list or dict of them, with its control strings marked as data."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        if isinstance(value, str):
            return mark_control_tokens(value, self._control_pattern) if self._control_pattern.search(value) else value
        if isinstance(value, dict):
            return {name: self.mark(part) for name, part in value.items()}
        return [self.mark(part) for part in value] if isinstance(value, list | tuple) else value

    def encode_template(self, render: Callable[[Any], str], values: Any) -> list[int]:
        """Return the ids of ``render(values)``, in which control tokens are only those that ``render`` itself writes.

        ``values`` is a text, or a list or dict of them.
        """
        text = render(values)
        if not self.mentions_control(text):
            return self.encode(text)
        marked, apart = render(self.mark(values)), render(self._set_apart(values))
        if self._unmarked_control(marked) == self._unmarked_control(apart):
            return self.encode_marked(marked)
        if not self._unmarked_control(apart):  # a value and the text around it form the string of a control token
            return self.encode(text)
        return [*self._first_ids, *self._encode_unjoined(apart)]

    def _set_apart(self, value: Any) -> Any:
        """As `mark`, but that no text forms a control string together with what stands around it."""
        if isinstance(value, str):
            text, mark = value.strip(), self._marks[0]
            return value.replace(text, f"{mark}{self.mark(text)}{mark}", 1) if text else value
        if isinstance(value, dict):
            return {name: self._set_apart(part) for name, part in value.items()}
        return [self._set_apart(part) for part in value] if isinstance(value, list | tuple) else value

    def _unmarked_control(self, text: str) -> list[str]:
        return self._control_pattern.findall(self._marked_string.sub("\0", text))

    def encode_marked(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text whose marked strings are data, while other control strings are control tokens."""
        if not self._marked_string.search(text):
            return self.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=False)
        if not self._unmarked_control(text):
            return self.encode(text.translate(self._without_marks), add_special_tokens=add_special_tokens)
        first_ids = self._first_ids if add_special_tokens else []
        return [*first_ids, *self._encode_unjoined(text)]

    def _encode_unjoined(self, marked: str) -> list[int]:
        """The ids of a marked text, piece by piece."""
        from transformers.utils.chat_template_utils import encode_marked_chat

        with self._lock:
            try:
                return list(encode_marked_chat(self.raw, marked))
            except ValueError:  # the tokenizer's model makes the token of the text: a mark in between breaks it
                mark = self._marks[0]
                return list(encode_marked_chat(self.raw, self._marked_string.sub(lambda m: mark.join(m[1]), marked)))

    @cached_property
    def _marks(self) -> str:
        """The two characters that transformers puts around a control string of data."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        return str(mark_control_tokens("x", re.compile("x"))).replace("x", "")

    @cached_property
    def _without_marks(self) -> dict[int, None]:
        return dict.fromkeys(map(ord, self._marks))

    @cached_property
    def _marked_string(self) -> re.Pattern[str]:
        return re.compile(f"{self._marks[0]}({self._control_pattern.pattern}){self._marks[1]}")

    @cached_property
    def _first_ids(self) -> list[int]:
        """What the tokenizer puts before a text."""
        encoding = self._encoding("x", return_special_tokens_mask=True)
        return list(encoding["input_ids"][: encoding["special_tokens_mask"].index(0)])
