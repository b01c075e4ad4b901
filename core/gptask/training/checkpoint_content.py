"""Whether what a checkpoint holds has the names and types of what a gptask training saves.

A checkpoint may be a stranger's, or damaged so that it still loads: its content is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptask.errors import UserError
from gptask.runs.folder import KEY_IN_CHECKPOINT
from gptask.runs.validation import Kinds, wrong_entry

COUNTS: Kinds = dict.fromkeys(("ready", "started", "processed", "completed"), int)
LOOPS = "loops.fit_loop"
OPTIMIZER = f"{LOOPS}.epoch_loop\0automatic_optimization\0optim_progress.optimizer.step.current"
RECORD = f"{KEY_IN_CHECKPOINT}.record"
CONTENT: dict[str, Kinds] = {  # by the path of a dictionary; "\0" stands for a point in a name of Lightning's
    "": {"global_step": int, "epoch": int, "loops": dict, "callbacks": dict, "state_dict": dict},
    LOOPS: {"state_dict": dict},
    **{
        f"{LOOPS}.{loop}.{part}": COUNTS
        for loop in ("epoch_progress", "epoch_loop\0batch_progress", "epoch_loop\0val_loop\0batch_progress")
        for part in ("current", "total")
    },
    f"{LOOPS}.epoch_loop\0batch_progress": {"is_last_batch": bool},
    OPTIMIZER: {"completed": int},
    KEY_IN_CHECKPOINT: {"record": dict, "random_states": list, "validated": bool},
    RECORD: {
        "config": dict, "given": dict, "data": dict, "plugins": dict, "weights": str, "world_size": int,
        "total_steps": (int, float),
    },
    f"{RECORD}.config": {"trainer": dict, "outputs": str},
}  # fmt: skip
CALLBACKS: dict[str, Kinds] = {"BestCheckpoint": {"best_model_path": str}, "Patience": {"wait_count": int}}


def wrong_content(checkpoint: Any) -> str:
    """Why no training of gptask can go on from a checkpoint with this content; empty if one can."""
    for path, kinds in CONTENT.items():
        values = checkpoint
        for name in filter(None, path.split(".")):
            values = values.get(name.replace("\0", ".")) if isinstance(values, dict) else None
        if wrong := wrong_entry(values, kinds):
            return f"{path.replace(chr(0), '.')}: {wrong}" if path else wrong
    record = checkpoint[KEY_IN_CHECKPOINT]["record"]
    if record["world_size"] < 1 or checkpoint["global_step"] < 0:
        return f"world_size is {record['world_size']}, global_step {checkpoint['global_step']}"
    for name, state in checkpoint["callbacks"].items():
        for callback, kinds in CALLBACKS.items():
            if str(name).startswith(callback) and (wrong := wrong_entry(state, kinds)):
                return f"{callback}: {wrong}"
    return ""


@contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Turn what Lightning and torch raise while they restore a checkpoint into a `UserError` that names it."""
    try:
        yield
    except Exception as error:
        if path is None or isinstance(error, UserError) or not _in_restoring(error):
            raise
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged, it can't be restored: {cause} ({type(error).__name__})") from error


def _in_restoring(error: BaseException) -> bool:
    """Whether an exception comes from Lightning's restoring, or from that of random states."""
    trace, places = error.__traceback__, set()
    while trace:
        code = trace.tb_frame.f_code
        places.add((Path(code.co_filename).name, code.co_name))
        trace = trace.tb_next
    return any(file == "checkpoint_connector.py" for file, _ in places) or (
        ("resume_point.py", "restore_random_states") in places
    )
