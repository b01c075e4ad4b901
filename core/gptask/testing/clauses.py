"""The clauses of the plugin contract: each is a function that raises if the task breaks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import from_plain
from gptask.data.corpus import SPLITS
from gptask.errors import listing
from gptask.model.generation.generate import generate
from gptask.plugins.compatibility import contract_version_of, refuse_other_version
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.metric import Metric
from gptask.plugins.task import CONTRACT_VERSION, Task
from gptask.plugins.types import CORE_COLUMNS, PREDICTION_COLUMNS, Field, Kind
from gptask.runs.predictions_file import prediction_fields
from gptask.testing.expectations import LEARNED_SHARE, NotApplicable, expect, nearly_equal
from gptask.testing.metric_clauses import metrics_rank
from gptask.testing.score_clauses import scores_are_log_probabilities
from gptask.testing.trial import BATCH_SIZE, Trial, padded

if TYPE_CHECKING:
    from torch import Tensor

    from gptask.data.datamodule import PaddedBatch

EXTRA_PADS = 3
HEAVY_PACKAGES = ("torch", "transformers", "pytorch_lightning", "peft", "datasets")
IMPORT_SCRIPT = """
import importlib, runpy, sys
name, file, *heavy = sys.argv[1:]
try:
    importlib.import_module(name)
except ModuleNotFoundError:
    runpy.run_path(file)
sys.exit(" ".join({*heavy} & {*sys.modules}) or 0)
"""
PADDING_HINT = (
    "look for hidden[:, -1] or a mean over positions in the head: batch.last() and batch.lengths know the real ones"
)


# --- what a task declares ----------------------------------------------------------------------------------------


def fields_well_formed(trial: Trial) -> None:
    """Field names are free and distinct; there is an input and a target; the marks fit the kinds."""
    fields = trial.task.fields()
    expect(all(isinstance(f, Field) for f in fields), f"Task.fields() must list gptask.Field, got {fields!r}")
    names = [f.name for f in fields]
    expect(len(set(names)) == len(names), f"field names must differ, got {listing(names)}; look at Task.fields()")
    for f in fields:
        taken = f.name in CORE_COLUMNS or (f.name in PREDICTION_COLUMNS and not f.target)
        expect(
            f.name.isidentifier() and not taken,
            f"the field name '{f.name}' is not an identifier, or is reserved by gptask",
        )
        text_input = not f.target and f.kind is Kind.TEXT
        expect(text_input or not f.truncate, f"field '{f.name}' is marked truncate: only an input of kind TEXT can be")
        expect(not (f.group and f.target), f"field '{f.name}' is marked group: only an input can be")
    expect(trial.task.inputs(), "every field is marked target, so a prediction has no input; look at Task.fields()")
    expect(
        bool(trial.task.targets()) == trial.task.supervised,
        "no field is marked target, so there is nothing to predict; look at Task.fields()"
        if trial.task.supervised
        else f"Task.supervised=False, but {listing(f.name for f in trial.task.targets())} is marked target",
    )


def options_round_trip(trial: Trial) -> None:
    """A run's config.yaml restores the same task: the options are typed, and none exists outside the fields."""
    cls = type(trial.task)
    decorated = "__dataclass_fields__" in vars(cls)
    expect(decorated, f"{cls.__name__} must be decorated with @dataclass, or its options are its parent's")
    restored = _task_from_options(trial.task)
    expect(
        restored == trial.task and vars(restored) == vars(trial.task),
        f"the options written and read again must make the same task, {trial.task!r}, got {restored!r}; look at the "
        "types of the dataclass's fields, and at __init__ or __post_init__",
    )


def _task_from_options(task: Task) -> Task:
    """Return the task that is made of another's options, written and read again."""
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.structured(task))
    plain: Any = OmegaConf.to_container(OmegaConf.create(text))
    restored: Task = from_plain("task", plain, type(task))
    return restored


def version_stated(trial: Trial) -> None:
    """The task states the contract it is made for, so that another contract can refuse or support it."""
    task = type(trial.task)
    statement = f'contract_version = "{CONTRACT_VERSION}"'
    expect(
        contract_version_of(task),
        f"{task.__name__} must state the contract it is made for: write {statement} in the class",
    )
    refuse_other_version(task)


def module_imports_no_torch(trial: Trial) -> None:
    """A task's module imports heavy packages inside its methods, since `gptask tasks` and --help answer at once."""
    module = type(trial.task).__module__
    loaded = _heavy_imports(module, str(getattr(sys.modules.get(module), "__file__", "")))
    expect("Traceback" not in loaded, f"{module} must be importable on its own: {loaded[-300:]}")
    expect(not loaded, f"importing {module} must not import {loaded}: import it inside the methods")


@cache
def _heavy_imports(module: str, file: str) -> str:
    """Return the heavy packages that a new interpreter loads with a module, or the traceback if the import fails."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IMPORT_SCRIPT, module, file, *HEAVY_PACKAGES]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | path)
    return process.stderr.strip() if process.returncode else ""


def sample_readable(trial: Trial) -> None:
    """The bundled sample passes the task's own checks in all three splits, and no input or group is in two splits."""
    split_of: dict[int, str] = {}
    for name in SPLITS:
        split = trial.corpus.split(name)
        for group in set(split.store.column("group")[split.rows].tolist()):
            other = split_of.setdefault(group, name)
            expect(other == name, f"splits must not overlap; {other} and {name} share an input; look at Task.sample()")


def prepare_returns_options(trial: Trial) -> None:
    """`Task.prepare` returns the options it chooses and leaves the task as it is."""
    before, chosen = deepcopy(vars(trial.task)), trial.chosen_options
    changed = [name for name, value in vars(trial.task).items() if name not in before or before[name] != value]
    expect(not changed, f"Task.prepare() must return {listing(changed)} and set nothing; it returned {chosen!r}")


def parts_build(trial: Trial) -> None:
    """Data module, head and metrics can be built; a backward pass reaches every weight of the head."""
    import torch

    from gptask.model.heads import Head

    parts, metrics = trial.parts, trial.task.metrics()
    expect(
        isinstance(parts.head, Head),
        f"Task.head() must return a gptask.Head, got {type(parts.head).__name__}",
    )
    are_metrics = metrics and all(isinstance(metric, Metric) for metric in metrics)
    expect(are_metrics, f"Task.metrics() must list at least one gptask.Metric, got {metrics!r}")
    names = [metric.name for metric in metrics]
    expect(len(set(names)) == len(names), f"metric names must differ, got {listing(names)}; look at Task.metrics()")
    backbone, head = deepcopy((parts.backbone, parts.head))
    batch = next(iter(parts.data.train_dataloader()))
    hidden = backbone.hidden(batch.input_ids)
    hidden.retain_grad()
    loss = head.loss(hidden, batch)
    is_finite_scalar = isinstance(loss, torch.Tensor) and loss.ndim == 0 and bool(torch.isfinite(loss))
    expect(is_finite_scalar, f"Head.loss() must be one finite number, got {loss!r}")
    torch.autograd.backward(loss)
    missed = [name for name, weight in head.named_parameters() if weight.requires_grad and weight.grad is None]
    expect(not missed, f"the loss must reach every weight of the head, but misses {listing(missed)}; see Head.loss()")
    expect(hidden.grad is not None, "the loss must reach the backbone: Head.loss() must not detach the hidden states")


def head_owns_its_weights(trial: Trial) -> None:
    """No weight of the backbone is saved and trained as a part of the head."""
    backbone, head = trial.parts.backbone, trial.parts.head
    backbone_weights = {*backbone.parameters(), *backbone.buffers()}
    shared = [name for name, weight in head.state_dict(keep_vars=True).items() if weight in backbone_weights]
    expect(
        not shared,
        f"Head.state_dict() must hold no weights of the backbone, but has {listing(shared, 3)}; use self.backbone "
        "(super().__init__(backbone) sets it), and assign no part of it to an attribute of the head",
    )


# --- how a model of the task behaves -----------------------------------------------------------------------------


def padding_invariant(trial: Trial) -> None:
    """Pads after a sequence, its neighbours in the batch, and packing change neither loss nor prediction."""
    import torch

    from gptask.data.datamodule import collate

    items = trial.items(trial.examples)
    backbone, head = trial.parts.backbone, trial.parts.head
    with torch.inference_mode():
        for item in items:
            single = collate([item])
            batches = (single, padded(single, EXTRA_PADS, item["ids"][0]))
            loss, padded_loss = (head.loss(backbone.hidden(batch.input_ids), batch) for batch in batches)
            change = f"the loss of one sequence from {loss:.5f} to {padded_loss:.5f}"
            close = torch.allclose(loss, padded_loss, rtol=1e-3, atol=1e-4)
            expect(close, f"{EXTRA_PADS} pads change {change}; {PADDING_HINT}")
    batch_outputs = trial.outputs(trial.batch(EXTRA_PADS, pad_id=items[0]["ids"][0]), packed=False)
    for item, batch_output in zip(items, batch_outputs, strict=True):
        (output,) = trial.outputs(collate([item]))
        same = nearly_equal(output, batch_output)
        expect(same, f"a sequence alone gives {output!r}, in a padded batch {batch_output!r}; {PADDING_HINT}")


def _states_in_loss(trial: Trial) -> tuple[PaddedBatch, Tensor]:
    """Return a padded batch and a mask (B, T) of the hidden states on which its loss depends."""
    import torch

    batch = trial.batch(EXTRA_PADS)
    hidden = trial.parts.backbone.hidden(batch.input_ids).detach().requires_grad_()
    torch.autograd.backward(trial.parts.head.loss(hidden, batch))
    assert hidden.grad is not None
    return batch, hidden.grad.abs().sum(-1) > 0


def loss_ignores_prompt_and_pads(trial: Trial) -> None:
    """The loss depends on no pad and only on the positions that the head declares as needed.

    Where tokens are learned, it depends only on the states that predict a target token.
    """
    batch, in_loss = _states_in_loss(trial)
    is_pad = in_loss.new_tensor(
        [[position >= length for position in range(in_loss.shape[1])] for length in batch.lengths]
    )
    expect(not (in_loss & is_pad).any(), f"the loss depends on states of pads; {PADDING_HINT}")
    if trial.generates:
        prompt_states = int((in_loss & ~batch.predicting()).sum())
        expect(
            not prompt_states,
            f"the loss must see target tokens only, but it depends on {prompt_states} states of prompts; pick "
            "hidden[batch.predicting()] in Head.loss()",
        )
    needed = trial.parts.head.needed_positions(batch)
    undeclared = 0 if needed is None else int((in_loss & ~needed).sum())
    expect(
        not undeclared,
        f"the loss depends on {undeclared} states that Head.needed_positions() (or last_only) excludes; add them there",
    )


def learns_to_stop(trial: Trial) -> None:
    """EOS is in the loss, and after training on one batch greedy decoding ends where the targets end."""
    if not trial.generates:
        raise NotApplicable
    batch, in_loss = _states_in_loss(trial)
    predicts_eos = in_loss[range(len(in_loss)), batch.lengths - 2]
    expect(predicts_eos.all(), "EOS must be in the loss (masking pads by id masks it too); use batch.predicting()")
    backbone, _, losses = trial.trained
    if losses[-1] > LEARNED_SHARE * losses[0]:
        return  # overfits_one_batch reports that nothing was learned, so neither was EOS
    targets = [item["target"] for item in trial.items(trial.examples)]
    options = GenerationOptions(max_new_tokens=max(map(len, targets)) + 8)
    for generated, target in zip(generate(backbone, batch.prompts(), options), targets, strict=True):
        text, expected = generated.text, backbone.tokenizer.decode(target, skip_special_tokens=True)
        expect(text == expected, f"generation should end after {expected!r}, got {text!r}; look at Head.loss()")


def overfits_one_batch(trial: Trial) -> None:
    """The model memorizes four examples; if it can't, the loss does not train it."""
    *_, losses = trial.trained
    expect(
        losses[-1] <= LEARNED_SHARE * losses[0],
        f"{len(losses)} steps on {BATCH_SIZE} examples should bring the loss to a tenth, got {losses[0]:.4f} -> "
        f"{losses[-1]:.4f}; look at the labels in Task.encode() and at Head.loss()",
    )


def predicts_without_targets(trial: Trial) -> None:
    """An example without its answer is encoded to the same prompt, and its prediction can be written as JSON."""
    no_answer = {f.name: None for f in trial.task.targets()}
    answered, unanswered = trial.items(trial.examples), trial.items([example | no_answer for example in trial.examples])
    same = [item["ids"] for item in answered] == [item["ids"] for item in unanswered]
    expect(same, "the prompt must be the same with and without the answer (it leaks otherwise); look at Task.encode()")
    no_targets = all(item["target"] is None and item["label"] is None for item in unanswered)
    expect(no_targets, "without an answer, Encoded.target and Encoded.label must be None; look at Task.encode()")
    for prediction in trial.predictions:
        json.dumps(prediction_fields(prediction))


def assets_restored(trial: Trial) -> None:
    """A task that saves files of its own predicts the same when it is made of its options and these files."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        trial.task.save_assets(folder)
        if not any(folder.iterdir()):
            raise NotApplicable
        restored = _task_from_options(trial.task)
        restored.load_assets(folder)
        for expected, got in zip(trial.predictions, trial.predictions_of(restored), strict=True):
            expect(
                nearly_equal(expected, got),
                f"with the saved files the task should predict {expected!r}, got {got!r}; look at Task.save_assets() "
                "and Task.load_assets()",
            )


Clause = Callable[[Trial], None]
# what the engine computes: these run on the fast engine, then on the reference engine
ON_BOTH_ENGINES: tuple[Clause, ...] = (
    padding_invariant,
    loss_ignores_prompt_and_pads,
    learns_to_stop,
    overfits_one_batch,
    predicts_without_targets,
)
STAGES: tuple[tuple[Clause, ...], ...] = (
    (fields_well_formed, options_round_trip, version_stated, module_imports_no_torch),
    (sample_readable,),
    (prepare_returns_options,),
    (parts_build,),
    (head_owns_its_weights,),
    (
        padding_invariant,
        loss_ignores_prompt_and_pads,
        scores_are_log_probabilities,
        learns_to_stop,
        overfits_one_batch,
        predicts_without_targets,
        assets_restored,
        metrics_rank,
    ),
)
