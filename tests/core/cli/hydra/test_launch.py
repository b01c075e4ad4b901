"""From a command line to the validated config of every job."""

import shlex
import sys

import pytest
from gptask import Fast, Reference
from gptask.config.schemas import Files, Full, Lora, Scratch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig


def test_a_verb_alone_composes_its_defaults(run_command):
    config = run_command("train").config
    assert type(config.task).__name__ == "Sentiment"
    assert config.optimizer.lr is None is config.tuning.lr  # resolved later, by the head


def test_open_dictionaries_take_keys_without_a_plus(run_command):
    config = run_command(
        "train", "trainer.devices=2", "data.columns.text=sentence", "task.label_words.good=fine"
    ).config
    assert config.trainer["devices"] == 2
    assert config.trainer["gradient_clip_val"] == 1.0  # beside the defaults
    assert config.data.columns == {"text": "sentence"}
    assert config.task.label_words == {"good": "fine"}


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ([], "Apache-2.0"),
        (["backbone.source=mine"], None),  # the preset's licence is not that of other weights
        (["backbone.source=mine", "backbone.license=MIT"], "MIT"),
    ],
)
def test_other_weights_do_not_take_over_the_licence_of_a_preset(line, licence, run_command):
    assert run_command("train", *line).config.backbone.license == licence


def test_values_with_quotes_brackets_and_newlines_arrive_unchanged(run_command):
    prompt = 'It\'s a "review", {text} = \\n\n=>'
    files = ["train=评论 (1).csv", "validation=a=b.csv", "test=[a b.csv,c(1).csv]"]
    config = run_command("train", "data=files", *(f"data.{file}" for file in files), f"task.prompt={prompt}").config
    assert (config.data.train, config.data.validation) == ("评论 (1).csv", "a=b.csv")
    assert config.data.test == ["a b.csv", "c(1).csv"]
    assert config.task.prompt == prompt


def test_dictionaries_can_be_set_as_one_or_key_by_key(run_command):
    config = run_command("train", "data=files", "data.train={source: a.de, target: b.en}", "data.labels.0=no").config
    assert config.data.train == {"source": "a.de", "target": "b.en"}
    assert config.data.labels == {"0": "no"}
    config = run_command("train", "data=files", "data.columns={text: 1, label: kind}", "trainer={max_epochs: 3}").config
    assert config.data.columns == {"text": 1, "label": "kind"}
    assert config.trainer["max_epochs"] == 3
    assert config.trainer["gradient_clip_val"] == 1.0, "other entries stay"


def test_interpolations_work_and_can_be_escaped(run_command):
    config = run_command("train", "outputs=out", "folder=${outputs}/${seed}", r"task.prompt=\${text}: {text}").config
    assert config.folder == "out/13"
    assert config.task.prompt == "${text}: {text}"


def test_a_superfluous_plus_is_accepted(run_command):
    config = run_command("train", "+seed=3", "+backbone=nano", "++trainer.max_steps=4").config
    assert config.seed == 3
    assert isinstance(config.backbone, Scratch)
    assert config.trainer["max_steps"] == 4


def test_a_recorded_command_runs_again_as_it_is(run_command):
    for line in (
        ["backbone=nano", "++trainer.max_epochs=2", "trainer.precision=32-true", 'task.prompt=It\'s {text}, "ok"?'],
        [
            "task=classification",
            "data=files",
            "data.train=a b.csv",
            "data.labels={0: no, 1: yes}",
            "data.columns.text=x",
        ],
        [
            "tasks=[qa,mood:sentiment]",
            "++trainer.max_steps=3",
            "tasks.qa.data.limit.train=4",
            "tasks.qa.task.prompt=a, b",
        ],
    ):
        once = run_command("train", *line)
        again = run_command(*shlex.split(once.commands[0])[1:])
        assert (again.config, again.commands) == (once.config, once.commands)


def test_flags_can_stand_anywhere(run_command):
    ended = run_command("train", "task=qa", "-m", "seed=1,2")
    assert [config.seed for config in ended.configs] == [1, 2]
    assert {type(config.task).__name__ for config in ended.configs} == {"QuestionAnswering"}


def test_nano_is_tuned_fully_unless_tuning_is_set(run_command):
    assert isinstance(run_command("train", "backbone=nano").config.tuning, Full)
    assert isinstance(run_command("train", "backbone=nano", "tuning=lora").config.tuning, Lora)
    assert run_command("train", "experiment=trec", "backbone=nano").config.tuning is None  # chosen when the run starts
    assert isinstance(run_command("train", "experiment=trec", "backbone=nano", "tuning.rank=2").config.tuning, Lora)
    assert isinstance(run_command("evaluate", "backbone=nano").config.backbone, Scratch)


def test_a_preset_with_another_kind_of_data_names_the_way_out(refused):
    message = refused("train", "experiment=trec", "data=sample")
    assert "unknown option 'data.root' (from experiment=trec)" in message
    assert "It belongs to data=files. Leave data=sample out, or the preset." in message


@pytest.fixture
def mine(tmp_path):
    """A folder with a preset of the user's own, ``experiment=big``."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults:\n  - override /task: qa\nseed: 99\ntrainer: {max_epochs: 7}\n"
    (tmp_path / "mine" / "experiment" / "big.yaml").write_text(preset)
    return tmp_path / "mine"


def test_config_dir_adds_the_users_presets(run_command, mine):
    config = run_command("train", "--config-dir", "mine", "experiment=big").config
    assert (config.seed, config.trainer["max_epochs"]) == (99, 7)
    assert type(config.task).__name__ == "QuestionAnswering"
    assert run_command("train", "--config-dir", "mine", "experiment=big", "seed=1").config.seed == 1
    ended = run_command("train", "-m", "--config-dir", "mine", "experiment=big", "seed=1,2")
    assert [(config.seed, config.trainer["max_epochs"]) for config in ended.configs] == [(1, 7), (2, 7)]
    tasks = run_command("train", "--config-dir", "mine", "tasks=[big,trec]").config.tasks
    assert type(tasks["big"].task).__name__ == "QuestionAnswering"


def test_the_users_presets_are_known_to_help_display_and_messages(run_command, refused, mine):
    for flags in (["--help"], ["--cfg", "job"]):
        ended = run_command("train", "--config-dir", "mine", "experiment=big", *flags)
        assert (ended.code, ended.err) == (0, "")
        assert "seed: 99" in ended.out
    assert "Did you mean 'big'?" in refused("train", "--config-dir", "mine", "experiment=bigg")
    assert "trainer" in refused("train", "--config-dir", "mine", "experiment=big", "trainr=3")


def test_config_dir_goes_with_a_search_path_of_hydra(run_command, mine, tmp_path):
    (tmp_path / "more, of mine" / "data").mkdir(parents=True)
    (tmp_path / "more, of mine" / "data" / "reviews.yaml").write_text("defaults: [files_schema]\ntrain: reviews.csv\n")
    typed = f"hydra.searchpath=['file://{tmp_path}/more, of mine']"
    config = run_command("train", "--config-dir", "mine", typed, "data=reviews", "experiment=big").config
    assert (config.seed, config.data.train) == (99, "reviews.csv")


def test_a_config_of_the_user_that_gptasks_would_hide_is_refused(refused, mine):
    (mine / "data").mkdir()
    (mine / "data" / "sst2.yaml").write_text("defaults: [files_schema]\n")
    assert "--config-dir mine: gptask has a data/sst2.yaml too" in refused("train", "--config-dir", "mine", "data=sst2")


def test_further_processes_and_the_record_of_a_run_know_the_users_folder(run_command, mine):
    for flag, seeds in ((), ["7"]), (("-m",), ["7", "8"]):
        started: list = []
        line = ["train", *flag, "--config-dir=mine", "experiment=big", f"seed={','.join(seeds)}"]
        ended = run_command(*line, action=lambda _: started.append(sys.argv[1:]))  # noqa: B023
        search = f"hydra.searchpath=[file://{mine}]"
        assert started == [["train", search, "experiment=big", f"seed={seed}"] for seed in seeds]
        assert ended.commands == [shlex.join(["gptask", *words]) for words in started]


def test_hydra_has_no_part_in_a_single_job(run_command, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # --cfg leaves it behind in this process

    def action(config):
        assert not HydraConfig.initialized()
        assert not GlobalHydra.instance().is_initialized()
        ran.append(config)

    ran: list = []
    assert run_command("train", action=action).code == 0
    assert len(ran) == 1


@pytest.mark.parametrize(
    "option",
    [
        "hydra.run.dir=x",
        "hydra.verbose=true",
        "++hydra.job.chdir=true",
        "hydra/job_logging=disabled",
        "hydra.mode=MULTIRUN",
    ],
)
def test_options_of_hydra_without_effect_on_a_single_run_are_refused(refused, run_command, option):
    assert f"{option} has no effect on a single run" in refused("train", option)
    assert run_command("train", option, "--cfg", "job").code == 0


def test_options_of_hydra_act_on_a_multirun(run_command, tmp_path):
    ended = run_command("train", "-m", "hydra.sweep.dir=sweep", "seed=1,2")
    assert len(ended.configs) == 2
    assert (tmp_path / "sweep").is_dir()


def test_cfg_prints_the_config_and_runs_nothing(run_command):
    ended = run_command("train", "task=qa", "seed=5", "--cfg", "job")
    assert (ended.code, ended.configs, ended.err) == (0, [], "")
    assert "seed: 5" in ended.out
    assert "hydra" not in ended.out


def test_a_run_leaves_no_file_and_no_setting_of_hydra(run_command, tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    run_command("train")
    assert not list(tmp_path.iterdir())
    import os

    assert "HYDRA_FULL_ERROR" not in os.environ
    assert sys.argv == ["pytest"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--foo"], "unrecognized arguments: --foo"),
        (["train", "--cfg", "foo"], "invalid choice: 'foo'"),
        (["train", "--cfg", "job", "-m"], "exclude each other"),
        (["train", "--resolve"], "goes with --cfg job"),
        (["train", "-sc"], "before any verb"),
        (["train", "--experimental-rerun", "x.pickle"], "gptask has no --experimental-rerun"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
        (["predict", "-m", "run=x", "input=a,b"], "call gptask predict once"),
    ],
)
def test_flags_that_dont_apply_are_refused(refused, arguments, expected):
    assert expected in refused(*arguments)


def test_file_and_folder_names_of_digits_need_no_quotes(run_command):
    assert isinstance(run_command("train", "data=files", "data.train=2024_01").config.data, Files)
    assert run_command("train", "folder=2024_01").config.folder == "2024_01"


def test_further_processes_are_started_with_the_overrides_of_their_job(run_command):
    commands = []
    run_command(
        "train",
        "-m",
        "task=qa",
        "seed=1,2",
        "task.prompt=${outputs} {context}",
        action=lambda _: commands.append(sys.argv[1:]),
    )
    assert commands == [["train", "task=qa", f"seed={n}", "task.prompt='${outputs} {context}'"] for n in (1, 2)]


@pytest.fixture
def environment(monkeypatch):
    """``environment("reference")`` sets GPTASK_ENGINE."""
    monkeypatch.delenv("GPTASK_ENGINE", raising=False)
    return lambda text: monkeypatch.setenv("GPTASK_ENGINE", text)


@pytest.mark.parametrize("line", [["train"], ["export", "run=x", "output=y"]], ids=lambda line: line[0])
def test_every_verb_has_an_engine(run_command, environment, line):
    assert run_command(*line).config.engine == Fast()
    assert run_command(*line, "engine=reference").config.engine == Reference()
    assert run_command(*line, "engine.attention=off", "engine.loss=no").config.engine == Fast(
        attention=False, loss=False
    )
    environment("reference")
    assert run_command(*line).config.engine == Reference()
    environment("fast,packing=off,norm=off")
    assert run_command(*line, "engine.norm=on").config.engine == Fast(packing=False)
    assert run_command(*line, "engine=fast").config.engine == Fast()


def test_the_environment_goes_over_a_preset(run_command, environment, mine):
    (mine / "experiment" / "careful.yaml").write_text("# @package _global_\nengine: {packing: off, norm: off}\n")
    line = ["train", "--config-dir", "mine", "experiment=careful"]
    assert run_command(*line).config.engine == Fast(packing=False, norm=False)
    environment("fast,loss=off")
    assert run_command(*line, "engine.rotary=off").config.engine == Fast(loss=False, rotary=False)


@pytest.mark.parametrize(
    ("variable", "option", "message"),
    [
        ("", "engine=fsat", "unknown engine 'fsat'; available: fast, openvino, reference. Did you mean 'fast'?"),
        ("", "engine.pakcing=off", "unknown option 'engine.pakcing'"),
        ("", "engine.packing=maybe", "engine.packing=maybe: expected true or false, got 'maybe'"),
        ("fsat", "seed=3", "GPTASK_ENGINE=fsat: unknown engine"),
        ("reference", "engine.packing=off", "engine.packing=off: the reference engine (from GPTASK_ENGINE) has no"),
    ],
)
def test_a_wrong_engine_is_refused(refused, environment, variable, option, message):
    environment(variable)
    assert message in refused("train", option)


def test_the_environments_engine_is_not_recorded_as_typed(run_command, environment):
    environment("fast,norm=off")
    for line in (["seed=3"], ["-m", "seed=3,4"]):
        ended = run_command("train", *line)
        assert (ended.configs[0].engine, ended.commands[0]) == (Fast(norm=False), "gptask train seed=3")


def test_an_engine_can_be_one_of_a_multiruns_values(run_command, environment):
    environment("fast,norm=off")
    engines = [config.engine for config in run_command("train", "-m", "engine=fast,reference").configs]
    assert engines == [Fast(), Reference()]
    engines = [config.engine for config in run_command("train", "-m", "engine.packing=on,off").configs]
    assert engines == [Fast(norm=False), Fast(norm=False, packing=False)]
