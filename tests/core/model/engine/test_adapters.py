"""Rows of several adapters and of none in one batch get what each gets alone, on both engines."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.errors import UserError
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.adapter_files import adapter_digest
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions

FAMILIES = ["gpt2", "llama", "gemma3"]
ENGINES = [Fast(), Fast(packing=False), Fast(linear=False), Reference()]
IDS = torch.tensor(
    [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 10, 20, 0], [5, 6, 7, 8, 9, 10, 11, 0], [40, 0, 0, 0, 0, 0, 0, 0]]
)
LENGTHS = torch.tensor([8, 7, 7, 1])


@pytest.fixture(scope="module")
def adapter_folders(backbone_of, tmp_path_factory):
    """``adapter_folders("llama")``: the folders of two adapters of other ranks, layers and weights."""

    def make(family):
        folders = []
        for number, options in enumerate([Lora(rank=2), Lora(rank=3, top=0.5, alpha=5)]):
            torch.manual_seed(number)
            peft = apply_tuning(backbone_of(family).peft, options)
            with torch.no_grad():
                for name, parameter in peft.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(0, 0.3)
            folder = tmp_path_factory.mktemp(f"{family}-{number}")
            peft.save_pretrained(folder)
            folders.append(folder)
        return folders

    return make


def states_of(backbone, adapters, **inputs):
    """The last hidden states of the real tokens of each row."""
    with torch.no_grad():
        hidden = backbone.hidden(IDS, LENGTHS, adapters=adapters, **inputs)
    return [row[:length] for row, length in zip(hidden, LENGTHS, strict=True)]


def texts_of(backbone, adapters):
    """Greedy texts behind the rows."""
    rows = [
        DecodingRow(ids[:length].tolist(), 6, GenerationOptions(), adapter)
        for ids, length, adapter in zip(IDS, LENGTHS, adapters, strict=True)
    ]
    backbone.engine.decode(rows)
    return [row.new_ids for row in rows]


@pytest.mark.parametrize("own", [False, True], ids=["bare", "with an adapter of its own"])
@pytest.mark.parametrize(
    "engine",
    [ENGINES[0], *(pytest.param(engine, marks=pytest.mark.long) for engine in ENGINES[1:3]), ENGINES[3]],
    ids=["fast", "no packing", "no linear", "reference"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_two_adapters_and_of_none_equal_each_alone(family, engine, own, backbone_of, adapter_folders):
    first, second = adapter_folders(family)
    expected_states, expected_texts = [], []
    adapted = backbone_of(family)
    if own:
        torch.manual_seed(7)
        adapted.set_model(apply_tuning(adapted.peft, Lora(rank=2)))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
    adapted.eval()
    adapted.use_engine(Reference())
    for folder in (first, second, None):
        alone = adapted
        if folder:
            from peft import PeftModel

            alone = backbone_of(family)
            alone.set_model(PeftModel.from_pretrained(alone.peft, str(folder)))
            alone.use_engine(Reference())
            alone.eval()
        expected_states.append(states_of(alone, None))
        expected_texts.append(texts_of(alone, [None] * 4))
    digests = [adapted.engine.add_adapter(first), adapted.engine.add_adapter(second), None]
    adapted.use_engine(engine)
    of_rows = [0, 1, 2, 0]
    adapters = [digests[number] for number in of_rows]
    for row, (number, got) in enumerate(zip(of_rows, states_of(adapted, adapters), strict=True)):
        torch.testing.assert_close(got, expected_states[number][row], rtol=1e-4, atol=1e-4)
    assert texts_of(adapted, adapters) == [expected_texts[number][row] for row, number in enumerate(of_rows)]
    for got, expected in zip(states_of(adapted, None), expected_states[2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # without names: the model as it is
    for digest in digests[:2]:
        adapted.engine.remove_adapter(digest)
    for got, expected in zip(states_of(adapted, None), expected_states[2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients_through_adapters_of_rows_are_those_of_the_reference(backbone_of, adapter_folders):
    backbone = backbone_of("llama")
    digests = [backbone.engine.add_adapter(folder) for folder in adapter_folders("llama")]
    gradients = []
    for engine in (Fast(), Reference()):
        backbone.use_engine(engine)
        embeds = backbone.model.get_input_embeddings()(IDS).detach().requires_grad_()
        hidden = backbone.hidden(lengths=LENGTHS, embeds=embeds, adapters=[*digests, None, digests[0]])
        loss = sum(row[:length].square().sum() for row, length in zip(hidden, LENGTHS, strict=True))
        gradients.append(torch.autograd.grad(loss, embeds)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_an_adapter_is_named_by_its_bytes(backbone_of, adapter_folders, tmp_path):
    first, second = adapter_folders("llama")
    shutil.copytree(first, tmp_path / "copy")
    assert adapter_digest(first) == adapter_digest(tmp_path / "copy") != adapter_digest(second)
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    backbone = backbone_of("llama").eval()
    digest, changed = backbone.engine.add_adapter(first), backbone.engine.add_adapter(tmp_path / "copy")
    assert digest == backbone.engine.add_adapter(first) != changed
    assert not torch.equal(states_of(backbone, [digest] * 4)[0], states_of(backbone, [changed] * 4)[0])


def test_what_learns_and_what_the_mode_is_stays_as_it_was(backbone_of, adapter_folders):
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    backbone.train()
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    digest = backbone.engine.add_adapter(adapter_folders("llama")[0])
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == learning
    assert backbone.peft.training
    assert backbone.peft.active_adapters == ["default"]
    backbone.engine.remove_adapter(digest)
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == learning


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(engine, backbone_of, adapter_folders, tmp_path):
    backbone = backbone_of("llama").eval()
    backbone.use_engine(engine)
    before = states_of(backbone, None)
    with pytest.raises(UserError, match=r"holds no LoRA adapter: adapter_config\.json"):
        backbone.engine.add_adapter(tmp_path)
    with pytest.raises(UserError, match="does not fit the model"):
        backbone.engine.add_adapter(adapter_folders("gpt2")[0])
    broken = tmp_path / "broken"
    shutil.copytree(adapter_folders("llama")[0], broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(UserError, match="does not fit the model"):
        backbone.engine.add_adapter(broken)
    with pytest.raises(KeyError, match="no adapter 1234"):
        backbone.hidden(IDS, LENGTHS, adapters=["1234", None, None, None])
    with pytest.raises(KeyError, match="no adapter 1234"):
        backbone.engine.remove_adapter("1234")
    for got, expected in zip(states_of(backbone, None), before, strict=True):
        torch.testing.assert_close(got, expected)


OTHER_KINDS = {
    "bias": ({"bias": "all"}, "bias=all"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "dora": ({"use_dora": True}, "use_dora"),
    "initial": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
}


@pytest.mark.parametrize(("options", "reason"), OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_an_adapter_that_would_change_the_model_for_every_row_is_refused(
    options, reason, backbone_of, adapter_folders, tmp_path
):
    backbone = backbone_of("llama").eval()
    before = states_of(backbone, None)
    folder = tmp_path / "other"
    shutil.copytree(adapter_folders("llama")[0], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    with pytest.raises(UserError, match=rf"low-rank factors alone \({reason}\)"):
        backbone.engine.add_adapter(folder)
    backbone.engine.add_adapter(adapter_folders("llama")[0])
    for got, expected in zip(states_of(backbone, [None] * 4), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_a_row_whose_adapter_is_gone_is_an_error(engine, backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    backbone.use_engine(engine)
    first, second = (backbone.engine.add_adapter(folder) for folder in adapter_folders("llama"))
    batch = backbone.engine.decoding_batch()
    batch.admit([DecodingRow([5, 6], 9, GenerationOptions(), first)])
    batch.step()
    backbone.engine.remove_adapter(first)
    with pytest.raises(KeyError, match=f"no adapter {first}"):
        batch.step()
    with pytest.raises(ValueError, match="4 rows need 4 adapters"):
        backbone.hidden(IDS, LENGTHS, adapters=[second])


def test_passes_beside_one_with_adapters_are_as_without(backbone_of, adapter_folders):
    from concurrent.futures import ThreadPoolExecutor

    backbone = backbone_of("gpt2").eval()
    digest = backbone.engine.add_adapter(adapter_folders("gpt2")[0])
    choices = ([digest] * 4, None, [None] * 4)
    for engine in (Fast(), Reference()):
        backbone.use_engine(engine)
        alone = [states_of(backbone, adapters) for adapters in choices]
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda number: states_of(backbone, choices[number % 3]), range(45)))
        for number, got in enumerate(results):
            for row, expected in zip(got, alone[number % 3], strict=True):
                torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


# --- what is loaded, what is refused ------------------------------------------------------------------------------


def rewritten(folder, target, change):
    """A copy of an adapter with changed tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    tensors = load_file(target / "adapter_model.safetensors")
    tensors = change(tensors)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target / "adapter_model.safetensors"
    )
    return target


def first_of(tensors, kind="lora_A"):
    return next(name for name in tensors if kind in name)


WRONG_FILES = {
    "another prefix": (
        lambda tensors: {name.removeprefix("base_model."): tensor for name, tensor in tensors.items()},
        r"lacks 28 of 28, and 28 of its 28 have no place",
    ),
    "one too many": (
        lambda tensors: tensors | {first_of(tensors).replace("layers.0", "layers.9"): tensors[first_of(tensors)]},
        r"tensors of one and not of the other: .*layers\.9.*lacks 0 of 28, and 1 of its 29",
    ),
    "one missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != first_of(tensors)},
        r"lacks 1 of 28, and 0 of its 27",
    ),
    "another rank": (
        lambda tensors: {name: tensor[:1] if "lora_A" in name else tensor for name, tensor in tensors.items()},
        r"14 tensors have another shape, such as .*: \(1, \d+\) in the file, \(2, \d+\) in the model",
    ),
    "not a number": (
        lambda tensors: tensors | {first_of(tensors): tensors[first_of(tensors)] * float("nan")},
        r"has numbers that are not finite, in .*lora_A",
    ),
    "infinite": (
        lambda tensors: tensors | {first_of(tensors, "lora_B"): tensors[first_of(tensors, "lora_B")] / 0},
        r"has numbers that are not finite, in .*lora_B",
    ),
    "whole numbers": (
        lambda tensors: tensors | {first_of(tensors): tensors[first_of(tensors)].to(torch.int32)},
        r"no floating-point numbers",
    ),
    "without effect": (
        lambda tensors: {name: tensor * 1e-30 for name, tensor in tensors.items()},
        r"changes nothing: .*though its factors are not zero",
    ),
    "overflow": (
        lambda tensors: {name: tensor * 1e30 for name, tensor in tensors.items()},
        r"the model's states are not finite",
    ),
}


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_a_file_whose_tensors_do_not_all_count_is_refused_and_leaves_nothing(
    engine, backbone_of, adapter_folders, tmp_path
):
    backbone = backbone_of("llama").eval()
    backbone.use_engine(engine)
    modules = {name: type(module) for name, module in backbone.named_modules()}
    folder, other = adapter_folders("llama")
    wrong = list(WRONG_FILES.items()) if isinstance(engine, Fast) else list(WRONG_FILES.items())[-2:]
    for name, (change, reason) in wrong:
        with pytest.raises(UserError, match=reason):
            backbone.engine.add_adapter(rewritten(folder, tmp_path / name, change))
        assert {name: type(module) for name, module in backbone.named_modules()} == modules
        assert not backbone.adapter_layers
    beside = backbone.engine.add_adapter(other)
    expected = states_of(backbone, [beside] * 4)
    count = len(list(backbone.parameters()))
    for name, (_, reason) in wrong:
        with pytest.raises(UserError, match=reason):
            backbone.engine.add_adapter(tmp_path / name)
        assert len(list(backbone.parameters())) == count
        assert list(backbone.peft.peft_config) == [beside]
    for got, before in zip(states_of(backbone, [beside] * 4), expected, strict=True):
        assert torch.equal(got, before)


@pytest.mark.parametrize(("family", "name"), [("qwen3", "lm_head"), ("llama", "embed_tokens")])
def test_an_adapter_of_what_all_rows_compute_alike_is_refused(family, name, backbone_of, adapter_folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=2, target_modules=["q_proj", name])
    get_peft_model(backbone_of(family).peft, options).save_pretrained(tmp_path, save_embedding_layers=False)
    backbone = backbone_of(family).eval()
    before = {path: type(module) for path, module in backbone.named_modules()}
    with pytest.raises(
        UserError, match="does not fit the model: it adapts the embeddings or the vocabulary projection"
    ):
        backbone.engine.add_adapter(tmp_path)
    assert {path: type(module) for path, module in backbone.named_modules()} == before
    assert not backbone.adapter_layers


@pytest.mark.parametrize(
    "options",
    [
        {"r": 64, "lora_alpha": 8, "use_rslora": True},
        {"r": 1, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"k_proj": 33}},
    ],
    ids=["rslora", "patterns"],
)
def test_ranks_and_scales_of_every_kind_are_those_of_peft(options, backbone_of, adapter_folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    alone = backbone_of("qwen2")  # its layers have biases
    alone.set_model(
        get_peft_model(alone.peft, LoraConfig(target_modules="all-linear", init_lora_weights=False, **options))
    )
    alone.peft.save_pretrained(tmp_path)
    alone.use_engine(Reference())
    shared = backbone_of("qwen2").eval()
    digests = [shared.engine.add_adapter(tmp_path), shared.engine.add_adapter(adapter_folders("qwen2")[1])]
    adapters = [digests[0], None, digests[1], digests[0]]
    expected, got = states_of(alone.eval(), None), states_of(shared, adapters)
    written, mixed = texts_of(alone, [None] * 4), texts_of(shared, adapters)
    for row in (0, 3):
        torch.testing.assert_close(got[row], expected[row], rtol=1e-4, atol=1e-4)
        assert mixed[row] == written[row]


def test_a_model_in_another_number_format_multiplies_with_factors_in_it(backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    adapters = [backbone.engine.add_adapter(adapter_folders("llama")[0])] * 3 + [None]
    states, texts = states_of(backbone, adapters), texts_of(backbone, adapters)
    backbone.to(torch.float64)
    for got, expected in zip(states_of(backbone, adapters), states, strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-4)
    assert texts_of(backbone, adapters) == texts


def test_a_model_with_added_adapters_gets_none_that_learns(backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    digest = backbone.engine.add_adapter(adapter_folders("llama")[0])
    with pytest.raises(UserError, match=rf"has adapters already \({digest}\): remove them"):
        apply_tuning(backbone.peft, Lora(rank=2))


def test_a_name_that_two_tensors_have_is_refused(backbone_of, adapter_folders, tmp_path):
    folder = rewritten(adapter_folders("llama")[0], tmp_path / "twice", lambda tensors: tensors)
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name, entry = next((name, entry) for name, entry in header.items() if "lora_A" in name)
    text = content[8 : 8 + size].decode().rstrip()
    text = "{" + f"{json.dumps(name)}:{json.dumps(entry)}," + text[1:]
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content[8 + size :])
    with pytest.raises(UserError, match=r"two tensors of one name|does not fit the model"):
        backbone_of("llama").engine.add_adapter(folder)


def test_factors_in_half_precision_count_as_they_are(backbone_of, adapter_folders, tmp_path):
    folder = adapter_folders("llama")[0]
    rounded = rewritten(folder, tmp_path / "a", lambda tensors: {n: t.bfloat16() for n, t in tensors.items()})
    same = rewritten(folder, tmp_path / "b", lambda tensors: {n: t.bfloat16().float() for n, t in tensors.items()})
    backbone = backbone_of("llama").eval()
    digests = [backbone.engine.add_adapter(path) for path in (rounded, same)]
    assert digests[0] != digests[1]
    for row, other in zip(*(states_of(backbone, [digest] * 4) for digest in digests), strict=True):
        assert torch.equal(row, other)


def test_factors_stay_exact_in_a_model_of_half_precision(backbone_of, adapter_folders):
    from safetensors.torch import load_file

    folder = adapter_folders("llama")[0]
    backbone = backbone_of("llama").eval()
    backbone.to(torch.bfloat16)
    digest = backbone.engine.add_adapter(folder)
    loaded = {name.replace(f".{digest}", ""): p for name, p in backbone.peft.named_parameters() if digest in name}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert torch.equal(loaded[name], tensor)


def test_an_adapter_that_learned_nothing_is_loaded_with_a_warning(backbone_of, adapter_folders, tmp_path, caplog):
    def zero(tensors):
        return {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in tensors.items()}

    backbone = backbone_of("llama").eval()
    digest = backbone.engine.add_adapter(rewritten(adapter_folders("llama")[0], tmp_path / "zero", zero))
    assert "zero is zero: it predicts as the backbone alone" in caplog.text
    for got, expected in zip(states_of(backbone, [digest] * 4), states_of(backbone, None), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_merged_adapter_of_its_own_is_refused_before_anything_changes(backbone_of, adapter_folders):
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    backbone.peft.merge_adapter()
    with pytest.raises(UserError, match="merged into its weights: unmerge it"):
        backbone.engine.add_adapter(adapter_folders("llama")[0])
    assert list(backbone.peft.peft_config) == ["default"]


def test_a_file_is_read_beside_passes_and_loaded_later(backbone_of, adapter_folders, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(adapter_folders("llama")[0], folder)
    backbone = backbone_of("llama").eval()
    files = backbone.engine.read_adapter(folder)
    shutil.rmtree(folder)  # replaced in place: what was read counts
    assert backbone.engine.add_adapter(files) == adapter_digest(adapter_folders("llama")[0])


# --- what adding and removing leaves ------------------------------------------------------------------------------


@pytest.fixture
def packings(monkeypatch):
    """The weights that were packed, one entry each time."""
    from gptask.model.engine import private

    packed = []
    monkeypatch.setattr(private, "can_prepack", lambda weight: True)
    monkeypatch.setattr(private, "prepack", lambda weight, rows: packed.append(weight) or weight)
    monkeypatch.setattr(private, "prepacked_linear", torch.nn.functional.linear)
    return packed


@torch.inference_mode()
def test_packed_base_weights_and_checks_outlive_adapters_that_come_and_go(
    packings, backbone_of, adapter_folders, monkeypatch
):
    backbone = backbone_of("llama").eval()
    top, everywhere = reversed(adapter_folders("llama"))
    backbone.hidden(IDS)
    made = dict(backbone.engine.weights._made)
    assert len(made) == 14  # seven in each layer
    plain = backbone.hidden(IDS)
    monkeypatch.setattr(backbone.engine, "install", lambda: pytest.fail("nothing else has changed"))
    first = backbone.engine.add_adapter(top)  # wraps layers of the upper half only
    alone = backbone.hidden(IDS, adapters=[first] * 4)
    second = backbone.engine.add_adapter(everywhere)
    assert torch.allclose(backbone.hidden(IDS, adapters=[first] * 4), alone, atol=1e-5)  # it is merged no longer
    assert not torch.allclose(backbone.hidden(IDS, adapters=[second] * 4), alone, atol=1e-3)
    assert torch.equal(backbone.hidden(IDS), plain)
    backbone.engine.remove_adapter(first)
    backbone.engine.remove_adapter(second)
    assert torch.equal(backbone.hidden(IDS), plain)
    assert backbone.engine.weights._made == made
    assert not hasattr(backbone.peft, "peft_config")


@pytest.mark.parametrize(("own", "times"), [(False, 6), (True, 6), pytest.param(False, 50, marks=pytest.mark.long)])
@torch.inference_mode()
def test_adapters_that_come_and_go_leave_nothing(own, times, backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    if own:
        backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)).eval())
    stays, comes = adapter_folders("llama")
    kept = backbone.engine.add_adapter(stays)

    def sizes():
        backbone.hidden(IDS, adapters=[kept] * 4)  # merged, where it is the only one
        dictionaries = [value for module in backbone.modules() for value in vars(module).values()]
        weights = backbone.engine.weights
        return (
            len(list(backbone.modules())),
            sum(len(value) for value in dictionaries if isinstance(value, dict)),
            len(weights._made),
            len(weights._factors),
        )

    before, files, factors = sizes(), backbone.engine.read_adapter(comes), []
    for _ in range(times):
        digest = backbone.engine.add_adapter(files)
        backbone.hidden(IDS, adapters=[digest] * 4)
        made = [factor for key, pair in backbone.engine.weights._factors.items() if key[1] == digest for factor in pair]
        loaded = [parameter for name, parameter in backbone.named_parameters() if digest in name]
        assert made
        assert loaded
        factors += map(weakref.ref, [*made, *loaded])
        del made, loaded
        backbone.engine.remove_adapter(digest)
    assert sizes() == before
    gc.collect()
    assert not any(factor() is not None for factor in factors)


def test_views_share_the_model_its_engine_and_its_device(backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    view = backbone.with_adapter(backbone.engine.add_adapter(adapter_folders("llama")[0]))
    alone = states_of(view, None)
    backbone.use_engine(Reference())
    assert view.engine is backbone.engine
    for got, expected in zip(states_of(view, None), alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    view.use_engine(Fast())
    assert backbone.engine is view.engine
    assert backbone.engine.backbone is backbone
    view.to(torch.float64)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float64}
    backbone.to(torch.float32)
    bare = backbone.model
    backbone.engine.remove_adapter(view.adapter)
    assert view.peft is backbone.peft is bare
    other = backbone_of("llama", seed=1).peft
    backbone.set_model(other)
    assert view.peft is other
    assert not view.adapter_layers
    with pytest.raises(KeyError, match="no adapter"):
        states_of(view, None)


def test_an_adapter_goes_with_the_model_that_had_it(backbone_of, adapter_folders):
    backbone = backbone_of("llama").eval()
    digest = backbone.engine.add_adapter(adapter_folders("llama")[0])
    backbone.set_model(backbone.peft.unload())
    with pytest.raises(KeyError, match=f"no adapter {digest}"):
        backbone.hidden(IDS, adapters=[digest] * 4)
    assert backbone.engine.add_adapter(adapter_folders("llama")[0]) == digest
