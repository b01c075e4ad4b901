"""The backbone: a decoder-only model and its tokenizer, in memory once and shared by all tasks that run on it.

Shapes: B sequences, T positions, C channels, V vocabulary, K words.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptask.config.engine import EngineOptions, Fast, engine_from_environment, refuse_openvino
from gptask.config.schemas import DType, Pretrained, Scratch
from gptask.data.hub_access import hub_switched_off
from gptask.errors import UserError, damaged, listing
from gptask.model.backbone.chat_template import turn_end
from gptask.model.backbone.folder_checks import check_model_folder, check_sizes, check_token_ids
from gptask.model.backbone.hf_logging import quiet_transformers
from gptask.model.backbone.layer_cut import check_cut, cut_layers, layers_path
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.backbone.quantizing import quantize, require_int4
from gptask.model.backbone.scratch import build_from_scratch
from gptask.model.engine import private
from gptask.model.engine.fast import FastEngine
from gptask.model.engine.int4 import Quantization
from gptask.model.engine.interface import Adapters, Engine
from gptask.model.engine.reference import ReferenceEngine
from gptask.plugins.text_tokenizer import text_tokenizer

log = logging.getLogger("gptask")
ONLY_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class GPTBackbone(nn.Module):
    """A causal language model (PEFT-wrapped or not), its tokenizer, where they came from and what computes them.

    ``engine`` is the one that ``GPTASK_ENGINE`` names where it is None. ``adapter`` is the digest of an adapter that
    `Engine.add_adapter` loaded, by which `hidden` and text generation compute; None is the model as it is. ``int4``
    tells what of the model `quantize` has put into int4; such a backbone can't learn.
    """

    adapter: str | None = None
    _kept_layers: list[int] | None = None
    int4: Quantization | None = None

    def __init__(self, model: Any, tokenizer: Any, origin: BackboneOrigin, engine: EngineOptions | None = None) -> None:
        super().__init__()
        self.peft = model
        self.tokenizer = text_tokenizer(tokenizer)
        self.origin = origin
        self.adapter_layers: dict[str, int] = {}  # of each adapter of `Engine.add_adapter`, how many layers rows pass
        self._engines: list[Engine] = [ReferenceEngine(self)]  # the one in use, in a list that views share
        self.use_engine(engine or engine_from_environment())

    @property
    def engine(self) -> Engine:
        """What computes this backbone and all of its views."""
        return self._engines[0]

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engines[0] = engine

    def use_engine(self, options: EngineOptions) -> None:
        """Compute by another engine from now on; raises `UserError` for `OpenVino`, which `gptask.load_run` sets up."""
        refuse_openvino(options, "a backbone")
        self.engine.uninstall()
        backbone = self.engine.backbone  # not a view
        self.engine = FastEngine(backbone, options) if isinstance(options, Fast) else ReferenceEngine(backbone)
        self.engine.install()

    def set_model(self, model: Any) -> None:
        """Replace the model by one that is wrapped or tuned in another way, and adapt the engine to it."""
        self.engine.uninstall()
        self.peft = model
        for adapter in self.adapter_layers.keys() - getattr(model, "peft_config", {}).keys():
            del self.adapter_layers[adapter]
        self.engine.install()

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Read and write texts by another tokenizer; views keep theirs."""
        self.tokenizer = text_tokenizer(tokenizer)
        vars(self).pop("_turn_end", None)

    def with_adapter(self, adapter: str | None) -> GPTBackbone:
        """Return the same backbone, its weights and its engine shared, computing with an added adapter.

        Another model, device or engine of one of them is that of the others.
        """
        view = copy.copy(self)
        view.adapter = adapter
        return view

    def train(self, mode: bool = True) -> GPTBackbone:
        """Set training or inference; training drops what the engine made of the weights for inference.

        Raises `UserError` for training with weights in int4.
        """
        if mode and self.int4:
            raise UserError("weights in int4 can't learn: load the backbone in float32 or bfloat16 to train it")
        if mode:
            self.engine.drop_inference_weights()
        return super().train(mode)

    @property
    def model(self) -> Any:
        """The causal language model, with adapters inside if there are any; it is there while adapters come and go."""
        peft = self.peft
        # not PEFT's get_base_model(): it looks up the active adapter, which fails while another thread removes it
        return peft.base_model.model if hasattr(peft, "get_base_model") else peft

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
        return [*(self.layer_list or ())]

    @property
    def layer_list(self) -> nn.ModuleList | None:
        """The module that holds the decoder's layers; None if they are no plain list."""
        path = layers_path(self.model)
        return cast(nn.ModuleList, self.body.get_submodule(path)) if path else None

    @property
    def layer_numbers(self) -> list[int]:
        """The numbers of its layers in the model that it came from, in their order."""
        return self._kept_layers or [*range(self.config.num_hidden_layers)]

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """Keep only the layers with these `layer_numbers`; the model's last norm then applies to the last one's states.

        Raises `UserError` for a number of none, and for a model that needs its other layers.
        """
        count, kept = len(self.layer_numbers), sorted(numbers)
        if kept == self.layer_numbers:
            return
        if missing := sorted({*kept} - {*self.layer_numbers}):
            there = f"0 to {count - 1}" if self.layer_numbers == [*range(count)] else str(self.layer_numbers)
            raise UserError(f"the backbone has no layer {listing(missing)}: it has {count}, {there}")
        positions = [self.layer_numbers.index(number) for number in kept]
        self.engine.uninstall()
        try:
            with self.only_layers(positions):
                check_cut(self.model, positions)
            cut_layers(self.model, positions)
            self._kept_layers = kept
        except Exception as error:  # models that need all their layers raise whatever they like
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{type(self.model).__name__} needs all of its {count} layers ({reason})") from error
        finally:
            self.engine.install()

    @contextmanager
    def only_layers(self, positions: Sequence[int]) -> Iterator[None]:
        """The model has only its layers at these positions inside this context, in all threads."""
        put_back = cut_layers(self.model, positions)
        try:
            yield
        finally:
            put_back()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def weight_format(self) -> str:
        """The name of the number format of the weights that predict: float32, bfloat16, int4 or q8_0."""
        return self.engine.weight_format

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

    def hidden(
        self,
        input_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        needed: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """Return the last hidden states (B, T, C) of right-padded ids (B, T) or ``embeds`` (B, T, C).

        No mask is needed: in a causal model, real positions don't see the pads to their right. If the ``lengths`` (B,)
        of the sequences are given, the engine may leave pads out and compute prefixes that sequences share once. If the
        ``needed`` states (B, T) are given, others may hold anything finite. ``adapters`` names a row's adapter by the
        digest that ``engine.add_adapter`` returned; None is the model as it is.
        """
        if adapters is None and self.adapter is not None:
            rows = len(input_ids if embeds is None else embeds)  # type: ignore[arg-type]
            adapters = [self.adapter] * rows
        return self.engine.hidden(input_ids, lengths, needed, embeds=embeds, adapters=adapters)

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """Return the cross-entropy (N,) of states (N, C) and the token ids (N,) that follow them."""
        return self.engine.token_nll(states, next_ids)

    def compile(self) -> None:
        """Let torch.compile make `hidden`.

        Raises `UserError` on a CPU without a C++ compiler.
        """
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        if self.device.type == "cpu" and not any(map(shutil.which, compilers)):
            raise UserError(
                f"compile=true needs a C++ compiler on a CPU; found none of {listing(compilers)}: install one"
            )
        self.engine.compile()

    def sees_all(self, positions: int) -> bool:
        """Return whether every layer sees so many positions back (some models have layers that see only a window)."""
        windows = (getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return all(positions <= (window or positions) for window in windows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits (..., V) of hidden states (..., C), soft-capped if the model says so (Gemma 2)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        softcap = self.softcap
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    @property
    def softcap(self) -> float | None:
        """The bound of the logits (Gemma 2), None for most models."""
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
    float32. Beside weights in int4, all else is bfloat16.

    Raises `UserError` for int4 where this machine does not compute in it.
    """
    if choice is DType.int4:
        require_int4()
        return torch.bfloat16
    if choice is DType.float32:
        return torch.float32
    if choice is DType.bfloat16:
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if private.cpu_computes_bfloat16() else torch.float32


def load_or_build_backbone(
    options: Pretrained | Scratch,
    origin: BackboneOrigin | None,
    texts: Callable[[], Iterable[str]],
    engine: EngineOptions | None = None,
    dtype: DType | None = None,
) -> GPTBackbone:
    """Load the pretrained backbone at ``origin``, or build one from scratch with a tokenizer trained on ``texts``.

    ``dtype`` replaces the number format of the ``options``.
    """
    quiet_transformers()
    torch_dtype = number_format(dtype or options.dtype)
    if isinstance(options, Pretrained):
        assert origin is not None, "a pretrained backbone is located before it is loaded"
        backbone = from_folder(origin, torch_dtype, engine=engine)
    else:
        model, tokenizer = build_from_scratch(options, texts())
        log.info("backbone: GPT-2 from scratch, %s parameters", f"{model.num_parameters():,}")
        backbone = GPTBackbone(model.to(torch_dtype), tokenizer, BackboneOrigin("", "scratch", ""), engine)
    if dtype is DType.int4:
        quantize(backbone)
    return backbone


def from_folder(
    origin: BackboneOrigin,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | None = None,
    engine: EngineOptions | None = None,
) -> GPTBackbone:
    """Load a Hugging Face folder, with the tokenizer of another folder if one is named.

    Raises `UserError` for anything but a complete decoder-only model. Code from the folder is never run, weights are
    never unpickled, and none are left random.
    """
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    folder = origin.location
    auto_model: Any = AutoModelForCausalLM  # transformers leaves what it returns untyped
    check_model_folder(Path(folder))
    try:
        with hub_switched_off():
            model, loading_info = auto_model.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **ONLY_LOCAL
            )
        loaded_tokenizer = load_tokenizer(tokenizer or folder)
    except UserError:
        raise
    except Exception as error:  # of the libraries that read the folder, for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder} is no causal language model: {reason}") from error
    if missing := sorted(loading_info["missing_keys"]):
        raise UserError(f"{folder} lacks weights of {type(model).__name__}: {listing(missing, 4)}")
    if unused := sorted(loading_info["unexpected_keys"]):
        log.warning("%s has weights that %s does not use: %s", folder, type(model).__name__, listing(unused, 4))
    if loaded_tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {folder} has no EOS token, so the model could not learn to stop")
    backbone = GPTBackbone(model, loaded_tokenizer, origin, engine)
    _check_supported(backbone)
    if origin.keep is not None:
        try:
            backbone.keep_layers(origin.keep)
        except UserError as error:
            raise UserError(f"backbone.keep={[*origin.keep]}: {error}") from error
    return backbone


def load_tokenizer(folder: str) -> Any:
    """Load the tokenizer of a folder as transformers does; code from the folder is never run.

    Raises `UserError` for a damaged one.
    """
    from transformers import AutoTokenizer

    check_sizes(Path(folder))
    with hub_switched_off(), damaged(f"the tokenizer in {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **ONLY_LOCAL)
        tokenizer.decode(tokenizer("a b")["input_ids"])  # its options are checked where they are used
        vocabulary = tokenizer.get_vocab()
    check_token_ids(vocabulary, folder)
    return tokenizer


def _check_supported(backbone: GPTBackbone) -> None:
    """Raise `UserError` if states depend on later tokens, or if `GPTBackbone.logits` are not the model's logits.

    A weight that is not finite shows in the states or the logits; embeddings show in the logits only where tied.
    """
    ids_BT = torch.arange(4, device=backbone.device)[None]
    with torch.inference_mode():
        hidden_BTC = backbone.hidden(ids_BT)
        shorter_BTC, logits_BTV = backbone.hidden(ids_BT[:, :3]), backbone.model(ids_BT).logits
        embeddings, rows = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings()
        values = [hidden_BTC, logits_BTV] + ([] if getattr(rows, "weight", None) is embeddings else [embeddings])
        if not all(tensor.sum().isfinite() for tensor in values):
            raise UserError(f"{backbone.origin.location} has weights that are not finite (NaN or infinite)")
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
