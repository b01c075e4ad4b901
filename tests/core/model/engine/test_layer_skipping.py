"""Rows whose adapter was trained in a model of fewer layers get what they get in that model alone, on both engines."""

from types import SimpleNamespace

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.errors import UserError
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import layer_skipping
from gptask.model.engine.activation_cache import capture_or_resume
from gptask.model.engine.forward_state import forward_state
from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions

LAYERS = 4
IDS = torch.tensor(
    [
        [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        [5, 6, 7, 8, 9, 10, 20, 0, 0, 0, 0, 0],
        [5, 6, 7, 8, 9, 10, 11, 0, 0, 0, 0, 0],
        [40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [5, 6, 7, 8, 9, 10, 11, 12, 13, 30, 31, 32],
        [5, 6, 7, 9, 8, 0, 0, 0, 0, 0, 0, 0],
    ]
)
LENGTHS = torch.tensor([12, 7, 7, 1, 12, 5])
FAMILIES = ["gpt2", "llama", "gemma3", *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen2", "qwen3"))]
OF_ROWS = [0, 1, 2, 3, 0, 1]  # number of each row's adapter; the last one is none
TUNINGS = [(2, Lora(rank=2, top=0.5)), (3, Lora(rank=3)), (LAYERS, Lora(rank=2, top=0.5))]
GREEDY = GenerationOptions(max_new_tokens=5)
BEAMS = GenerationOptions(max_new_tokens=5, num_beams=2)


def assert_close(got, expected):
    """Equal to 5e-5 of the largest number: random weights of 0.3 amplify what float32 rounds away."""
    assert (got - expected).abs().max() <= 5e-5 * expected.abs().max()


def random_adapter(backbone, tuning, seed=0):
    torch.manual_seed(seed)
    backbone.set_model(apply_tuning(backbone.peft, tuning))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return backbone.eval()


@pytest.fixture(scope="module")
def cut_models(backbone_of, tmp_path_factory):
    """``cut_models("llama")``: folders of adapters of 2, 3 and all layers, and a backbone of their own for each."""

    def make(family):
        folders, alone = [], []
        for number, (layers, tuning) in enumerate(TUNINGS):
            backbone = backbone_of(family, layers=LAYERS)
            backbone.use_engine(Reference())
            backbone.keep_layers(range(layers))
            random_adapter(backbone, tuning, number)
            folders.append(tmp_path_factory.mktemp(f"{family}-{layers}"))
            backbone.peft.save_pretrained(folders[-1])
            alone.append(backbone)
        alone.append(backbone_of(family, layers=LAYERS).eval())
        return SimpleNamespace(folders=folders, alone=alone)

    return make


def add_all(backbone, models):
    counts = [layers for layers, _ in TUNINGS]
    return [backbone.engine.add_adapter(*pair) for pair in zip(models.folders, counts, strict=True)] + [None]


def texts(backbone, adapters):
    rows = [
        DecodingRow(ids[:length].tolist(), 5, GREEDY, adapter)
        for ids, length, adapter in zip(IDS, LENGTHS, adapters, strict=True)
    ]
    backbone.engine.decode(rows)
    return [row.new_ids for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_of_several_depths_in_one_call_equal_models_of_these_depths(family, backbone_of, cut_models):
    models = cut_models(family)
    states = [backbone.hidden(IDS) for backbone in models.alone]
    written = [texts(backbone, [None] * len(IDS)) for backbone in models.alone]
    shared = backbone_of(family, layers=LAYERS).eval()
    digests = add_all(shared, models)
    assert [shared.engine.layers_of(digest) for digest in digests] == [2, 3, LAYERS, LAYERS]
    adapters = [digests[number] for number in OF_ROWS]
    needed = torch.arange(IDS.shape[1]) == LENGTHS[:, None] - 1
    embeds = shared.model.get_input_embeddings()(IDS)
    if family == "gemma3":
        embeds = shared.body.embed_tokens(IDS)  # scaled
    for engine in (Fast(), Reference()):
        shared.use_engine(engine)
        calls = {
            "packed": shared.hidden(IDS, LENGTHS, adapters=adapters),
            "padded": shared.hidden(IDS, adapters=adapters),
            "embeds": shared.hidden(embeds=embeds, lengths=LENGTHS, adapters=adapters),
            "needed": shared.hidden(IDS, LENGTHS, needed, adapters=adapters),
        }
        for call, got in calls.items():
            for row, number in enumerate(OF_ROWS):
                start = LENGTHS[row] - 1 if call == "needed" else 0
                real = slice(start, LENGTHS[row])
                assert_close(got[row, real], states[number][row, real])
        assert texts(shared, adapters) == [written[number][row] for row, number in enumerate(OF_ROWS)]


@pytest.mark.parametrize(
    ("family", "engine"),
    [("llama", Fast()), pytest.param("gpt2", Fast(), marks=pytest.mark.long), ("llama", Reference())],
)
def test_beams_are_those_of_the_adapter_and_its_layers(family, engine, backbone_of, cut_models):
    models = cut_models(family)
    shared = backbone_of(family, layers=LAYERS).eval()
    digests = add_all(shared, models)
    shared.use_engine(engine)
    prompts = [IDS[0].tolist(), IDS[3, :1].tolist()]
    texts_of = [[text.text for text in generate(one, prompts, BEAMS)] for one in models.alone]
    for number, digest in enumerate(digests):
        assert [text.text for text in generate(shared.with_adapter(digest), prompts, BEAMS)] == texts_of[number]
    assert len({tuple(pair) for pair in texts_of}) == len(texts_of)


def test_the_same_bytes_for_other_layers_are_another_adapter(backbone_of, cut_models):
    models = cut_models("llama")
    shared = backbone_of("llama", layers=LAYERS).eval()
    engine = shared.engine
    digests = [engine.add_adapter(models.folders[0], layers) for layers in (2, 3, 2)]
    assert digests[0] == digests[2] != digests[1]
    assert engine.add_adapter(models.folders[2]) == engine.add_adapter(models.folders[2], LAYERS)
    for layers in (0, LAYERS + 1):
        with pytest.raises(UserError, match=f"is one of {layers} layers; the model has {LAYERS}"):
            engine.add_adapter(models.folders[0], layers)


def test_factors_of_layers_that_are_left_out_are_refused(backbone_of, cut_models):
    folder = cut_models("llama").folders[1]  # factors in three layers
    shared = backbone_of("llama", layers=LAYERS).eval()
    with pytest.raises(UserError, match=r"does not fit the model: .*layers\.2.*and 14 of its 42 have no place"):
        shared.engine.add_adapter(folder, 2)
    assert not shared.adapter_layers


@pytest.mark.parametrize("excluded", [r".*\.(k_proj)", ["k_proj"]], ids=["pattern", "names"])
def test_what_an_adapter_itself_excludes_stays_without_factors(excluded, backbone_of, tmp_path):
    from peft import LoraConfig, get_peft_model

    alone = backbone_of("llama", layers=LAYERS)
    alone.keep_layers([0, 1])
    options = LoraConfig(r=2, target_modules="all-linear", exclude_modules=excluded, init_lora_weights="gaussian")
    alone.set_model(get_peft_model(alone.peft, options))
    torch.nn.init.normal_(next(p for name, p in alone.named_parameters() if "lora_B" in name))
    alone.peft.save_pretrained(tmp_path)
    shared = backbone_of("llama", layers=LAYERS).eval()
    digest = shared.engine.add_adapter(tmp_path, 2)
    with torch.no_grad():
        expected = alone.eval().hidden(IDS)
        assert_close(shared.hidden(IDS, adapters=[digest] * len(IDS)), expected)


class TupleLayer:
    """The forward function of a layer that returns its states in a tuple."""

    def __call__(self, layer, hidden, *args, **kwargs):
        return type(layer).forward(layer, hidden, *args, **kwargs), None


def test_a_layer_is_left_out_in_the_form_in_which_it_returns_its_states(backbone_of):
    backbone = backbone_of("llama", layers=LAYERS)
    layer = backbone.layers[-1]
    function = layer_skipping.SkippableLayer(3, TupleLayer())
    hidden = torch.randn(1, 3, 32)
    rotary = backbone.body.rotary_emb(hidden, torch.arange(3)[None])
    assert len(function(layer, hidden, position_embeddings=rotary)) == 2
    with forward_state(layers=3):
        states, more = function(layer, hidden, position_embeddings=rotary)
    assert states is hidden
    assert more is None


def test_a_model_whose_upper_layers_do_more_refuses_such_adapters(backbone_of, cut_models):
    models = cut_models("llama")
    shared = backbone_of("llama", layers=LAYERS)
    shared.use_engine(Reference())
    norm = shared.body.norm
    forward = norm.forward
    norm.forward = lambda states: forward(states) + len(shared.layers)  # depends on how many layers there are
    with pytest.raises(UserError, match=r"rows can't leave LlamaForCausalLM after them: its states after them are not"):
        shared.engine.add_adapter(models.folders[0], 2)
    assert not shared.adapter_layers


def test_cached_activations_and_layers_that_are_left_out_go_together(backbone_of, cut_models):
    from gptask.data.datamodule import PaddedBatch

    models = cut_models("llama")
    shared = backbone_of("llama", layers=LAYERS).eval()
    batch = PaddedBatch(IDS, LENGTHS, LENGTHS)
    with torch.no_grad():
        plain, _ = capture_or_resume(shared, shared.layers[:2], batch, None)
        view = shared.with_adapter(shared.engine.add_adapter(models.folders[1], 3))
        adapted, states = capture_or_resume(view, shared.layers[:2], batch, None)
        resumed, _ = capture_or_resume(view, shared.layers[:2], batch, states)
        again, _ = capture_or_resume(shared, shared.layers[:2], batch, None)
    expected = models.alone[1].hidden(IDS)
    for row, length in enumerate(LENGTHS):
        assert_close(adapted[row, :length], expected[row, :length])
        assert_close(resumed[row, :length], expected[row, :length])
        assert_close(again[row, :length], plain[row, :length])
