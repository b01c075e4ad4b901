"""The fast engine: the reference engine with components of its own, each of which can be switched off.

Shapes: B rows, T positions, C channels, N states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gptask.config.engine import Fast
from gptask.errors import listing
from gptask.model.engine import attention, last_layer, linear, loss, norm, packing, rotary
from gptask.model.engine.decoding import FastBatch
from gptask.model.engine.forward_registry import replaced_by
from gptask.model.engine.forward_state import forward_state
from gptask.model.engine.inference_weights import OWN, InferenceWeights
from gptask.model.engine.interface import DecodingBatch, EngineBackbone
from gptask.model.engine.reference import ReferenceEngine

# components that torch.compile takes the place of, or whose forward functions it can't trace
NOT_COMPILED = ("packing", "rotary", "linear", "norm", "last_layer")


class FastEngine(ReferenceEngine):
    """Replaces the forward functions of a model's layers, and packs the tokens of a batch into one row.

    A component that is switched off, or that a check on random states shows not to fit the model, leaves its part to
    the reference engine; ``off`` has the reasons.
    """

    name = "fast"

    def __init__(self, backbone: EngineBackbone, options: Fast) -> None:
        super().__init__(backbone)
        self.options = options
        self.weights = InferenceWeights()
        self.packs_windows = False  # whether packed sequences see no farther than others in layers with a window

    def install(self) -> None:
        """Replace forward functions, after putting back what an earlier call replaced."""
        self.uninstall()
        super().install()
        backbone, last, training = self.backbone, self.backbone.layers[-1:], self.backbone.peft.training
        installers: dict[str, Callable[[], str | None]] = {
            "attention": lambda: attention.install(backbone.model, self.compiled is not None),
            "rotary": lambda: rotary.install(backbone.model),
            "linear": lambda: linear.install(backbone.peft),
            "norm": lambda: norm.install(backbone.model, training),
            "last_layer": lambda: last_layer.install(last[0] if last else None, backbone.channels),
            "packing": self._install_packing,
        }
        self.off = {} if self.compiled is None else dict.fromkeys(NOT_COMPILED, "compile=true")
        for name in (f.name for f in fields(self.options)):
            if not getattr(self.options, name):
                self.off[name] = "switched off"
        with torch.inference_mode(False), torch.enable_grad(), _inference_mode_of(backbone.peft):
            for name, install in installers.items():
                self.fits(name, install)
        self._note_adapters()

    def _install_packing(self) -> str | None:
        if not attention.is_installed(self.backbone.model):
            return "it needs the engine's attention"
        if not packing.supports_packing(self.backbone):
            return "layers mix tokens by other means than attention"
        self.packs_windows = self.backbone.sees_all(self.backbone.context) or packing.passes_window(self.backbone)
        return None

    def uninstall(self) -> None:
        """Put back what the model was before `install`."""
        super().uninstall()
        attention.uninstall(self.backbone.model)
        self.weights.clear()

    def has(self, component: str) -> bool:
        """Whether a component is on."""
        return component not in self.off

    @property
    def keeps_logits(self) -> bool:
        """See `Engine`."""
        return not self.has("loss")

    @property
    def caches_activations(self) -> bool:
        """Whether states of frozen layers may be read from disk."""
        return self.has("activation_cache")

    def can_pack(self, positions: int) -> bool:
        """Whether sequences of up to this many positions are packed into one row, and share their prefixes."""
        return self.has("packing") and (self.packs_windows or self.backbone.sees_all(positions))

    def hidden_by(
        self,
        adapter: str | None,
        ids: Tensor | None,
        embeds: Tensor | None,
        lengths: Tensor | None,
        needed: Tensor | None,
    ) -> Tensor:
        """See `ReferenceEngine`; prefixes that rows share are computed once."""
        given: Tensor = ids if embeds is None else embeds  # type: ignore[assignment]
        width = given.shape[1]
        if torch.is_grad_enabled() and any(
            getattr(layer, "gradient_checkpointing", False) for layer in self.backbone.layers
        ):
            return super().hidden_by(adapter, ids, embeds, lengths, needed)  # runs layers twice
        with self.running(adapter):
            if lengths is not None and self.can_pack(width) and len(lengths) and int(lengths.min()) > 0:
                rows = ids.tolist() if embeds is None else _embedding_numbers(embeds)  # type: ignore[union-attr]
                sequences = [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]
                packed_BTC = packing.packed_hidden(self.backbone, sequences, width, needed, embeds)
                if packed_BTC is not None:
                    return packed_BTC
            places = last_layer.needed_places(needed) if self.has("last_layer") else None
            with forward_state(needed_places=places):
                return self.states(adapter, ids, embeds)

    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """See `Engine`; logits are computed in chunks and not kept for the backward pass."""
        if self.has("loss"):
            return loss.chunked_token_nll(self.backbone, states, next_ids)
        return super().token_nll(states, next_ids)

    def decoding_batch(self, keep: int = 0) -> DecodingBatch:
        """See `Engine`."""
        if self.has("decoding"):
            return FastBatch(self, keep)
        return super().decoding_batch(keep)

    @contextmanager
    def running(self, adapter: str | None = None) -> Iterator[None]:
        """See `Engine`; weights for inference are made anew where the model's have changed."""
        if not self.adapts_rows:
            with super().running(adapter), self._running(None, self.layers_of(adapter)):
                yield
            return
        if adapter is not None:
            self.require_adapters([adapter])
        with self._running(adapter, self.layers_of(adapter)):
            yield

    @contextmanager
    def _running(self, adapter: str | None, layers: int) -> Iterator[None]:
        if self.backbone.peft.training or (torch.is_grad_enabled() and self._learns()):
            self.weights.clear()  # a step of a fused optimizer changes no version
        weights = None
        if self.has("linear") and not self.backbone.peft.training and not torch.is_grad_enabled():
            self.weights.drop_outdated()
            weights = self.weights
        with forward_state(adapter=adapter, layers=layers, inference_weights=weights):
            yield

    def _learns(self) -> bool:
        """Whether a weight may change: a pass that asks for the gradients of its input alone leaves all as they are."""
        return any(parameter.requires_grad for parameter in self.backbone.peft.parameters())

    def summary(self) -> str:
        """See `Engine`."""
        on = listing(f.name for f in fields(self.options) if self.has(f.name))
        off = "".join(f"; {name} is off: {reason}" for name, reason in self.off.items())
        return f"engine: fast, with {on}{off}{self.int4_note}"

    def drop_inference_weights(self) -> None:
        """Forget what was made of the weights for inference: they may have changed."""
        self.weights.clear()
        for module in self.backbone.peft.modules():
            if isinstance(forward := replaced_by(module), norm.NormForward):
                forward.identity = None

    def adapters_changed(self) -> None:
        """See `ReferenceEngine`; the layers with adapters compute them, and weights that are still right are kept."""
        super().adapters_changed()
        if self.has("linear"):
            linear.install(self.backbone.peft)
        self._note_adapters()

    def _note_adapters(self) -> None:
        """Note whether the layers compute adapters beside the model, and whether there is only one."""
        added, model = [*self.backbone.adapter_layers], self.backbone.peft
        self.adapts_rows = self.has("linear") and linear.computes_adapters(model)
        has_own = OWN in getattr(model, "peft_config", {})
        self.weights.set_sole(added[0] if self.adapts_rows and len(added) == 1 and not has_own else None)

    @property
    def sole_adapter(self) -> str | None:
        """The only adapter beside the model, which is merged; rows that all have it need no mixed pass."""
        return self.weights.sole

    def remove_adapter(self, digest: str) -> None:
        """See `Engine`."""
        self.weights.drop_adapter(digest)
        super().remove_adapter(digest)

    @property
    def weight_drops(self) -> int:
        """See `Engine`."""
        return self.weights.drops

    def compile(self) -> None:
        """See `Engine`; what torch.compile makes itself is off."""
        super().compile()
        self.install()


@contextmanager
def _inference_mode_of(model: Any) -> Iterator[None]:
    """Every module of a model is in inference mode inside this context: dropout would fail the checks."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def _embedding_numbers(embeds_BTC: Tensor) -> list[list[int]]:
    """Numbers (B, T) that are equal where the vectors are; all different where each has a gradient of its own."""
    b, t = embeds_BTC.shape[:2]
    if embeds_BTC.requires_grad:
        numbers_N = torch.arange(b * t)
    else:
        numbers_N = torch.unique(embeds_BTC.flatten(0, 1), dim=0, return_inverse=True)[1]
    numbers: list[list[int]] = numbers_N.view(b, t).tolist()
    return numbers
