"""The task language_modeling: blocks, scores against plain transformers, cleaning, a run as a backbone."""

import math
from collections import Counter
from typing import Any

import pytest
from gptask import DataError, UserError
from gptask.config.schemas import Documents, Files, Full, Scratch
from gptask.plugins.metric import score_all
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.language_modeling.cleaning import Cleaning, Unicode

TEXT = "the film is good, 这部电影很好看 and the story is great. " * 6


def blocks(tokenizer: Any, size: int, **options: Any) -> list[Any]:
    return LanguageModeling(**options).encode({"text": TEXT}, tokenizer, size)


@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 5), (7, 6), (1000, 0), (1000, 900)])
def test_every_token_is_predicted_exactly_once(tokenizer: Any, size: int, overlap: int) -> None:
    encoded = blocks(tokenizer, size, overlap=overlap)
    predicted = [token for b in encoded for token in [*b.ids[1:], b.extra["next"]][b.extra["skip"] :]]
    assert predicted == [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    assert max(len(b.ids) for b in encoded) <= size
    assert encoded[0].ids[0] == tokenizer.eos_token_id
    assert [b.extra["end"] for b in encoded] == [0] * (len(encoded) - 1) + [1]


def test_the_score_in_a_padded_batch_is_that_of_plain_transformers(backbone: Any) -> None:
    import torch
    from gptask.data.datamodule import collate, encode

    task, tokenizer = LanguageModeling(), backbone.tokenizer
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"]])[:100]
    text = tokenizer.decode(ids[1:])
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(backbone.model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
        items = encode(task, {"text": text}, tokenizer, 128) + encode(task, {"text": "a film"}, tokenizer, 128)
        batch = collate(items)
        (nats, tokens), _ = task.head(backbone).predict(backbone.hidden(batch.input_ids, batch.lengths), batch)
    assert nats == pytest.approx(float(expected), rel=1e-4)
    assert tokens == len(ids) - 1
    value = task.prediction({"text": text}, [[nats, tokens]]).value
    assert value["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert value["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()))


def test_documents_in_one_row_do_not_see_each_other(backbone: Any) -> None:
    import torch
    from gptask.data.datamodule import collate, encode
    from gptask.model.engine import packing

    task = LanguageModeling()
    texts = [TEXT[:200], "a great story", "the weather in Paris", TEXT[40:90]]
    items = [item for text in texts for item in encode(task, {"text": text}, backbone.tokenizer, 128)]
    head, batch = task.head(backbone), collate(items)
    layout = packing.split_prefixes([item["ids"] for item in items])
    assert layout.size < 0.7 * batch.input_ids.numel(), "pads would be computed"
    with torch.inference_mode():
        batches = [collate([item]) for item in items]
        alone = [head.predict(backbone.hidden(single.input_ids), single)[0] for single in batches]
        together = head.predict(backbone.hidden(batch.input_ids, batch.lengths), batch)
    assert [n for n, _ in together] == pytest.approx([n for n, _ in alone], rel=1e-4)


def test_metrics_are_ratios_of_sums_over_documents() -> None:
    task = LanguageModeling()
    examples = [{"text": "ab"}, {"text": "电影"}]
    predictions = [task.prediction(e, [[n, t], [n, t]]) for e, n, t in zip(examples, (1.0, 3.0), (1, 1), strict=True)]
    values = {score.name: score.value for score in score_all(task.metrics(), predictions, examples)[0]}
    assert values["nats_per_token"] == pytest.approx(8 / 4)
    assert values["perplexity"] == pytest.approx(math.exp(2))
    assert values["bits_per_byte"] == pytest.approx(8 / math.log(2) / (2 + 6))


def cleaned(cleaning: Cleaning, texts: list[str], train: bool = True) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    examples = cleaning.clean([{"text": text, "id": str(n)} for n, text in enumerate(texts)], train, counts)
    return [example["text"] for example in examples], +counts


def test_cleaning_steps_are_applied_and_counted() -> None:
    line = "*** This electronic text is brought to you by nobody ***"
    stories = [f"{line}\nstory number {n} tells {'of ' * n}something else {n * n}" for n in range(3)]
    texts = [*stories, "e\u0301a\u0000\r\nb", stories[0], "\ufeff "]
    result, counts = cleaned(Cleaning(boilerplate=3, near_duplicates=0), texts)
    assert result == [*(s.split("\n")[1] for s in stories), "\u00e9a\nb"]
    assert counts == {
        "control characters": 3,
        "texts brought to normal form": 1,
        "boilerplate lines": 4,
        "empty texts": 1,
        "duplicates": 1,
    }


def test_near_duplicates_are_left_out_in_any_script() -> None:
    import random

    for letters in ("abcdefghij klmnop", "的一是不了人我在有他这为之大来"):
        draw = random.Random(1)
        text = "".join(draw.choices(letters, k=800))
        other = "".join(draw.choices(letters, k=800))
        near = text[:400] + "xyz" + text[400:]
        result, counts = cleaned(Cleaning(), [text, other, near])
        assert (len(result), counts["near duplicates"]) == (2, 1)
        assert len(cleaned(Cleaning(near_duplicates=0), [text, other, near])[0]) == 3


def test_every_step_can_be_switched_off_and_a_test_set_keeps_its_rows() -> None:
    texts = ["e\u0301\u0000", "e\u0301\u0000", "the same long line of a footer " * 2] * 3
    off = Cleaning(unicode=Unicode.none, control=False, boilerplate=0, duplicates=False, near_duplicates=0)
    assert cleaned(off, texts) == (texts, {})
    assert len(cleaned(Cleaning(boilerplate=2), texts, train=False)[0]) == len(texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": -1}, "task.overlap=-1"),
        ({"cleaning": Cleaning(boilerplate=1)}, "boilerplate=1 must be 0"),
        ({"cleaning": Cleaning(near_duplicates=1.5)}, "near_duplicates=1.5 must be 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LanguageModeling(**options).validate()


def test_an_overlap_as_long_as_a_block_and_an_empty_text_are_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="overlap=16 must be less than the 16"):
        blocks(tokenizer, 16, overlap=16)
    with pytest.raises(DataError, match="nothing is left"):
        LanguageModeling().encode({"text": "\u200b"}, tokenizer, 16)


def test_a_pretrained_run_is_a_backbone_for_another_task(tmp_path: Any) -> None:
    import gptask
    import torch
    from gptask.config.schemas import DType, Lora, Pretrained

    from tests.support.configs import small_config

    (tmp_path / "train.txt").write_text((TEXT + "\n\n") * 5 + "A short one.\n\nAnother, 很好.\n\nOne more.\n")
    data = Files(train=str(tmp_path / "train.txt"), documents=Documents.paragraph, max_tokens=32, batch_size=4)
    options = {"task": LanguageModeling(), "data": data, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    backbone = Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300)
    learned = gptask.train(small_config(tmp_path, backbone=backbone, tuning=Full(), **options))
    assert set(learned.metrics["metrics"]) == {"bits_per_byte", "perplexity", "nats_per_token"}
    (prediction,) = learned.predict([{"text": "A good film"}])
    assert prediction.extra["bytes"] == 11

    source = Pretrained(source=str(learned.folder), dtype=DType.float32)
    tuned = gptask.train(small_config(tmp_path, backbone=source, tuning=Lora(rank=2)))
    frozen = tuned.backbone.model.state_dict()
    weight = "transformer.wte.weight"
    assert torch.equal(frozen[weight], learned.backbone.model.state_dict()[weight])

    merged = Pretrained(source=str(tuned.folder), dtype=DType.float32)
    again = gptask.train(small_config(tmp_path, backbone=merged, tuning=Full(lr=1e-9)))
    ids = torch.arange(6)[None]
    expected, got = (r.backbone.eval().hidden(ids) for r in (tuned, again))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    plain = learned.backbone.eval().hidden(ids)
    assert not torch.allclose(plain, expected, atol=1e-4), "the adapter had learned something to merge"
