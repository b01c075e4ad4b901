"""What the heads of built-in tasks have in common: they own their weights alone, and score what they predict."""

import copy
from typing import Any

import pytest
import torch
from gptask import Task
from gptask.data.datamodule import collate, encode
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.token_tagging import Context, TokenTagging
from similarity import Similarity

LABELS = ["good", "bad", "great"]
TEXTS = ["a film", "the weather in Paris is bad"]
TASKS = {
    "classification": Classification(labels=LABELS),
    "multi_label": Classification(labels=LABELS, multi_label=True),
    "tagging": TokenTagging(types=["LOC"], plain=False, context=Context.none),
    "tagging, bidirectional": TokenTagging(types=["LOC"], plain=False),
    "span": QuestionAnswering(answer=AnswerForm.span, stride=8),
    "language model": LanguageModeling(),
    "answers": TextGeneration(),
    "generated": QuestionAnswering(),
    "plugin": Similarity(),
}


def batch_of(task: Task, backbone: Any, examples: list[dict[str, Any]]) -> Any:
    return collate([item for example in examples for item in encode(task, example, backbone.tokenizer, 128)])


@pytest.mark.parametrize("name", TASKS)
def test_a_head_has_no_weight_of_the_backbone_and_a_copy_shares_it(name: str, backbone: Any) -> None:
    head: Any = TASKS[name].head(backbone)
    owned = [*head.parameters(), *head.state_dict(keep_vars=True).values()]
    assert not {*map(id, owned)} & {id(weight) for weight in (*backbone.parameters(), *backbone.buffers())}
    assert not {*head.modules()} & {*backbone.modules()}
    assert bool(owned) == (name not in ("language model", "answers", "generated"))
    clone = copy.deepcopy(head)
    assert clone.backbone is head.backbone is backbone
    assert not {*map(id, clone.parameters())} & {*map(id, head.parameters())}


@pytest.mark.parametrize("name", ["classification", "multi_label"])
def test_scores_of_classes_are_the_logarithms_of_the_predicted_probabilities(name: str, backbone: Any) -> None:
    head: Any = TASKS[name].head(backbone)
    batch = batch_of(TASKS[name], backbone, [{"text": text} for text in TEXTS])
    hidden_BTC = backbone.hidden(batch.input_ids).detach().requires_grad_()
    logits_BK, scores_BK = head.logits(hidden_BTC, batch), head.scores(hidden_BTC, batch)
    expected_BK = logits_BK.sigmoid() if name == "multi_label" else logits_BK.softmax(-1)
    torch.testing.assert_close(scores_BK.exp(), expected_BK)
    torch.testing.assert_close(torch.tensor(head.predict(hidden_BTC, batch)), expected_BK)
    (gradient_BTC,) = torch.autograd.grad(scores_BK[:, 0].sum(), hidden_BTC)
    assert gradient_BTC.abs().sum(-1).nonzero().tolist() == [[row, last] for row, last in enumerate(batch.last())]


@pytest.mark.parametrize("context", list(Context))
def test_scores_of_tags_are_the_predicted_log_probabilities(context: Context, backbone: Any) -> None:
    task = TokenTagging(types=["LOC"], plain=False, context=context)
    head: Any = task.head(backbone)
    batch = batch_of(task, backbone, [{"tokens": text.split()} for text in TEXTS])
    hidden_BTC = backbone.hidden(batch.input_ids).detach().requires_grad_()
    scores_BWK = head.scores(hidden_BTC, batch)
    torch.testing.assert_close(scores_BWK.exp().sum(-1), torch.ones(scores_BWK.shape[:2]))
    for row, (scores, words) in enumerate(zip(head.predict(hidden_BTC, batch), map(str.split, TEXTS), strict=True)):
        assert len(scores) == len(words)
        first = batch.extra["first"][row]
        assert scores == scores_BWK[row, first : first + len(words)].tolist()
    (gradient_BTC,) = torch.autograd.grad(scores_BWK[1, -1, 0], hidden_BTC)
    assert gradient_BTC[1].any()
    assert not gradient_BTC[0].any()


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.score_labels() or name == "span"])
def test_scores_sum_to_one_along_the_axis_that_the_head_names(name: str, backbone: Any) -> None:
    task = TASKS[name]
    head: Any = task.head(backbone)
    example = {"text": TEXTS[1], "tokens": TEXTS[1].split(), "context": TEXTS[1], "question": TEXTS[0]}
    batch = batch_of(task, backbone, [example])
    scores = head.scores(backbone.hidden(batch.input_ids), batch)
    if head.score_axis is None:
        assert name == "multi_label"
        return
    sums = scores.exp().sum(head.score_axis)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert len(task.score_labels()) == (0 if name == "span" else scores.shape[-1])


def test_each_word_of_a_long_text_is_scored_in_one_window(backbone: Any) -> None:
    task = TASKS["tagging"]
    items = encode(task, {"tokens": TEXTS[1].split() * 4}, backbone.tokenizer, 24)
    assert len(items) > 1
    batch = collate(items)
    words_BW = task.head(backbone).scored_words(batch)
    outputs = task.head(backbone).predict(backbone.hidden(batch.input_ids), batch)
    assert words_BW.sum(1).tolist() == list(map(len, outputs))
    assert int(words_BW.sum()) == 4 * len(TEXTS[1].split())
