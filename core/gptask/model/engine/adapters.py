"""LoRA adapters in a backbone's model beside its own, each named by a digest of its bytes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptask.errors import UserError, listing
from gptask.model.engine.adapter_files import WEIGHTS, AdapterFiles
from gptask.model.engine.forward_state import forward_state

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone

log = logging.getLogger("gptask")


def add_adapter(backbone: EngineBackbone, adapter: AdapterFiles) -> None:
    """Load an adapter into the backbone's model. What learns, and which adapter the model itself uses, stays as it is.

    Raises `UserError`, and leaves the model as it was, where a tensor of the file has no place in the model or the
    other way round.
    """
    model, digest = backbone.peft, adapter.digest
    learning, training = _learning(model), model.training
    if any(getattr(layer, "merged", False) for layer in model.modules()):
        raise UserError("the model's own adapter is merged into its weights: unmerge it before adding others")
    try:
        _inject(backbone, adapter)
        _refuse_vocabulary(backbone, adapter)
        _assign(backbone, adapter)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        remove_adapter(backbone, digest)
        problem = str(error).strip().splitlines()[-1]
        raise UserError(f"the adapter in {adapter.folder} does not fit the model: {problem}") from error
    finally:
        _let_learn(backbone.peft, learning)
        backbone.peft.train(training)
    layers = int(backbone.config.num_hidden_layers)
    backbone.adapter_layers[digest] = layers if adapter.layers is None else adapter.layers


def _inject(backbone: EngineBackbone, adapter: AdapterFiles) -> None:
    """Give the layers that an adapter names its factors, without values."""
    from peft import PeftModel, get_peft_model

    model, config = backbone.peft, adapter.config
    if adapter.layers is not None:
        config.exclude_modules = _with_upper_layers(backbone, config.exclude_modules, adapter.layers)
    if isinstance(model, PeftModel):
        model.add_adapter(adapter.digest, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
        return
    model = get_peft_model(model, config, adapter.digest, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    model.base_model.set_adapter([])
    backbone.peft = model


def _with_upper_layers(backbone: EngineBackbone, excluded: Any, layers: int) -> str:
    """The pattern of the modules that get no factors: those an adapter excludes itself, and those of upper layers."""
    patterns = [excluded] if isinstance(excluded, str) else [rf"(.*\.)?{re.escape(name)}" for name in excluded or ()]
    upper = set(backbone.layers[layers:])
    names = (name for name, module in backbone.model.named_modules() if module in upper)
    return "|".join(f"({pattern})" for pattern in [*patterns, *(rf"{re.escape(name)}\..*" for name in names)])


def _refuse_vocabulary(backbone: EngineBackbone, adapter: AdapterFiles) -> None:
    """Raise `ValueError` for factors in the embeddings or the vocabulary projection, which all rows compute alike."""
    ends: list[Any] = [backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()]
    if any(adapter.digest in getattr(end, kind) for end in ends for kind in getattr(end, "adapter_layer_names", ())):
        raise ValueError("it adapts the embeddings or the vocabulary projection; rows can't have their own of these")


def _assign(backbone: EngineBackbone, adapter: AdapterFiles) -> None:
    """Put the tensors of an adapter's file in their places; raises `ValueError` unless each has its place and shape.

    PEFT would only warn of some of this, and would round float32 factors to the number format of the model.
    """
    places = dict(_factors(backbone.peft, adapter.digest))
    tensors, shapes = adapter.tensors, {name: tuple(place.shape) for name, (_, _, place) in places.items()}
    if different := sorted({*tensors} ^ {*shapes}):
        missing, unused = sorted({*shapes} - {*tensors}), sorted({*tensors} - {*shapes})
        raise ValueError(
            f"tensors of one and not of the other: {listing(different, 4)} ({WEIGHTS} lacks {len(missing)} of "
            f"{len(shapes)}, and {len(unused)} of its {len(tensors)} have no place in the layers)"
        )
    if wrong := [name for name, shape in shapes.items() if tuple(tensors[name].shape) != shape]:
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} tensors have another shape, such as {name}: {tuple(tensors[name].shape)} in the file, "
            f"{shapes[name]} in the model"
        )
    for name, (parent, attribute, _) in places.items():
        setattr(parent, attribute, nn.Parameter(tensors[name].to(backbone.device), requires_grad=False))


def _factors(model: nn.Module, digest: str) -> Iterator[tuple[str, tuple[nn.Module, str, Tensor]]]:
    """An adapter's factors by their names in PEFT's files, each with the module and the attribute that hold it."""
    for path, layer in [*model.named_modules()]:
        for kind in getattr(type(layer), "adapter_layer_names", ()):
            factors: Any = getattr(layer, kind)
            if digest not in factors:
                continue
            if isinstance(factors, nn.ParameterDict):
                yield f"{path}.{kind}", (factors, digest, factors[digest])
            else:
                parent = factors[digest]
                yield from ((f"{path}.{kind}.{n}", (parent, n, p)) for n, p in parent.named_parameters())


def remove_adapter(backbone: EngineBackbone, digest: str) -> None:
    """Take an adapter out of the backbone's model; layers and a model that have no other one are plain again."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    backbone.adapter_layers.pop(digest, None)
    base, learning = backbone.model, _learning(backbone.peft)
    modules: list[tuple[str, Any]] = [*base.named_modules()]
    for path, layer in modules:
        if isinstance(layer, BaseTunerLayer):
            layer.delete_adapter(digest)
            if not any(len(getattr(layer, kind)) for kind in layer.adapter_layer_names):
                base.set_submodule(path, layer.get_base_layer())
    peft: Any = backbone.peft
    if isinstance(peft, PeftModel):
        peft.peft_config.pop(digest, None)
        if not peft.peft_config:
            backbone.peft = base
        elif peft.active_adapter == digest:  # the first one that was loaded, whether it is in use or not
            peft.active_adapter = next(iter(peft.peft_config))
    if backbone.peft is base:
        vars(base).pop("peft_config", None)
    _let_learn(backbone.peft, learning)


@contextmanager
def active_adapters(backbone: EngineBackbone, digests: Sequence[str]) -> Iterator[None]:
    """The model computes with these adapters alone inside this context, by PEFT: no other thread's pass may run."""
    from peft import PeftModel

    model = backbone.peft
    if not isinstance(model, PeftModel) or model.active_adapters == [*digests]:
        yield
        return
    tuner: Any = model.base_model
    own, learning = model.active_adapters, _learning(model)
    tuner.set_adapter([*digests], inference_mode=True)
    try:
        yield
    finally:
        tuner.set_adapter(own, inference_mode=True)
        _let_learn(model, learning)


def prove_adapter(backbone: EngineBackbone, adapter: AdapterFiles) -> None:
    """Show on some tokens that an adapter in the model changes its states, and that they are finite.

    Raises `UserError` where they are not, or are those of the model without adapters. An adapter of zeros, whose run
    has learned nothing, is logged.
    """
    vocabulary, training = backbone.model.get_input_embeddings().num_embeddings, backbone.peft.training
    ids_1T = torch.linspace(0, vocabulary - 1, 8, device=backbone.device).long()[None]
    backbone.peft.eval()
    try:
        with torch.inference_mode():
            with backbone.engine.running(adapter.digest):
                states_1TC = backbone.body(input_ids=ids_1T, use_cache=False).last_hidden_state
            with (
                active_adapters(backbone, []),
                backbone.engine.running(),
                forward_state(adapter="", layers=adapter.layers),  # no layer has an adapter of this name
            ):
                plain_1TC = backbone.body(input_ids=ids_1T, use_cache=False).last_hidden_state
    finally:
        backbone.peft.train(training)
    if not states_1TC.isfinite().all():
        raise UserError(f"with the adapter in {adapter.folder}, the model's states are not finite numbers")
    if not torch.equal(states_1TC, plain_1TC):
        return
    if not adapter.is_zero:
        raise UserError(
            f"the adapter in {adapter.folder} changes nothing: with it, the model's states are those of the backbone "
            f"alone (in {backbone.model.dtype}), though its factors are not zero"
        )
    log.warning("the adapter in %s is zero: it predicts as the backbone alone", adapter.folder)


def _learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _let_learn(model: nn.Module, learning: Sequence[nn.Parameter]) -> None:
    """Let these parameters of a model learn, and no others: PEFT sets this anew wherever it touches an adapter."""
    numbers = {id(parameter) for parameter in learning}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in numbers)
