"""Each clause of the contract has a task that breaks only this clause.

The tasks are defined in this module, so it must not import torch at the top.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gptask import Field, Kind, MeanMetric, Metric, Prediction, option
from gptask.model.text_task import GenerativeTask
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.types import Example
from gptask.testing import ContractError, check_results, check_task
from gptask.testing.clauses import STAGES

SAMPLE = {
    "train": "apple red,banana yellow,plum purple,lime green,cherry dark red,lemon bright yellow,kiwi brown,fig violet",
    "validation": "pear pale green,peach pink",
    "test": "grape blue,orange orange",
}
SYNONYMS = {pair.split(" ", 1)[1]: f"{pair} skin" for pair in SAMPLE["train"].split(",")}


class Begins(MeanMetric):
    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [str(prediction.value).startswith(reference["colour"])]


@dataclass
class Toy(GenerativeTask):
    """Name the colour of a fruit."""

    contract_version = "1.0"
    PROMPTS: ClassVar[dict[str, str]] = {"en": "Fruit: {fruit}\nColour:"}

    folder: str = option("", "where the sample lies")
    generation: GenerationOptions = option(partial(GenerationOptions, max_new_tokens=8), "how text is decoded")

    def fields(self) -> list[Field]:
        return [Field("fruit", truncate=True), Field("colour", target=True)]

    def target(self, example: Example) -> str | None:
        return example["colour"]

    def metrics(self) -> list[Any]:
        return [Begins("begins")]

    def sample(self) -> dict[str, Any]:
        return {split: f"{self.folder}/{split}.jsonl" for split in SAMPLE}


def with_head(task: GenerativeTask, backbone: Any, **methods: Any) -> Any:
    """The toy's head with some methods replaced."""
    from gptask.model.heads import GenerationHead

    return type("Head", (GenerationHead,), methods)(backbone, task.generation)


def language_model_loss(head: Any, hidden: Any, batch: Any, learned: Any, **options: Any) -> Any:
    import torch

    next_ids = torch.roll(batch.input_ids, -1, dims=1)[learned]
    return torch.nn.functional.cross_entropy(head.backbone.logits(hidden[learned]), next_ids, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("toy")
    for split, pairs in SAMPLE.items():
        rows = (dict(zip(("fruit", "colour"), pair.split(" ", 1), strict=True)) for pair in pairs.split(","))
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "synonyms").write_text(json.dumps(SYNONYMS))
    return str(path)


# --- broken tasks; the docstring of each names the clause and a part of its message -------------------------------


@dataclass
class TruncatedTarget(Toy):
    """fields_well_formed: 'colour' is marked truncate"""

    def fields(self) -> list[Field]:
        return [Field("fruit", truncate=True), Field("colour", target=True, truncate=True)]


@dataclass
class NoTarget(Toy):
    """fields_well_formed: no field is marked target"""

    def fields(self) -> list[Field]:
        return [Field("fruit"), Field("colour")]


@dataclass
class TargetOfNothing(Toy):
    """fields_well_formed: Task.supervised=False, but colour is marked target"""

    supervised: ClassVar[bool] = False


@dataclass
class TakenName(Toy):
    """fields_well_formed: 'digest' is not an identifier, or is reserved by gptask"""

    def fields(self) -> list[Field]:
        return [*super().fields(), Field("digest", Kind.NUMBER, required=False)]


@dataclass
class Drifts(Toy):
    """options_round_trip: make the same task"""

    def __post_init__(self) -> None:
        self.folder += "/"


class Undecorated(Toy):
    """options_round_trip: decorated with @dataclass"""


@dataclass
class Unstated(Toy):
    """version_stated: write contract_version = "1.0" in the class"""

    contract_version = None


@dataclass
class FromTheFuture(Toy):
    """version_stated: made for contract 7.0"""

    contract_version = "7.0"


@dataclass
class Overlaps(Toy):
    """sample_readable: train and test share an input"""

    def sample(self) -> dict[str, Any]:
        return super().sample() | {"test": f"{self.folder}/train.jsonl"}


@dataclass
class RefusesItsSample(Toy):
    """sample_readable: no colour like red"""

    def check(self, example: Example) -> None:
        from gptask import DataError

        if example["colour"] == "red":
            raise DataError("no colour like red")


@dataclass
class SetsInPrepare(Toy):
    """prepare_returns_options: must return language and set nothing"""

    def prepare(self, train: Iterable[Example]) -> dict[str, Any]:
        self.language = "zh"
        return {}


@dataclass
class ReturnsNothing(Toy):
    """prepare_returns_options: prepare() returned None, no dictionary; it must return the options"""

    def prepare(self, train: Iterable[Example]) -> Any:
        pass


@dataclass
class Exits(Toy):
    """parts_build: SystemExit: no head for you (test_testing.py"""

    def head(self, backbone: Any) -> Any:
        raise SystemExit("no head for you")


@dataclass
class Detached(Toy):
    """parts_build: must not detach"""

    def head(self, backbone: Any) -> Any:
        def loss(head: Any, hidden: Any, batch: Any) -> Any:
            return language_model_loss(head, hidden.detach(), batch, batch.predicting())

        return with_head(self, backbone, loss=loss)


@dataclass
class DeadWeight(Toy):
    """parts_build: but misses unused.weight"""

    def head(self, backbone: Any) -> Any:
        from torch import nn

        head = super().head(backbone)
        head.unused = nn.Linear(2, 2, bias=False)
        return head


@dataclass
class SameName(Toy):
    """parts_build: metric names must differ"""

    def metrics(self) -> list[Any]:
        return [Begins("begins"), Begins("begins")]


@dataclass
class CopiesTheBackbone(Toy):
    """head_owns_its_weights: but has lm.transformer.wte.weight"""

    def head(self, backbone: Any) -> Any:
        head = super().head(backbone)
        head.lm = backbone.model
        return head


@dataclass
class DilutedLoss(Toy):
    """padding_invariant: 3 pads change the loss"""

    def head(self, backbone: Any) -> Any:
        def loss(head: Any, hidden: Any, batch: Any) -> Any:
            learned = batch.predicting()
            return language_model_loss(head, hidden, batch, learned, reduction="sum") / learned.numel()

        return with_head(self, backbone, loss=loss)


@dataclass
class CrowdedPrediction(Toy):
    """padding_invariant: in a padded batch"""

    def head(self, backbone: Any) -> Any:
        from gptask.model.generation.generate import GeneratedText
        from gptask.model.heads import GenerationHead

        def predict(head: Any, hidden: Any, batch: Any) -> Any:
            texts = GenerationHead.predict(head, hidden, batch)
            return [GeneratedText(text.text, 1 / batch.input_ids.shape[1]) for text in texts]

        return with_head(self, backbone, predict=predict)


@dataclass
class LearnsPrompts(Toy):
    """loss_ignores_prompt_and_pads: states of prompts"""

    def head(self, backbone: Any) -> Any:
        def loss(head: Any, hidden: Any, batch: Any) -> Any:
            import torch

            before_end = torch.arange(hidden.shape[1])[None] < batch.lengths[:, None] - 1
            return language_model_loss(head, hidden, batch, before_end)

        return with_head(self, backbone, loss=loss)


@dataclass
class ScoresOfLogits(Toy):
    """scores_are_log_probabilities: a probability is"""

    def head(self, backbone: Any) -> Any:
        return with_head(self, backbone, scores=lambda head, hidden, batch: hidden[:, 0].abs() + 1)


@dataclass
class UnnamedAxis(Toy):
    """scores_are_log_probabilities: must sum to 1 along its axis -1"""

    def head(self, backbone: Any) -> Any:
        return with_head(self, backbone, scores=lambda head, hidden, batch: hidden[..., :2].log_softmax(1))


@dataclass
class OneLabel(Toy):
    """scores_are_log_probabilities: names 1 labels, and Head.scores() has 2"""

    def score_labels(self) -> list[str]:
        return ["red"]

    def head(self, backbone: Any) -> Any:
        return with_head(self, backbone, scores=lambda head, hidden, batch: hidden[:, 0, :2].log_softmax(-1))


@dataclass
class NeverStops(Toy):
    """learns_to_stop: EOS must be in the loss"""

    def head(self, backbone: Any) -> Any:
        def loss(head: Any, hidden: Any, batch: Any) -> Any:
            learned = batch.predicting()
            learned[range(len(learned)), batch.lengths - 2] = False
            return language_model_loss(head, hidden, batch, learned)

        return with_head(self, backbone, loss=loss)


@dataclass
class Smoothed(Toy):
    """overfits_one_batch: to a tenth"""

    def head(self, backbone: Any) -> Any:
        def loss(head: Any, hidden: Any, batch: Any) -> Any:
            return language_model_loss(head, hidden, batch, batch.predicting(), label_smoothing=0.9)

        return with_head(self, backbone, loss=loss)


@dataclass
class Leaks(Toy):
    """predicts_without_targets: it leaks otherwise"""

    def format_prompt(self, example: Example) -> str:
        return f"({example['colour'] and example['colour'][0]}) {super().format_prompt(example)}"


@dataclass
class NeedsAnswer(Toy):
    """predicts_without_targets: AttributeError"""

    def target(self, example: Example) -> str | None:
        return example["colour"].lower()


@dataclass
class Unwritable(Toy):
    """predicts_without_targets: not JSON serializable"""

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        return Prediction(Path(super().prediction(example, outputs).value))


@dataclass
class Synonyms(Toy):
    """A toy with a file of its own: what it says for each colour."""

    file: str = option("", "a JSON object, from the colour to its synonym")

    @cached_property
    def synonyms(self) -> dict[str, str]:
        return json.loads(Path(self.file).read_text())

    def save_assets(self, folder: Path) -> None:
        (folder / "synonyms.json").write_text(json.dumps(self.synonyms))

    def load_assets(self, folder: Path) -> None:
        self.synonyms = json.loads((folder / "synonyms.json").read_text())

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        prediction = super().prediction(example, outputs)
        return replace(prediction, extra={"synonym": self.synonyms.get(prediction.value, "")})


@dataclass
class Forgets(Synonyms):
    """assets_restored: with the saved files the task should predict"""

    def load_assets(self, folder: Path) -> None:
        self.synonyms = {}


class Ragged(Begins):
    """metrics_rank: equally many numbers"""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [1.0] * (1 + len(str(prediction.value)))


class OutOfRange(Begins):
    """metrics_rank: must lie in its range"""

    def aggregate(self, rows: np.ndarray) -> float:
        return 10 * super().aggregate(rows)


class Undefined(Begins):
    """metrics_rank: for every resample"""

    def aggregate(self, rows: np.ndarray) -> float:
        all_wrong = len(rows) > 1 and (rows == rows[0]).all() and rows[0, 0] == 0
        return float("nan") if all_wrong else super().aggregate(rows)


class Hasty(Begins):
    """metrics_rank: resampled() must give what aggregate() gives"""

    def resampled(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.full(len(counts), 50.0)


class Proud(Begins):
    """metrics_rank: outcomes() must be zeros and ones whose mean times 100"""

    def outcomes(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows))


class UpsideDown(Begins):
    """metrics_rank: higher_is_better=False"""

    higher_is_better = False


class Constant(Begins):
    """metrics_rank: gives 50.0000 to right predictions and 50.0000 to wrong ones"""

    def aggregate(self, rows: np.ndarray) -> float:
        return 50.0


class FearsSilence(Begins):
    """metrics_rank: IndexError"""

    def statistics(self, prediction: Prediction, reference: Example) -> Sequence[float]:
        return [prediction.value[0] == reference["colour"][0]]


@dataclass
class Measured(Toy):
    """A toy with another metric."""

    metric: str = option("", "name of the metric's class")

    def metrics(self) -> list[Any]:
        return [globals()[self.metric]("begins")]


def heavy(folder: Path) -> type:
    """module_imports_no_torch: must not import torch"""
    (folder / "heavy_task.py").write_text(
        "from dataclasses import dataclass\nimport torch\nfrom gptask_tasks.sentiment import Sentiment\n"
        '@dataclass\nclass Heavy(Sentiment):\n    """Sentiment."""\n\n    contract_version = "1.0"\n'
    )
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("heavy_task").Heavy
    finally:
        sys.path.remove(str(folder))


BROKEN = [
    *(TruncatedTarget, NoTarget, TargetOfNothing, TakenName, Drifts, Undecorated, Unstated, FromTheFuture, heavy),
    *(Overlaps, RefusesItsSample, SetsInPrepare, ReturnsNothing, Exits, Detached, DeadWeight, SameName),
    *(DilutedLoss, CrowdedPrediction, LearnsPrompts, NeverStops, Smoothed, Leaks, NeedsAnswer, Unwritable, Forgets),
    *(ScoresOfLogits, UnnamedAxis, OneLabel),
    CopiesTheBackbone,
    *(Ragged, OutOfRange, Undefined, Hasty, Proud, UpsideDown, Constant, FearsSilence),
]
CLAUSES = [clause.__name__ for stage in STAGES for clause in stage]


def broken_task(broken: Any, folder: str, tmp_path: Path) -> Any:
    if isinstance(broken, type):
        if issubclass(broken, Metric):
            return Measured(folder=folder, metric=broken.__name__)
        return broken(folder=folder, **({"file": f"{folder}/synonyms"} if issubclass(broken, Synonyms) else {}))
    return broken(tmp_path)()


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_task_fails_its_clause_only(broken: Any, folder: str, tmp_path: Path) -> None:
    clause, _, message = broken.__doc__.partition(": ")
    task = broken_task(broken, folder, tmp_path)
    with pytest.raises(ContractError) as error:
        check_task(task)
    assert list(error.value.failures) == [clause], str(error.value)
    assert message in str(error.value)
    assert clause in str(error.value)
    assert re.search(
        rf"{type(task).__name__} \(.*(test_testing|heavy_task).py:\d+\)", str(error.value)
    )  # where to look


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_clause_has_a_broken_task(clause: str) -> None:
    assert clause in {broken.__doc__.partition(": ")[0] for broken in BROKEN}


def test_check_results_yields_every_clause_and_prints_nothing(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Loud(Overlaps):
        """Prints."""

        def fields(self) -> list[Field]:
            print("loud")
            return super().fields()

    outcomes = {result.clause: result.outcome for result in check_results(Loud(folder=folder))}
    assert list(outcomes) == CLAUSES
    assert (outcomes["fields_well_formed"], outcomes["sample_readable"]) == ("ok", "failed")
    assert {outcomes[clause] for clause in CLAUSES[CLAUSES.index("prepare_returns_options") :]} == {"not run"}
    out, err = capfd.readouterr()
    assert (out, "loud" in err) == ("", True)


def test_a_correct_task_passes_every_clause_and_nothing_is_changed(folder: str) -> None:
    import torch

    task, cache, state, threads = (
        Toy(folder=folder), os.environ["GPTASK_CACHE"], torch.get_rng_state(), torch.get_num_threads(),
    )  # fmt: skip
    passed = check_task(task)
    absent = ("assets_restored", "scores_are_log_probabilities")  # it has no files and no scores
    assert passed == [clause for clause in CLAUSES if clause not in absent]
    assert "learns_to_stop" in passed
    assert task == Toy(folder=folder)
    assert os.environ["GPTASK_CACHE"] == cache
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_task_with_a_file_of_its_own_passes_every_clause(folder: str) -> None:
    passed = check_task(Synonyms(folder=folder, file=f"{folder}/synonyms"))
    assert passed == [clause for clause in CLAUSES if clause != "scores_are_log_probabilities"]


def test_a_failure_on_the_reference_engine_alone_is_reported(folder: str) -> None:
    @dataclass
    class FastOnly(Toy):
        """Learns nothing where the engine is another."""

        def head(self, backbone: Any) -> Any:
            def loss(head: Any, hidden: Any, batch: Any) -> Any:
                states = hidden if head.backbone.engine.name == "fast" else hidden * 0
                return language_model_loss(head, states, batch, batch.predicting())

            return with_head(self, backbone, loss=loss)

    with pytest.raises(ContractError, match="on the reference engine: ") as error:
        check_task(FastOnly(folder=folder))
    assert "overfits_one_batch" in error.value.failures


def test_independent_failures_are_reported_together(folder: str) -> None:
    @dataclass
    class Twice(Measured, NeverStops):
        """Breaks two clauses."""

    with pytest.raises(ContractError) as error:
        check_task(Twice(folder=folder, metric="UpsideDown"))
    assert list(error.value.failures) == ["learns_to_stop", "metrics_rank"]
