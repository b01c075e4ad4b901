"""Search spaces from the command line and from YAML."""

import pytest
from gptask import UserError
from gptask.config.overrides import normalize_overrides
from gptask.training.sweep.space import Dimension, merge_spaces, read_space_file, split_overrides


def read(*overrides):
    return split_overrides(overrides, normalize_overrides(overrides, True, {"seed"}, {"trainer"}))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tuning.lr=tag(log,interval(1e-4,1e-2))", Dimension("tuning.lr", (), 1e-4, 1e-2, None, True)),
        ("tuning.lr=tag(log, interval(1e-4, 1e-2))", Dimension("tuning.lr", (), 1e-4, 1e-2, None, True)),
        ("schedule.warmup=interval(0,0.2)", Dimension("schedule.warmup", (), 0.0, 0.2)),
        ("tuning.rank=int(interval(2,8))", Dimension("tuning.rank", (), 2, 8, 1)),
        ("tuning.rank=tag(log,int(interval(2,64)))", Dimension("tuning.rank", (), 2, 64, None, True)),
        ("tuning.rank=4,8,16,8", Dimension("tuning.rank", ("4", "8", "16"))),
        ("tuning=choice(lora,full)", Dimension("tuning", ("lora", "full"))),
        ("tuning.target_modules=[q],[q,v]", Dimension("tuning.target_modules", ("[q]", "[q,v]"))),
        ("task.prompt='{text} is','{text}:'", Dimension("task.prompt", ("'{text} is'", "'{text}:'"))),
        ("trainer.max_epochs=range(1,8,2)", Dimension("trainer.max_epochs", (), 1, 7, 2)),
        ("seed=range(5,1,-2)", Dimension("seed", (), 3, 5, 2)),
        ("schedule.warmup=range(0.1,0.5,0.1)", Dimension("schedule.warmup", (), 0.1, 0.4, 0.1)),
    ],
)
def test_an_override_of_the_command_line_becomes_a_dimension(override, expected):
    space, fixed = read("probe=false", override)
    assert fixed == ["probe=false"]
    (dimension,) = space
    assert dimension.values()[0] == expected.values()[0]
    assert (dimension.key, dimension.choices, dimension.is_integer, dimension.step, dimension.log) == (
        expected.key, expected.choices, expected.is_integer, expected.step, expected.log,
    )  # fmt: skip
    assert dimension.values() == pytest.approx(expected.values()) if not expected.choices else True


def test_dimensions_become_optuna_distributions():
    from optuna import distributions as d

    space, _ = read("a=tag(log,interval(1e-4,1e-2))", "b=range(1,8,2)", "c=x,y", "e=tag(log,int(interval(2,64)))")
    assert [dimension.distribution() for dimension in space] == [
        d.FloatDistribution(1e-4, 1e-2, log=True),
        d.IntDistribution(1, 7, step=2),
        d.CategoricalDistribution(("x", "y")),
        d.IntDistribution(2, 64, log=True),
    ]


def test_values_become_overrides():
    (lr, rank), _ = read("lr=interval(0,1)", "rank=4,8")
    assert lr.override(0.000123456789) == "lr=0.000123457"
    assert rank.override("4") == "rank=4"
    assert Dimension("n", (), 1, 3, 1).override(2) == "n=2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=interval(2,1)", "the interval is empty"),
        ("lr=interval(1,1)", "the interval is empty"),
        ("lr=range(3,3)", "the range is empty"),
        ("lr=choice()", "empty choice"),
        ("lr=interval(1)", "missing a required argument"),
        ("lr=tag(log,interval(0,1))", "starts above 0"),
        ("lr=tag(log,range(1,9,2))", "has no steps"),
        ("lr=tag(log,choice(1,2))", "not for choices"),
        ("lr=tag(lg,interval(1,2))", "the only tag is log, got lg"),
        ("lr=glob(*)", "name the values"),
    ],
)
def test_a_wrong_space_is_refused(override, message):
    with pytest.raises(UserError, match="lr") as error:
        read(override)
    assert message in str(error.value)


def test_yaml_gives_the_same_dimensions_as_the_command_line(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "tuning.lr: tag(log,interval(1e-4,1e-2))\ntuning.rank: [4, 8]\ntask.prompt: ['{text}: it''s', null, true]\n"
    )
    lr, rank, prompt = read_space_file(str(file))
    assert [lr, rank] == read("tuning.lr=tag(log,interval(1e-4,1e-2))", "tuning.rank=4,8")[0]
    assert prompt.choices == (r"'{text}: it\'s'", "null", "true")


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("a: [1, 2]\nb: [1, 2]\nc: [1, 2]\n")
    space, fixed = read("a=3,4", "++b=7")
    assert [(d.key, d.choices) for d in merge_spaces(read_space_file(str(file)), space, fixed)] == [
        ("c", ("1", "2")),
        ("a", ("3", "4")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"space\.yaml:2: this is not valid YAML"),
        ("- a\n", "expected a line for each option"),
        ("", "expected a line for each option"),
        ("a: [1, 2]\nb: 5\n", r"space\.yaml:2: b: 5 is no search space"),
        ("a: [1, 2]\nb: linear\n", r"space\.yaml:2: b: 'linear' is no search space"),
        ("a: [1, 2]\n\nb: interval(2,1)\n", r"space\.yaml:3: b: the interval is empty"),
        ("a: [1, 2]\na: [3, 4]\n", r"space\.yaml:2: a is there twice"),
        ("a: []\n", r"space\.yaml:1: .*nothing to choose from"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text, message, tmp_path):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_space_file(str(tmp_path / "space.yaml"))
