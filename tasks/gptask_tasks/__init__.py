"""The built-in task plugins, a module or a small package each."""

from pathlib import Path
from typing import Any


def sample(name: str, suffix: str = "jsonl", **options: Any) -> dict[str, Any]:
    """Return the data options of the sample that is bundled under ``samples/<name>``."""
    folder = Path(__file__).parent / "samples" / name
    files = {split: str(folder / f"{split}.{suffix}") for split in ("train", "validation", "test")}
    return files | {"license": "Apache-2.0"} | options
