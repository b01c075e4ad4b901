"""Every YAML that is shipped composes under its verbs and fits its schema and the Trainer."""

from dataclasses import fields
from enum import Enum
from pathlib import Path

import gptask_conf
import pytest
from gptask.cli.hydra.compose import choices, compose, groups, loader
from gptask.cli.hydra.error_messages import CommandLine
from gptask.cli.hydra.validate import validated_config
from gptask.cli.verbs import MULTIRUN
from gptask.config import schemas
from gptask.config.conversion import register_schemas
from gptask.config.trainer_options import check_trainer_options
from gptask.plugins.config_group import register_task_group
from gptask.plugins.discovery import discover
from gptask.plugins.task import Task
from omegaconf import OmegaConf, open_dict

FOLDER = Path(gptask_conf.__file__).parent
FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
PRIMARY = [path.stem for path in FILES if len(path.parts) == 1]
PRESETS = [path for path in FILES if len(path.parts) > 1]
NEEDED = {
    "train": [],
    "evaluate": [],
    "predict": ["run=x", "input=y"],
    "explain": ["run=x", "input=y"],
    "export": ["run=x", "output=y"],
    "serve": [],
}


@pytest.fixture(scope="module")
def configs():
    register_task_group(discover())
    register_schemas()
    with loader() as hydra_loader:
        yield hydra_loader


@pytest.fixture(scope="module")
def group_choices(configs):
    """``group_choices["evaluate"]``: the choices of each config group in a verb."""
    return {verb: groups(configs, verb) for verb in PRIMARY}


def to_schema(config, verb):
    """Turn a composed config into the verb's dataclass, or raise an error, as the command line does."""
    with open_dict(config):
        del config["hydra"]
    options = validated_config(config, CommandLine(verb))
    if hasattr(options, "trainer"):
        check_trainer_options(options.trainer)
    return options


def composed(configs, verb, *overrides):
    return compose(configs, verb, [*NEEDED[verb], *overrides])


def test_every_verb_has_its_file():
    assert set(PRIMARY) == set(schemas.VERB_SCHEMAS)


@pytest.mark.parametrize("verb", PRIMARY)
def test_a_primary_config_is_its_verbs_dataclass(configs, verb):
    assert type(to_schema(composed(configs, verb), verb)) is schemas.VERB_SCHEMAS[verb]


@pytest.mark.parametrize("verb", PRIMARY)
def test_a_primary_config_has_the_schemas_defaults(configs, verb):
    """Python users get the same values as the command line."""
    options, schema = to_schema(composed(configs, verb), verb), schemas.VERB_SCHEMAS[verb]()
    for field in fields(schema):
        value = getattr(options, field.name)
        if field.name not in (*schemas.GROUP_SCHEMAS, "task", "trainer", "run", "input", "output"):
            assert value == getattr(schema, field.name), field.name


@pytest.mark.parametrize("verb", MULTIRUN)
def test_hydra_leaves_no_files_beside_the_runs_of_a_multirun(configs, verb):
    hydra = composed(configs, verb).hydra
    assert (hydra.output_subdir, hydra.job.chdir, hydra.job_logging.root) == (None, False, None)


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_a_preset_composes_fits_and_is_not_overridden(configs, group_choices, preset):
    group, name, text = preset.parts[0], preset.stem, (FOLDER / preset).read_text(encoding="utf-8")
    written = OmegaConf.create(text)
    written.pop("defaults", None)
    needed = [f"{group}.{key}=x" for key in written if OmegaConf.is_missing(written, key)]
    for verb in ["train", "evaluate"] if group in ("backbone", "experiment") else ["train"]:
        assert name in group_choices[verb][group]
        config = composed(configs, verb, f"{group}={name}", *needed)
        assert_within(written, config if "# @package _global_" in text else config[group])
        options = to_schema(config, verb)
        assert isinstance(options.task, Task)
        assert all(
            type(getattr(options, key)) in schemas.GROUP_SCHEMAS[key].values()
            for key in {group} & schemas.GROUP_SCHEMAS.keys()
        )


def assert_within(part, config):
    for key in part:
        if OmegaConf.is_interpolation(part, key) or OmegaConf.is_missing(part, key):
            continue
        if OmegaConf.is_dict(part[key]):
            assert_within(part[key], config[key])
        else:
            value = config[key]
            assert part[key] == (value.name if isinstance(value, Enum) else value), key


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_a_preset_starts_with_a_comment(preset):
    lines = (FOLDER / preset).read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if "@package" not in line)
    assert first.startswith("# ")


@pytest.mark.parametrize("preset", [path for path in PRESETS if path.parts[0] == "experiment"], ids=str)
def test_an_experiment_can_be_varied(configs, preset):
    varied = ["backbone=nano", "seed=3", "++trainer.max_epochs=5"]
    options = to_schema(composed(configs, "train", f"experiment={preset.stem}", *varied), "train")
    assert (type(options.backbone), options.seed, options.trainer["max_epochs"]) == (schemas.Scratch, 3, 5)


def test_no_preset_has_a_schemas_name():
    """Hydra would merge the two."""
    for group, kinds in schemas.GROUP_SCHEMAS.items():
        assert not {path.stem for path in PRESETS if path.parts[0] == group} & kinds.keys()


def test_schemas_are_not_offered(configs):
    for group in schemas.GROUP_SCHEMAS:
        offered = choices(configs, group)
        assert offered
        assert not [name for name in offered if name.endswith("_schema")]
