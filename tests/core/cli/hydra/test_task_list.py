"""``tasks=[...]``: several tasks on a command line, each composed and validated under its own name."""

import shlex

import pytest
from gptask import Config, TaskConfig
from gptask.config.schemas import Files, Full, Limit, Sample, Sampling, Scratch
from gptask.runs.config_file import read_config, write_config
from gptask.runs.reproduce import reproduce_command
from gptask_tasks.classification import Classification
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment


def test_a_list_takes_tasks_presets_and_chosen_names(run_command):
    config = run_command("train", "tasks=[qa,trec,mood:sentiment,films:sst2]").config
    assert config.task is config.data is None
    assert [type(task_config.task) for task_config in config.tasks.values()] == [
        QuestionAnswering, Classification, Sentiment, Sentiment,
    ]  # fmt: skip
    assert config.tasks["trec"].task.readings == 2
    assert config.tasks["trec"].data.train == "classification/trec/TREC.train"
    assert config.tasks["films"].data.columns == {"text": 0, "label": 1}
    assert isinstance(config.tasks["mood"].data, Sample)
    assert config.mixing.sampling is Sampling.temperature


def test_options_are_set_for_one_task_or_for_all(run_command):
    config = run_command(
        "train", "tasks=[qa,mood:sentiment]", "tasks.qa.task.answer=span", "tasks.mood.weight=0.5",
        "tasks.mood.data.limit.train=3", "data.limit.train=9", "task.language=zh", "mixing.sampling=uniform",
    ).config  # fmt: skip
    qa, mood = config.tasks["qa"], config.tasks["mood"]
    assert (qa.task.answer, qa.task.language, mood.task.language) == (AnswerForm.span, "zh", "zh")
    assert (qa.data.limit.train, mood.data.limit.train) == (9, 3)  # the option of one task takes precedence
    assert (qa.weight, mood.weight) == (1.0, 0.5)
    assert config.mixing.sampling is Sampling.uniform


def test_the_kind_of_data_is_set_for_one_task_or_for_all(run_command):
    line = ["tasks=[a,b:sst2]", "tasks.a.task=sentiment", "data=files", "data.train=t.csv",
            "tasks.b.data=sample", "tasks.a.data.columns.text=0"]  # fmt: skip
    with_sample = [part for part in line if not part.startswith("data.train")]
    config = run_command("train", *with_sample, "tasks.a.data.train=t.csv").config
    assert config.tasks["a"].data == Files(train="t.csv", columns={"text": 0})
    assert config.tasks["b"].data == Sample()  # no option of the preset's data is left
    assert config.tasks["b"].task.labels == ["negative", "positive"]


def test_a_preset_keeps_its_data_while_its_kind_is_unchanged(run_command):
    config = run_command("train", "tasks=[sst2,trec]", "data=files", "data.root=elsewhere").config
    assert config.tasks["sst2"].data.train == "sentiment/sst2/train.tsv"
    assert {task_config.data.root for task_config in config.tasks.values()} == {"elsewhere"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tasks=[sentimnt]"], "Did you mean 'sentiment'?"),
        (["tasks=[banking]"], "Did you mean 'banking77'?"),
        (["tasks=[qa]", "tasks.qa.task.anwser=span"], "Did you mean 'answer'?"),
        (["tasks=[qa]", "task.anwser=span"], "unknown option 'tasks.qa.task.anwser'"),
        (["tasks=[qa]", "tasks.qa.wieght=1"], "Did you mean 'weight'?"),
        (["tasks=[qa]", "tasks.qa.data.limit.tarin=1"], "Did you mean 'train'?"),
        (["tasks=[qa]", "data.train=x"], "It belongs to tasks.qa.data=files"),
        (["tasks=[qa]", "tasks.qa.weight=heavy"], "expected a number, got 'heavy'"),
        (["tasks=[quiz:qa]", "tasks.quizz.weight=1"], "Did you mean 'quiz'?"),
        (["tasks=[quiz:qa]", "tasks.quiz.data=file"], "Did you mean 'files'?"),
        (["tasks=[quiz:qa]", "tasks.quiz.task=translate"], "unknown task 'translate'"),
        (["tasks=[qa]", "mixing.sampling=even"], "mixing.sampling=even"),
        (["tasks=[qa]", "mixing.temprature=1"], "Did you mean 'temperature'?"),
        (["tasks=[qa]", "task=sentiment"], "task= is for a run of one task"),
        (["tasks=[qa]", "experiment=sst2"], "experiment= is for a run of one task"),
        (
            ["tasks=[qa,classification]", "task.generation.max_new_tokens=5"],
            "Set it for the tasks that have it: tasks.qa.task.generation.max_new_tokens=5.",
        ),
        (
            ["tasks=[a:qa,b:sentiment,c:translation]", "tasks.b.task.generation.stop=[x]"],
            "tasks.a.task.generation.stop=[x], tasks.c.task.generation.stop=[x].",
        ),
        (["tasks=[qa,sentiment]", "task.nowhere=1"], "unknown option 'tasks.qa.task.nowhere'"),
        (["tasks=[qa,qa]"], "names 'qa' twice"),
        (["tasks=[model:qa]"], "is the name of a folder that every run has"),
        (["tasks=qa"], "expected a list"),
        (["tasks=[]"], "expected a list"),
        (["-m", "tasks=[qa],[sentiment]"], "one list, not several values"),
        (["-m", "tasks=[qa]", "tasks.qa.data=sample,files"], "call gptask once for each"),
    ],
)
def test_an_invalid_list_is_refused_before_anything_is_loaded(arguments, expected, refused):
    assert expected in refused("train", *arguments)


def test_a_multirun_varies_other_options(run_command):
    configs = run_command("train", "-m", "tasks=[qa,mood:sentiment]", "seed=1,2").configs
    assert [(config.seed, list(config.tasks)) for config in configs] == [(1, ["qa", "mood"]), (2, ["qa", "mood"])]


def test_help_shows_the_options_of_each_task(run_command):
    out = run_command("train", "tasks=[qa,mood:sentiment]", "--help").out
    assert "graded: false" in out
    assert "answer: generate" in out


@pytest.fixture
def saved(tmp_path):
    """The folder of a training of two tasks, without its weights."""
    folder = tmp_path / "outputs" / "quiz+mood" / "first run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    config = Config(
        tasks={
            "quiz": TaskConfig(QuestionAnswering(answer=AnswerForm.span), Sample(limit=Limit(test=5)), weight=2.0),
            "mood": TaskConfig(Sentiment(graded=True), Files(train="t.csv", columns={"text": "a b"})),
        },
        backbone=Scratch(n_layer=1, n_embd=16, n_head=2),
        tuning=Full(lr=0.5),
        seed=7,
    )
    config.mixing.best = "quiz"
    write_config(folder, config)
    (folder / "mood").mkdir()
    alone = Config(task=config.tasks["mood"].task, data=config.tasks["mood"].data, backbone=config.backbone, seed=7)
    write_config(folder / "mood", alone, task_name="mood")
    return folder, config


def test_resume_takes_every_task_of_the_run(run_command, saved):
    folder, config = saved
    resumed = run_command("train", f"resume={folder}", "tasks.mood.data.columns.label=c", "trainer.max_epochs=9").config
    config.tasks["mood"].data.columns["label"] = "c"
    assert resumed.tasks == config.tasks
    assert (resumed.mixing, resumed.seed, resumed.tuning) == (config.mixing, 7, Full(0.5))
    assert (resumed.task, resumed.data) == (None, None)


def test_a_saved_list_is_validated_by_its_schemas(refused, saved):
    folder, _ = saved
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("weight: 2.0", "weight: heavy"))
    assert "expected a number, got 'heavy'" in refused("train", f"resume={folder}")
    (folder / "config.yaml").write_text(text.replace("graded: true", "grated: true"))
    assert "grated" in refused("train", f"resume={folder}")


def test_evaluate_and_predict_choose_a_task_by_name(run_command, saved):
    folder, _ = saved
    config = run_command("evaluate", f"run={folder}", "task=mood", "data.limit.test=3").config
    assert config.run == str(folder / "mood")
    assert (config.task, config.data.limit.test, config.seed) == (Sentiment(graded=True), 3, 7)
    assert run_command("predict", f"run={folder}", "task=mood", "input=x.csv").config.run == str(folder / "mood")
    assert run_command("predict", f"run={folder}/mood", "input=x.csv").config.task == Sentiment(graded=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "run={}"], "a run of several tasks: choose one by task=, of quiz, mood."),
        (["evaluate", "run={}", "task=moot"], "no task 'moot' in"),
        (["predict", "run={}", "task=moot", "input=x"], "Did you mean 'mood'?"),
        (["train", "resume={}/mood"], "which can be resumed"),
        (["train", "resume={}", "task=qa"], "a run of several tasks; leave task= out"),
        (["train", "resume={}", "tasks=[qa]"], "continues the run with its own tasks"),
        (["train", "resume={}", "tasks.moot.weight=2"], "Did you mean 'mood'?"),
    ],
)
def test_a_missing_task_is_refused(arguments, expected, refused, saved):
    assert expected in refused(*(argument.format(saved[0]) for argument in arguments))


def test_the_typed_command_is_recorded_and_a_config_from_python_has_an_equal_one(run_command, saved):
    _, config = saved
    values = read_config(saved[0])
    words = shlex.split(reproduce_command(values))
    assert words[:3] == ["gptask", "train", "tasks=[quiz:qa,mood:sentiment]"]
    again = run_command(*words[1:]).config
    assert again.tasks == config.tasks
    assert again.mixing == config.mixing

    typed = ["tasks=[qa,mood:sentiment]", "tasks.mood.weight=0.5", "seed=3"]
    assert run_command("train", *typed).commands == [shlex.join(["gptask", "train", *typed])]
