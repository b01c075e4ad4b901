"""Every YAML that is shipped composes under its verbs and fits its schema and the Trainer."""

from dataclasses import fields
from enum import Enum
from pathlib import Path

import gptask_conf
import pytest
from gptask.cli.hydra.compose import choices, compose, groups, loader
from gptask.cli.hydra.error_messages import CommandLine
from gptask.cli.hydra.validate import validated_config
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
NEEDED = {"train": [], "evaluate": [], "predict": ["run=x", "input=y"], "export": ["run=x", "output=y"]}


@pytest.fixture(scope="module")
def configs():
    register_task_group(discover())
    register_schemas()
    with loader() as found:
        yield found


@pytest.fixture(scope="module")
def chosen_in(configs):
    """``chosen_in["evaluate"]``: the groups that can be chosen in a verb."""
    return {verb: groups(configs, verb) for verb in PRIMARY}


def made_from(config, verb):
    """As the command line does it: the composed config becomes the verb's dataclass, or says what is wrong."""
    with open_dict(config):
        del config["hydra"]
    made = validated_config(config, CommandLine(verb))
    if hasattr(made, "trainer"):
        check_trainer_options(made.trainer)
    return made


def composed(configs, verb, *overrides):
    return compose(configs, verb, [*NEEDED[verb], *overrides])


def test_every_verb_has_its_file():
    assert set(PRIMARY) == set(schemas.VERB_SCHEMAS)


@pytest.mark.parametrize("verb", PRIMARY)
def test_a_primary_config_is_its_verbs_dataclass(configs, verb):
    assert type(made_from(composed(configs, verb), verb)) is schemas.VERB_SCHEMAS[verb]


@pytest.mark.parametrize("verb", PRIMARY)
def test_a_primary_config_says_the_schemas_defaults(configs, verb):
    """One truth: Python users get the same values as the command line."""
    made, schema = made_from(composed(configs, verb), verb), schemas.VERB_SCHEMAS[verb]()
    for field in fields(schema):
        value = getattr(made, field.name)
        if field.name not in (*schemas.GROUP_SCHEMAS, "task", "trainer", "run", "input", "output"):
            assert value == getattr(schema, field.name), field.name


@pytest.mark.parametrize("verb", PRIMARY)
def test_hydra_leaves_no_files(configs, verb):
    hydra = composed(configs, verb).hydra
    assert (hydra.output_subdir, hydra.run.dir, hydra.job.chdir, hydra.job_logging.root) == (None, ".", False, None)


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_a_preset_composes_fits_and_is_not_overridden(configs, chosen_in, preset):
    group, name, text = preset.parts[0], preset.stem, (FOLDER / preset).read_text(encoding="utf-8")
    written = OmegaConf.create(text)
    written.pop("defaults", None)
    needed = [f"{group}.{key}=x" for key in written if OmegaConf.is_missing(written, key)]
    for verb in ["train", "evaluate"] if group in ("backbone", "experiment") else ["train"]:
        assert name in chosen_in[verb][group]
        config = composed(configs, verb, f"{group}={name}", *needed)
        assert_within(written, config if "# @package _global_" in text else config[group])
        made = made_from(config, verb)
        assert isinstance(made.task, Task)
        assert all(
            type(getattr(made, key)) in schemas.GROUP_SCHEMAS[key].values()
            for key in {group} & schemas.GROUP_SCHEMAS.keys()
        )


def assert_within(part, whole):
    for key in part:
        if OmegaConf.is_interpolation(part, key) or OmegaConf.is_missing(part, key):
            continue
        if OmegaConf.is_dict(part[key]):
            assert_within(part[key], whole[key])
        else:
            value = whole[key]
            assert part[key] == (value.name if isinstance(value, Enum) else value), key


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_a_preset_starts_by_saying_what_it_is(preset):
    lines = (FOLDER / preset).read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if "@package" not in line)
    assert first.startswith("# ")


@pytest.mark.parametrize("preset", [path for path in PRESETS if path.parts[0] == "experiment"], ids=str)
def test_an_experiment_can_be_varied(configs, preset):
    varied = ["backbone=nano", "seed=3", "++trainer.max_epochs=5"]
    made = made_from(composed(configs, "train", f"experiment={preset.stem}", *varied), "train")
    assert (type(made.backbone), made.seed, made.trainer["max_epochs"]) == (schemas.Scratch, 3, 5)


def test_no_preset_bears_a_schemas_name():
    """Hydra would merge the two."""
    for group, kinds in schemas.GROUP_SCHEMAS.items():
        assert not {path.stem for path in PRESETS if path.parts[0] == group} & kinds.keys()


def test_schemas_are_not_offered(configs):
    for group in schemas.GROUP_SCHEMAS:
        offered = choices(configs, group)
        assert offered
        assert not [name for name in offered if name.endswith("_schema")]
