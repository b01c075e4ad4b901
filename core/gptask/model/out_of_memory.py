"""What runs out of memory is recognised, freed, and computed again in parts that fit."""

from __future__ import annotations

import gc
import logging
import math
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from gptask.errors import UserError

log = logging.getLogger("gptask")
T = TypeVar("T")
MESSAGES = (  # of a RuntimeError; Lightning and accelerate look for the first three
    "out of memory",  # of CUDA, HIP, XPU or MPS
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "STATUS_ALLOC_FAILED",  # of cuBLAS, cuDNN, cuSOLVER or cuSPARSE
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the processor or of a device did not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def free_memory(error: BaseException) -> None:
    """Free what the traceback of an exception holds, such as the activations of the pass that it ended."""
    import torch

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA is not used


class BatchDivider:
    """Computes batches, in parts where memory runs out; later batches are divided before it does.

    A part has at most ``max_tokens`` padded tokens, or one row.
    """

    def __init__(self) -> None:
        self.max_tokens = math.inf

    def compute(self, lengths: Sequence[int], part: Callable[[slice], T]) -> list[T]:
        """Return what ``part`` returns of all rows or, one after the other, of parts of them; no row is left out.

        ``lengths`` are those of the rows in tokens. A part that ran out of memory is computed again, so whatever it did
        before must be repeatable. Raises `UserError` for a row that does not fit alone.
        """
        results: list[T] = []
        start = 0
        while start < len(lengths):
            rows = slice(start, self._end(lengths, start))
            try:
                results.append(part(rows))
                start = rows.stop
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._lower(lengths[rows], error)
                free_memory(error)
        return results

    def _end(self, lengths: Sequence[int], start: int) -> int:
        """Where a part ends that starts at a row."""
        end, longest = start, 0
        while end < len(lengths):
            longest = max(longest, lengths[end])
            if end > start and longest * (end + 1 - start) > self.max_tokens:
                break
            end += 1
        return end

    def _lower(self, lengths: Sequence[int], error: Exception) -> None:
        """Halve the tokens of a part after one with rows of these lengths ran out of memory."""
        rows, longest = len(lengths), max(lengths)
        if rows == 1:
            raise UserError(
                f"one input of {longest} tokens does not fit into memory: lower data.max_tokens, or take a smaller "
                "backbone"
            ) from error
        if self.max_tokens == math.inf:
            log.warning(
                "%d rows of up to %d tokens ran out of memory and are computed in parts, as later batches are; "
                "data.eval_batch_size=%d avoids it", rows, longest, rows // 2,
            )  # fmt: skip
        self.max_tokens = rows * longest // 2
