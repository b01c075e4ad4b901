"""README.md of a run of several tasks: its folders, their main metrics, how to repeat and use the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.plugins.metric import interval_text, value_text
from gptask.runs.cards.model_card import made_smaller
from gptask.runs.markdown import code_span, escaped, fenced, table

if TYPE_CHECKING:
    from gptask.config.schemas import Train

CARD = """# {title}

{count} tasks on one backbone, trained together with gptask {version}. `model/` holds the tuning that all tasks share
and one head per task. Each folder below is the run folder of one task, with its model card, metrics and predictions.
{origin}

{tasks}

{trained:,} of {parameters:,} parameters were trained, shared ones counted once.

## Reproduce

{command}

## Use

{use}

```python
import gptask

runs = gptask.load_runs({folder!r})  # all tasks, with the backbone loaded once
for name, run in runs.tasks.items():
    print(name, run.task.inputs())
```
"""


def multitask_card(folder: Path, config: Train, result: dict[str, Any], command: str) -> str:
    """The text of README.md; ``result`` is the content of metrics.json, ``command`` repeats the run."""
    rows = []
    for name, scores in result["tasks"].items():
        value = ", ".join(  # results hold each task's main metric only
            f"{escaped(metric)} {value_text(score['value'])} ({interval_text(score)})"
            for metric, score in scores["metrics"].items()
        )
        weight = f"{config.tasks[name].weight:g}"
        rows.append(
            [f"[{escaped(name)}]({name}/README.md)", code_span(scores["task"]), weight, value, f"{scores['n']:,}"]
        )
    example = f"gptask predict {shlex.quote(f'run={folder}')} task={next(iter(config.tasks))} input=<file>"
    return CARD.format(
        title=" + ".join(map(escaped, result["tasks"])),
        count=len(rows),
        origin=f"\n{text}\n" if (text := made_smaller(config)) else "",
        version=result["versions"].get("gptask", ""),
        tasks=table(["folder", "task", "weight of the loss", "main metric, 95% interval", "n"], rows),
        trained=result["trainable_parameters"],
        parameters=result["parameters"],
        command=fenced("bash", command),
        use=fenced("bash", example),
        folder=str(folder),
    )
