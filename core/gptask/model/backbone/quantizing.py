"""A backbone in int4: where this machine computes in it, and what it costs in perplexity."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptask.data.cache import cache_folder, digest, replacing, usable
from gptask.errors import UserError, damaged
from gptask.model.engine import private
from gptask.model.engine.int4 import quantize_layers

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone

log = logging.getLogger("gptask")
WARNING_FROM = 0.02  # rise of the perplexity
MAX_TOKENS = 512
TEXT = """\
The lighthouse on the northern cape was built in 1871, after three ships had been lost in a single winter. Its tower
is thirty-two metres high and stands on a shelf of granite that the sea covers at spring tide. For the first forty
years the light burned oil, which had to be carried up a hundred and sixty steps every evening. The keeper lived with
his family in a stone house beside the tower, kept a few sheep, and wrote the weather into a book four times a day.
Some of these books are still in the museum of the town. They tell of storms that lasted a week, of whales seen close
to the shore, and once of a cow that swam across from the mainland and could not be persuaded to go back.

Why does bread rise? Yeast is a living thing. When it is mixed with flour and warm water, it feeds on the sugar that
enzymes release from the starch, and gives off carbon dioxide and a little alcohol. Kneading joins the proteins of the
flour into long elastic threads, and these hold the gas in small bubbles. In the oven the bubbles grow until the crumb
sets at about 90 degrees. If the dough is too cold, nothing seems to happen for hours; if it is too hot, the yeast
dies.

"You should have called me," said Anna, and put the letters back into the drawer. Her brother looked out of the
window. It had been raining since noon, and the street was empty except for a man who was trying to fold a broken
umbrella. "I did call," he answered at last. "You were in Lisbon, and then I thought it could wait until Sunday." She
knew that this was not the whole truth, but she was tired, and there was the train to catch.

The committee will meet again on 14 March to decide how the money is to be spent. About 40 percent of the budget is
needed for repairs of the school, whose roof has leaked for two years. Members of the opposition want to lower the
fees for child care instead. According to the mayor, both would be possible only if the new road were given up, and
that would cost more than it saves, because the contracts have been signed."""


def require_int4() -> None:
    """Raise `UserError` where int4 weights can't be computed with, or would be of no use."""
    if torch.cuda.is_available():
        raise UserError(
            "dtype=int4 is for CPUs, and gptask computes on this machine's GPU: leave dtype out, or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=)"
        )
    if not private.has_int4_kernel():
        raise UserError(f"dtype=int4: torch {torch.__version__} has no int4 products for CPUs: leave dtype out")
    if not private.cpu_computes_bfloat16():
        raise UserError(
            "dtype=int4 needs a processor that multiplies in bfloat16 (AVX512-BF16 or AMX), in which all else is "
            "computed: leave dtype out"
        )


def quantize(backbone: EngineBackbone) -> None:
    """Put the linear layers of a backbone's decoder into int4, before adapters come to it, and log what changes.

    The embeddings and the vocabulary projection stay bfloat16. Raises `UserError` where no layer can be int4.
    """
    backbone.peft.eval()
    file = _record(backbone)
    known = file is not None and usable(file)
    nats_before = 0.0 if known else _nats(backbone)
    backbone.engine.uninstall()
    try:
        quantization = quantize_layers(backbone.body)
    finally:
        backbone.engine.install()
    change = _read(file) if file and known else math.expm1(_nats(backbone) - nats_before)
    if file and not known:
        with replacing(file) as part:
            part.write_text(json.dumps({"perplexity_change": change}), encoding="utf-8")
    backbone.int4 = replace(quantization, perplexity_change=round(change, 4) if math.isfinite(change) else None)
    log.info("%s", quantization.summary())
    _report(backbone.origin.kind, change)


def _read(file: Path) -> float:
    with damaged(file):
        return float(json.loads(file.read_text(encoding="utf-8"))["perplexity_change"])


def _report(name: str, change: float) -> None:
    """Log by how much the perplexity has changed; a warning where it has risen much, or is no number."""
    text = f"int4: the perplexity of {name} on a short English text changes by {change:+.1%}"
    if change <= WARNING_FROM:
        log.info("%s", text)
    else:
        log.warning("%s, more than %.0f%%: evaluate with dtype=int4 before you rely on it", text, 100 * WARNING_FROM)


def _record(backbone: EngineBackbone) -> Path | None:
    """The cache's file with the change of a backbone's perplexity; None for weights that have no hash."""
    if not backbone.origin.weights_hash:
        return None
    parts = [backbone.origin.weights_hash, backbone.config.num_hidden_layers, version("gptask"), TEXT]
    return cache_folder() / "int4" / f"{digest(json.dumps(parts))}.json"


@torch.inference_mode()
def _nats(backbone: EngineBackbone) -> float:
    """The mean cross-entropy of the tokens of the text."""
    ids: list[int] = backbone.tokenizer(TEXT)["input_ids"][: min(MAX_TOKENS, backbone.context)]
    ids_1T = torch.tensor([ids], device=backbone.device)
    states_TC: Tensor = backbone.hidden(ids_1T)[0, :-1]
    return float(backbone.token_nll(states_TC, ids_1T[0, 1:]).mean())
