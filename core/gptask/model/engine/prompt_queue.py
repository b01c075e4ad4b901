"""Prompts that wait to be read, and what was read of earlier texts and need not be read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.length_bucket import LengthBucket

LONG_PROMPT = 2048  # tokens of a prompt from which it is read in parts, whatever a call may read
LEAST_PART = 64  # tokens of a part that is read behind other prompts: a pass of fewer takes as long
LEAST_COMMON = 32  # tokens that a kept text must save a prompt that could be read together with others


@dataclass(eq=False)
class KeptText:
    """What was read of a text that has left: token ids, the adapter that read them, keys and values of each layer."""

    ids: list[int]
    adapter: str | None
    layers: list[tuple[Tensor, Tensor]]  # each (1, K, positions, D)

    def common(self, ids: list[int], adapter: str | None) -> int:
        """How many tokens a prompt begins with that need not be read again; the last one always is."""
        if adapter != self.adapter:
            return 0
        return self._equal(ids, len(ids) - 1)

    def begins_with(self, other: KeptText) -> bool:
        """Whether another text of the same adapter is the beginning of this one, or the same."""
        return other.adapter == self.adapter and self._equal(other.ids, len(other.ids)) == len(other.ids)

    def _equal(self, ids: list[int], most: int) -> int:
        """With how many of its first tokens another text begins, at most so many."""
        low, high = 0, min(len(self.ids), most)
        while low < high:  # comparing slices is faster than comparing tokens one by one
            middle = (low + high + 1) // 2
            if self.ids[low:middle] == ids[low:middle]:
                low = middle
            else:
                high = middle - 1
        return low

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return sum(states.untyped_storage().nbytes() for pair in self.layers for states in pair)


@dataclass(eq=False)
class UnreadPrompt:
    """A prompt that an adapter reads for one or more rows.

    ``bucket`` holds what is read of it already, where that is a part.
    """

    ids: list[int]
    adapter: str | None
    rows: list[DecodingRow] = field(default_factory=list)
    bucket: LengthBucket | None = None
    kept: KeptText | None = None  # whose beginning it shares

    @property
    def rest(self) -> int:
        """How many tokens are unread."""
        if self.bucket is not None:
            return len(self.ids) - self.bucket.end
        return len(self.ids) - (self.kept.common(self.ids, self.adapter) if self.kept else 0)

    def begin(self, bucket: LengthBucket) -> None:
        """Read the prompt into an empty bucket part by part, from the end of what it shares with a kept text."""
        if self.kept:
            bucket.begin_with(self.kept.layers, len(self.ids) - self.rest)
        self.bucket, self.kept = bucket, None


class PromptQueue:
    """Unread prompts in the order they came in; rows with the same prompt and adapter share one."""

    def __init__(self) -> None:
        self.prompts: list[UnreadPrompt] = []

    @property
    def rows(self) -> list[DecodingRow]:
        """The rows whose prompts are not read to their end."""
        return [row for prompt in self.prompts for row in prompt.rows]

    def add(self, row: DecodingRow) -> None:
        """Take a row."""
        same = (prompt for prompt in self.prompts if prompt.adapter == row.adapter and prompt.ids == row.prompt)
        prompt = next(same, None)
        if prompt is None:
            prompt = UnreadPrompt(row.prompt, row.adapter)
            self.prompts.append(prompt)
        prompt.rows.append(row)

    def remove(self, row: DecodingRow) -> None:
        """Drop a row, and its prompt if no other row waits for that."""
        prompt = next(prompt for prompt in self.prompts if row in prompt.rows)
        prompt.rows.remove(row)
        if not prompt.rows:
            self.prompts.remove(prompt)

    def drop(self, prompts: Sequence[UnreadPrompt]) -> None:
        """Take prompts away that are read, or can't be."""
        self.prompts = [prompt for prompt in self.prompts if prompt not in prompts]

    def choose(self, max_tokens: int, kept: Sequence[KeptText]) -> list[tuple[UnreadPrompt, int]]:
        """The prompts of one call, each with the number of its tokens that are read.

        The first prompt gets what it needs, as far as that is allowed; then come those behind it that fit into the
        rest, and a part of a longer one where the rest is worth a pass. As the first one always goes on, none waits
        for ever.
        """
        chosen: list[tuple[UnreadPrompt, int]] = []
        rest = max_tokens
        for prompt in self.prompts:
            if prompt.bucket is None:
                prompt.kept = best_kept(prompt, kept, alone=len(self.prompts) == 1)
            if prompt.rest <= rest or not chosen or rest >= LEAST_PART:
                chosen.append((prompt, min(prompt.rest, rest)))
                rest -= chosen[-1][1]
            if not rest:
                break
        return chosen


def best_kept(prompt: UnreadPrompt, kept: Sequence[KeptText], alone: bool) -> KeptText | None:
    """The kept text that saves a prompt the most, if it is more than reading the prompt alone costs."""
    best = max(kept, key=lambda text: text.common(prompt.ids, prompt.adapter), default=None)
    common = best.common(prompt.ids, prompt.adapter) if best else 0
    return best if common >= (1 if alone else LEAST_COMMON) else None
