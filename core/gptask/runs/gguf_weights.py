"""Hyperparameters and weights of a model as llama.cpp names them, lays them out and rounds them in a GGUF file.

The names are those of the `gguf` package, the layouts those of llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.schemas import Quantization
from gptask.errors import UserError
from gptask.model.backbone.gguf import GEMMA3_PERIOD, gemma3_attention_scalar, llama3_rope_factors, sliding_layers

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

ARCHITECTURES = {  # transformers' name of a family -> GGUF's
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
FILE_TYPES = {Quantization.f16: "MOSTLY_F16", Quantization.q8_0: "MOSTLY_Q8_0", Quantization.q4_1: "MOSTLY_Q4_1"}
COMPUTED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {  # what llama.cpp computes, whatever a file says
    "gpt2": {
        "activation_function": ("gelu_new", "gelu"),  # its table of the tanh form is coarser than their difference
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"hidden_act": ("silu",)},
    "qwen3": {"hidden_act": ("silu",), "attention_bias": (False,)},
    "gemma3": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    },
}


@dataclass
class StoredTensor:
    """A tensor of the file: its name, the values as the model has them, its shape and number format in the file."""

    name: str
    values: Any
    shape: tuple[int, ...]
    format: GGMLQuantizationType

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.format]
        return math.prod(self.shape) // block * size


def check_architecture(config: Any) -> None:
    """Raise `UserError` for a config that llama.cpp does not know, or would compute in another way."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise UserError(f"format=gguf has no {kind}; it has {names}. Leave format=gguf out to export a folder")
    if problems := uncomputed_values(config):
        raise UserError(
            f"format=gguf: llama.cpp does not compute a {kind} with {', '.join(problems)}. Leave format=gguf out to "
            "export a folder"
        )
    if ARCHITECTURES[kind] != "gpt2":
        _rope(config)


def uncomputed_values(config: Any) -> list[str]:
    """The options of a config of a known family, but for its rotary embeddings, that a GGUF file can't tell."""
    architecture = ARCHITECTURES[config.model_type]
    problems = [
        f"{name}={getattr(config, name)}"
        for name, values in COMPUTED[architecture].items()
        if getattr(config, name, values[0]) not in values
    ]
    sliding = {number for number, layer in enumerate(_layer_types(config)) if layer == "sliding_attention"}
    if sliding and (architecture != "gemma3" or _period(config) is None):
        problems.append(f"layer_types={config.layer_types}")
    return problems


def write_gguf(
    path: Path, model: Any, quantization: Quantization, add_description: Callable[[GGUFWriter], None]
) -> Counter[str]:
    """Write a model with a config that `check_architecture` lets through; return the bytes of each number format.

    ``add_description`` adds the tokenizer, and what else tells about the model. One matrix at a time is converted.
    Raises `UserError` for weights that llama.cpp's architecture does not have, or that are too large.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, ARCHITECTURES[model.config.model_type])
    try:
        writer.add_type("model")
        writer.add_file_type(LlamaFileType[FILE_TYPES[quantization]])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        add_hyperparameters(writer, model.config)
        add_description(writer)
        tensors = stored_tensors(model, quantization)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, tensor.format)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(stored_array(tensor, model.config))
    finally:
        writer.close()
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.format.name.lower()] += tensor.bytes
    return sizes


def add_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Write what llama.cpp must know of a config that `check_architecture` lets through."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head_dim = _head_dim(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(_period(config) or GEMMA3_PERIOD)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def stored_tensors(model: Any, quantization: Quantization) -> list[StoredTensor]:
    """The tensors of the file in its order; nothing is converted yet.

    Raises `UserError` for a weight that llama.cpp's architecture does not have.
    """
    import torch
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map

    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    name_map = get_tensor_name_map(arch, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tensors = []
    for name, values in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stored_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise UserError(f"format=gguf: llama.cpp's {architecture} has no weight for {name}")
        shape = tuple(values.T.shape if _is_transposed(stored_name, architecture) else values.shape)
        tensors.append(StoredTensor(stored_name, values, shape, _number_format(stored_name, shape, quantization)))
    if config.model_type != "gpt2" and _rope(config)["rope_type"] == "llama3":
        factors = torch.from_numpy(llama3_rope_factors(_rope(config), _head_dim(config)))
        tensors.append(StoredTensor("rope_freqs.weight", factors, tuple(factors.shape), GGMLQuantizationType.F32))
    return tensors


def stored_array(tensor: StoredTensor, config: Any) -> Any:
    """The array that the file holds: laid out as llama.cpp reads it, and rounded.

    Raises `UserError` for values that are too large for half precision.
    """
    from gguf import quants

    architecture = ARCHITECTURES[config.model_type]
    array = tensor.values.detach().float().cpu().numpy()
    if _is_transposed(tensor.name, architecture):
        array = array.T
    if architecture == "gemma3" and tensor.name.endswith("norm.weight"):
        array = array + 1  # Gemma multiplies by one more than its weight
        if tensor.name.endswith("attn_q_norm.weight"):  # llama.cpp divides scores by the root of its own number
            array = array * math.sqrt(gemma3_attention_scalar(config) / config.query_pre_attn_scalar)
    if architecture == "llama" and ".attn_q." in tensor.name:
        array = interleaved_halves(array, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in tensor.name:
        array = interleaved_halves(array, config.num_key_value_heads)
    with np.errstate(over="ignore"):  # is looked for below
        stored = quants.quantize(np.ascontiguousarray(array), tensor.format)
    if stored.dtype == np.float16 and not np.isfinite(stored).all():
        raise UserError(f"format=gguf: {tensor.name} has values that are too large for half precision (f16)")
    return stored


def interleaved_halves(array: Any, heads: int) -> Any:
    """Rows (heads * D, ...) in the order that llama.cpp's Llama rotates: pairs lie side by side, not D/2 apart."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _number_format(name: str, shape: tuple[int, ...], quantization: Quantization) -> GGMLQuantizationType:
    """As llama.cpp chooses it: vectors and positions in float32, rows that fill no blocks in half precision."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    chosen = GGMLQuantizationType[quantization.value.upper()]
    if chosen is GGMLQuantizationType.Q4_1 and name in ("token_embd.weight", "output.weight"):
        chosen = GGMLQuantizationType.Q8_0  # the vocabulary's matrix takes four bits badly
    return chosen if shape[-1] % GGML_QUANT_SIZES[chosen][0] == 0 else GGMLQuantizationType.F16


def _is_transposed(name: str, architecture: str) -> bool:
    """Whether transformers' GPT-2 keeps this matrix as (inputs, outputs)."""
    parts = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return architecture == "gpt2" and name.endswith(parts)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    """The rotary embeddings of layers that see all positions; raises `UserError` for a kind that GGUF has not."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if rope["rope_type"] not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"format=gguf has no rotary embeddings with {dict(rope)}. Leave it out to export a folder")
    return dict(rope)


def _layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])


def _period(config: Any) -> int | None:
    """How many layers make one period, of which the last sees all positions; None where the layers have none."""
    slides = [layer == "sliding_attention" for layer in _layer_types(config)]
    periods = (GEMMA3_PERIOD, *range(1, len(slides) + 2))
    return next((period for period in periods if slides == sliding_layers(len(slides), period)), None)
