"""A training whose loss or gradients are not finite stops, and nothing that is no number is called best."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from gptask import UserError, train
from gptask.config.schemas import SGD, Full
from gptask.training.divergence import READ_EVERY, Diverged, DivergenceCheck, clip_gradients, with_advice
from gptask_tasks.classification.metrics import Accuracy
from pytorch_lightning.plugins.precision import MixedPrecision, Precision

from tests.support.configs import small_config


def test_a_diverged_training_stops_with_what_to_lower(tmp_path):
    config = small_config(tmp_path, folder=str(tmp_path / "run"), optimizer=SGD(lr=1e30), tuning=Full(lr=1e30))
    with pytest.raises(UserError) as error:
        train(config)
    pattern = r"the training diverged: the (loss|norm of the gradients) is (nan|inf) at step 2\. Start another run and "
    pattern += r"lower tuning\.lr \(it is 1e\+30\), or set trainer\.gradient_clip_val=1\.0"
    assert re.match(pattern, str(error.value))
    assert not list((tmp_path / "run/checkpoints").glob("*"))
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(
    ("step", "trainer", "lr", "expected"),
    [
        (
            3,
            {"gradient_clip_val": 2},
            1e-3,
            "tuning.lr (it is 0.001), or lower trainer.gradient_clip_val (it is 2)",
        ),
        (3, {}, 5e-3, "lower optimizer.lr (it is 0.005), or set trainer.gradient_clip_val=1.0"),
        (
            1,
            {"precision": "bf16-mixed"},
            1e-3,
            "are sound, or set trainer.precision=32-true (it is bf16-mixed)",
        ),
    ],
)
def test_the_advice_names_options_with_their_values(step, trainer, lr, expected, tmp_path):
    config = small_config(tmp_path, trainer=trainer, optimizer=SGD(lr=lr))
    error = with_advice(Diverged("loss", math.nan, step), config)
    assert f"the loss is nan at step {step}" in str(error)
    assert expected in str(error)


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("gradient", [[3.0, 4.0], [math.inf, 1.0], [math.nan, 1.0]])
def test_the_norm_of_the_gradients_is_that_before_clipping(limit, gradient):
    def optimizer() -> torch.optim.Optimizer:
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor(gradient)
        return torch.optim.SGD([parameter], lr=1.0)

    def module(plugin: Precision) -> SimpleNamespace:
        def clip(optimizer, gradient_clip_val, gradient_clip_algorithm):
            plugin.clip_gradients(optimizer, gradient_clip_val or 0, gradient_clip_algorithm or "norm")

        return SimpleNamespace(trainer=SimpleNamespace(precision_plugin=plugin), clip_gradients=clip)

    clipped, expected, scaled = optimizer(), optimizer(), optimizer()
    norm = clip_gradients(module(Precision()), clipped, limit, None)
    Precision().clip_gradients(expected, limit or 0, "norm")
    for one, other in zip(clipped.param_groups, expected.param_groups, strict=True):
        torch.testing.assert_close(one["params"][0].grad, other["params"][0].grad, rtol=0, atol=0, equal_nan=True)
    assert norm is not None
    assert float(norm) == pytest.approx(math.hypot(*gradient), nan_ok=True)
    scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    assert clip_gradients(module(scaling), scaled, limit, None) is None


def test_numbers_on_a_gpu_are_read_together_and_before_a_validation():
    class OnGPU:
        device = torch.device("cuda")

        def __init__(self, value):
            self.value = value

        def detach(self):
            return self

        def float(self):
            return torch.tensor(self.value)

    check = DivergenceCheck()
    check.add("loss", torch.tensor(1.0), 1)
    with pytest.raises(Diverged, match="the loss is inf at step 2"):
        check.add("loss", torch.tensor(math.inf), 2)
    check.add("loss", OnGPU(math.nan), 3)
    check.add("loss", OnGPU(1.0), 4)
    with pytest.raises(Diverged, match="the loss is nan at step 3"):
        check.read()
    for step in range(READ_EVERY - 1):
        check.add("loss", OnGPU(math.nan), step)
    with pytest.raises(Diverged, match="step 0"):
        check.add("loss", OnGPU(1.0), READ_EVERY)


def test_a_metric_that_is_no_number_counts_as_the_worst_and_is_null_in_json(tmp_path, monkeypatch, caplog):
    values = iter((30.0, math.nan, 20.0, math.inf))  # validations, then the test
    monkeypatch.setattr(Accuracy, "aggregate", lambda *_: next(values, math.inf))
    run = train(small_config(tmp_path, trainer={"max_epochs": 3, "accelerator": "cpu"}))
    assert "val/accuracy is nan at step 4: it counts as the worst value" in caplog.text
    assert "accuracy could not be computed; metrics.json holds null" in caplog.text
    text = (run.folder / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))["metrics"]
    assert metrics["accuracy"]["value"] is None
    checkpoint = torch.load(next((run.folder / "checkpoints").glob("best-*.ckpt")), weights_only=True)
    assert checkpoint["global_step"] == 2
