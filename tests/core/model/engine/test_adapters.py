"""Rows of several adapters and of none in one batch get what each gets alone, on both engines."""

import json
import shutil

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
@pytest.mark.parametrize("engine", ENGINES, ids=["fast", "no packing", "no linear", "reference"])
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


def test_a_tensor_that_no_layer_takes_is_refused(backbone_of, adapter_folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "more"
    shutil.copytree(adapter_folders("llama")[0], folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    more = {name.replace("layers.0", "layers.9"): tensors[name].clone()}
    save_file(tensors | more, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"tensors of one and not of the other: .*layers\.9"):
        backbone_of("llama").engine.add_adapter(folder)


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
