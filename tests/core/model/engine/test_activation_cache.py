"""Cached hidden states: read back exactly, computed once, keyed by what they depend on."""

import os
from dataclasses import replace

import pytest
import torch
from gptask import Config, Fast
from gptask.config.schemas import DType, HeadOnly, Limit, Lora, Pretrained, Sample
from gptask.data.datamodule import collate
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import activation_cache
from gptask.training import builder
from gptask.training.train import build_module, train
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment

from tests.support.tiny_models import FAMILIES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))


def config(tiny_model, task, outputs="outputs", seed=0):
    return Config(
        task=task,
        backbone=Pretrained(source=str(tiny_model("llama", 256, seed)), dtype=DType.float32),
        tuning=HeadOnly(),
        data=Sample(limit=Limit(train=8, validation=4, test=4), max_tokens=256, batch_size=4),
        trainer={"max_epochs": 3, "accelerator": "cpu"},
        outputs=str(outputs),
        probe=False,
    )


def module_cache_and_batch(tiny_model, task, seed=0):
    """A module, its cache of the training split, and a batch of three training items."""
    options = config(tiny_model, task, seed=seed)
    options.trainer["limit_train_batches"] = 0  # nothing is trained, so no batch is tried, which would be cached
    module, data, _ = build_module(options, builder.build_corpora(options))
    items = data.items("train")
    batch = collate([items[row] | {"row": row} for row in (2, 0, 5)])
    return module, module.runtimes[0].activation_caches["train"], batch


def test_states_of_every_real_token_are_read_back(tiny_model):
    module, cache, batch = module_cache_and_batch(tiny_model, QuestionAnswering(answer=AnswerForm.span, stride=8))
    expected = module.backbone.hidden(batch.input_ids, batch.lengths)
    assert torch.equal(cache.hidden(batch), expected)
    module.backbone.hidden = None  # from here on nothing may be computed
    real = torch.arange(expected.shape[1])[None] < batch.lengths[:, None]
    assert torch.equal(cache.hidden(batch)[real], expected[real])
    assert torch.isfinite(module.head.loss(cache.hidden(batch), batch))


def test_a_head_that_reads_the_last_token_caches_one_state_per_item(tiny_model):
    module, cache, batch = module_cache_and_batch(tiny_model, Sentiment())
    assert cache.table.shape == (8, module.backbone.channels)
    expected = module.head.logits(module.backbone.hidden(batch.input_ids), batch)
    cache.hidden(batch)
    module.backbone.hidden = None
    assert torch.allclose(module.head.logits(cache.hidden(batch), batch), expected)


def test_a_batch_with_an_item_that_is_not_cached_is_computed(tiny_model):
    module, cache, batch = module_cache_and_batch(tiny_model, Sentiment())
    cache.hidden(batch)
    cache.done[batch.rows[1]] = False
    calls = []
    compute = module.backbone.hidden
    module.backbone.hidden = lambda *inputs: calls.append(1) or compute(*inputs)
    cache.hidden(batch)
    cache.hidden(batch)
    assert len(calls) == 1


def test_another_backbone_has_its_own_states(tiny_model):
    _, cache, batch = module_cache_and_batch(tiny_model, Sentiment())
    cache.hidden(batch)
    assert module_cache_and_batch(tiny_model, Sentiment())[1].done.sum() == 3, "the same backbone reads the file again"
    assert not module_cache_and_batch(tiny_model, Sentiment(), seed=1)[1].done.any()


def truncate(content):
    return content[:-8]


def zero(content):
    return bytes(len(content))


def flip_a_bit(content):
    return content[:9] + bytes([content[9] ^ 4]) + content[10:]


@pytest.mark.parametrize(
    ("suffix", "damage", "left"),
    [("bin", truncate, 0), ("crc", truncate, 0), ("bin", zero, 0), ("bin", flip_a_bit, 2), ("crc", flip_a_bit, 2)],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_damaged_states_are_computed_again(tiny_model, tmp_path, caplog, suffix, damage, left):
    _, cache, batch = module_cache_and_batch(tiny_model, Sentiment())
    expected = cache.hidden(batch)
    batch.rows = [0, 1, 2]  # the first item's states come first in the file
    cache.hidden(batch)
    file = max((tmp_path / "cache" / "states").glob(f"*.{suffix}"), key=lambda path: path.stat().st_size)  # of train
    file.write_bytes(damage(file.read_bytes()))
    again = module_cache_and_batch(tiny_model, Sentiment())[1]
    assert int(again.done[[0, 1, 2]].sum()) == left
    assert torch.equal(again.hidden(batch), expected)
    assert again.done[[0, 1, 2]].all()
    assert ("items are damaged" in caplog.text) == (damage is not truncate)


def test_a_second_run_computes_no_training_state(tiny_model, tmp_path, monkeypatch):
    first = train(config(tiny_model, Sentiment(), tmp_path / "a"))
    computed = []
    read = activation_cache.FinalStates.compute_or_resume
    monkeypatch.setattr(
        activation_cache.FinalStates,
        "compute_or_resume",
        lambda self, batch, states: computed.append(states is None) or read(self, batch, states),
    )
    second = train(config(tiny_model, Sentiment(), tmp_path / "b"))
    assert computed
    assert not any(computed)
    assert torch.equal(first.head.linear.weight, second.head.linear.weight)


def test_a_disk_with_too_little_room_is_a_warning(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    assert module_cache_and_batch(tiny_model, Sentiment())[1] is None
    assert "every epoch computes them again" in caplog.text


PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [11]]  # two share a prefix


def adapted(backbone_of, family, dropout=0.0, **lora):
    """A backbone with nonzero adapters in its upper half."""
    backbone = backbone_of(family)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(backbone.model.config, name):
            setattr(backbone.model.config, name, dropout)
    backbone.set_model(apply_tuning(backbone.peft, Lora(**({"rank": 2, "top": 0.5} | lora))))
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def batch_of(prompts):
    return collate([{"ids": ids, "target": None, "label": None, "extra": None} for ids in prompts])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False], ids=["one row", "padded"])
def test_upper_layers_resume_from_cached_states(backbone_of, family, packed):
    backbone = adapted(backbone_of, family)
    backbone.use_engine(Fast(packing=packed))
    lower = activation_cache.cacheable_layers(backbone)
    assert len(lower) == backbone.model.config.num_hidden_layers // 2
    batch = batch_of(PROMPTS)
    expected = backbone.hidden(batch.input_ids, batch.lengths)
    hidden, states = activation_cache.capture_or_resume(backbone, lower, batch, None)
    assert states.shape == (sum(map(len, PROMPTS)), backbone.channels)
    real = torch.arange(5)[None] < batch.lengths[:, None]
    assert torch.equal(hidden[real], expected[real])

    for layer in lower:  # from here on they can compute nothing
        layer.input_layernorm = None
        layer.ln_1 = None
    other_batch = batch_of([PROMPTS[2], PROMPTS[1]])  # of the same texts
    other_states = torch.cat([states[9:], states[5:9]])
    resumed, _ = activation_cache.capture_or_resume(backbone, lower, other_batch, other_states)
    torch.testing.assert_close(resumed[0, 0], expected[2, 0])
    torch.testing.assert_close(resumed[1], expected[1, :4])


def test_gradients_are_equal_when_upper_layers_resume(backbone_of):
    backbone = adapted(backbone_of, "llama")
    lower, batch = activation_cache.cacheable_layers(backbone), batch_of(PROMPTS)
    _, cached = activation_cache.capture_or_resume(backbone, lower, batch, None)
    gradients = []
    for states in (None, cached):
        backbone.zero_grad()
        hidden, _ = activation_cache.capture_or_resume(backbone, lower, batch, states)
        hidden[:, 0].square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_layers_whose_states_change_are_not_cached(backbone_of):
    assert not activation_cache.cacheable_layers(adapted(backbone_of, "gpt2", dropout=0.5)), "dropout"
    assert not activation_cache.cacheable_layers(adapted(backbone_of, "llama", top=1.0)), "adapters in every layer"
    assert activation_cache.cacheable_layers(adapted(backbone_of, "llama")), "frozen, and no dropout"
    backbone = adapted(backbone_of, "llama")
    backbone.model.get_input_embeddings().weight.requires_grad_(True)
    assert not activation_cache.cacheable_layers(backbone), "embeddings that learn"


def test_a_model_whose_upper_layers_read_other_states_is_not_resumed(backbone_of):
    backbone = adapted(backbone_of, "llama")
    first, last = backbone.body.layers[0], backbone.body.layers[-1]
    seen: list[torch.Tensor] = []
    forward = last.forward
    first.register_forward_pre_hook(lambda *_: seen.clear())
    first.mlp.register_forward_hook(lambda module, inputs, out: seen.append(out))
    last.forward = lambda hidden, *args, **kwargs: forward(hidden + sum(seen), *args, **kwargs)
    assert not activation_cache.cacheable_layers(backbone), "other states"
    last.forward = lambda hidden, *args, **kwargs: forward(hidden + seen.pop(), *args, **kwargs)
    assert not activation_cache.cacheable_layers(backbone), "an error"


def lora_config(tiny_model, outputs, **changes):
    options = config(tiny_model, Sentiment(), outputs)
    options.tuning = Lora(rank=2, top=0.5)
    return replace(options, **changes)


def test_training_reads_the_lower_half_from_its_second_epoch_on(tiny_model, tmp_path, monkeypatch):
    seen: list[tuple[bool, int]] = []
    read = activation_cache.LowerLayerStates.compute_or_resume

    def spy(self, batch, states):
        seen.append((states is None, len(batch.rows)))
        return read(self, batch, states)

    monkeypatch.setattr(activation_cache.LowerLayerStates, "compute_or_resume", spy)
    cached = train(lora_config(tiny_model, tmp_path / "cached"))
    assert sum(rows for is_computed, rows in seen if is_computed) == 8 + 4, "each item of train and validation once"
    assert sum(rows for is_computed, rows in seen if not is_computed) == 2 * (8 + 4) + 4, (
        "and read in two epochs; the batch that is tried first in all three"
    )
    monkeypatch.setattr(activation_cache, "cacheable_layers", lambda backbone: [])
    computed = train(lora_config(tiny_model, tmp_path / "computed"))
    pairs = zip(cached.backbone.state_dict().values(), computed.backbone.state_dict().values(), strict=True)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs)
    assert not list((tmp_path / "cache").glob("tmp*")), "nothing is left in the cache"


@pytest.mark.parametrize(
    "changes",
    [{"trainer": {"max_epochs": 1}}, {"trainer": {"precision": "bf16-mixed"}}],
    ids=["one epoch", "another number format"],
)
def test_nothing_is_cached_that_no_epoch_could_read(tiny_model, tmp_path, changes):
    options = lora_config(tiny_model, tmp_path, **changes)
    module, _, _ = build_module(options, builder.build_corpora(options))
    assert not module.runtimes[0].activation_caches


def test_a_disk_that_fills_up_costs_the_cache_of_states_alone(monkeypatch, tmp_path):
    """Writing through a map of a file with holes would end the process (SIGBUS): its room is taken at the start."""
    file = tmp_path / "states.bin"
    activation_cache._reserve(file, 10_000)
    assert file.stat().st_size == 10_000
    assert file.stat().st_blocks * 512 >= 10_000

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space"):
        activation_cache._reserve(file, 20_000)
    assert not file.exists()


def test_a_training_goes_on_without_cached_states_where_the_disk_fills_up(tiny_model, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    options = config(tiny_model, Sentiment())
    module, _, _ = build_module(options, builder.build_corpora(options))
    assert module.runtimes[0].activation_caches == {"train": None, "validation": None}
    assert any("No space left on device in" in line for line in caplog.messages)
