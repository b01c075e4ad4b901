"""LoRA adapters of random weights in PEFT's format, of other ranks, layers and scales."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def random_adapters(backbone_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``random_adapters("llama")``: the folders of three adapters; the second one leaves the lower layer out."""
    made: dict[str, list[Path]] = {}

    def make(family: str) -> list[Path]:
        import torch
        from gptask.config.schemas import Lora
        from gptask.model.backbone.tuning import apply_tuning

        if family not in made:
            made[family] = []
            for number, options in enumerate([Lora(rank=2), Lora(rank=3, top=0.5, alpha=5), Lora(rank=4, alpha=2)]):
                torch.manual_seed(number)
                peft = apply_tuning(backbone_of(family).peft, options)
                with torch.no_grad():
                    for name, parameter in peft.named_parameters():
                        if "lora_B" in name:
                            parameter.normal_(0, 0.3)
                made[family].append(tmp_path_factory.mktemp(f"{family}-{number}"))
                peft.save_pretrained(made[family][-1])
        return made[family]

    return make
