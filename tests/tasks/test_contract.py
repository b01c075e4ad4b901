"""Every built-in task, in every form it can take, keeps the contract that a third party's must keep."""

import pytest
from gptask import Task
from gptask.testing import check_task
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.question_generation import Place, QuestionGeneration
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import Context, TokenTagging
from gptask_tasks.translation import Translation

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
    QuestionGeneration(answer=Place.marked, language="zh"),
    TextGeneration(),
    TextGeneration(raw=True),
]


def named(task: Task) -> str:
    changed = [f"{k}={v}" for k, v in vars(task).items() if v != vars(type(task)())[k]]
    return "-".join([type(task).__name__, *changed])


@pytest.mark.parametrize("task", [*SCORING, *GENERATING], ids=named)
def test_a_built_in_task_keeps_the_contract(task: Task) -> None:
    assert ("learns_to_stop" in check_task(task)) == (task in GENERATING)
