"""A padded batch gives what transformers gives for one example at a time; models that are no decoder are refused."""

import json
import shutil
from functools import partial

import pytest
import torch
import transformers
from gptask.config.schemas import DType, Lora, Scratch
from gptask.data.datamodule import collate
from gptask.errors import UserError
from gptask.model.backbone.backbone import from_folder, load_or_build_backbone, number_format
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.generate import generate
from gptask.model.heads import GenerationHead
from gptask.plugins.generation_options import GenerationOptions

from tests.support.tiny_models import FAMILIES

ITEMS = [  # longer and shorter than Gemma's tiny window of 8
    {"ids": list(range(5, 5 + prompt)), "target": list(range(40, 40 + target)), "label": None, "extra": None}
    for prompt, target in [(1, 4), (21, 3), (7, 9), (12, 1)]
]


def saved(model, folder, tiny_model):
    """Save a model of any kind to a local folder with a tokenizer."""
    model.save_pretrained(folder)
    for file in tiny_model("llama").glob("tokenizer*"):
        shutil.copy(file, folder)
    return BackboneOrigin(str(folder), "local folder", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_every_real_position_equal_transformers_one_by_one(family, backbone_of):
    backbone, batch = backbone_of(family), collate(ITEMS)
    with torch.inference_mode():
        ours = backbone.logits(backbone.hidden(batch.input_ids))
        for row, length, item in zip(ours, batch.lengths.tolist(), ITEMS, strict=True):
            expected = backbone.model(torch.tensor([item["ids"] + item["target"]])).logits[0]
            torch.testing.assert_close(row[:length], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_those_of_transformers_labels(family, backbone_of):
    backbone, batch = backbone_of(family), collate(ITEMS)
    loss = GenerationHead(backbone, GenerationOptions()).loss(backbone.hidden(batch.input_ids), batch)
    weight = backbone.model.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(loss, weight)
    targets = sum(len(item["target"]) for item in ITEMS)
    expected = sum(
        backbone.model(
            torch.tensor([item["ids"] + item["target"]]),
            labels=torch.tensor([[-100] * len(item["ids"]) + item["target"]]),
        ).loss
        * len(item["target"])
        / targets
        for item in ITEMS
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0], atol=1e-5, rtol=1e-4)


def test_logits_are_softcapped_if_the_config_says_so(backbone_of):
    backbone, ids = backbone_of("gemma3"), torch.tensor([[5, 6, 7]])
    plain = backbone.logits(backbone.hidden(ids))
    backbone.model.config.final_logit_softcapping = 2.0
    capped = backbone.logits(backbone.hidden(ids))
    assert plain.abs().max() > 2 > capped.abs().max()
    torch.testing.assert_close(capped, backbone.model(ids).logits)


def test_of_a_multimodal_model_only_the_text_decoder_is_used(tmp_path, tiny_model):
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = AutoConfig.from_pretrained(tiny_model("gemma3")).to_dict()
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
        )
    )
    backbone = from_folder(saved(model, tmp_path / "m", tiny_model))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    backbone.train()  # the multimodal wrapper asks for image markers then
    torch.testing.assert_close(backbone.logits(backbone.hidden(ids)), backbone.model.eval()(ids).logits)
    assert (backbone.channels, backbone.context) == (32, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_a_cut_model_are_the_normed_states_of_its_last_layer(family, backbone_of):
    uncut, backbone, batch = backbone_of(family, layers=4), backbone_of(family, layers=4), collate(ITEMS)
    norm = uncut.body.ln_f if family == "gpt2" else uncut.body.norm
    with torch.inference_mode():
        layer_states = uncut.model(batch.input_ids[:, :7], output_hidden_states=True).hidden_states
        for layers in (3, 1):  # the second cut applies to the result of the first
            backbone.keep_layers(range(layers))
            assert len(backbone.layers) == backbone.model.config.num_hidden_layers == layers
            torch.testing.assert_close(backbone.hidden(batch.input_ids[:, :7]), norm(layer_states[layers]))
            needed = torch.arange(batch.input_ids.shape[1]) == batch.last()[:, None]
            needed_states = backbone.hidden(batch.input_ids, batch.lengths, needed)[needed]
            torch.testing.assert_close(needed_states, backbone.hidden(batch.input_ids)[needed], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "family", ["gpt2", "gemma3", *(pytest.param(name, marks=pytest.mark.long) for name in ("llama", "qwen2", "qwen3"))]
)
def test_layers_that_stay_compute_and_cache_as_in_a_model_that_never_had_others(family, backbone_of, tmp_path):
    uncut, backbone = backbone_of(family, layers=5), backbone_of(family, layers=5)
    ids_BT = collate(ITEMS).input_ids[:, :7]
    kinds = getattr(uncut.config, "layer_types", [])
    backbone.keep_layers([1, 2, 4])
    backbone.keep_layers([1, 4])  # by the numbers they had in the model
    assert backbone.layer_numbers == [1, 4]
    assert getattr(backbone.config, "layer_types", []) == [kinds[layer] for layer in (1, 4) if kinds]
    for number in (0, 2, 3):  # a layer that adds nothing to the states is as good as none
        for name, parameter in uncut.layers[number].named_parameters():
            if name.rpartition(".")[0].endswith(("o_proj", "down_proj", "c_proj")):
                parameter.data.zero_()
    with torch.inference_mode():
        torch.testing.assert_close(backbone.hidden(ids_BT), uncut.hidden(ids_BT))
    (row,) = rows = [DecodingRow([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], 8, GenerationOptions())]
    backbone.engine.decode(rows)
    (expected,) = uncut_rows = [DecodingRow(row.prompt, 8, GenerationOptions())]
    uncut.engine.decode(uncut_rows)
    assert row.new_ids == expected.new_ids
    cache = transformers.DynamicCache(config=backbone.config)
    backbone.body(input_ids=ids_BT, past_key_values=cache, use_cache=True)
    assert len(cache.layers) == 2  # were the layers not renumbered, there would be empty ones
    backbone.model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids_BT).logits, backbone.model(ids_BT).logits)


def test_layers_that_are_not_there_are_refused_and_nothing_changes(backbone_of):
    backbone, ids_BT = backbone_of("gemma3", layers=4), collate(ITEMS).input_ids[:, :7]
    before, kinds = backbone.hidden(ids_BT), [*backbone.config.layer_types]
    with pytest.raises(UserError, match="the backbone has no layer 4, 7: it has 4, 0 to 3"):
        backbone.keep_layers([0, 4, 7])
    backbone.body.register_forward_pre_hook(lambda body, _: None if body.layers[3] else ())
    with pytest.raises(UserError, match="Gemma3ForCausalLM needs all of its 4 layers"):
        backbone.keep_layers([0, 3])
    assert (backbone.layer_numbers, backbone.config.layer_types) == ([0, 1, 2, 3], kinds)
    assert [layer.self_attn.layer_idx for layer in backbone.layers] == [0, 1, 2, 3]
    assert torch.equal(backbone.hidden(ids_BT), before)


def test_a_model_whose_layers_compute_by_their_number_is_refused(backbone_of, tiny_model, tmp_path):
    shutil.copytree(tiny_model("gpt2", layers=3), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scale_attn_by_inverse_layer_idx": True}))
    backbone = from_folder(BackboneOrigin(str(tmp_path), "local folder", ""))
    with pytest.raises(
        UserError, match=r"needs all of its 3 layers \(its config does not describe the others: attn.scaling"
    ):
        backbone.keep_layers([0, 2])
    assert [layer.attn.layer_idx for layer in backbone.layers] == [0, 1, 2]
    backbone.keep_layers([0, 1])  # these have the numbers they had
    plain = backbone_of("gpt2", layers=3)
    for layer in plain.layers:
        layer.register_forward_hook(lambda layer, args, states: states * (1 + layer.attn.layer_idx))
    with pytest.raises(UserError, match=r"needs all of its 3 layers \(a layer computes by its number\)"):
        plain.keep_layers([0, 2])


def test_a_word_vector_is_the_mean_output_embedding_of_its_tokens(backbone_of):
    backbone = backbone_of("qwen3")  # untied
    table = backbone.model.lm_head.weight
    one, several = backbone.word_vectors([" good", " goodbad"])
    ids = backbone.tokenizer(" goodbad")["input_ids"]
    assert len(ids) > 1
    torch.testing.assert_close(several, table[ids].mean(0))
    torch.testing.assert_close(one, table[backbone.tokenizer(" good")["input_ids"]].mean(0))
    with pytest.raises(UserError, match="no tokens"):
        backbone.word_vectors([""])


def test_stop_ids_come_from_the_tokenizer_and_the_generation_config(backbone_of):
    backbone = backbone_of("llama")
    for eos_ids, expected in [([7, 9], {0, 7, 9}), (7, {0, 7}), (None, {0})]:
        backbone.model.generation_config.eos_token_id = eos_ids
        assert backbone.stop_ids == expected


SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def bert(tiny_model):
    from transformers import BertConfig, BertLMHeadModel

    return BertLMHeadModel(BertConfig(**SIZES, initializer_range=2.0))


def granite(tiny_model):
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))


def t5(tiny_model):
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8))


@pytest.mark.parametrize(
    ("make", "message"), [(bert, "not causal"), (granite, "does more to its logits"), (t5, "no causal")]
)
def test_a_model_that_is_no_plain_decoder_is_refused(make, message, tmp_path, tiny_model):
    torch.manual_seed(1)
    with pytest.raises(UserError, match=message):
        from_folder(saved(make(tiny_model), tmp_path / "m", tiny_model))


def test_a_folder_that_lacks_weights_is_refused(tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .*layers\.1\.mlp\.up_proj"):
        from_folder(BackboneOrigin(str(folder), "local folder", ""))


def test_a_folder_with_damaged_weights_is_refused(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors can't be read, its content is damaged"):
        from_folder(BackboneOrigin(str(folder), "local folder", ""))


def test_a_tokenizer_without_eos_is_refused(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no EOS token"):
        from_folder(BackboneOrigin(str(folder), "local folder", ""))


def test_number_format_follows_the_option(backbone_of):
    assert number_format(DType.float32) is torch.float32
    assert number_format(DType.bfloat16) is torch.bfloat16
    assert number_format(DType.auto) in (torch.float32, torch.bfloat16)
    options = Scratch(n_layer=1, n_head=2, n_embd=16, context=32, vocab_size=300, dtype=DType.bfloat16)
    assert load_or_build_backbone(options, None, lambda: ["some text"]).model.dtype is torch.bfloat16


def test_a_compiled_backbone_learns_the_same(backbone_of, monkeypatch):
    """The backend ``aot_eager`` captures and differentiates one graph, but needs no C++ compiler to run it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr("gptask.model.backbone.backbone.shutil.which", lambda name: name)
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2, top=1.0)).eval())
    ids, results = torch.arange(5, 26).view(3, 7), []
    keys = list(backbone.state_dict())
    for _ in range(2):
        backbone.zero_grad()
        states = backbone.hidden(ids, torch.tensor([7, 5, 7]))[:, :5]
        states.square().sum().backward()
        results.append((states.detach(), [p.grad.clone() for p in backbone.parameters() if p.requires_grad]))
        backbone.compile()
    (states, gradients), (compiled_states, compiled_gradients) = results
    torch.testing.assert_close(compiled_states, states, atol=1e-4, rtol=1e-3)
    for gradient, expected in zip(compiled_gradients, gradients, strict=True):
        assert (gradient - expected).abs().max() <= 1e-3 * max(1.0, expected.abs().max())
    assert list(backbone.state_dict()) == keys
    assert generate(backbone, [[5, 6, 7]], GenerationOptions(max_new_tokens=2))


def test_compiling_without_a_compiler_is_refused(backbone_of, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler on a CPU; found none of"):
        backbone_of("llama").compile()
