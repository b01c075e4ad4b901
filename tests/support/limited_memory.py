"""A backbone whose passes run out of memory above a number of padded tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


class LimitedMemory:
    """``passes`` are the padded tokens of each pass that was tried; above ``tokens`` it raises ``error``."""

    def __init__(self) -> None:
        self.tokens = 1 << 30
        self.error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.passes: list[int] = []

    def check(self, tokens: int) -> None:
        self.passes.append(tokens)
        if tokens > self.tokens:
            raise self.error()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> LimitedMemory:
    """``memory.tokens = 64``: from here on, passes and generations of more padded tokens run out of memory."""
    from gptask.model import heads
    from gptask.model.backbone.backbone import GPTBackbone

    limited, hidden, generate = LimitedMemory(), GPTBackbone.hidden, heads.generate

    def limited_hidden(backbone: GPTBackbone, input_ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        limited.check(input_ids.numel())
        return hidden(backbone, input_ids, *args, **options)

    def limited_generate(backbone: Any, prompts: list[list[int]], options: Any) -> Any:
        limited.check(len(prompts) * max(map(len, prompts)))
        return generate(backbone, prompts, options)

    monkeypatch.setattr("gptask.model.out_of_memory.gc.collect", int)  # half a second in a large process
    monkeypatch.setattr(GPTBackbone, "hidden", limited_hidden)
    monkeypatch.setattr(heads, "generate", limited_generate)
    return limited
