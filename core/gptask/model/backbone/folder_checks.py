"""Checks of a model folder from elsewhere before a library reads it: what it names, what it claims, how large it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptask.errors import UserError, damaged, listing

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_BYTES = {  # of the files that are read as a whole; the largest in use have a tenth of it
    "config.json": 2**22,
    "generation_config.json": 2**22,
    "tokenizer_config.json": 2**24,
    "special_tokens_map.json": 2**24,
    "added_tokens.json": 2**24,
    "chat_template.jinja": 2**20,
    "tokenizer.json": 2**28,
    "vocab.json": 2**28,
    "merges.txt": 2**28,
    INDEX: 2**28,
}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIZES = (  # each at most the largest dimension of a weight, which hold all of them
    *("vocab_size", "hidden_size", "n_embd", "n_positions", "n_inner", "intermediate_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads"),
)
MAX_TOKEN_ID = 2**24  # the tokenizers library takes memory for each id up to the largest where it saves them
MAX_POSITIONS = 2**27  # that a model may see; they take no memory until they are used


def check_model_folder(folder: Path) -> None:
    """Raise `UserError` where loading a folder would reach beyond it, run its code or build more than its weights.

    Only names, sizes and the headers of the weights are read.
    """
    check_sizes(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter (adapter_config.json) beside a model; merge it first, or move it")
    config = _read_object(folder / "config.json")
    _check_names(folder, config)
    shapes = [shape for file in _weight_files(folder) for shape in _shapes(file)]
    if not shapes:
        return  # the loader says what is missing
    largest = max((size for shape in shapes for size in shape), default=0)
    limits = dict.fromkeys(LAYER_COUNTS, len(shapes)) | dict.fromkeys(SIZES, largest)
    for name, value in _members(config):
        limit = limits.get(name, MAX_POSITIONS if name == "max_position_embeddings" else None)
        if limit is not None and isinstance(value, int) and value > limit:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {value:,}, but the weights beside it are {len(shapes):,} tensors "
                f"with at most {largest:,} rows or columns; the file is damaged, or belongs to other weights"
            )


def check_sizes(folder: Path) -> None:
    """Raise `UserError` for a file beside the weights that is too large to be what its name says."""
    for name, limit in MAX_BYTES.items():
        if (file := folder / name).is_file() and (size := file.stat().st_size) > limit:
            raise UserError(f"{file} has {size:,} bytes, and gptask reads at most {limit:,} of such a file")


def _check_names(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a config that names other weights or the code of an attention function."""
    for name, value in _members(config):
        if name == "transformers_weights":
            raise UserError(f"{folder / 'config.json'} names its weights ({name}); they must be in {WEIGHTS}")
        if name.endswith("_implementation") and any("/" in text for text in _texts(value)):
            raise UserError(f"{folder / 'config.json'}: {name}={value} would be code from the hub, which is never run")


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; those that an index names must lie in the folder."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    places = _read_object(folder / INDEX).get("weight_map")
    names = {str(name) for name in places.values()} if isinstance(places, dict) else {""}
    if outside := [name for name in names if not name.endswith(".safetensors") or Path(name).name != name]:
        raise UserError(f"{folder / INDEX} names {listing(outside, 3)}; expected names of files beside it")
    return [file for name in sorted(names) if (file := folder / name).is_file()]


def _shapes(file: Path) -> Iterator[list[int]]:
    """The shape of each tensor, by the header of a file; safetensors checks that the file holds so many bytes."""
    from safetensors import safe_open

    with damaged(file), safe_open(file, "np") as weights:
        yield from [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}  # which the loader tells more about
    with damaged(file):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: expected a JSON object")
    return content


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """All names in a JSON value with what they stand for, those of inner objects too."""
    if isinstance(value, dict):
        yield from value.items()
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _members(member)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for _, text in _members(value) if isinstance(text, str)]


def check_token_ids(vocabulary: Mapping[str, int], folder: str) -> None:
    """Raise `UserError` for a vocabulary with an id that no model has."""
    if (largest := max(vocabulary.values(), default=0)) > MAX_TOKEN_ID:
        raise UserError(
            f"the tokenizer in {folder} has the token id {largest:,}, and gptask takes {MAX_TOKEN_ID:,} at most"
        )
