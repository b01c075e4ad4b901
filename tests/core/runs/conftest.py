"""A run with random weights, shared by the tests that load it, and a copy of it that a test may break."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gptask.config.schemas import Lora
from gptask_tasks.sentiment import Sentiment


@pytest.fixture(scope="session")
def lora_run(random_run: Callable[..., Any]) -> Any:
    """A sentiment run with an adapter and a head; no test may change its folder."""
    return random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2))


@pytest.fixture
def run_copy(lora_run: Any, tmp_path: Path) -> Path:
    """A copy of its folder, to be broken."""
    return Path(shutil.copytree(lora_run.folder, tmp_path / "run"))
