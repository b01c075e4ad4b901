"""Tiny models with random weights, saved as local folders, one per family that a backbone can be of."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.installed import install  # noqa: F401
from tests.runs import sentiment, translation, write  # noqa: F401 (fixtures)

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "gemma3"]
TEXT = "the quick brown fox jumps over the lazy dog. is this film good or bad? it is very good, 这部电影很好。\n"


def config_of(family: str, vocab_size: int, context: int, layers: int = 2) -> Any:
    import transformers

    scale = {"initializer_range": 0.3}  # random weights this large make texts that differ from prompt to prompt
    if family == "gpt2":
        sizes = {"vocab_size": vocab_size, "n_positions": context, "n_embd": 32, "n_layer": layers, "n_head": 4}
        return transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **scale)
    cls = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma3": transformers.Gemma3TextConfig,
    }[family]
    kinds = (["sliding_attention", "full_attention"] * layers)[:layers]
    more = {"sliding_window": 8, "layer_types": kinds} if family == "gemma3" else {}
    return cls(
        vocab_size=vocab_size,
        max_position_embeddings=context,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        tie_word_embeddings=family != "qwen3",
        **scale,
        **more,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny("llama")``: the folder of a tiny random Llama with its tokenizer; made once per session."""
    made: dict[tuple[str, int, int, int], Path] = {}

    def make(family: str, context: int = 64, seed: int = 0, layers: int = 2) -> Path:
        key = (family, context, seed, layers)
        if key not in made:
            import torch
            import transformers
            from gptask.model.backbone.scratch import train_tokenizer

            torch.manual_seed(seed)
            tokenizer = train_tokenizer([TEXT] * 3, 320)
            model = transformers.AutoModelForCausalLM.from_config(config_of(family, len(tokenizer), context, layers))
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def backbone_of(tiny: Callable[..., Path]) -> Callable[..., Any]:
    """``backbone_of("llama")``: a fresh float32 backbone on that folder."""

    def load(family: str, context: int = 64, seed: int = 0, layers: int = 2) -> Any:
        from gptask.model.backbone.backbone import from_folder
        from gptask.model.backbone.locate import BackboneOrigin

        folder = str(tiny(family, context, seed, layers))
        return from_folder(BackboneOrigin(folder, "local folder", ""))

    return load


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that tries a connection fails, in whatever thread it is tried."""
    tried: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


@pytest.fixture(scope="session")
def run_of(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``run_of(task, "llama", tuning)``: a run as `train` leaves it, with random numbers for what has learned."""

    def make(task: Any, family: str, tuning: Any, seed: int = 0) -> Any:
        import torch
        from gptask import Config
        from gptask.config.schemas import DType, Pretrained, Scratch
        from gptask.model.backbone import backbone as model
        from gptask.model.backbone import locate
        from gptask.model.backbone.tuning import apply_tuning, drop_upper_layers
        from gptask.plugins.discovery import plugin_of
        from gptask.runs import run, saved_model
        from gptask.runs.config_file import read_config, write_config

        options: Any = Scratch(n_layer=1, n_head=2, n_embd=16, context=64, vocab_size=300)
        if family != "scratch":
            options = Pretrained(source=str(tiny(family, 128)), dtype=DType.float32, license="MIT")
        config = Config(task=task, backbone=options, tuning=tuning)
        torch.manual_seed(seed)
        backbone = model.load_backbone_from(options, locate.locate(options), lambda: [TEXT] * 3)
        head = task.head(backbone)
        drop_upper_layers(backbone, tuning)
        backbone.peft = apply_tuning(backbone.peft, tuning)
        for parameter in [*backbone.parameters(), *head.parameters()]:
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.data.normal_(0, 0.2)
        folder = tmp_path_factory.mktemp("run")
        write_config(folder, config, plugin_of(task))
        saved_model.save_model(folder, backbone, {"": head}, tuning)
        backbone.eval()
        return run.Run(folder, plugin_of(task), task, backbone, head, read_config(folder))

    return make
