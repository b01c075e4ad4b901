"""Rows of a decoding batch enter and leave between steps; each gets the text it gets alone, on both engines."""

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.model.engine.decoding import FastBatch
from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.kv_cache import capacity
from gptask.plugins.generation_options import GenerationOptions

PROMPTS = [[5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [40], [5, 6, 7, 30, 31], list(range(20, 60))]
GREEDY = GenerationOptions()
ENGINES = {
    "fast": Fast(),
    "no packing": Fast(packing=False),
    "no decoding": Fast(decoding=False),
    "reference": Reference(),
}


def row(number, limit=9, options=GREEDY, **more):
    return DecodingRow(PROMPTS[number], limit, options, **more)


@pytest.fixture
def backbone(adapted_backbone_of):
    """A backbone with adapters that knows no stop token, so that no text ends early."""
    backbone = adapted_backbone_of("llama").eval()
    backbone.tokenizer.eos_token = None
    backbone.model.generation_config.eos_token_id = None
    return backbone


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_rows_that_enter_and_leave_between_steps_get_their_own_texts(engine, backbone):
    backbone.use_engine(Reference())
    alone = [row(number) for number in range(len(PROMPTS))]
    for one in alone:
        backbone.engine.decode([one])
    backbone.use_engine(engine)
    rows = [row(number) for number in range(len(PROMPTS))]
    batch = backbone.engine.decoding_batch()
    assert batch.step() == []
    batch.admit(rows[:2])
    batch.step()
    batch.admit(rows[2:4])
    batch.step()
    batch.step()
    batch.leave(rows[1])
    batch.leave(rows[1])  # again: it is gone already
    assert set(batch.rows) == {rows[0], rows[2], rows[3]}
    batch.admit(rows[4:])
    ended = []
    while batch.rows:
        ended += batch.step()
    assert rows[1].new_ids == alone[1].new_ids[:3]
    assert rows[1].finish is None
    others = [number for number in range(len(PROMPTS)) if number != 1]
    assert set(ended) == {rows[number] for number in others}
    for number in others:
        assert rows[number].new_ids == alone[number].new_ids
        assert rows[number].finish == "length"
        assert rows[number].score == pytest.approx(alone[number].score, rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_rows_of_one_batch_have_their_own_options(engine, backbone):
    backbone.use_engine(engine)
    choices = [
        GREEDY,
        GenerationOptions(repetition_penalty=1.8),
        GenerationOptions(temperature=1.0, seed=3),
        GenerationOptions(temperature=1.0, seed=4, top_k=5),
        GenerationOptions(min_new_tokens=4),
    ]
    together = [row(0, options=options) for options in choices]
    backbone.engine.decode(together)
    for options, one in zip(choices, together, strict=True):
        alone = row(0, options=options)
        backbone.engine.decode([alone])
        assert one.new_ids == alone.new_ids
    assert len({tuple(one.new_ids) for one in together[:4]}) == 4


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_what_is_kept_of_a_text_is_read_again_by_no_one_but_its_adapter(engine, backbone, tmp_path):
    backbone.peft.save_pretrained(tmp_path)
    digest = backbone.engine.add_adapter(tmp_path)  # the same weights under another name
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if f"lora_B.{digest}" in name:
                parameter.neg_()
    backbone.use_engine(Reference())
    expected = {}
    for adapter in (None, digest):
        expected[adapter] = row(1, adapter=adapter)
        backbone.engine.decode([expected[adapter]])
    assert expected[None].new_ids != expected[digest].new_ids
    backbone.use_engine(engine)
    batch = backbone.engine.decoding_batch(keep=1)
    for adapter in (None, None, digest, digest, None):
        one = row(1, adapter=adapter)
        batch.admit([one])
        while batch.rows:
            batch.step()
        assert one.new_ids == expected[adapter].new_ids


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_kept_texts_are_counted_and_can_be_dropped(engine, backbone):
    backbone.use_engine(engine)
    batch = backbone.engine.decoding_batch(keep=1)
    for _ in range(2):
        one = row(1)
        batch.admit([one])
        while batch.rows:
            batch.step()
        assert (batch.kept_bytes > 0) == isinstance(batch, FastBatch)
        assert batch.kept_bytes <= backbone.engine.position_bytes() * capacity(len(one.ids))
        batch.forget()
        assert batch.kept_bytes == 0


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_any_row_of_a_bucket_may_leave(engine, backbone):
    backbone.use_engine(engine)
    alone = row(3)
    backbone.engine.decode([alone])
    rows = [row(0), row(3), row(0)]
    batch = backbone.engine.decoding_batch()
    batch.admit(rows)
    batch.step()
    batch.leave(rows[0])
    while batch.rows:
        batch.step()
    assert rows[1].new_ids == alone.new_ids
    assert len(rows[0].new_ids) == 1


def test_a_batch_does_not_outlive_its_engine(backbone):
    batch = backbone.engine.decoding_batch()
    batch.admit([row(0)])
    backbone.use_engine(Reference())
    with pytest.raises(RuntimeError, match="open a new decoding batch"):
        batch.step()


def test_an_interrupted_step_ends_its_batch(backbone, monkeypatch):
    batch = backbone.engine.decoding_batch()
    batch.admit([row(0)])
    batch.step()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr("gptask.model.engine.decoding.next_token_logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            batch.step()
    with pytest.raises(RuntimeError, match="was interrupted"):
        batch.step()


def test_nothing_that_was_kept_outlives_an_edit_of_the_weights(backbone):
    batch = backbone.engine.decoding_batch(keep=1)

    def write():
        one = row(1)
        batch.admit([one])
        while batch.rows:
            batch.step()
        return one.new_ids

    write()
    edited = next(p for name, p in backbone.named_parameters() if "layers.0" in name and "lora_B" in name)
    for through_data in (False, True):
        with torch.no_grad():
            (edited.data if through_data else edited).mul_(-3)
        if through_data:
            backbone.train()
            backbone.eval()
        after_edit, alone = write(), row(1)
        backbone.engine.decode([alone])
        assert after_edit == alone.new_ids
        assert write() == alone.new_ids


def test_the_reference_has_nothing_to_switch_off(backbone):
    backbone.use_engine(Reference())
    assert backbone.engine.describe() == {"name": "reference", "off": {}}
    assert backbone.engine.summary() == "engine: reference"
    assert not backbone.engine.can_pack(2)
    assert not backbone.engine.caches_activations
    with pytest.raises(KeyError, match="no adapter digest"), backbone.engine.running("digest"):
        pass
