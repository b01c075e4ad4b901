"""What tests of weights in int4 need: a machine that computes in it, and tiny backbones that are in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gptask.errors import UserError


@pytest.fixture(scope="session")
def needs_int4() -> None:
    """Skip a test where this machine can't compute in int4."""
    from gptask.model.backbone.quantizing import require_int4

    try:
        require_int4()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def int4_backbone_of(tiny_model: Callable[..., Path], needs_int4: None) -> Callable[..., Any]:
    """``int4_backbone_of("llama")``: a fresh backbone with weights in int4; ``engine`` as of `GPTBackbone`."""

    def load(family: str, engine: Any = None, **options: Any) -> Any:
        from gptask.config.schemas import DType, Pretrained
        from gptask.model.backbone.backbone import load_or_build_backbone
        from gptask.runs.saved_model import locate_backbone

        source = Pretrained(source=str(tiny_model(family, **options)))
        return load_or_build_backbone(source, locate_backbone(source), list, engine, DType.int4).eval()

    return load
