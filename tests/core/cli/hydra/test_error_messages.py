"""The message for an error in a config: the option, what was expected, and how to fix it."""

import pytest


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # unknown names: the nearest, and the choice that has such an option
        ("train task=sentimen", ["unknown task 'sentimen'", "Did you mean 'sentiment'?", "translation"]),
        ("train backbone=nanoo", ["unknown backbone 'nanoo'", "Did you mean 'nano'?"]),
        ("train engine=", ["unknown engine ''; available: fast, openvino, reference."]),
        ("train backbone=", ["unknown backbone ''; available: gemma3"]),
        ("train task=", ["unknown task ''; installed: classification"]),
        ("train experiment=[sst2,tre]", ["unknown experiment 'tre'", "Did you mean 'trec'?"]),
        ("train taks=qa", ["unknown option 'taks'", "Did you mean 'task"]),
        ("train dtype=int4", ["unknown option 'dtype'", "It is an option of gptask evaluate, gptask predict"]),
        (
            "train backbone.dtype=int4",
            ["backbone.dtype=int4: weights in int4 can't learn", "compute in int4 by dtype=int4"],
        ),
        ("train task.lables=[a]", ["unknown option 'task.lables'", "Did you mean 'labels'?"]),
        ("train +task.lables=[a]", ["unknown option 'task.lables'", "Did you mean 'labels'?"]),
        ("train ~seed", ["~seed", "can't be removed"]),
        ("train data.limit.tran=3", ["unknown option 'data.limit.tran'", "Did you mean 'train'?"]),
        ("train data.test=x.csv", ["unknown option 'data.test'", "It belongs to data=files"]),
        ("train optimizer.momentum=1", ["unknown option 'optimizer.momentum'", "optimizer=sgd"]),
        ("train task.generation.num_beams=2", ["unknown option 'task.generation'", "task=translation"]),
        ("train -m task=qa,sentiment task.stride=3", ["unknown option 'task.stride'", "It belongs to task=qa."]),
        ("train -m backbone=nano,nanoo", ["unknown backbone 'nanoo'"]),
        # wrong values: what was expected and what was got
        ("train seed=1.5", ["seed=1.5", "a whole number, got '1.5'"]),
        ("train tuning.lr=fast", ["tuning.lr=fast", "a number, got 'fast'"]),
        ("train seed=null", ["seed=null", "null is not allowed"]),
        ("train task.multi_label=maybe", ["true or false, got 'maybe'"]),
        ("train task.labels=a", ["expected a list: task.labels=[a,b]"]),
        ("train schedule.name=foo", ["schedule.name=foo", "linear, cosine, constant"]),
        ("train schedule=cosine", ["schedule=cosine", "schedule.<name>=<value>", "name, warmup"]),
        ("train trainer=3", ["trainer.name=value"]),
        ("train data.columns=[a]", ["data.columns.name=value"]),
        ("train task=null", ["task=null", "choose one of classification"]),
        # sweeps without -m
        ("train task=sentiment,qa", ["several values need -m", "gptask train -m task=sentiment,qa"]),
        ("train backbone=nano,gpt2", ["gptask train -m backbone=nano,gpt2"]),
        ("train seed=1,2", ["gptask train -m seed=1,2"]),
        # missing values
        ("predict", ["run is required", "gptask predict run=<value>"]),
        # interpolations
        ("train task.prompt=${foo.bar}", ["task.prompt: Interpolation key 'foo.bar' not found", r"write \${"]),
        ("train outputs=${foo:bar}", ["outputs: Unsupported interpolation type foo"]),
        ("train outputs=${oc.env:GPTASK_NOT_SET}", ["outputs", "GPTASK_NOT_SET"]),
        ("train task.prompt=${text", ["a ${ without its }"]),
        # folders
        ("train -m seed=1,2 outputs=/dev/null/x", ["/dev/null/x", "set outputs=<folder>"]),
    ],
)
def test_an_error_names_the_option_and_how_to_fix_it(refused, line, expected):
    message = refused(*line.split())
    for part in expected:
        assert part in message
    assert "_schema" not in message


def test_an_unwritable_run_folder_is_named(run_command):
    from gptask.training.train import train

    ended = run_command("train", "outputs=/dev/null/x", "backbone=nano", action=train)
    assert ended.code == 2
    assert "the run folder /dev/null/x" in ended.err
    assert "set outputs=<folder>" in ended.err
    assert "Traceback" not in ended.err


def test_a_preset_that_is_wrong_is_named(refused, tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, text in {
        "key": "task: {lables: [a]}",
        "value": "seed: x",
        "task": "defaults: [{override /task: qq}]",
    }.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    here = ("--config-dir", str(tmp_path))
    message = refused("train", "experiment=key", *here)
    assert "unknown option 'task.lables' (from experiment=key)" in message
    assert "Did you mean 'labels'?" in message
    assert "seed (from experiment=value): expected a whole number" in refused("train", "experiment=value", *here)
    message = refused("train", "experiment=task", *here)
    assert "unknown task 'qq'" in message
    assert "(from experiment=task)" in message
