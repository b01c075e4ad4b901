"""Private names of torch, PEFT and transformers stand in one file, and each has its public way round."""

import ast
from pathlib import Path

import pytest
import torch
from gptask.model.engine import private

ROOT = Path(__file__).parents[4]
FILES = [path for folder in ("core", "tasks", "conf") for path in sorted((ROOT / folder).rglob("*.py"))]
OWN = {"self", "cls"}
# names of other libraries, which are no part of torch, PEFT or transformers: argparse's in cli,
# datasets' fingerprint, sacrebleu's statistics, namedtuple's _asdict, Lightning's flag of optimizers in training/optim
OTHERS = {"_actions", "_fingerprint", "_extract_corpus_statistics", "_compute_score_from_stats"}
OTHERS |= {"_asdict", "_step_supports_amp_scaling"}


def private_names(path: Path) -> set[str]:
    """Names with one underscore of objects that are not the file's own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in OWN
    }
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in OWN)
    }
    names |= {
        str(node.args[1].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
    }
    imported = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for part in [*str(node.module).split("."), *(alias.name for alias in node.names)]
    }
    return {
        name
        for name in names | imported
        if name.startswith("_") and not name.startswith("__") and name not in defined | assigned
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stand_in_one_file(path):
    if path.name == "private.py":
        assert private_names(path)  # what is looked for can be found
        return
    assert private_names(path) <= OTHERS


def test_softmax_backward_is_the_same_without_the_fused_function(monkeypatch):
    torch.manual_seed(0)
    weights, grad = torch.randn(2, 3, 5).softmax(-1), torch.randn(2, 3, 5)
    fused = private.softmax_backward(grad, weights)
    monkeypatch.delattr(torch, "_softmax_backward_data")
    torch.testing.assert_close(private.softmax_backward(grad, weights), fused)


def test_without_its_functions_no_weight_is_packed(monkeypatch):
    weight = torch.randn(4, 4, dtype=torch.bfloat16)
    monkeypatch.setattr(private.torch.ops, "mkldnn", object())
    assert not private.can_prepack(weight)


def test_a_tensor_without_a_version_has_version_zero():
    with torch.inference_mode():
        tensor = torch.zeros(2)
    assert private.tensor_version(tensor) == 0
    counted = torch.zeros(2)
    counted.add_(1)
    assert private.tensor_version(counted) == 1


def test_a_processor_without_the_tests_computes_in_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert not private.cpu_computes_bfloat16()


def test_an_auto_class_that_does_not_tell_has_no_models():
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    assert private.auto_model_classes(AutoModelForCausalLM)[LlamaConfig] is LlamaForCausalLM
    assert private.auto_model_classes(object()) == {}
