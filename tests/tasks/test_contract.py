"""Every built-in task, in every form it can take, keeps the contract that a third party's must keep."""

import ast
import re
from pathlib import Path

import gptask
import gptask.testing
import pytest
from gptask import Task
from gptask.testing import check_task
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.question_generation import AnswerPlacement, QuestionGeneration
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import Context, TokenTagging
from gptask_tasks.translation import Translation

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "core/gptask/cli/scaffold/templates"
PLUGIN_FILES = [
    *sorted((ROOT / "tasks").rglob("*.py")),
    *sorted((ROOT / "tests/plugin").rglob("*.py")),
    *sorted(TEMPLATES.rglob("*.py.j2")),
]
STABLE_NAMES = {"gptask": gptask.__all__, "gptask.testing": gptask.testing.__all__}
SCORING = [
    Classification(),
    Classification(multi_label=True),
    Classification(language="zh"),
    Classification(readings=2),
    Sentiment(),
    Sentiment(graded=True),
    QuestionAnswering(answer=AnswerForm.span),
    QuestionAnswering(answer=AnswerForm.span, unanswerable=True),
    TokenTagging(),
    TokenTagging(context=Context.none),
    TokenTagging(context=Context.repeat),
    TokenTagging(plain=True),
    LanguageModeling(),
    LanguageModeling(overlap=8),
]
GENERATING = [
    QuestionAnswering(),
    Summarization(),
    Summarization(language="zh"),
    Translation(),
    Translation(target_lang="zh", language="zh"),
    QuestionGeneration(),
    QuestionGeneration(answer=AnswerPlacement.marked, language="zh"),
    TextGeneration(),
    TextGeneration(raw=True),
]


def changed_options(task: Task) -> str:
    options = [f"{k}={v}" for k, v in vars(task).items() if v != vars(type(task)())[k]]
    return "-".join([type(task).__name__, *options])


@pytest.mark.parametrize("task", [*SCORING, *GENERATING], ids=changed_options)
def test_a_built_in_task_keeps_the_contract(task: Task) -> None:
    assert ("learns_to_stop" in check_task(task)) == (task in GENERATING)


def unstable_imports(source: str) -> list[str]:
    """What a module imports of gptask, inside functions and under TYPE_CHECKING too, beyond the stable names."""
    unstable = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] == "gptask"]
            unstable += [module for module in modules if module not in STABLE_NAMES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gptask":
            names = STABLE_NAMES.get(str(node.module), ())
            unstable += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in names]
    return unstable


def test_plugins_import_stable_names_only() -> None:
    assert len(PLUGIN_FILES) > 30
    for path in PLUGIN_FILES:
        source = re.sub(r"\{\{ \w+ \}\}", "NAME", path.read_text(encoding="utf-8"))
        assert unstable_imports(source) == [], path


def test_an_unstable_import_is_recognized() -> None:
    source = "import gptask.testing, gptask.errors, gptask_tasks\ndef f():\n    from gptask import Task, plugins"
    assert unstable_imports(source) == ["gptask.errors", "gptask.plugins"]
