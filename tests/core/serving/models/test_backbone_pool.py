"""What is asked of weights before they are loaded."""

import pytest
import torch
from gptask import UserError
from gptask.serving.models.backbone_pool import weight_bytes


def test_weights_with_a_damaged_header_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match=r"model.safetensors can't be read"):
        weight_bytes(tmp_path, torch.float32)
