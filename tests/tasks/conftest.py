"""A tiny backbone whose tokenizer has seen English and Chinese, and the bundled samples."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tiny_models import scratch_backbone

TEXT = [
    "the film is good, the film is bad, a great story about refunds and delivery and the weather in Paris\n",
    "这部电影很好看，退款和投诉，天气很差\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from gptask.model.backbone.scratch import train_tokenizer

    return train_tokenizer(TEXT * 3, 400)


@pytest.fixture(scope="session")
def backbone() -> Any:
    return scratch_backbone(TEXT * 3)


@pytest.fixture(scope="session")
def sample_rows() -> Callable[[Any], dict[str, list[dict[str, Any]]]]:
    """``sample_rows(task)``: the examples of its bundled sample by split, as a run reads them."""
    from gptask.config.schemas import Sample
    from gptask.data.corpus import SPLITS
    from gptask.training.builder import build_corpus

    def rows(task: Any) -> dict[str, list[dict[str, Any]]]:
        corpus = build_corpus(task, Sample(), seed=0)
        return {split: list(corpus.split(split)) for split in SPLITS}

    return rows


@pytest.fixture(scope="session")
def assert_fit_for_use() -> Callable[[dict[str, list[dict[str, Any]]]], None]:
    """A sample has at least 300/60/100 examples, and no two splits share an input (or a context)."""

    def check(rows: dict[str, list[dict[str, Any]]]) -> None:
        counts = [len(rows[split]) for split in ("train", "validation", "test")]
        assert all(count >= minimum for count, minimum in zip(counts, (300, 60, 100), strict=True)), counts
        groups = [{example["group"] for example in split} for split in rows.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))
        inputs = [example["digest"] for split in rows.values() for example in split]
        assert len(inputs) == len(set(inputs))

    return check
