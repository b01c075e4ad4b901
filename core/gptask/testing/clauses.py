"""The clauses of the plugin contract: each a function that returns, or raises and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.conversion import from_plain
from gptask.data.corpus import SPLITS
from gptask.errors import listing
from gptask.model.generation.generate import GeneratedText
from gptask.plugins.compatibility import contract_version_of, refuse_other_version
from gptask.plugins.metric import Metric
from gptask.plugins.task import CONTRACT_VERSION
from gptask.plugins.types import Example, Field, Kind, Prediction
from gptask.runs.config_file import CORE_COLUMNS, PREDICTION_COLUMNS
from gptask.runs.predictions_file import prediction_fields
from gptask.testing.trial import BATCH, Trial, padded

if TYPE_CHECKING:
    from gptask.data.datamodule import PaddedBatch

PADS = 3
HEAVY = ("torch", "transformers", "pytorch_lightning", "peft", "datasets")
IMPORT = """
import importlib, runpy, sys
name, file, *heavy = sys.argv[1:]
try:
    importlib.import_module(name)
except ModuleNotFoundError:
    runpy.run_path(file)
sys.exit(" ".join({*heavy} & {*sys.modules}) or 0)
"""
LENGTHS = (
    "look for hidden[:, -1] or a mean over positions in the head: batch.last() and batch.lengths know the real ones"
)


class NotApplicable(Exception):
    """A clause has nothing to say about this task."""


def _expect(holds: Any, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _alike(a: Any, b: Any) -> bool:
    if is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and _alike(asdict(a), asdict(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) if isinstance(a, float) else a == b


# --- what is declared -------------------------------------------------------------------------------------------


def fields_well_formed(trial: Trial) -> None:
    """Names are free and differ; something is given, something is to be predicted; marks fit the kinds."""
    fields = trial.task.fields()
    _expect(all(isinstance(f, Field) for f in fields), f"Task.fields() must list gptask.Field, got {fields!r}")
    names = [f.name for f in fields]
    _expect(len(set(names)) == len(names), f"field names must differ, got {listing(names)}; look at Task.fields()")
    for f in fields:
        taken = f.name in CORE_COLUMNS or (f.name in PREDICTION_COLUMNS and not f.target)
        _expect(f.name.isidentifier() and not taken, f"the field name '{f.name}' is no identifier, or is gptask's own")
        fine = not f.target and f.kind is Kind.TEXT
        _expect(fine or not f.truncate, f"field '{f.name}' is marked truncate: only an input of kind TEXT can be")
        _expect(not (f.group and f.target), f"field '{f.name}' is marked group: only an input can be")
    _expect(trial.task.inputs(), "every field is marked target: a prediction has no input; look at Task.fields()")
    _expect(
        bool(trial.task.targets()) == trial.task.supervised,
        "no field is marked target: nothing is to be predicted; look at Task.fields()"
        if trial.task.supervised
        else f"Task.supervised=False, but {listing(f.name for f in trial.task.targets())} is marked target",
    )


def options_round_trip(trial: Trial) -> None:
    """A run's config.yaml brings back the same task: the options are typed, and none lives outside the fields."""
    from omegaconf import OmegaConf

    own = "__dataclass_fields__" in vars(type(trial.task))
    _expect(own, f"{type(trial.task).__name__} must be decorated with @dataclass, or its options are its parent's")
    written = OmegaConf.to_yaml(OmegaConf.structured(trial.task))
    again = from_plain("task", OmegaConf.to_container(OmegaConf.create(written)), type(trial.task))  # type: ignore[arg-type]
    _expect(
        again == trial.task and vars(again) == vars(trial.task),
        f"the options written and read again must make the same task, {trial.task!r}, got {again!r}; look at the "
        "types of the dataclass's fields, and at __init__ or __post_init__",
    )


def version_stated(trial: Trial) -> None:
    """The task says which contract it was made for, so that another one can refuse it or keep what it relied on."""
    task = type(trial.task)
    stated = f'contract_version = "{CONTRACT_VERSION}"'
    _expect(
        contract_version_of(task),
        f"{task.__name__} must state the contract it was made for: write {stated} in the class",
    )
    refuse_other_version(task)


def module_imports_no_torch(trial: Trial) -> None:
    """`gptask tasks` and --help answer at once, so a task's module imports heavy packages inside its methods."""
    module = type(trial.task).__module__
    found = _heavy_imports(module, str(getattr(sys.modules.get(module), "__file__", "")))
    _expect("Traceback" not in found, f"{module} must be importable alone: {found[-300:]}")
    _expect(not found, f"importing {module} must not import {found}: import it inside the methods")


@cache
def _heavy_imports(module: str, file: str) -> str:
    """Which heavy packages a fresh interpreter has loaded after importing a module, or why it can't."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IMPORT, module, file, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | path)
    return done.stderr.strip() if done.returncode else ""


def sample_readable(trial: Trial) -> None:
    """The bundled sample passes the task's own checks in all three splits, and no input (or group) is in two."""
    seen: dict[int, str] = {}
    for name in SPLITS:
        split = trial.corpus.split(name)
        for group in set(split.store.column("group")[split.rows].tolist()):
            where = seen.setdefault(group, name)
            _expect(where == name, f"splits must not overlap; {where} and {name} share an input; look at Task.sample()")


def parts_build(trial: Trial) -> None:
    """Data module, head and metrics can be made; one step forward and backward reaches every weight of the head."""
    import torch

    from gptask.model.heads import Head

    parts, metrics = trial.parts, trial.task.metrics()
    _expect(
        isinstance(parts.head, Head),
        f"Task.head() must make a gptask.model.heads.Head, got {type(parts.head).__name__}",
    )
    kinds = metrics and all(isinstance(m, Metric) for m in metrics)
    _expect(kinds, f"Task.metrics() must list at least one gptask.Metric, got {metrics!r}")
    names = [m.name for m in metrics]
    _expect(len(set(names)) == len(names), f"metric names must differ, got {listing(names)}; look at Task.metrics()")
    backbone, head = deepcopy((parts.backbone, parts.head))
    batch = next(iter(parts.data.train_dataloader()))
    hidden = backbone.hidden(batch.input_ids)
    hidden.retain_grad()
    loss = head.loss(hidden, batch)
    fine = isinstance(loss, torch.Tensor) and loss.ndim == 0 and bool(torch.isfinite(loss))
    _expect(fine, f"Head.loss() must be one finite number, got {loss!r}")
    loss.backward()
    still = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
    _expect(not still, f"the loss must reach every weight of the head, not so {listing(still)}; look at Head.loss()")
    _expect(hidden.grad is not None, "the loss must reach the backbone: Head.loss() must not detach the hidden states")


# --- how it behaves ---------------------------------------------------------------------------------------------


def padding_invariant(trial: Trial) -> None:
    """Neither the pads behind a sequence, nor its neighbours, nor states at hand change a loss or a prediction."""
    import torch

    from gptask.data.datamodule import collate

    items = trial.items(trial.examples)
    backbone, head = trial.parts.backbone, trial.parts.head
    with torch.inference_mode():
        for item in items:
            alone = collate([item])
            a, b = (head.loss(backbone.hidden(x.input_ids), x) for x in (alone, padded(alone, PADS, item["ids"][0])))
            close = torch.allclose(a, b, rtol=1e-3, atol=1e-4)
            _expect(close, f"{PADS} pads change the loss of one sequence from {a:.5f} to {b:.5f}; {LENGTHS}")
    together = trial.outputs(trial.batch(PADS, pad=items[0]["ids"][0]), states=True)
    for item, said in zip(items, together, strict=True):
        (alone_said,) = trial.outputs(collate([item]))
        same = _alike(alone_said, said)
        _expect(same, f"a sequence alone gives {alone_said!r}, in a padded batch {said!r}; {LENGTHS}")


def _moved(trial: Trial) -> tuple[PaddedBatch, Any]:
    """A padded batch and where (B, T) its loss depends on the hidden states."""
    batch = trial.batch(PADS)
    hidden = trial.parts.backbone.hidden(batch.input_ids).detach().requires_grad_()
    trial.parts.head.loss(hidden, batch).backward()
    assert hidden.grad is not None
    return batch, hidden.grad.abs().sum(-1) > 0


def loss_ignores_prompt_and_pads(trial: Trial) -> None:
    """The loss looks at no pad, at no state that the head says it does not read and, where tokens are learned, at
    nothing but the states that predict a target token."""
    batch, moved = _moved(trial)
    pads = moved.new_tensor([[k >= n for k in range(moved.shape[1])] for n in batch.lengths])
    _expect(not (moved & pads).any(), f"the loss depends on states of pads; {LENGTHS}")
    if trial.generates:
        prompt = moved & ~batch.predicting()
        _expect(
            not prompt.any(),
            f"the loss must see target tokens only, but it depends on {int(prompt.sum())} states of prompts; pick "
            "hidden[batch.predicting()] in Head.loss()",
        )
    read = trial.parts.head.needed_positions(batch)
    rest = 0 if read is None else int((moved & ~read).sum())
    _expect(
        not rest, f"the loss depends on {rest} states that Head.needed_positions() (or last_only) says it does not read"
    )


def learns_to_stop(trial: Trial) -> None:
    """EOS is in the loss, and after training on one batch greedy decoding ends where the targets end."""
    from gptask.model.generation.generate import generate
    from gptask.plugins.generation_options import GenerationOptions

    if not trial.generates:
        raise NotApplicable
    batch, moved = _moved(trial)
    before_end = moved[range(len(moved)), batch.lengths - 2]
    _expect(before_end.all(), "EOS must be in the loss (masking pads by id masks it too); use batch.predicting()")
    backbone, _, losses = trial.trained
    if losses[-1] > 0.1 * losses[0]:
        return  # overfits_one_batch says so; nothing was learned, so neither was EOS
    targets = [item["target"] for item in trial.items(trial.examples)]
    room = GenerationOptions(max_new_tokens=max(map(len, targets)) + 8)
    for said, target in zip(generate(backbone, batch.prompts(), room), targets, strict=True):
        wanted = backbone.tokenizer.decode(target, skip_special_tokens=True)
        _expect(said.text == wanted, f"generation should end after {wanted!r}, got {said.text!r}; look at Head.loss()")


def overfits_one_batch(trial: Trial) -> None:
    """A model that can't learn four examples by heart is not being taught."""
    *_, losses = trial.trained
    _expect(
        losses[-1] <= 0.1 * losses[0],
        f"{len(losses)} steps on {BATCH} examples should bring the loss to a tenth, got {losses[0]:.4f} -> "
        f"{losses[-1]:.4f}; look at the labels in Task.encode() and at Head.loss()",
    )


def predicts_without_targets(trial: Trial) -> None:
    """An example without its answer is encoded to the same prompt, and its prediction can be written as JSON."""
    blank = {f.name: None for f in trial.task.targets()}
    known, unknown = trial.items(trial.examples), trial.items([example | blank for example in trial.examples])
    same = [item["ids"] for item in known] == [item["ids"] for item in unknown]
    _expect(same, "the prompt must be the same with and without the answer (it leaks otherwise); look at Task.encode()")
    silent = all(item["target"] is None and item["label"] is None for item in unknown)
    _expect(silent, "without an answer, Encoded.target and Encoded.label must be None; look at Task.encode()")
    for prediction in trial.predictions:
        json.dumps(prediction_fields(prediction))


def metrics_rank(trial: Trial) -> None:
    """Right predictions (of the batch learned by heart) score better than the same ones dealt to other examples.

    A metric that does not look at the example (the likelihood of a text) must find them better than untrained ones.
    """
    from gptask.model.heads import GenerationHead

    right, examples = trial.predictions, trial.examples
    wrong = right[1:] + right[:1] if trial.task.supervised else trial.untrained
    silent = []
    if isinstance(trial.parts.head, GenerationHead):
        silent = [trial.task.prediction(example, [GeneratedText("", 0.0)]) for example in examples]
    *_, losses = trial.trained
    for m in trial.task.metrics():
        dealt = trial.untrained if _blind(m, right, examples) else wrong
        values = [_value(m, said, examples) for said in (right, dealt, silent) if said]
        better = {True: values[0] > values[1], False: values[0] < values[1], None: True}[m.higher_is_better]
        learned = losses[-1] <= 0.1 * losses[0]  # else overfits_one_batch has said so
        _expect(
            better or not learned,
            f"{m.name} gives {values[0]:.4f} to right predictions and {values[1]:.4f} to wrong ones, with "
            f"higher_is_better={m.higher_is_better}; look at statistics(), aggregate() and Task.prediction()",
        )


def _blind(m: Metric, said: Sequence[Prediction], examples: Sequence[Example]) -> bool:
    """Whether a metric's statistics of predictions that differ are the same beside any example."""
    rows = [[list(m.statistics(p, e)) for e in examples] for p in said]
    return rows[0] != rows[-1] and all(row == [row[0]] * len(row) for row in rows)


def _value(m: Metric, said: Sequence[Prediction], examples: Sequence[Example]) -> float:
    """A metric's value, after a look at its statistics, its range and its resamples."""
    rows = [list(map(float, m.statistics(p, e))) for p, e in zip(said, examples, strict=True)]
    lengths = sorted(set(map(len, rows)))
    _expect(len(lengths) == 1, f"{m.name}.statistics() must give equally many numbers for every example, got {lengths}")
    table = np.asarray(rows)
    _expect(np.isfinite(table).all(), f"{m.name}.statistics() must be finite, got {rows}")
    samples = [table, *(table[[k] * len(table)] for k in range(len(table)))]
    found = [float(m.aggregate(sample)) for sample in samples]
    low, high = m.range
    fine = all(math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6 for value in found)
    _expect(fine, f"{m.name} must lie in its range {m.range} for every resample of the examples, got {found}")
    counts = np.vstack([np.ones(len(table)), len(table) * np.eye(len(table))])
    quick = np.asarray(m.resampled(table, counts), dtype=float)
    same = quick.shape == (len(counts),) and np.allclose(quick, found, atol=1e-4)
    _expect(same, f"{m.name}.resampled() must give what aggregate() gives of each resample, {found}; got {quick}")
    return found[0]


Clause = Callable[[Trial], None]
STAGES: tuple[tuple[Clause, ...], ...] = (
    (fields_well_formed, options_round_trip, version_stated, module_imports_no_torch),
    (sample_readable,),
    (parts_build,),
    (
        padding_invariant,
        loss_ignores_prompt_and_pads,
        learns_to_stop,
        overfits_one_batch,
        predicts_without_targets,
        metrics_rank,
    ),
)
