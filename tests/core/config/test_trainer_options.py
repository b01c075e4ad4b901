"""The Trainer's options are read from its source, and a user's options are checked against them."""

import inspect

import pytest
from gptask import UserError
from gptask.config.trainer_options import SET_BY_GPTASK, check_trainer_options, option_names, trainer_parameters


def test_the_parameters_read_from_source_are_those_of_the_signature():
    from pytorch_lightning import Trainer

    assert list(trainer_parameters()) == [
        name for name in inspect.signature(Trainer.__init__).parameters if name != "self"
    ]
    assert set(SET_BY_GPTASK) <= set(trainer_parameters())
    assert not set(SET_BY_GPTASK) & set(option_names())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 3, "gradient_clip_val": 1, "limit_train_batches": 0.5},
        {"max_epochs": None, "deterministic": "warn"},
        {"devices": 2},
        {"devices": [0, 1], "accelerator": "cpu"},
        {"max_time": "00:01:00:00", "precision": "bf16-mixed", "val_check_interval": 0.25},
        {"fast_dev_run": True},
    ],
)
def test_valid_trainer_options_pass(options):
    check_trainer_options(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epocs": 3}, "trainer.max_epocs: the Lightning Trainer has no such option. Did you mean 'max_epochs'?"),
        ({"callbacks": []}, "trainer.callbacks is set by gptask itself"),
        ({"max_epochs": "many"}, "trainer.max_epochs='many': expected a whole number or null, got str"),
        ({"max_epochs": 1.5}, "expected a whole number or null, got float"),
        ({"max_epochs": True}, "got bool"),
        ({"max_epochs": {"foo": 1}}, "got dict"),
        ({"max_steps": None}, "expected a whole number, got NoneType"),
        ({"inference_mode": 1}, "expected true or false, got int"),
    ],
)
def test_invalid_trainer_options_are_refused(options, message):
    with pytest.raises(UserError) as raised:
        check_trainer_options(options)
    assert message in str(raised.value)
