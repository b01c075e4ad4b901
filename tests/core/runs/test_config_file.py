"""config.yaml: written with its plugin, read again, refused in another format."""

from importlib.metadata import version

import pytest
from gptask import Config, UserError, load_run
from gptask.config.schemas import Lora
from gptask.runs.config_file import read_config, write_config
from gptask.runs.manifest import RUN_FORMAT
from gptask_tasks.sentiment import Sentiment
from omegaconf import OmegaConf

from tests.support.run_folders import seal


def test_the_config_names_the_plugin_and_its_distribution(lora_run):
    plugin = read_config(lora_run.folder)["plugin"]
    assert plugin["name"] == "sentiment"
    assert plugin["distribution"] == "gptask"
    assert Config(task=Sentiment()).tuning == Lora()


@pytest.mark.parametrize(
    ("format", "expected"), [(0, "run format 0"), (None, "run format None"), (99, "run format 99")]
)
def test_another_format_is_refused(format, expected, run_copy):
    values = OmegaConf.load(run_copy / "config.yaml")
    values.format = format
    OmegaConf.save(values, run_copy / "config.yaml")
    seal(run_copy)
    with pytest.raises(UserError, match=rf"{expected}.*reads format {RUN_FORMAT}"):
        load_run(run_copy)


def test_a_run_of_format_1_is_refused_with_the_two_ways_out(tmp_path):
    write_config(tmp_path, Config(task=Sentiment()))
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace(f"format: {RUN_FORMAT}", "format: 1"))
    with pytest.raises(UserError) as refused:
        read_config(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} has run format 1; gptask {version('gptask')} reads format {RUN_FORMAT}: train again with this "
        "version, or read it with the commit named in its metrics.json"
    )


def test_a_folder_without_config_is_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="no run folder at"):
        load_run(tmp_path / "nothing")


def test_a_missing_run_folder_names_the_nearest_one(tmp_path):
    folder = tmp_path / "outputs" / "sentiment"
    folder.mkdir(parents=True)
    write_config(folder, Config(task=Sentiment()))
    with pytest.raises(UserError, match=f"Did you mean '{folder}'.*The latest run folders: {folder}"):
        read_config(tmp_path / "outputs" / "sentimant")
