"""Data sets of the Hugging Face hub, through ``datasets``; without a network from its cache, or an error at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gptask.config.schemas import Hub
from gptask.data.hub_access import hub_problem, hub_switched_off
from gptask.data.rows import Row
from gptask.errors import UserError


class HubReader:
    """The rows of one split of a hub data set."""

    def __init__(self, options: Hub, split: str) -> None:
        self.name = f"{options.path}[{split}]"
        self.data = load_split(options, split)

    def fingerprint(self) -> dict[str, str]:
        """The fingerprint that ``datasets`` gives the split, by the split's name."""
        return {self.name: self.data._fingerprint}

    def rows(self, header_names: list[str]) -> Iterator[tuple[str, Row]]:
        """Rows, each with the split's name; a hub data set has no header, so ``header_names`` are not used."""
        for number, value in enumerate(self.data, 1):
            yield self.name, Row(number, value, "row")


def load_split(options: Hub, split: str) -> Any:
    """Load one split as a `datasets.Dataset`.

    Without a network a missing one raises `UserError` within a second, and where the hub does not answer, within some.
    """
    is_folder = Path(options.path).exists()
    problem = None if is_folder else hub_problem(options.path, options.revision, "dataset")
    if problem:
        if not _exists_locally(options.path):  # checked first, because importing datasets takes seconds
            raise _unavailable(options.path, problem)
        os.environ["HF_HUB_OFFLINE"] = "1"  # datasets reads this at import and then does not retry
    import datasets

    try:
        with hub_switched_off() if problem or is_folder else nullcontext():
            return datasets.load_dataset(options.path, options.name, split=split, revision=options.revision)
    except Exception as error:  # datasets raises many kinds, from its own to those of requests
        if problem:
            raise _unavailable(f"{options.path} ({split})", problem) from error
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the hub data set '{options.path}' split '{split}' can't be loaded: {cause}") from error


def _exists_locally(path: str) -> bool:
    """Whether a data set lies in a cache of the hub."""
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    downloaded = Path(constants.HF_HUB_CACHE, f"datasets--{path.replace('/', '--')}")
    return any(folder.exists() for folder in (prepared / path.replace("/", "___"), downloaded))


def _unavailable(name: str, problem: str) -> UserError:
    return UserError(
        f"the hub data set '{name}' is not in the cache, and {problem}. "
        "Load it once on a machine with network and copy ~/.cache/huggingface, or use local files: "
        "data=files data.train=<file> data.test=<file>"
    )
