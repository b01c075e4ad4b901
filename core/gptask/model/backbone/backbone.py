"""The backbone: a decoder-only model and its tokenizer, held once and shared by whatever tasks run on it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gptask.config.schemas import DType, Pretrained, Scratch
from gptask.errors import UserError, listing
from gptask.model.backbone.chat_template import turn_end
from gptask.model.backbone.hf_logging import quiet_transformers
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.engine import attention, linear, packing, rotary

log = logging.getLogger("gptask")


class GPTBackbone(nn.Module):
    """A causal language model (PEFT-wrapped or not), its tokenizer and where they came from.

    Shapes: B sequences, T positions, C channels, V vocabulary.
    """

    def __init__(self, model: Any, tokenizer: Any, origin: BackboneOrigin) -> None:
        super().__init__()
        attention.install(model)
        rotary.install(model)
        linear.install(model)
        self.peft = model
        self.tokenizer = tokenizer
        self.origin = origin
        self.compiled: Callable[[Tensor], Any] | None = None
        self.apart = True  # whether sequences in one row stay apart
        self.windowed = False  # and see no farther than whole ones in layers with a window
        if self.layers:
            linear.install_last(self.layers[-1], self.channels)

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
        """The decoder's layers; none where they are no plain list."""
        return list(self.body.get_submodule(self._stack)) if self._stack else []

    @property
    def _stack(self) -> str | None:
        """Where in the decoder the list of its layers is."""
        count = self.config.num_hidden_layers
        lists = ((name, module) for name, module in self.body.named_modules() if isinstance(module, nn.ModuleList))
        return next((name for name, found in lists if len(found) == count), None)

    def cut(self, layers: int) -> None:
        """Keep the first ``layers`` (1 or more) only: last hidden states are then what the model's last norm makes of
        theirs. Raises `UserError` for a model that can't do without the others."""
        config, had = self.config, self.config.num_hidden_layers
        if layers >= had:
            return
        place, stack = self._stack, self.layers
        try:
            if place is None:
                raise ValueError("they are no plain list")
            self.body.set_submodule(place, nn.ModuleList(stack[:layers]))
            config.num_hidden_layers = layers
            for key, value in vars(config).items():
                if isinstance(value, list) and len(value) == had:  # of what kind each layer is
                    setattr(config, key, value[:layers])
            linear.install_last(stack[layers - 1], self.channels)
            with torch.inference_mode():
                self.hidden(torch.arange(4, device=self.device)[None])
        except Exception as error:  # whatever models raise that need all of their layers
            said = str(error).strip().partition("\n")[0]
            raise UserError(f"{type(self.model).__name__} needs all of its {had} layers ({said})") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
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
        """Ids that end a text: the tokenizer's EOS, what ends an answer in its chat template, and those the model's
        generation config names."""
        ids = self.model.generation_config.eos_token_id
        named = ids if isinstance(ids, list) else [ids]
        return {self.tokenizer.eos_token_id, self._turn_end, *named} - {None}

    @cached_property
    def _turn_end(self) -> int | None:
        return turn_end(self.tokenizer)

    def hidden(self, input_ids: Tensor, lengths: Tensor | None = None, needed: Tensor | None = None) -> Tensor:
        """Last hidden states (B, T, C) of right-padded ids (B, T).

        No mask: a causal model's real positions don't see the pads to their right. With the ``lengths`` (B,) of the
        sequences, pads are left out and what sequences have in common at their start is computed once. Where it is
        known which states are ``needed`` (B, T), others may hold anything finite.
        """
        if lengths is not None and self.can_pack(input_ids.shape[1]):
            rows = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
            if (states := packing.hidden(self, rows, input_ids.shape[1], needed)) is not None:
                return states
        if self.compiled:
            return self.compiled(input_ids).last_hidden_state
        with linear.only_positions(needed):
            return self.body(input_ids=input_ids, use_cache=False).last_hidden_state

    def compile(self) -> None:
        """Let torch.compile make `hidden`, in place of the lean forms and of rows without pads.

        Raises `UserError` on a CPU without a C++ compiler.
        """
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        if self.device.type == "cpu" and not any(map(shutil.which, compilers)):
            raise UserError(
                f"compile=true needs a C++ compiler on a CPU; found none of {listing(compilers)}: install one"
            )

        def read(ids: Tensor) -> Any:
            return self.body(input_ids=ids, use_cache=False)

        linear.remove(self.peft)
        self.compiled = torch.compile(read, dynamic=True)

    def sees(self, positions: int) -> bool:
        """Whether every layer sees so many positions back (some models have layers that see a window only)."""
        windows = (getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return all(positions <= (window or positions) for window in windows)

    def can_pack(self, positions: int) -> bool:
        """Whether sequences of so many positions may lie in one row (`gptask.model.engine.packing`)."""
        ours = self.model.config._attn_implementation == attention.NAME
        return ours and self.apart and not self.compiled and (self.windowed or self.sees(positions))

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores (..., V) of hidden states (..., C), soft-capped where the model says so (Gemma 2)."""
        logits, cap = self.model.get_output_embeddings()(hidden), self._cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def frozen_projection(self, hidden: Tensor) -> Tensor | None:
        """Weights (V, C) where ``hidden @ weights.T`` is all that `logits` computes and they do not learn."""
        layer = self.model.get_output_embeddings()
        plain = type(layer) is nn.Linear and layer.bias is None and self._cap is None
        learns = layer.weight.requires_grad and torch.is_grad_enabled()
        return layer.weight if plain and not learns and layer.weight.dtype is hidden.dtype else None

    @property
    def _cap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)

    def word_vectors(self, words: Iterable[str]) -> Tensor:
        """(K, C) output embeddings of K words, averaged where a word is several tokens."""
        table = self.model.get_output_embeddings().weight.detach()
        vectors = []
        for word in words:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise UserError(f"the word {word!r} has no tokens, so nothing can start from its embedding")
            vectors.append(table[torch.tensor(ids, device=table.device)].float().mean(0))
        return torch.stack(vectors)


def number_format(choice: DType) -> torch.dtype:
    """Bfloat16 where the processor multiplies in it (CUDA, AVX512-BF16, AMX), float32 otherwise."""
    if choice is DType.float32:
        return torch.float32
    if choice is DType.bfloat16:
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load_backbone_from(
    options: Pretrained | Scratch, origin: BackboneOrigin | None, texts: Callable[[], Iterable[str]]
) -> GPTBackbone:
    """Load the pretrained backbone at ``origin``, or build one from scratch on the training ``texts``."""
    quiet_transformers()
    if isinstance(options, Scratch) or origin is None:
        from gptask.model.backbone.scratch import build

        assert isinstance(options, Scratch)
        model, tokenizer = build(options, texts())
        log.info("backbone: GPT-2 from scratch, %s parameters", f"{model.num_parameters():,}")
        return GPTBackbone(model.to(number_format(options.dtype)), tokenizer, BackboneOrigin("", "scratch", ""))
    return from_folder(origin, number_format(options.dtype))


def from_folder(
    origin: BackboneOrigin, dtype: torch.dtype = torch.float32, tokenizer: str | None = None
) -> GPTBackbone:
    """Load a Hugging Face folder, with the tokenizer of another folder if one is named.

    Raises `UserError` for what is no complete decoder-only model: code from the folder is never run, weights are never
    unpickled, and none are left random.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            origin.location, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
        )
        model, report = loaded
        words = AutoTokenizer.from_pretrained(tokenizer or origin.location, **local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"{origin.location} is no causal language model: {str(error).strip().splitlines()[0]}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{origin.location} lacks weights of {type(model).__name__}: {listing(missing, 4)}")
    if words.eos_token_id is None:
        raise UserError(f"the tokenizer in {origin.location} has no EOS token, so the model could not learn to stop")
    backbone = GPTBackbone(model, words, origin)
    _check(backbone)
    backbone.apart = backbone.can_pack(6) and packing.supports_packing(backbone)
    if backbone.apart and not backbone.sees(backbone.context):
        backbone.windowed = packing.passes_window(backbone)
    return backbone


def _check(backbone: GPTBackbone) -> None:
    """Refuse a model whose states see later tokens, or whose logits are not what `GPTBackbone.logits` makes of them."""
    ids = torch.arange(4, device=backbone.device)[None]
    with torch.inference_mode():
        hidden = backbone.hidden(ids)
        pairs = [
            (backbone.hidden(ids[:, :3]), hidden[:, :3], "is not causal (its states depend on later tokens)"),
            (backbone.logits(hidden), backbone.model(ids).logits, "does more to its logits than gptask knows of"),
        ]
    for got, expected, what in pairs:
        if not (got - expected).abs().max() <= 0.1 * expected.abs().max():
            raise UserError(
                f"{backbone.origin.location}: {type(backbone.model).__name__} {what}; use a GPT-2, Llama, Qwen or Gemma"
            )
