"""The OpenVINO engine: OpenVINO writes texts, from weights in q8_0; the fast engine computes all else.

OpenVINO computes some models in another way than they are meant, and says nothing (rotary embeddings with a scaling, a
LoRA adapter beside a GGUF file). So a conversion is compared with the model it comes from before it is used.

Shapes: V vocabulary.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from gptask.config.engine import Fast
from gptask.errors import UserError
from gptask.model.engine.adapter_files import AdapterFiles
from gptask.model.engine.fast import FastEngine
from gptask.model.engine.interface import DecodingBatch, DecodingRow, EngineBackbone
from gptask.model.engine.sampling import TokenBatch
from gptask.model.out_of_memory import is_out_of_memory
from gptask.plugins.generation_options import GenerationOptions

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, GenerationHandle

CACHE_GB = 1  # of keys and values
EXACT = {  # by default it rounds states to bfloat16 or 8 bits, and keys and values to 8 bits
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
}
SHARED_TOKENS = 64  # of all prompts, from which on OpenVINO reads them once: it keeps blocks of 32
CHECKED_LENGTHS = (3, 5, 8, 13, 21, 34, 55, 89)
MAX_ERROR = 0.5  # nats, the median over the checked prompts: rounding makes 0.06 in tiny random models, less in real


class OpenVinoEngine(FastEngine):
    """Texts are written by OpenVINO, from a folder of `convert`; states, losses and logits come from the fast engine.

    OpenVINO keeps weights of its own beside the model's, which stay in memory. With ``exact``, it computes in float32.
    """

    name = "openvino"

    def __init__(self, backbone: EngineBackbone, folder: Path, exact: bool) -> None:
        super().__init__(backbone, Fast())
        self.folder, self.exact = folder, exact
        self.lock = threading.Lock()  # of the pipelines
        self.numbers = itertools.count()  # of their rows
        self._pipelines: dict[bool, ContinuousBatchingPipeline] = {}
        self._installs = 0

    def __getstate__(self) -> NoReturn:
        raise TypeError("a backbone whose texts OpenVINO writes can't be copied or pickled: load the run again")

    def install(self) -> None:
        """See `FastEngine`; from the second time on, the model may be another than the one that was converted."""
        super().install()
        self._installs += 1

    def drop_inference_weights(self) -> None:
        """Forget what was made of the weights: they may have changed, and are then not what was converted."""
        super().drop_inference_weights()
        self._installs += 1

    def add_adapter(self, adapter: Path | AdapterFiles, layers: int | None = None) -> str:
        """Raise `UserError`: OpenVINO would write the texts without the adapter."""
        raise UserError("engine=openvino writes the texts of one run, and takes no adapters beside it: use engine=fast")

    def check_generation(self, options: GenerationOptions) -> None:
        """See `Engine`."""
        refuse_beams(options)

    def decoding_batch(self, keep: int = 0) -> DecodingBatch:
        """See `Engine`; with ``keep``, OpenVINO keeps what it read of earlier texts, as long as there is room.

        Raises `UserError` where OpenVINO can't start, or the model is not what was converted.
        """
        if self._installs > 1:
            raise UserError(
                "the model has changed since it was loaded, and OpenVINO writes with the weights that were loaded: "
                "choose engine=fast"
            )
        with self.lock:
            keeps = bool(keep) or True in self._pipelines  # each has weights of its own
            if keeps not in self._pipelines:
                self._pipelines[keeps] = _pipeline(self.folder, EXACT if self.exact else {}, keeps)
        return OpenVinoBatch(self, self._pipelines[keeps])

    def decode(self, rows: Sequence[DecodingRow]) -> None:
        """See `Engine`; a long beginning that all prompts share is read once. Interrupted, OpenVINO drops the rows.

        What it keeps for that costs a tenth of the time where prompts share nothing.
        """
        beginnings = {tuple(row.prompt[:SHARED_TOKENS]) for row in rows}
        shares = len(rows) > 1 and len(beginnings) == 1 and len(*beginnings) == SHARED_TOKENS
        first = 1 if shares else len(rows)
        batch = self.decoding_batch(keep=shares)
        try:
            batch.admit(rows[:first])
            while shares and not rows[0].log_probabilities:
                batch.step()
            batch.admit(rows[first:])
            while batch.rows:
                batch.step()
        finally:
            for row in batch.rows:
                batch.leave(row)

    @property
    def weight_format(self) -> str:
        """See `Engine`."""
        return "q8_0"

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        weights = {"format": self.weight_format, "computed_in": "float32" if self.exact else "OpenVINO's choice"}
        return super().describe() | {"weights": weights, "version": version("openvino-genai")}

    def summary(self) -> str:
        """See `Engine`."""
        exactly = ", computed in float32" if self.exact else ""
        return f"engine: openvino {version('openvino-genai')} for texts, with weights in q8_0{exactly}; " + (
            super().summary().removeprefix("engine: ") + " for all else"
        )


class OpenVinoBatch(TokenBatch):
    """Rows that OpenVINO writes; it reads their prompts in its own steps."""

    def __init__(self, engine: OpenVinoEngine, pipeline: ContinuousBatchingPipeline) -> None:
        super().__init__(engine.backbone)
        self.engine, self.pipeline = engine, pipeline
        self.handles: dict[DecodingRow, GenerationHandle] = {}

    @property
    def rows(self) -> list[DecodingRow]:
        """The rows that are still being written."""
        return [*self.handles]

    @property
    def unread(self) -> list[DecodingRow]:
        """None: `step` reads prompts, too."""
        return []

    def enqueue(self, rows: Sequence[DecodingRow]) -> None:
        """Admit rows."""
        self.admit(rows)

    def read(self, max_tokens: int) -> int:
        """Read nothing: `step` reads prompts, too."""
        return 0

    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """See `DecodingBatch`; raises `UserError` for what OpenVINO can't honour, before any row is admitted."""
        import openvino

        for row in rows:
            self.engine.check_generation(row.options)
            if row.adapter or row.constraint or row.top_count or row.frequency_penalty or row.presence_penalty:
                raise UserError("engine=openvino has no adapters, constraints, top tokens or frequency penalties")
        stop_ids = self.backbone.stop_ids
        with _openvino_errors(), self.engine.lock:
            for row in rows:
                prompt = openvino.Tensor(np.array([row.prompt], dtype=np.int64))
                self.handles[row] = self.pipeline.add_request(
                    next(self.engine.numbers), prompt, _generation_config(row, stop_ids)
                )

    def step(self) -> list[DecodingRow]:
        """See `DecodingBatch`; a row gets more than one token where other threads have called it for their rows."""
        if not self.handles:
            return []
        with _openvino_errors(), self.engine.lock:
            if not any(handle.can_read() for handle in self.handles.values()):
                self.pipeline.step()
        stop_ids = self.backbone.stop_ids
        for row, handle in self.handles.items():
            self._take_tokens(row, handle, stop_ids)
        ended = [row for row in self.handles if row.finish]
        for row in ended:
            self.leave(row)
        return ended

    def _take_tokens(self, row: DecodingRow, handle: GenerationHandle, stop_ids: set[int]) -> None:
        """Add what OpenVINO has written of a row; raises `UserError` where it has given the row up."""
        from openvino_genai import GenerationStatus

        while handle.can_read() and not row.finish:
            for output in handle.read().values():  # one, none of a row that it has given up
                for token, log_probability in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if not row.finish:
                        self.write(row, token, log_probability, stop_ids)
        if not row.finish and handle.get_status() == GenerationStatus.IGNORED:
            raise UserError(
                f"engine=openvino: the keys and values of a text of {len(row.prompt)} to {len(row.prompt) + row.limit} "
                f"tokens don't fit into {CACHE_GB} GB: lower data.max_tokens or max_new_tokens, or choose engine=fast"
            )

    def leave(self, row: DecodingRow) -> None:
        """Drop a row before its end; a row that has left already is no error."""
        if handle := self.handles.pop(row, None):
            with self.engine.lock, suppress(RuntimeError):  # what is broken has been reported
                handle.stop()
                if not self.handles and self.pipeline.has_non_finished_requests():
                    self.pipeline.step()  # which drops the stopped rows: what it keeps until its end, it calls leaked


def refuse_beams(options: GenerationOptions) -> None:
    """Raise `UserError` for options that search beams, which OpenVINO ranks and ends by rules of its own."""
    if options.num_beams > 1:
        raise UserError(
            f"task.generation.num_beams={options.num_beams}: engine=openvino searches no beams: set "
            "task.generation.num_beams=1, or choose engine=fast"
        )


def convert(file: Path) -> None:
    """Write OpenVINO's form of a GGUF file into the folder that the file is in.

    It starts in half the time and memory of the GGUF file. Raises `UserError` where OpenVINO can't read the file.
    """
    _pipeline(file, {"enable_save_ov_model": True}, False)


@torch.inference_mode()
def check_conversion(backbone: EngineBackbone, folder: Path) -> None:
    """Raise `UserError` where OpenVINO computes a model in ``folder`` in another way than ``backbone``, its origin.

    Compared are log-probabilities of the likeliest tokens behind prompts of random ids, both computed in float32.
    """
    numbers, vocabulary = random.Random(0), int(backbone.config.vocab_size)
    options = GenerationOptions(max_new_tokens=1, min_new_tokens=1)
    longest = int(backbone.config.max_position_embeddings)
    rows = [
        DecodingRow([numbers.randrange(vocabulary) for _ in range(min(length, longest))], 1, options)
        for length in CHECKED_LENGTHS
    ]
    OpenVinoEngine(backbone, folder, exact=True).decode(rows)
    errors = []
    for row in rows:
        state_C = backbone.hidden(torch.tensor([row.prompt]))[0, -1]
        (log_probability,) = backbone.logits(state_C).float().log_softmax(-1)[row.new_ids].tolist()
        errors.append(abs(row.log_probabilities[0] - log_probability))
    if not statistics.median(errors) <= MAX_ERROR:
        raise UserError(
            f"engine=openvino: OpenVINO {version('openvino-genai')} computes {type(backbone.model).__name__} in another"
            f" way: log-probabilities differ by {statistics.median(errors):.2f}: choose engine=fast"
        )


def _pipeline(path: Path, properties: dict[str, Any], caches_prefixes: bool) -> ContinuousBatchingPipeline:
    """OpenVINO's continuous batching of a GGUF file or a converted folder, with as many threads as torch has."""
    from openvino_genai import ContinuousBatchingPipeline, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GB, caches_prefixes
    properties = {"INFERENCE_NUM_THREADS": torch.get_num_threads()} | properties
    with _openvino_errors(), _signal_stack_kept():
        return ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)


class _SignalStack(ctypes.Structure):
    """Linux's ``stack_t``, of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Put the stack back that the handlers of this thread's signals run on.

    OpenVINO's plugin for CPUs sets one that is too small for the registers of AMX, or that it frees, so that Ctrl-C
    would end the process by a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _generation_config(row: DecodingRow, stop_ids: set[int]) -> GenerationConfig:
    """The row's options for OpenVINO; stop texts are looked for here. Log-probabilities are the model's own."""
    from openvino_genai import GenerationConfig

    options, config = row.options, GenerationConfig()
    config.max_new_tokens, config.min_new_tokens = row.limit, min(options.min_new_tokens, row.limit)
    config.stop_token_ids, config.logprobs = stop_ids, 1
    config.set_eos_token_id(min(stop_ids))
    config.repetition_penalty = options.repetition_penalty
    if options.temperature > 0:
        config.do_sample, config.temperature, config.top_p = True, options.temperature, options.top_p
        config.top_k = options.top_k or config.top_k
        random_seed = int(torch.randint(2**31, (1,))) if options.seed is None else options.seed + row.draw
        config.rng_seed = random_seed
    return config


@contextmanager
def _openvino_errors() -> Iterator[None]:
    """Turn what OpenVINO raises into a `UserError`, but for a lack of memory."""
    try:
        yield
    except (RuntimeError, LookupError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"engine=openvino: OpenVINO fails ({reason}): choose engine=fast") from error
