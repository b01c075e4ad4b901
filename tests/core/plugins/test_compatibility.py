"""What a plugin was made for, what is deprecated, and that what was promised to plugins is still there."""

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

# What contract 1.0 promises. Lines are only ever added, with a new minor version; to change one or take it away needs a
# new major version, after a deprecation.
STABLE = """
Task.fields(self)
Task.render(self, example)
Task.head(self, backbone)
Task.prediction(self, example, outputs)
Task.metrics(self)
Task.sample(self)
Task.validate(self)
Task.prepare(self, train)
Task.check(self, example)
Task.encode(self, example, tokenizer, max_tokens)
Task.demonstrate(self, example)
Task.reserved_tokens(self)
Task.truncate_prompt(self, example, tokenizer, room)
Task.datamodule(self, corpus, tokenizer, options, seed)
Task.details(self, predictions, examples)
Task.tune_on_validation(self, predictions, examples)
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
Head.loss(self, hidden, batch)
Head.predict(self, backbone, batch, hidden)
Head.export(self)
GenerationHead(backbone, options)
testing.check_task(task)
"""
ABSTRACT = {
    gptask.Task: {"fields", "render", "head", "prediction", "metrics", "sample"},
    gptask.Metric: {"statistics", "aggregate"},
    gptask.Head: {"loss", "predict"},
}


@pytest.mark.parametrize("line", STABLE.split("\n")[1:-1])
def test_what_was_promised_is_there(line: str) -> None:
    name, _, names = line.rstrip(")").partition("(")
    found = gptask
    for part in name.split("."):
        found = getattr(found, part)
    now = list(inspect.signature(found).parameters.values())
    promised = names.split(", ")
    assert [parameter.name for parameter in now[: len(promised)]] == promised
    assert all(parameter.default is not parameter.empty for parameter in now[len(promised) :])


@pytest.mark.parametrize("cls", ABSTRACT, ids=lambda cls: cls.__name__)
def test_what_a_plugin_must_bring_does_not_grow(cls: type) -> None:
    assert set(cls.__abstractmethods__) <= ABSTRACT[cls]  # type: ignore[attr-defined]


def test_kinds_only_grow() -> None:
    assert {"TEXT", "TEXTS", "LABEL", "LABELS", "INTEGERS", "NUMBER"} <= gptask.Kind.__members__.keys()


def test_a_version_is_that_of_the_tasks_own_package() -> None:
    @dataclass
    class Theirs(Classification):
        """Says nothing of its own."""

    class Further(Theirs):
        contract_version = "0.7"

    class Child(Further):
        """Of the same package."""

    assert contract_version_of(Sentiment) == contract_version_of(Classification) == "1.0"
    assert contract_version_of(Theirs) is None
    assert contract_version_of(Further) == contract_version_of(Child) == "0.7"


def test_a_deprecation_has_a_date_a_place_and_a_way_out() -> None:
    @dataclass
    class Old(Classification):
        """Made when versions were whole numbers."""

        contract_version = 1  # type: ignore[assignment]

    with pytest.warns(ContractDeprecation) as caught:
        assert contract_version_of(Old) == "1.0"
    assert str(caught[0].message) == (
        "a contract_version that is a whole number is deprecated since contract 1.0 and may be gone after 2027-06-30: "
        'write contract_version = "1.0"'
    )
    assert caught[0].filename.endswith("test_compatibility.py")


def test_a_renamed_hook_goes_on_working_and_its_author_is_told() -> None:
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


def test_a_deprecation_is_shown_once_and_not_to_users(tmp_path) -> None:
    import subprocess

    (tmp_path / "plugin.py").write_text("class Plugin: ...\n")
    code = (
        "import datetime, plugin\nfrom gptask.plugins.deprecation import deprecated\n"
        "for _ in range(3):\n"
        "    deprecated(plugin.Plugin, 'x', since='1.1', until=datetime.date(2027, 1, 1), instead='use y')\n"
    )

    def errors(*flags: str) -> list[str]:
        command = [sys.executable, *flags, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
        return [line for line in done.stderr.splitlines() if "ContractDeprecation" in line]

    assert errors() == []
    assert len(told := errors("-W", "default")) == 1
    assert (
        "plugin.py:1: ContractDeprecation: x is deprecated since contract 1.1 and may be gone after 2027-01-01"
        in told[0]
    )
