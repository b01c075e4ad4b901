"""The backbone: a decoder-only model and its tokenizer, in memory once and shared by all tasks that run on it.

Shapes: B sequences, T positions, C channels, V vocabulary, K words.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptask.config.schemas import DType, Pretrained, Scratch
from gptask.errors import UserError, listing
from gptask.model.backbone.chat_template import turn_end
from gptask.model.backbone.hf_logging import quiet_transformers
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.backbone.scratch import build_from_scratch
from gptask.model.engine import attention, linear, packing, rotary
from gptask.model.engine.loss import ChunkedCrossEntropy

log = logging.getLogger("gptask")
MAX_LOGITS = 2**26  # logits that a loss holds at once: some 650 MB, as they exist in three forms


class GPTBackbone(nn.Module):
    """A causal language model (PEFT-wrapped or not), its tokenizer and where they came from."""

    def __init__(self, model: Any, tokenizer: Any, origin: BackboneOrigin) -> None:
        super().__init__()
        attention.install(model)
        rotary.install(model)
        linear.install(model)
        self.peft = model
        self.tokenizer = tokenizer
        self.origin = origin
        self.compiled: Callable[[Tensor], Any] | None = None
        self.packs_correctly = True  # whether sequences packed into one row stay independent
        self.packs_windows = False  # whether packed sequences see no farther than unpacked ones in layers with a window
        if self.layers:
            linear.install_last_mlp(self.layers[-1], self.channels)

    @property
    def model(self) -> Any:
        """The causal language model, with adapters inside if there are any."""
        return self.peft.get_base_model() if hasattr(self.peft, "get_base_model") else self.peft

    @property
    def config(self) -> Any:
        """The model's configuration, in a multimodal model that of its text part."""
        return self.model.config.get_text_config()

    @property
    def body(self) -> Any:
        """The decoder without the vocabulary projection (and, in a multimodal model, without the other parts)."""
        return self.model.get_decoder()

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers; empty if they are no plain list."""
        return list(self.body.get_submodule(self._layers_path)) if self._layers_path else []

    @property
    def _layers_path(self) -> str | None:
        """The name of the decoder's submodule that is the list of its layers."""
        count = self.config.num_hidden_layers
        lists = ((name, module) for name, module in self.body.named_modules() if isinstance(module, nn.ModuleList))
        return next((name for name, modules in lists if len(modules) == count), None)

    def keep_first_layers(self, layers: int) -> None:
        """Keep only the first ``layers`` (1 or more); the model's last norm then applies to the states of the last one.

        Raises `UserError` for a model that needs its other layers.
        """
        config, old_count = self.config, self.config.num_hidden_layers
        if layers >= old_count:
            return
        path, old_layers = self._layers_path, self.layers
        try:
            if path is None:
                raise ValueError("they are no plain list")
            self.body.set_submodule(path, nn.ModuleList(old_layers[:layers]))
            config.num_hidden_layers = layers
            for key, value in vars(config).items():
                if isinstance(value, list) and len(value) == old_count:  # one entry per layer, such as its type
                    setattr(config, key, value[:layers])
            linear.install_last_mlp(old_layers[layers - 1], self.channels)
            with torch.inference_mode():
                self.hidden(torch.arange(4, device=self.device)[None])
        except Exception as error:  # models that need all their layers raise whatever they like
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{type(self.model).__name__} needs all of its {old_count} layers ({reason})") from error

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def channels(self) -> int:
        """C."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def context(self) -> int:
        """The most positions the model can see."""
        return int(getattr(self.config, "max_position_embeddings", 1 << 30))

    @property
    def stop_ids(self) -> set[int]:
        """Ids that end a text: the tokenizer's EOS, the end of an answer in its chat template, and those that the
        model's generation config names."""
        eos_ids = self.model.generation_config.eos_token_id
        eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
        return {self.tokenizer.eos_token_id, self._turn_end, *eos_ids} - {None}

    @cached_property
    def _turn_end(self) -> int | None:
        return turn_end(self.tokenizer)

    def hidden(self, input_ids: Tensor, lengths: Tensor | None = None, needed: Tensor | None = None) -> Tensor:
        """Return the last hidden states (B, T, C) of right-padded ids (B, T).

        No mask is needed: in a causal model, real positions don't see the pads to their right. If the ``lengths`` (B,)
        of the sequences are given, pads are left out and prefixes that sequences share are computed once. If the
        ``needed`` states (B, T) are given, others may hold anything finite.
        """
        if lengths is not None and self.can_pack(input_ids.shape[1]):
            sequences = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
            if (packed_BTC := packing.packed_hidden(self, sequences, input_ids.shape[1], needed)) is not None:
                return packed_BTC
        if self.compiled:
            compiled_BTC: Tensor = self.compiled(input_ids).last_hidden_state
            return compiled_BTC
        with linear.only_positions(needed):
            hidden_BTC: Tensor = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden_BTC

    def compile(self) -> None:
        """Let torch.compile make `hidden`, instead of the engine's own layers and packed rows.

        Raises `UserError` on a CPU without a C++ compiler.
        """
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        if self.device.type == "cpu" and not any(map(shutil.which, compilers)):
            raise UserError(
                f"compile=true needs a C++ compiler on a CPU; found none of {listing(compilers)}: install one"
            )

        def run_body(ids_BT: Tensor) -> Any:
            return self.body(input_ids=ids_BT, use_cache=False)

        linear.uninstall(self.peft)
        self.compiled = torch.compile(run_body, dynamic=True)

    def sees_all(self, positions: int) -> bool:
        """Return whether every layer sees so many positions back (some models have layers that see only a window)."""
        windows = (getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return all(positions <= (window or positions) for window in windows)

    def can_pack(self, positions: int) -> bool:
        """Return whether sequences of so many positions may share a row (`gptask.model.engine.packing`)."""
        has_engine_attention = self.model.config._attn_implementation == attention.ATTENTION_NAME
        may_pack = has_engine_attention and self.packs_correctly and not self.compiled
        return may_pack and (self.packs_windows or self.sees_all(positions))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits (..., V) of hidden states (..., C), soft-capped if the model says so (Gemma 2)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        softcap = self._softcap
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def frozen_projection(self, hidden: Tensor) -> Tensor | None:
        """Return the weights (V, C) if they don't learn and `logits` is just ``hidden @ weights.T``, else None."""
        layer = self.model.get_output_embeddings()
        is_plain = type(layer) is nn.Linear and layer.bias is None and self._softcap is None
        learns = layer.weight.requires_grad and torch.is_grad_enabled()
        return layer.weight if is_plain and not learns and layer.weight.dtype is hidden.dtype else None

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """Return the cross-entropy (N,) in nats of states (N, C) and the token ids (N,) that follow them.

        Logits (N, V) of a large vocabulary (Gemma's V is 262,144) are computed in chunks and not kept for the backward
        pass. The same holds for any vocabulary projection that does not learn, where chunks are also the fastest.
        """
        if (weight_VC := self.frozen_projection(states)) is not None:
            chunked_nll: Callable[[Tensor, Tensor, Tensor], Tensor] = ChunkedCrossEntropy.apply
            return chunked_nll(states, weight_VC, next_ids)

        def chunk_nll(states_NC: Tensor, next_ids_N: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.logits(states_NC).float(), next_ids_N, reduction="none")

        chunk_size = max(1, MAX_LOGITS // self.model.get_output_embeddings().weight.shape[0])
        if len(states) <= chunk_size:
            return chunk_nll(states, next_ids)
        chunks = zip(torch.split(states, chunk_size), torch.split(next_ids, chunk_size), strict=True)
        return torch.cat([checkpoint(chunk_nll, *chunk, use_reentrant=False) for chunk in chunks])

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)

    def word_vectors(self, words: Iterable[str]) -> Tensor:
        """Return the output embeddings (K, C) of K words, averaged over the tokens of a word.

        Raises `UserError` for a word without tokens.
        """
        embeddings_VC = self.model.get_output_embeddings().weight.detach()
        vectors_C = []
        for word in words:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise UserError(f"the word {word!r} has no tokens, so nothing can start from its embedding")
            ids_T = torch.tensor(ids, device=embeddings_VC.device)
            vectors_C.append(embeddings_VC[ids_T].float().mean(0))
        return torch.stack(vectors_C)


def number_format(choice: DType) -> torch.dtype:
    """Return the chosen format; ``auto`` is bfloat16 if the processor multiplies in it (CUDA, AVX512-BF16, AMX), else
    float32."""
    if choice is DType.float32:
        return torch.float32
    if choice is DType.bfloat16:
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu_has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if cpu_has_bfloat16 else torch.float32


def load_or_build_backbone(
    options: Pretrained | Scratch, origin: BackboneOrigin | None, texts: Callable[[], Iterable[str]]
) -> GPTBackbone:
    """Load the pretrained backbone at ``origin``, or build one from scratch with a tokenizer trained on ``texts``."""
    quiet_transformers()
    dtype = number_format(options.dtype)
    if isinstance(options, Pretrained):
        assert origin is not None, "a pretrained backbone is located before it is loaded"
        return from_folder(origin, dtype)
    model, tokenizer = build_from_scratch(options, texts())
    log.info("backbone: GPT-2 from scratch, %s parameters", f"{model.num_parameters():,}")
    return GPTBackbone(model.to(dtype), tokenizer, BackboneOrigin("", "scratch", ""))


def from_folder(
    origin: BackboneOrigin, dtype: torch.dtype = torch.float32, tokenizer: str | None = None
) -> GPTBackbone:
    """Load a Hugging Face folder, with the tokenizer of another folder if one is named.

    Raises `UserError` for anything but a complete decoder-only model. Code from the folder is never run, weights are
    never unpickled, and none are left random.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    folder, only_local = origin.location, {"local_files_only": True, "trust_remote_code": False}
    auto_model: Any = AutoModelForCausalLM  # transformers leaves what it returns untyped
    try:
        model, loading_info = auto_model.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **only_local
        )
        loaded_tokenizer = AutoTokenizer.from_pretrained(tokenizer or folder, **only_local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{folder} is no causal language model: {str(error).strip().splitlines()[0]}") from error
    if missing := sorted(loading_info["missing_keys"]):
        raise UserError(f"{folder} lacks weights of {type(model).__name__}: {listing(missing, 4)}")
    if loaded_tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {folder} has no EOS token, so the model could not learn to stop")
    backbone = GPTBackbone(model, loaded_tokenizer, origin)
    _check_supported(backbone)
    backbone.packs_correctly = backbone.can_pack(6) and packing.supports_packing(backbone)
    if backbone.packs_correctly and not backbone.sees_all(backbone.context):
        backbone.packs_windows = packing.passes_window(backbone)
    return backbone


def _check_supported(backbone: GPTBackbone) -> None:
    """Raise `UserError` if states depend on later tokens, or if `GPTBackbone.logits` are not the model's logits."""
    ids_BT = torch.arange(4, device=backbone.device)[None]
    with torch.inference_mode():
        hidden_BTC = backbone.hidden(ids_BT)
        shorter_BTC, logits_BTV = backbone.hidden(ids_BT[:, :3]), backbone.model(ids_BT).logits
        checks = [
            (shorter_BTC, hidden_BTC[:, :3], "is not causal (its states depend on later tokens)"),
            (backbone.logits(hidden_BTC), logits_BTV, "does more to its logits than gptask knows of"),
        ]
    for got, expected, problem in checks:
        if not (got - expected).abs().max() <= 0.1 * expected.abs().max():
            raise UserError(
                f"{backbone.origin.location}: {type(backbone.model).__name__} {problem}; use a GPT-2, Llama, Qwen or "
                "Gemma"
            )
