"""A GGUF file holds the run's language model: gptask and llama.cpp read it and compute the same."""

import json
import math
import os
import random
import re
import statistics
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from gptask import UserError
from gptask.config.schemas import DType, Export, ExportFormat, Full, Lora, Pretrained, Quantization
from gptask.data.datamodule import encode
from gptask.model.backbone.backbone import from_folder
from gptask.model.backbone.locate import locate
from gptask.runs import gguf_export, gguf_weights
from gptask.runs.export import export
from gptask.runs.gguf_tokenizer import WORDS
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.tiny_models import TEXT
from tests.support.tokenizers import sentencepiece_by_scores, tokenizer_of, with_rule

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "gemma3", "scratch"]
FORMATS = [*Quantization]
TOKENIZERS = {
    "gpt-2": lambda: tokenizer_of("byte-level"),
    "smollm": lambda: with_rule(["digits", "bytes and words"]),
    "qwen2": lambda: with_rule([WORDS % "", "bytes"]),
    "smaug-bpe": lambda: with_rule([WORDS % "{1,3}", "bytes"]),
    "llama-bpe": lambda: with_rule([WORDS % "{1,3}", "bytes"], ignore_merges=True),
    "gemma": lambda: sentencepiece_by_scores("gemma"),
    "llama": lambda: sentencepiece_by_scores("llama"),
}
TOLERANCES = {Quantization.f16: 0.03, Quantization.q8_0: 0.4, Quantization.q4_1: 0.4}  # it rounds states, too
EQUAL_TEXTS = {Quantization.f16: 0.96, Quantization.q8_0: 0.5}  # two near answers may change places


@pytest.fixture(scope="session")
def gemma(tiny_model, tmp_path_factory):
    """A tiny Gemma 3 with the kind of tokenizer that a Gemma has."""
    folder = tmp_path_factory.mktemp("gemma") / "model"
    return str(model_with(sentencepiece_by_scores("gemma"), tiny_model("gemma3", 128), folder))


def model_with(tokenizer, source, folder):
    """A folder with the model of another one, with this tokenizer and as many embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.get_input_embeddings().weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_of(random_run, gemma):
    """``run_of("llama")``: a run that translates, made once."""
    runs = {}

    def make(family):
        if family not in runs:
            task = Translation(prompt="Say in French: {source}\n")
            task.generation.max_new_tokens, task.generation.stop = 8, ["\n"]
            tuning = Full() if family == "scratch" else Lora(rank=2)
            runs[family] = random_run(task, gemma if family == "gemma3" else family, tuning)
        return runs[family]

    return make


def exported(run, path, quantization=None):
    return export(Export(run=str(run.folder), output=str(path), format=ExportFormat.gguf, quantization=quantization))


def reader_of(path):
    from gguf import GGUFReader

    return GGUFReader(path)


def merged_weights(run):
    from gptask import load_run

    backbone = load_run(run.folder).backbone
    model = backbone.peft.merge_and_unload() if hasattr(backbone.peft, "merge_and_unload") else backbone.peft
    return model, model.state_dict()


def largest_error(name, values, quantization):
    """What rounding may change in each value (rows, columns) of a weight: half a step of its block of 32."""
    if values.ndim == 1 or "wpe" in name:
        return torch.zeros_like(values)
    stored = values.T if re.search(r"c_attn|c_proj|c_fc", name) else values  # GPT-2 keeps them the other way round
    vocabulary = re.search("embed_tokens|wte|lm_head", name)
    kind = Quantization.q8_0 if quantization is Quantization.q4_1 and vocabulary else quantization
    if kind is Quantization.f16 or stored.shape[1] % 32:
        return values.abs() * 2**-11 + 1e-7
    blocks = stored.reshape(len(stored), -1, 32)
    step = blocks.abs().amax(-1) / 127 if kind is Quantization.q8_0 else (blocks.amax(-1) - blocks.amin(-1)) / 15
    scales = blocks.abs().amax(-1) * 2**-10  # block scales are in half precision
    error = (step / 2 + scales)[..., None].expand_as(blocks).reshape(stored.shape)
    return error.T if stored is not values else error


def assert_read_back(run, path, quantization):
    """The file, read by gptask, has the run's weights up to rounding, computes as the run does, and tokenizes so."""
    read = from_folder(locate(Pretrained(source=str(path))))
    model, weights = merged_weights(run)
    config = model.config
    read_weights = read.model.state_dict()
    assert read_weights.keys() == weights.keys()
    for name, values in weights.items():
        if name.endswith("q_norm.weight") and config.model_type == "gemma3_text":  # carries the scale of the scores
            scale = math.sqrt(config.head_dim / config.query_pre_attn_scalar)
            read_weights[name] = (1 + read_weights[name]) / scale - 1
            torch.testing.assert_close(read_weights[name], values, atol=1e-5, rtol=1e-5)
            continue
        assert (read_weights[name] - values).abs().le(largest_error(name, values, quantization) + 1e-6).all(), name
    model.load_state_dict(read_weights)
    ids = torch.tensor([[5, 6, 7, 8, 9, 40, 50, 60, 250, 270] * 3])
    with torch.inference_mode():
        expected, logits = model(ids).logits, read.model(ids).logits
    tolerance = 2e-2 if run.folder and config.model_type == "gpt2" and config.activation_function == "gelu" else 1e-4
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    assert read.context == run.backbone.context
    for text in (TEXT, "it's 1234 films\n\n  good\t😀 é", " leading and trailing "):
        assert read.tokenizer(text)["input_ids"] == run.backbone.tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("family", "quantization"), zip(FAMILIES, FORMATS * 2, strict=True))
def test_gptask_reads_its_file_back(family, quantization, run_of, tmp_path):
    path = exported(run_of(family), tmp_path / "model.gguf", quantization)
    assert_read_back(run_of(family), path, quantization)


@pytest.mark.long
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gptask_reads_every_family_in_every_format_back(family, quantization, run_of, tmp_path):
    assert_read_back(run_of(family), exported(run_of(family), tmp_path / "model.gguf", quantization), quantization)


# --- what the file and its page say ---------------------------------------------------------------------------------


def test_the_file_names_its_run_and_has_the_formats_that_were_asked_for(run_of, tmp_path):
    run = run_of("llama")
    path = exported(run, tmp_path / "new" / "model.gguf", Quantization.q4_1)
    reader = reader_of(path)
    values = {name: field.contents() for name, field in reader.fields.items() if "tokens" not in name}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == run.folder.name
    assert values["general.license"] == "MIT"
    assert values["general.file_type"] == 3  # mostly Q4_1
    assert values["gptask.run"] == str(run.folder)
    assert values["gptask.task"] == "translation"
    assert values["gptask.prompt_template"] == "Say in French: {source}\n"
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert Counter(tensor.tensor_type.name for tensor in reader.tensors) == {
        "Q4_1": 12,  # rows of 32; the two matrices with rows of 48 fill no blocks
        "F16": 2,
        "F32": 5,
        "Q8_0": 1,
    }
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.gguf", "model.gguf.md"]


def test_the_page_has_a_request_that_decodes_as_the_run(run_of, tmp_path):
    path = exported(run_of("llama"), tmp_path / "model.gguf")
    page = path.with_name("model.gguf.md").read_text(encoding="utf-8")
    assert "(licence: MIT)" in page
    assert "The weights are q8_0, f16, f32." in page
    assert "and ends with a line break, as in training" in page
    assert "```text\nSay in French: {source}\n```" in page
    (request,) = re.findall(r"completion -d '(.*)'\n", page)
    assert json.loads(request) == {
        "prompt": "Say in French: {source}\n",
        "n_predict": 8,
        "stop": ["\n"],
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": -1,
    }


def test_the_page_names_what_llama_cpp_does_otherwise(random_run, tmp_path):
    task = Translation()
    task.generation.num_beams = 4
    page = exported(random_run(task, "llama", Lora(rank=2)), tmp_path / "a.gguf").with_name("a.gguf.md").read_text()
    assert "llama.cpp has no num_beams=4, with which the run decodes" in page
    task = TextGeneration()
    task.generation.temperature, task.generation.top_k, task.generation.max_new_tokens = 0.7, 5, 8
    page = exported(random_run(task, "llama", Lora(rank=2)), tmp_path / "b.gguf").with_name("b.gguf.md").read_text()
    assert '"temperature": 0.7' in page
    assert '"top_k": 5, "top_p": 1.0, "min_p": 0.0' in page


def test_a_run_that_learned_every_token_is_exported(random_run, tmp_path):
    path = exported(random_run(LanguageModeling(), "llama", Lora(rank=2)), tmp_path / "model.gguf")
    assert reader_of(path).get_field("gptask.task").contents() == "language_modeling"


def test_a_run_keeps_its_layers(random_run, tmp_path):
    run = random_run(Translation(), "llama", Lora(rank=2, layers=0.5))
    reader = reader_of(exported(run, tmp_path / "model.gguf"))
    assert reader.get_field("llama.block_count").contents() == 1
    assert not any(tensor.name.startswith("blk.1.") for tensor in reader.tensors)


def test_one_tensor_is_converted_after_the_other(run_of, tmp_path, monkeypatch):
    sizes, convert = [], gguf_weights.stored_array

    def watched(tensor, config):
        sizes.append((tmp_path / "model.gguf.part").stat().st_size)
        return convert(tensor, config)

    monkeypatch.setattr(gguf_weights, "stored_array", watched)
    exported(run_of("llama"), tmp_path / "model.gguf")
    written = np.diff(sizes)
    assert len(written) > 10
    assert (written[1:] > 0).all()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Classification(labels=["a", "b"]), "no head such as its ClassificationHead.*leave format=gguf out"),
        (QuestionAnswering(answer=AnswerForm.span), "no head such as its SpanHead.*gptask predict and gptask serve"),
        (TokenTagging(types=["PER", "LOC"]), "no head such as its .*Head.*gptask predict and gptask serve"),
    ],
)
def test_a_run_with_a_head_of_its_own_is_refused(task, message, random_run, tmp_path):
    with pytest.raises(UserError, match=message):
        exported(random_run(task, "llama", Lora(rank=2)), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": True}, "adapter=true goes with format=huggingface"),
        ({"dtype": DType.float32}, r"dtype=float32 goes with format=huggingface: here it is quantization="),
        ({"output": "model"}, "output=model: with format=gguf it is a file whose name ends in .gguf"),
        ({"format": ExportFormat.huggingface}, "output=model.gguf goes with format=gguf"),
        (
            {"format": ExportFormat.huggingface, "output": "out", "quantization": Quantization.f16},
            "quantization=f16 goes with format=gguf",
        ),
    ],
)
def test_options_of_another_format_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"run": "r", "output": "model.gguf", "format": ExportFormat.gguf} | options
    with pytest.raises(UserError, match=message):
        export(Export(**values))


@pytest.mark.parametrize("name", ["model.gguf", "model.gguf.md"])
def test_an_existing_file_is_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists; choose another output"):
        export(Export(run="r", output=str(tmp_path / "model.gguf"), format=ExportFormat.gguf))
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(("module", "step"), [(gguf_weights, "stored_array"), (gguf_export, "_page")])
def test_a_failing_write_leaves_nothing(module, step, run_of, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, step, disk_full)
    with pytest.raises(UserError, match="No space left on device while writing output="):
        exported(run_of("llama"), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


# --- llama.cpp ------------------------------------------------------------------------------------------------------

REAL_RUN = Path(os.environ.get("GPTASK_GGUF_RUN", ""))  # a finished run on Multi30k, for the long tier
TEXTS = [
    TEXT,
    "It's 12,345.67 films — we'll SEE 'em\n\n\n  and\t more...   ",
    "naïve café № ½ ² x² ① ٣٤٥ १२३",
    "  two  spaces, a\r\nbreak and a long 123456789012 number",
    "def f(x):\n    return x**2  # тест 中文，混合 テスト 한국어",
    "😀👨‍👩‍👧🇫🇷 e\u0301 \u200b zero\u00a0width",
    "<|im_end|> <start_of_turn>",
]


@pytest.fixture
def llama_cpp():
    """``llama_cpp(path)``: a function that asks llama.cpp's server for a model file."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
    servers = []

    def serve(path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.port, params.warmup, params.verbosity = 512, 1, 0, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        server = xllamacpp.Server(params)
        servers.append(server)

        def ask(route, **body):
            request = urllib.request.Request(
                server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        return ask

    yield serve
    servers.clear()


@pytest.mark.long
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_every_family(family, quantization, run_of, tmp_path, llama_cpp):
    """The log-probabilities behind prompts are those of gptask on the same file."""
    path = exported(run_of(family), tmp_path / "model.gguf", quantization)
    ask, read = llama_cpp(path), from_folder(locate(Pretrained(source=str(path))))
    numbers, errors = random.Random(0), []
    for length in range(5, 60, 5):
        ids = [numbers.randrange(3, 256) for _ in range(length)]
        with torch.inference_mode():
            expected = read.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        answer = ask("/completion", prompt=ids, n_predict=1, n_probs=20, temperature=0, cache_prompt=False)
        if not (steps := answer.get("completion_probabilities")):  # of an end of text, or a part of a character
            continue
        (first,) = steps
        got = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
        errors.append(statistics.mean(abs(value - float(expected[token])) for token, value in got.items()))
    assert len(errors) >= 2
    assert statistics.median(errors) < TOLERANCES[quantization], errors


@pytest.mark.long
@pytest.mark.parametrize("kind", [*TOKENIZERS])
def test_llama_cpp_tokenizes_as_the_run(kind, random_run, tiny_model, tmp_path, llama_cpp):
    folder = model_with(TOKENIZERS[kind](), tiny_model("llama", 128), tmp_path / "backbone")
    run = random_run(Translation(prompt="Say: {source}"), str(folder), Lora(rank=2))
    ask = llama_cpp(exported(run, tmp_path / "model.gguf"))
    for text in TEXTS:
        prompt = f"Say: {text}"
        expected = run.backbone.tokenizer(prompt)["input_ids"]
        tokens = ask("/tokenize", content=prompt, add_special=True, parse_special=False)["tokens"]
        assert tokens == expected, text


@pytest.mark.long
@pytest.mark.parametrize("quantization", [Quantization.f16, Quantization.q8_0])
def test_llama_cpp_writes_the_texts_of_a_real_run(quantization, tmp_path, llama_cpp):
    if not REAL_RUN.is_dir() or not REAL_RUN.name:
        pytest.skip("GPTASK_GGUF_RUN names no run that was trained on Multi30k")
    from gptask import load_run

    run = load_run(REAL_RUN, dtype=DType.float32)
    rows = [json.loads(line) for line in (REAL_RUN / "predictions.jsonl").read_text().splitlines()]
    expected = [prediction.value for prediction in run.predict({"source": row["source"]} for row in rows)]
    ask, options = llama_cpp(exported(run, tmp_path / "model.gguf", quantization)), run.head.options
    texts = []
    for row in rows:
        ids = encode(run.task, {"source": row["source"], "target": None}, run.backbone.tokenizer, 512)[0]["ids"]
        prompt = run.task.render({"source": row["source"], "target": None})[0]
        assert ask("/tokenize", content=prompt, add_special=True)["tokens"] == [*ids]
        answer = ask("/completion", prompt=prompt, n_predict=options.limit, stop=options.stop, temperature=0)
        texts.append(answer["content"].strip())
    equal = sum(text == other for text, other in zip(texts, expected, strict=True)) / len(texts)
    references = [[row["references"]["target"][0] for row in rows]]
    bleu, expected_bleu = (sacrebleu.corpus_bleu(side, references).score for side in (texts, expected))
    print(f"{quantization.value}: {equal:.0%} of {len(texts)} texts are equal, BLEU {bleu:.2f} and {expected_bleu:.2f}")
    assert equal >= EQUAL_TEXTS[quantization]
    assert abs(bleu - expected_bleu) < 2
