"""A verb's help: its groups, its options with their comments."""

import pytest
from gptask.cli.verbs import VERBS


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.composed], ids=lambda verb: verb.name)
def test_help_shows_the_summary_and_no_internals(run_command, verb):
    ended = run_command(verb.name, "--help")
    assert (ended.code, ended.err, ended.configs) == (0, "", [])
    assert ended.out.startswith(f"gptask {verb.name} ")
    assert verb.summary in ended.out.splitlines()[0]
    assert "_schema" not in ended.out
    assert "saved" not in ended.out
    assert "Powered by Hydra" not in ended.out


def test_comments_of_yaml_and_task_stand_beside_the_values(run_command):
    out = run_command("train", "task=qa", "backbone=nano", "task.stride=5", "--help").out
    lines = {line.partition("#")[0].strip(): line.partition("#")[2].strip() for line in out.splitlines()}
    assert lines["seed: 13"].startswith("weights, shuffling")  # the primary YAML
    assert lines["context: 512"] == "positions the model can see"  # a group's YAML
    assert lines["stride: 5"].startswith("span: tokens by which")  # a task's option, as overridden
    assert lines["num_beams: 1"].startswith("beams;")  # one of a nested dataclass
    assert lines["max_tokens: 512"].startswith("upper limit on prompt")  # the dataclass of the data
    assert lines["validation: null"].startswith("most validation examples")  # one nested in it


def test_a_comment_of_two_lines_is_shown_whole(run_command):
    (line,) = (line for line in run_command("train", "--help").out.splitlines() if line.strip().startswith("top: null"))
    assert line.endswith("run no backward pass (null: what the task's head asks for: all, half to tag tokens)")


def test_required_options_are_marked(run_command):
    assert "input: ???" in run_command("predict", "--help").out
    lines = [line for line in run_command("export", "--help").out.splitlines() if "run: ???" in line]
    assert lines[0].endswith("# required")


def test_multirun_is_mentioned_only_for_verbs_that_have_it(run_command):
    assert " -m " in run_command("evaluate", "--help").out
    assert " -m " not in run_command("predict", "--help").out


def test_errors_beside_help_are_reported(refused):
    assert "Did you mean 'labels'?" in refused("train", "task.lables=1", "--help")
