"""The template that cards and exports show makes the ids that the model was trained on."""

from types import SimpleNamespace

from gptask.data.datamodule import encode
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.runs.prompt_text import prompt_template
from gptask_tasks.generation import TextGeneration
from gptask_tasks.question_generation import QuestionGeneration

from tests.support.tokenizers import tokenizer_of


def test_the_template_of_a_conversation_leaves_out_the_bos_token_that_the_tokenizer_adds():
    tokenizer = tokenizer_of("sentencepiece-first")
    backbone = SimpleNamespace(tokenizer=text_tokenizer(tokenizer), context=512)
    template = prompt_template(TextGeneration(), backbone)
    assert template == "<start_of_turn>user\n{messages}<end_of_turn>\n<start_of_turn>model\n"
    (item,) = encode(TextGeneration(), {"messages": [{"role": "user", "content": "good"}]}, tokenizer, 512)
    assert tokenizer(template.format(messages="good"))["input_ids"] == [*item["ids"]]
    assert [*item["ids"]].count(tokenizer.bos_token_id) == 1


def test_the_template_shows_the_whole_name_of_a_field_with_several_values():
    assert prompt_template(QuestionGeneration(), None) == "Context: {context}\nAnswer: {answers}\nQuestion:"
