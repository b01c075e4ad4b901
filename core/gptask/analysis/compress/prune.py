"""Pruning of layers: those that change the states least are dropped, and LoRA heals the others.

Source: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"
(arXiv 2403.03853). Shapes: B rows, T positions, C channels, N real tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptask.analysis.compress.parent import FromParent
from gptask.config.compression import Compress
from gptask.config.engine import Reference
from gptask.config.schemas import Lora, Train
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError, listing
from gptask.runs.saved_model import files_hash_of_backbone
from gptask.training.builder import build_data, task_configs
from gptask.training.resolve import ChosenOption, resolve_data
from gptask.training.task_runtime import TaskRuntime

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule

log = logging.getLogger("gptask")
SAMPLE_TOKENS = 8192  # of each task's training data, on which the change of states is measured
FORM = ("rank", "alpha", "target_modules")  # of an adapter, which stays as it is where it goes on learning


class Pruning(FromParent):
    """A training of a run without some of its layers, from the run's adapter and heads.

    Raises `UserError` for layers that the run does not have, and for a tuning that its adapter can't go on in.
    """

    method = "prune"

    def __init__(self, config: Compress) -> None:
        super().__init__(config)
        self.keep = self._checked(config.keep)
        self.has_adapter = (self.model / "adapter_config.json").exists()
        if not isinstance(config.tuning, Lora):
            raise UserError(
                f"method={config.method.name} heals the layers that stay by tuning=lora. Another tuning is for a new "
                f"training on them: gptask train backbone.source={self.parent} backbone.keep=[...]"
            )
        if config.tuning.layers != 1:
            raise UserError(f"tuning.layers={config.tuning.layers}: keep= says which layers stay; leave this out")
        for name in FORM if self.has_adapter else ():
            value, saved = getattr(config.tuning, name), self.values["tuning"][name]
            if value != saved:
                raise UserError(
                    f"tuning.{name}={value}: healing goes on with the adapter of {self.parent}, which has {saved}; "
                    "leave this out"
                )

    def _checked(self, keep: Any) -> int | list[int]:
        """``keep=`` as a number of layers, or as the sorted numbers of those that stay."""
        layers, count = self.layers, len(self.layers)
        have = f"{self.parent} has {count} layers, {f'0 to {count - 1}' if layers == [*range(count)] else layers}"
        way = "keep=<how many layers stay>, or keep=[...] with the numbers of those that stay"
        if keep is None:
            raise UserError(f"method=prune needs {way}: {have}")
        numbers = keep if isinstance(keep, list) else [keep]
        if not numbers or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
            raise UserError(f"keep={keep}: expected {way}: {have}")
        if isinstance(keep, list):
            if missing := sorted({*keep} - {*layers}):
                raise UserError(f"keep={keep}: there is no layer {listing(missing)}: {have}")
            if len({*keep}) < len(keep):
                raise UserError(f"keep={keep} names a layer twice: {have}")
        elif not 1 <= keep <= count:
            raise UserError(f"keep={keep}: expected 1 to {count - 1} layers: {have}")
        if (len(keep) if isinstance(keep, list) else keep) == count:
            raise UserError(f"keep={keep} keeps all layers, so there is nothing to prune: {have}")
        return sorted(keep) if isinstance(keep, list) else keep

    def choose_options(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> tuple[Train, list[ChosenOption]]:
        """See `Variation`: the layers that stay, and the share of these that have adapters."""
        present, keep, reason = getattr(config.backbone, "keep", None), self.keep, "keep="
        if present not in (None, self.layers) and len(present) != (keep if isinstance(keep, int) else len(keep)):
            raise UserError(f"backbone.keep={present}: the option that says which layers stay is keep=; leave this out")
        if isinstance(keep, int):
            if present is not None and len(present) == keep:
                return config, []  # chosen before the run was stopped
            influence = self.influence(config, corpora)
            log.info("block influence of each layer: %s", ", ".join(f"{n}: {x:.3f}" for n, x in influence.items()))
            keep = sorted(sorted(influence, key=influence.__getitem__)[-keep:])
            reason = f"the {len(keep)} of {len(influence)} layers that change the states most"
        chosen = [ChosenOption("backbone.keep", keep, reason)] if keep != present else []
        config = replace(config, backbone=replace(config.backbone, keep=keep))
        if not self.has_adapter:
            return config, chosen
        top = self._adapted_share(config.tuning, keep)
        if top != config.tuning.top:
            chosen.append(ChosenOption("tuning.top", top, f"the layers that have adapters in {self.parent}"))
        return replace(config, tuning=replace(config.tuning, top=top)), chosen

    def _adapted_share(self, tuning: Lora, keep: Sequence[int]) -> float:
        """The value of ``tuning.top`` with which all layers of ``keep`` that the parent adapts have adapters."""
        from gptask.model.backbone.tuning import first_adapted

        saved = self.values["tuning"]["top"] or 1.0
        adapted = self.layers[first_adapted(len(self.layers), saved) :]
        needed = max(1, len({*keep} & {*adapted}))
        if tuning.top == saved:
            return needed / len(keep)
        if tuning.top is not None and len(keep) - first_adapted(len(keep), tuning.top) < needed:
            raise UserError(
                f"tuning.top={tuning.top}: {needed} of the {len(keep)} layers that stay have adapters in "
                f"{self.parent}, which go on learning; set tuning.top={needed / len(keep):.3g} or more, or leave it out"
            )
        return 1.0 if tuning.top is None else tuning.top

    def influence(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> dict[int, float]:
        """The mean influence of each of the parent's layers on the training data of its tasks."""
        parent = self.load_parent(Reference())  # which calls the layers on padded rows
        backbone = next(iter(parent.tasks.values())).backbone
        tasks = task_configs(resolve_data(config, backbone)[0])
        by_task = []
        for name, one in tasks.items():
            data = build_data(one.task, corpora[name], one.data, backbone, config.seed)
            by_task.append(block_influence(backbone, data.train_dataloader()))
        return {number: sum(values) / len(tasks) for number, *values in zip(self.layers, *by_task, strict=True)}

    def build_module(self, backbone: GPTBackbone, runtimes: Sequence[TaskRuntime], config: Train) -> GPTModule:
        """See `Variation`: the module begins with the parent's heads and, where it has one, its adapter."""
        if backbone.origin.files_hash != files_hash_of_backbone(self.model):
            method = f"method={self.config.method.name}"
            raise UserError(f"{method} goes on with the backbone of {self.parent}; leave backbone= out")
        module = super().build_module(backbone, runtimes, config)
        if self.has_adapter:
            load_adapter(backbone, self.model, self.layers)
        self.load_heads(module)
        return module


def block_influence(backbone: GPTBackbone, batches: Any) -> list[float]:
    """How much each layer changes the states of real tokens, from 0: 1 - cos(before, after), on `SAMPLE_TOKENS`.

    The backbone has the reference engine, which calls its layers on padded rows.
    """
    import torch

    sums = [0.0] * len(backbone.layers)
    mask_BT: Tensor = torch.empty(0)

    def measure(number: int) -> Callable[..., None]:
        def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before_BTC = args[0] if args else kwargs["hidden_states"]
            after_BTC = output[0] if isinstance(output, tuple) else output
            before_NC, after_NC = before_BTC[mask_BT].float(), after_BTC[mask_BT].float()
            sums[number] += float((1 - torch.cosine_similarity(before_NC, after_NC, dim=-1)).sum())

        return add

    tokens = 0
    with ExitStack() as stack, torch.inference_mode():
        for number, layer in enumerate(backbone.layers):
            stack.callback(layer.register_forward_hook(measure(number), with_kwargs=True).remove)
        for batch in batches:
            batch = batch.to(backbone.device)
            positions = torch.arange(batch.input_ids.shape[1], device=backbone.device)
            mask_BT = positions < batch.lengths[:, None]
            backbone.hidden(batch.input_ids, batch.lengths)
            tokens += int(mask_BT.sum())
            if tokens >= SAMPLE_TOKENS:
                break
    return [total / max(tokens, 1) for total in sums]


def load_adapter(backbone: GPTBackbone, model: Any, layers: Sequence[int]) -> None:
    """Load a run's adapter, from its folder ``model``, into that of a backbone that has some of its ``layers``.

    Layers that the adapter does not have keep their own factors, which change nothing before they learn. Raises
    `UserError` for an adapter that does not fit.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = next(name for name, module in backbone.peft.named_modules() if module is backbone.layer_list)
    numbers = {str(layers.index(number)): str(new) for new, number in enumerate(backbone.layer_numbers)}
    tensors = {}
    for name, tensor in backbone.engine.read_adapter(model).tensors.items():
        number, _, rest = name.removeprefix(f"{path}.").partition(".")
        if not name.startswith(f"{path}."):
            tensors[name] = tensor
        elif number in numbers:
            tensors[f"{path}.{numbers[number]}.{rest}"] = tensor
    places = get_peft_model_state_dict(backbone.peft, save_embedding_layers=False)
    wrong = [name for name, t in tensors.items() if name not in places or places[name].shape != t.shape]
    if wrong:
        raise UserError(f"the adapter in {model} does not fit the layers that stay: {listing(sorted(wrong), 3)}")
    set_peft_model_state_dict(backbone.peft, tensors)
