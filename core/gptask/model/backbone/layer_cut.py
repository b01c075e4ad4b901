"""Takes decoder layers out of a causal language model, and tells whether it can do without them.

Shapes: T positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


def layers_path(model: Any) -> str | None:
    """The name of the decoder's submodule that is the list of its layers, None where they are no plain list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = ((n, module) for n, module in model.get_decoder().named_modules() if isinstance(module, nn.ModuleList))
    return next((name for name, modules in lists if len(modules) == count), None)


def cut_layers(model: Any, positions: Sequence[int]) -> Callable[[], None]:
    """Drop the layers that are not at ``positions``, and number the others anew; return what puts all back."""
    decoder, config, path = model.get_decoder(), model.config.get_text_config(), layers_path(model)
    if path is None:
        raise ValueError("they are no plain list")
    old_layers = [*decoder.get_submodule(path)]
    # one entry per layer, such as its type
    old_lists = {
        key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == len(old_layers)
    }

    def put_back() -> None:
        decoder.set_submodule(path, nn.ModuleList(old_layers))
        _number(old_layers, range(len(old_layers)))
        config.num_hidden_layers = len(old_layers)
        vars(config).update(old_lists)

    layers = [old_layers[position] for position in positions]
    decoder.set_submodule(path, nn.ModuleList(layers))
    _number(layers, range(len(layers)))
    config.num_hidden_layers = len(layers)
    for key, values in old_lists.items():
        setattr(config, key, [values[position] for position in positions])
    return put_back


def _number(layers: Iterable[nn.Module], numbers: Iterable[int]) -> None:
    """Tell the modules of each layer its number, by which a cache finds the layer's keys and values."""
    for layer, number in zip(layers, numbers, strict=True):
        modules: Iterable[Any] = layer.modules()
        for module in modules:
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = number


def check_cut(model: Any, positions: Sequence[int]) -> None:
    """Raise an error where a model whose layers at ``positions`` are left can't do without the others.

    The numbers of the layers may only say where their keys and values are in a cache, and a model that is made from
    the config, as from an exported folder, must have the same layers. This leaves the layers with their old numbers.
    """
    ids_1T, decoder = torch.arange(4, device=model.device)[None], model.get_decoder()
    with torch.inference_mode():
        states_1TC = decoder(input_ids=ids_1T, use_cache=False).last_hidden_state
        if [*positions] == [*range(len(positions))]:
            return  # the first layers have the numbers that they had
        with torch.device("meta"):
            made = type(model)(type(model.config).from_dict(model.config.to_dict()))
        layers, made_layers = ([*m.get_decoder().get_submodule(layers_path(m))] for m in (model, made))
        for layer, made_layer in zip(layers, made_layers, strict=True):
            if different := {*_plain_attributes(layer)} ^ {*_plain_attributes(made_layer)}:
                raise ValueError(f"its config does not describe the others: {min(name for name, _ in different)}")
        _number(layers, positions)
        as_numbered_before_1TC = decoder(input_ids=ids_1T, use_cache=False).last_hidden_state
    if not torch.equal(states_1TC, as_numbered_before_1TC):
        raise ValueError("a layer computes by its number")


def _plain_attributes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The numbers and texts that the modules of a layer were made with, by their names."""
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | None) and name != "training" and not name.startswith("_"):
                yield f"{path}.{name}", value
