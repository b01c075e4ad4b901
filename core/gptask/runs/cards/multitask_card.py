"""README.md of a run of several tasks: what it holds, how each did, how it is done again and used."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.runs.config_file import read_config
from gptask.runs.markdown import code, fenced, prose, table
from gptask.runs.reproduce import reproduce_command

if TYPE_CHECKING:
    from gptask.config.schemas import Train

COVER = """# {title}

{count} tasks on one backbone, trained together by gptask {version}: the tuning in `model/` is shared, each task has a
head of its own there. Each folder below is a run folder for that task alone, with its model card, metrics and
predictions.

{tasks}

{learned:,} of {parameters:,} parameters learned, each counted once.

## Reproduce

{command}

## Use

{use}

```python
import gptask

runs = gptask.load_runs({folder!r})  # every task, the backbone once
for name, run in runs.tasks.items():
    print(name, run.task.inputs())
```
"""


def multitask_card(folder: Path, config: Train, result: dict[str, Any]) -> str:
    """The text; ``result`` is what metrics.json holds."""
    rows = []
    for name, said in result["tasks"].items():
        score = next(iter(said["metrics"].items()), None)
        value = "{0} {1[value]:.2f} ({1[interval][0]:.2f} to {1[interval][1]:.2f})".format(*score) if score else ""
        weight = f"{config.tasks[name].weight:g}"
        rows.append([f"[{prose(name)}]({name}/README.md)", code(said["task"]), weight, value, f"{said['n']:,}"])
    return COVER.format(
        title=" + ".join(map(prose, result["tasks"])),
        count=len(rows),
        version=result["versions"].get("gptask", ""),
        tasks=table(["folder", "task", "weight of the loss", "main metric, 95% interval", "n"], rows),
        learned=result["trainable_parameters"],
        parameters=result["parameters"],
        command=fenced("bash", reproduce_command(read_config(folder))),
        use=fenced(
            "bash", f"gptask predict {shlex.quote(f'run={folder}')} task={next(iter(config.tasks))} input=<file>"
        ),
        folder=str(folder),
    )
