"""A trained run of four layers, and compressions of it by command lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gptask import Lora, Pretrained, train
from gptask.analysis.compress.methods import compress
from gptask.config.schemas import DType
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


@pytest.fixture(scope="session")
def parent(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA in the upper three of four layers; no test may change it."""
    backbone = Pretrained(source=str(tiny_model("llama", 128, layers=4)), dtype=DType.float32, license="MIT")
    options = {"backbone": backbone, "tuning": Lora(rank=2, lr=1e-2, top=0.75)}
    return train(small_config(tmp_path_factory.mktemp("outputs"), **options)).folder


@pytest.fixture
def compressed(run_command: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``compressed(parent, "keep=2")``: the ended command line; the run folder is tmp_path / "small"."""

    def run(folder: Path, *options: str, **more: Any) -> Any:
        arguments = [f"run={folder}", "method=prune", f"folder={tmp_path / 'small'}", "baseline=false", *options]
        return run_command("compress", *arguments, action=lambda config: compress(config), **more)

    return run


@pytest.fixture
def sentiment() -> Sentiment:
    return Sentiment()
