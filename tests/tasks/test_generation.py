"""The task generation: published forms of data, which tokens are learned, the metrics, a run."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from gptask import Config, DataError, UserError, load_run, train
from gptask.config.schemas import Files, Full, Scratch
from gptask.data.columns import Columns
from gptask.data.corpus import CachedCorpus
from gptask.data.datamodule import collate, encode
from gptask.data.rows import Row
from gptask.plugins.generation_options import GenerationOptions
from gptask_tasks.generation import TextGeneration

TALK = [
    {"role": "user", "content": "good film?"},
    {"role": "assistant", "content": "a good film"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "the story"},
]
EXAMPLE = {"messages": TALK[:3], "answer": ["the story"]}
ALPACA = {"instruction": "Translate", "input": "good", "output": "bon"}


def user(text):
    return [{"role": "user", "content": text}]


def pair(question, answer):
    return [*user(question), {"role": "assistant", "content": answer}]


def read(row):
    return Columns(TextGeneration(), Files()).example(Row(1, row))


@pytest.mark.parametrize(
    ("row", "messages", "answer"),
    [
        ({"messages": TALK}, TALK[:3], "the story"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, user("a"), "b"),
        (ALPACA, user("Translate\n\ngood"), "bon"),
        (ALPACA | {"input": ""}, user("Translate"), "bon"),
        (ALPACA | {"input": None}, user("Translate"), "bon"),
        ({"instruction": "Why", "context": "It rains", "response": "so"}, user("Why\n\nIt rains"), "so"),
        ({"prompt": "2 + 2 =", "completion": " 4"}, user("2 + 2 ="), " 4"),
        ({"prompt": TALK[:3], "completion": TALK[3:]}, TALK[:3], "the story"),
        ({"prompt": str(TALK[:3]), "completion": json.dumps(TALK[3:])}, TALK[:3], "the story"),
        ({"messages": str(TALK)}, TALK[:3], "the story"),
        ({"conversations": json.dumps(TALK)}, TALK[:3], "the story"),
        ({"instruction": "a", "input": float("nan"), "output": "b"}, user("a"), "b"),
        ({"prompt": "[1, 2]", "completion": "[3]"}, user("[1, 2]"), "[3]"),
        ({"system": "Be", "conversations": TALK[:2]}, [{"role": "system", "content": "Be"}, TALK[0]], "a good film"),
        ({"messages": TALK[:3], "answer": "the story"}, TALK[:3], "the story"),
        (
            ALPACA | {"history": [["a", "b"], ["c", "d"]]},
            [*pair("a", "b"), *pair("c", "d"), *user("Translate\n\ngood")],
            "bon",
        ),
        (ALPACA | {"history": "[['a', \"b\"]]"}, [*pair("a", "b"), *user("Translate\n\ngood")], "bon"),
        (ALPACA | {"history": pair("a", "b")}, [*pair("a", "b"), *user("Translate\n\ngood")], "bon"),
        (ALPACA | {"history": [], "tools": "[]", "images": None}, user("Translate\n\ngood"), "bon"),
        (ALPACA | {"history": "[]"}, user("Translate\n\ngood"), "bon"),
        (
            {"prompt": "c", "response": "d", "history": [["a", "b"]], "system": "S"},  # ChatGLM
            [{"role": "system", "content": "S"}, *pair("a", "b"), *user("c")],
            "d",
        ),
        (
            {"prompt": user("c"), "completion": pair("c", "d")[1:], "history": [["a", "b"]]},
            [*pair("a", "b"), *user("c")],
            "d",
        ),
    ],
)
def test_published_forms_become_a_conversation_and_its_last_answer(row, messages, answer):
    assert read(row) == {"messages": messages, "answer": [answer]}


@pytest.mark.parametrize(
    "row", [{"messages": TALK[:3]}, {"instruction": "a"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}, "a"]
)
def test_a_row_without_an_answer_is_a_prompt_and_can_not_be_learned(row):
    with pytest.raises(DataError, match="no answer to learn"):
        TextGeneration().check(read(row))
    task = TextGeneration()
    example = Columns(task, Files(), task.inputs()).example(Row(1, row))
    assert example == {"messages": TALK[:3] if "messages" in row else user("a")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "the columns text hold no conversation: expected messages"),
        ({"messages": 3}, "the messages must be a list of messages, got '3'"),
        ({"instruction": " ", "output": "x"}, "the instruction is empty"),
        ({"instruction": "a", "output": ["x"]}, "the output must be a text"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "message 1 has the role 'tool'"),
        ({"messages": [TALK[1]]}, "the messages is empty"),
        (ALPACA | {"history": [["a"]]}, r"the history must be pairs \[\[question, answer\], ...\], got"),
        (ALPACA | {"history": "earlier"}, "the history must be pairs .*, got 'earlier'"),
        (ALPACA | {"history": [["a", None]]}, "message 2 holds 'None' instead of a text"),
        (
            {"messages": TALK, "history": [["a", "b"]]},
            "the row has messages and a history: put all turns into messages",
        ),
        (ALPACA | {"tools": '[{"name": "f"}]'}, "the row has tools, which gptask does not put into a prompt"),
        ({"conversations": TALK, "image": "a.png"}, "the row has image"),
    ],
)
def test_rows_of_other_forms_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        read(row)


def test_an_error_names_file_and_row(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(f"{json.dumps(ALPACA)}\n{json.dumps({'messages': TALK[:3]})}\n")
    config = Config(task=TextGeneration(), data=Files(train=str(file)), backbone=Scratch(), outputs=str(tmp_path))
    with pytest.raises(DataError, match=r"talk\.jsonl:2: there is no answer to learn"):
        train(config)


def learned(tokenizer, item):
    batch = collate([item])
    return tokenizer.decode(batch.input_ids.roll(-1, 1)[batch.predicting()].tolist())


def test_every_answer_is_learned_with_its_end_and_nothing_else(tokenizer):
    (item,) = encode(TextGeneration(), EXAMPLE, tokenizer, 512)
    end = tokenizer.eos_token
    assert learned(tokenizer, item) == f" a good film{end} the story{end}"
    text = tokenizer.decode(item["ids"] + item["target"])
    assert text == f"User: good film?\nAssistant: a good film{end}\nUser: why\nAssistant: the story{end}"


def test_without_an_answer_nothing_is_learned(tokenizer):
    (item,) = encode(TextGeneration(), EXAMPLE | {"answer": None}, tokenizer, 512)
    assert (item["target"], item["learned"]) == (None, [])
    assert item["ids"] == encode(TextGeneration(), EXAMPLE, tokenizer, 512)[0]["ids"]


def test_an_answer_of_weight_0_is_read_and_not_learned(tokenizer):
    weights = [TALK[0], TALK[1] | {"weight": 0}, *TALK[2:]]
    row = read({"messages": weights})
    assert row == {"messages": [TALK[0], TALK[1] | {"weight": "0"}, TALK[2]], "answer": ["the story"]}
    (item,), (plain,) = (encode(TextGeneration(), e, tokenizer, 512) for e in (row, EXAMPLE))
    assert item["ids"] + item["target"] == plain["ids"] + plain["target"]
    assert learned(tokenizer, item) == f" the story{tokenizer.eos_token}"
    assert learned(tokenizer, plain) == f" a good film{tokenizer.eos_token} the story{tokenizer.eos_token}"


def test_what_follows_the_last_answer_to_learn_is_left_out():
    row = {"messages": [*TALK[:3], TALK[3] | {"weight": 0}]}
    assert read(row) == {"messages": TALK[:1], "answer": ["a good film"]}
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": False}]
    with pytest.raises(
        DataError, match=r"no answer to learn: .* and its weight not 0 unless an earlier answer is learned"
    ):
        TextGeneration().check(read({"conversations": sharegpt}))
    task = TextGeneration()
    example = Columns(task, Files(), task.inputs()).example(Row(1, {"conversations": sharegpt}))
    assert example == {"messages": user("a")}  # a prediction needs no answer


def test_weights_and_unused_members_survive_the_cache_and_are_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gptask"), "propagate", True)
    weighted = [TALK[0] | {"name": "Ann"}, TALK[1] | {"weight": 0}, TALK[2] | {"name": "Ann"}, TALK[3] | {"weight": 1}]
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(f"{json.dumps({'messages': turns})}\n" for turns in (weighted, TALK)))
    for _ in range(2):
        with caplog.at_level("INFO", "gptask"):
            first, second = CachedCorpus(TextGeneration(), Files(test=str(file)), 0).split("test")
        assert "test: members of messages that are not used: name (2)" in caplog.messages
        caplog.clear()
        assert first["messages"] == [TALK[0], TALK[1] | {"weight": "0"}, TALK[2]]
        assert second["messages"] == TALK[:3]
        assert first["digest"] != second["digest"]


def test_raw_texts_are_continued(tokenizer):
    task = TextGeneration(raw=True)
    (item,) = encode(task, {"messages": user("good film"), "answer": [" is good"]}, tokenizer, 512)
    assert tokenizer.decode(item["ids"] + item["target"]) == f"good film is good{tokenizer.eos_token}"


def test_a_system_message_stands_before_conversations_without_one(tokenizer):
    task = TextGeneration(system="Be good.")
    (item,) = encode(task, EXAMPLE, tokenizer, 512)
    assert tokenizer.decode(item["ids"]).startswith("Be good.\n\nUser: good film?")
    with_system = [{"role": "system", "content": "Be bad."}, *TALK[:3]]
    (item,) = encode(task, EXAMPLE | {"messages": with_system}, tokenizer, 512)
    assert tokenizer.decode(item["ids"]).startswith("Be bad.\n\nUser: good film?")


def test_old_turns_are_dropped_and_counted_and_the_last_answer_is_whole(tokenizer):
    task = TextGeneration(generation=GenerationOptions(max_new_tokens=1))
    (untruncated,) = encode(task, EXAMPLE, tokenizer, 512)
    for limit in range(untruncated["length"] - 1, untruncated["length"] - 16, -1):
        (item,) = encode(task, EXAMPLE, tokenizer, limit)
        assert item["length"] <= limit
        assert item["target"] == untruncated["target"]
        assert item["truncated"] == len(untruncated["ids"]) - len(item["ids"]) > 0
        assert learned(tokenizer, item) == f" the story{tokenizer.eos_token}"
        assert tokenizer.decode(item["ids"]) == "User: why\nAssistant:"
    with pytest.raises(DataError, match=r"data\.max_tokens"):
        encode(task, EXAMPLE, tokenizer, 12)


@torch.no_grad()
def test_likelihood_is_that_of_all_answers(backbone, tokenizer):
    task = TextGeneration(generation=GenerationOptions(max_new_tokens=2))
    other = {"messages": user("good"), "answer": ["the story 电影"]}
    items = [encode(task, example, tokenizer, 128)[0] for example in (EXAMPLE, other)]
    outputs = task.head(backbone).predict(None, collate(items))
    predictions = [task.prediction(e, [o]) for e, o in zip((EXAMPLE, other), outputs, strict=True)]
    rows = {m.name: np.array([m.statistics(p, e) for p, e in zip(predictions, (EXAMPLE, other), strict=True)])
            for m in task.metrics()}  # fmt: skip
    nats = tokens = 0
    for item in items:
        batch = collate([item])
        learned = batch.predicting()
        log_probabilities = backbone.model(batch.input_ids).logits.log_softmax(-1)
        nats -= log_probabilities[learned].gather(1, batch.input_ids.roll(-1, 1)[learned][:, None]).sum().item()
        tokens += int(learned.sum())
    size = len(" a good film the story the story 电影".encode())
    values = {m.name: m.aggregate(rows[m.name]) for m in task.metrics()}
    assert values["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_text_metrics_compare_the_last_answer():
    from gptask import Prediction

    right, wrong = Prediction("the story"), Prediction("a good film")
    for metric in TextGeneration().metrics()[2:]:
        scores = [metric.aggregate(np.array([metric.statistics(p, EXAMPLE)])) for p in (right, wrong)]
        assert scores[0] == pytest.approx(100)
        assert scores[1] < 40


def test_options_that_exclude_each_other_and_shots_are_refused():
    with pytest.raises(UserError, match="raw"):
        TextGeneration(raw=True, system="x").validate()
    with pytest.raises(UserError, match="language"):
        TextGeneration(language="German").validate()
    with pytest.raises(UserError, match="shots"):
        TextGeneration().demonstrate(EXAMPLE)


def test_the_sample_is_fit_for_use_and_has_earlier_answers(sample_rows, assert_fit_for_use):
    rows = sample_rows(TextGeneration())
    assert_fit_for_use(rows)
    assert sum(any(m["role"] == "assistant" for m in e["messages"]) for e in rows["train"]) > 50


def test_a_run_learns_earlier_answers_and_draws_several_samples(tmp_path):
    """The last answers are all alike, so that the colours can only be learned from an earlier turn."""
    colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
    talks = [
        [*user(f"Colour of {thing}?"), {"role": "assistant", "content": colour}, *user("Sure?"), TALK[1]]
        for thing, colour in colours.items()
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    files = Files(train=str(file), validation=str(file), test=str(file), max_tokens=96)
    task = TextGeneration(generation=GenerationOptions(max_new_tokens=8))
    backbone = Scratch(n_layer=2, n_head=2, n_embd=64, context=96, vocab_size=300)
    trainer = {"max_epochs": 60, "accelerator": "cpu", "accumulate_grad_batches": 1, "check_val_every_n_epoch": 60}
    run = train(Config(task=task, backbone=backbone, data=files, tuning=Full(lr=6e-3), trainer=trainer,
                       outputs=str(tmp_path), probe=False))  # fmt: skip
    assert run.metrics["metrics"]["perplexity"]["value"] < 1.3
    predictions = load_run(run.folder).predict({"messages": f"Colour of {thing}?"} for thing in colours)
    assert [p.value for p in predictions] == list(colours.values())
    drawing = load_run(run.folder, TextGeneration(generation=GenerationOptions(8, temperature=3.0, samples=3, seed=1)))
    (prediction,) = drawing.predict([{"messages": "Colour of sky?"}])
    assert len(set(prediction.samples)) > 1
    assert prediction.value in prediction.samples
