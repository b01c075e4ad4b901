"""Configs that train in a second."""

from pathlib import Path
from typing import Any

from gptask import Config
from gptask.config.schemas import Full, Limit, Sample, Scratch
from gptask_tasks.sentiment import Sentiment


def small_config(outputs: Path, **changes: Any) -> Config:
    """A training that takes a second: a tiny GPT-2 on a few sentences."""
    options = {
        "task": Sentiment(),
        "backbone": Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300),
        "tuning": Full(lr=1e-3),
        "data": Sample(limit=Limit(train=24, validation=8, test=10), max_tokens=128, batch_size=8),
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": 1},
        "outputs": str(outputs),
        "probe": False,
        "baseline": False,
    }
    return Config(**(options | changes))
