"""Contract versions of plugins, deprecation, and a list of the names that the contract promises to plugins."""

import inspect
import sys
import warnings
from dataclasses import dataclass
from datetime import date

import gptask
import gptask.testing
import pytest
from gptask import Task
from gptask.plugins.compatibility import contract_version_of
from gptask.plugins.deprecation import ContractDeprecation, deprecated
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment

# What contract 1.0 promises. A new minor version may add lines; changing or removing one needs a deprecation and then a
# new major version.
STABLE = """
Task.fields(self)
Task.render(self, example)
Task.head(self, backbone)
Task.prediction(self, example, outputs)
Task.metrics(self)
Task.sample(self)
Task.validate(self)
Task.prepare(self, train)
Task.convert_row(self, row)
Task.check(self, example)
Task.clean(self, examples, train, counts)
Task.encode(self, example, tokenizer, max_tokens)
Task.demonstrate(self, example)
Task.reserved_tokens(self)
Task.truncate_prompt(self, example, tokenizer, room)
Task.datamodule(self, corpus, tokenizer, options, seed)
Task.annotate_predictions(self, predictions, examples)
Task.details(self, predictions, examples)
Task.score_labels(self)
Task.tune_on_validation(self, predictions, examples)
Task.save_assets(self, folder)
Task.load_assets(self, folder)
Task.inputs(self)
Task.targets(self)
Field(name, kind, required, target, blank, truncate, group, help)
Encoded(ids, target, label, extra, truncated)
Prediction(value, score, probabilities)
option(default, help)
Metric.statistics(self, prediction, reference)
Metric.aggregate(self, rows)
Metric.resampled(self, rows, counts)
MeanMetric(name, signature, scale)
Head(backbone)
Head.loss(self, hidden, batch)
Head.predict(self, hidden, batch)
Head.scores(self, hidden, batch)
Head.scored_words(self, batch)
Head.needed_positions(self, batch)
Head.export(self)
GenerationHead(backbone, options)
PromptedTask.format_prompt(self, example)
Backbone.hidden(self, input_ids, lengths, needed)
Backbone.logits(self, hidden)
Backbone.token_nll(self, states, next_ids)
Backbone.word_vectors(self, words)
Batch.last(self)
Batch.predicting(self)
Batch.prompts(self)
testing.check_task(task)
"""
ABSTRACT = {
    gptask.Task: {"fields", "render", "head", "prediction", "metrics", "sample"},
    gptask.Metric: {"statistics", "aggregate"},
    gptask.Head: {"loss", "predict"},
}


@pytest.mark.parametrize("line", STABLE.split("\n")[1:-1])
def test_every_promised_name_and_parameter_exists(line: str) -> None:
    name, _, names = line.rstrip(")").partition("(")
    target = gptask
    for part in name.split("."):
        target = getattr(target, part)
    parameters = list(inspect.signature(target).parameters.values())
    promised = names.split(", ")
    assert [parameter.name for parameter in parameters[: len(promised)]] == promised
    assert all(parameter.default is not parameter.empty for parameter in parameters[len(promised) :])


@pytest.mark.parametrize("cls", ABSTRACT, ids=lambda cls: cls.__name__)
def test_no_abstract_method_is_added(cls: type) -> None:
    assert set(cls.__abstractmethods__) <= ABSTRACT[cls]  # type: ignore[attr-defined]


def test_every_promised_kind_exists() -> None:
    assert {"TEXT", "TEXTS", "LABEL", "LABELS", "INTEGERS", "NUMBER"} <= gptask.Kind.__members__.keys()


def test_the_contract_version_is_the_one_stated_in_the_tasks_own_package() -> None:
    @dataclass
    class OtherPackage(Classification):
        """States no version of its own."""

    class Stated(OtherPackage):
        contract_version = "0.7"

    class Inherited(Stated):
        """Inherits from a class of the same package."""

    assert contract_version_of(Sentiment) == contract_version_of(Classification) == "1.0"
    assert contract_version_of(OtherPackage) is None
    assert contract_version_of(Stated) == contract_version_of(Inherited) == "0.7"


def test_a_deprecation_warning_has_a_date_a_location_and_a_replacement() -> None:
    @dataclass
    class Old(Classification):
        """Made when versions were integers."""

        contract_version = 1  # type: ignore[assignment]

    with pytest.warns(ContractDeprecation) as caught:
        assert contract_version_of(Old) == "1.0"
    assert str(caught[0].message) == (
        "a contract_version that is a whole number is deprecated since contract 1.0 and may be gone after 2027-06-30: "
        'write contract_version = "1.0"'
    )
    assert caught[0].filename.endswith("test_compatibility.py")


def test_a_renamed_hook_keeps_working_and_warns_its_author() -> None:
    class New(Task):
        def old(self) -> str:
            return "default"

        def successor(self) -> str:
            if type(self).old is not New.old:
                deprecated(type(self), "Task.old", since="1.3", until=date(2027, 12, 31), instead="Task.successor")
            return self.old()

    class Plugin(Sentiment, New):
        def old(self) -> str:
            return "mine"

    class Current(Sentiment, New):
        def successor(self) -> str:
            return "new"

    with pytest.warns(ContractDeprecation, match="Task.old is deprecated since contract 1.3") as caught:
        assert Plugin().successor() == "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Current().successor() == "new"
    assert len(caught) == 1


def test_a_deprecation_warning_is_shown_once_and_hidden_by_default(tmp_path) -> None:
    import subprocess

    (tmp_path / "plugin.py").write_text("class Plugin: ...\n")
    code = (
        "import datetime, plugin\nfrom gptask.plugins.deprecation import deprecated\n"
        "for _ in range(3):\n"
        "    deprecated(plugin.Plugin, 'x', since='1.1', until=datetime.date(2027, 1, 1), instead='use y')\n"
    )

    def warning_lines(*flags: str) -> list[str]:
        command = [sys.executable, *flags, "-c", code]
        process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
        return [line for line in process.stderr.splitlines() if "ContractDeprecation" in line]

    assert warning_lines() == []
    assert len(lines := warning_lines("-W", "default")) == 1
    assert (
        "plugin.py:1: ContractDeprecation: x is deprecated since contract 1.1 and may be gone after 2027-01-01"
        in lines[0]
    )
