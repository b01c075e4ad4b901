"""A GGUF file holds the run's language model: gptask and llama.cpp read it back and compute the same."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gptask import UserError
from gptask.config.schemas import DType, Export, ExportFormat, Full, Lora, Pretrained, Quantization
from gptask.model.backbone.backbone import from_folder
from gptask.model.backbone.locate import locate
from gptask.runs import gguf_export
from gptask.runs.export import export
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.tiny_models import TEXT
from tests.support.tokenizers import CHATML, sentencepiece_by_scores, tokenizer_of

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "gemma3", "scratch"]
FORMATS = [*Quantization]


@pytest.fixture(scope="session")
def gemma(tiny_model, tmp_path_factory):
    """A tiny Gemma 3 with the kind of tokenizer that a Gemma has."""
    folder = shutil.copytree(tiny_model("gemma3", 128), tmp_path_factory.mktemp("gemma") / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = sentencepiece_by_scores("gemma")
    tokenizer.save_pretrained(folder)
    resized = folder_with_rows(folder, len(tokenizer))
    return str(resized)


def folder_with_rows(folder, rows):
    """Give the folder's model so many embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(rows)
    model.get_input_embeddings().weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
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
    if kind is Quantization.q8_0:
        step = blocks.abs().amax(-1) / 127
    else:
        step = (blocks.amax(-1) - blocks.amin(-1)) / 15
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


@pytest.mark.parametrize("family", FAMILIES)
def test_gptask_reads_its_file_back(family, run_of, tmp_path):
    path = exported(run_of(family), tmp_path / "model.gguf")
    assert_read_back(run_of(family), path, Quantization.q8_0)


@pytest.mark.parametrize("quantization", [Quantization.f16, Quantization.q4_1])
def test_gptask_reads_other_number_formats_back(quantization, run_of, tmp_path):
    assert_read_back(run_of("llama"), exported(run_of("llama"), tmp_path / "model.gguf", quantization), quantization)


@pytest.mark.long
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gptask_reads_every_family_in_every_format_back(family, quantization, run_of, tmp_path):
    assert_read_back(run_of(family), exported(run_of(family), tmp_path / "model.gguf", quantization), quantization)
