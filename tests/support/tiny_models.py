"""Tiny models with random weights: saved as local folders, one per family that a backbone can be of, or in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "gemma3"]
TEXT = "the quick brown fox jumps over the lazy dog. is this film good or bad? it is very good, 这部电影很好。\n"


def tiny_config(family: str, vocab_size: int, context: int, layers: int = 2) -> Any:
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
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model("llama")``: the folder of a tiny random Llama with its tokenizer; made once per session."""
    made: dict[tuple[str, int, int, int], Path] = {}

    def make(family: str, context: int = 64, seed: int = 0, layers: int = 2) -> Path:
        key = (family, context, seed, layers)
        if key not in made:
            import torch
            import transformers
            from gptask.model.backbone.scratch import train_tokenizer

            torch.manual_seed(seed)
            tokenizer = train_tokenizer([TEXT] * 3, 320)
            model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer), context, layers))
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def backbone_of(tiny_model: Callable[..., Path]) -> Callable[..., Any]:
    """``backbone_of("llama")``: a fresh float32 backbone on that folder."""

    def load(family: str, context: int = 64, seed: int = 0, layers: int = 2) -> Any:
        from gptask.model.backbone.backbone import from_folder
        from gptask.model.backbone.locate import BackboneOrigin

        folder = str(tiny_model(family, context, seed, layers))
        return from_folder(BackboneOrigin(folder, "local folder", ""))

    return load


@pytest.fixture(scope="session")
def adapted_backbone_of(backbone_of: Callable[..., Any]) -> Callable[..., Any]:
    """``adapted_backbone_of("llama")``: the same with adapters in all layers that change something, and no dropout."""

    def load(family: str) -> Any:
        import torch
        from gptask.config.schemas import Lora
        from gptask.model.backbone.tuning import apply_tuning

        backbone = backbone_of(family)
        backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2, top=1.0)).eval())
        torch.manual_seed(0)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
        return backbone

    return load


@pytest.fixture
def chat(backbone_of: Callable[..., Any]) -> Callable[..., Any]:
    """``chat("llama", temperature=1.0)``: a conversation with such a backbone, greedy and short by default."""

    def make(family: str = "llama", context: int = 128, **options: Any) -> Any:
        from gptask.model.generation.chat import Chat, ChatOptions

        settings = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0} | options
        return Chat(backbone_of(family, context), ChatOptions(**settings))

    return make


def scratch_backbone(texts: list[str]) -> Any:
    """A backbone of one layer whose tokenizer has seen these texts."""
    import torch
    from gptask.config.schemas import Scratch
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.backbone.locate import BackboneOrigin
    from gptask.model.backbone.scratch import build_from_scratch

    torch.manual_seed(0)
    options = Scratch(n_layer=1, n_head=2, n_embd=32, context=128, vocab_size=400)
    return GPTBackbone(*build_from_scratch(options, texts), BackboneOrigin("", "scratch", ""))
