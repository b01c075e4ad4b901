"""`engine=openvino`: a run's language model as OpenVINO reads it, converted once, into the cache."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.engine import Fast
from gptask.config.schemas import DType, Quantization
from gptask.data.cache import cache_folder, digest, replacing, seal_folder, usable
from gptask.data.code_hash import source_hash
from gptask.errors import UserError, listing
from gptask.runs.folder import model_folder
from gptask.runs.gguf_weights import uncomputed_values, write_gguf
from gptask.runs.saved_model import files_hash_of_backbone, kept_layers, load_backbone

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")
PACKAGES = ("openvino", "openvino_genai", "openvino_tokenizers")  # of the extra
FAMILIES = ("llama", "qwen2", "qwen3")  # those that OpenVINO reads from a GGUF file
CODE = ("gptask.model.engine.openvino", "gptask.runs.gguf_weights", "gptask.runs.openvino_model")


def require_openvino(dtype: DType | None) -> None:
    """Raise `UserError` where a package is missing, and for a number format that OpenVINO's weights can't have."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"engine=openvino needs packages that are not installed ({listing(missing)}): "
            "pip install 'gptask[openvino]'"
        )
    if dtype not in (None, DType.float32):
        raise UserError(
            f"dtype={dtype.value}: engine=openvino has its weights in q8_0: leave dtype out, or choose engine=fast "
            "(dtype=float32 lets it compute in float32, more slowly)"
        )


def use_openvino(backbone: GPTBackbone, head: Head, folder: Path, values: dict[str, Any], exact: bool) -> None:
    """Let OpenVINO write the texts of a run that is loaded, ``values`` being its config; ``exact``: in float32.

    Raises `UserError` for a head that writes none, and for a model or options of generation that OpenVINO has not.
    """
    from gptask.model.engine.openvino import OpenVinoEngine, refuse_beams
    from gptask.model.heads import GenerationHead

    if not head.decodes:
        raise UserError(
            f"engine=openvino writes texts; {folder} is a run of task '{values['plugin']['name']}', whose "
            f"{type(head).__name__} writes none: choose engine=fast"
        )
    if isinstance(head, GenerationHead):
        refuse_beams(head.options)
    _check_model(backbone, folder)
    converted = _converted(backbone, folder, values)
    backbone.engine.uninstall()
    backbone.engine = OpenVinoEngine(backbone, converted, exact)
    backbone.engine.install()


def _check_model(backbone: GPTBackbone, folder: Path) -> None:
    """Raise `UserError` for a model that OpenVINO does not read, or would compute in another way without a word."""
    config = backbone.config
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise UserError(
            f"engine=openvino computes {listing(FAMILIES)}; the backbone of {folder} is a {kind}: choose engine=fast"
        )
    rope, problems = config.rope_parameters, uncomputed_values(config)
    if rope["rope_type"] != "default" or rope.get("partial_rotary_factor", 1) != 1:
        problems.append(f"rotary embeddings of rope_type={rope['rope_type']}")
    if problems:
        raise UserError(
            f"engine=openvino does not compute a {kind} with {listing(problems)}, as the backbone of {folder} is: "
            "choose engine=fast"
        )


def _converted(backbone: GPTBackbone, folder: Path, values: dict[str, Any]) -> Path:
    """The cached folder with OpenVINO's form of a run's model, its adapter merged and its weights rounded to q8_0."""
    from gptask.model.engine import openvino

    model = model_folder(folder)
    has_adapter = (model / "adapter_config.json").exists()
    adapter = backbone.engine.read_adapter(model).digest if has_adapter else None
    versions = [version(name) for name in ("gptask", "gguf", "openvino-genai")]
    identity = [files_hash_of_backbone(model), kept_layers(model), adapter, "q8_0", versions, source_hash(CODE)]
    converted = cache_folder() / "openvino" / digest(json.dumps(identity))
    if not usable(converted):
        log.info("converting the model of %s for OpenVINO to %s; later starts use the converted folder",
                 folder, converted)  # fmt: skip
        original = load_backbone(model, values, DType.float32, Fast()).eval()
        if has_adapter:
            original.set_model(original.peft.merge_and_unload())
        with replacing(converted) as part:
            part.mkdir()
            file = part / "model.gguf"
            rows = original.config.vocab_size
            write_gguf(file, original.model, Quantization.q8_0, lambda writer: _add_placeholders(writer, rows))
            openvino.convert(file)
            openvino.check_conversion(original, part)
            file.unlink()
            seal_folder(part, str(folder))
        original.engine.uninstall()
        del original.peft  # the engine and the backbone hold each other, which would keep the weights
    return converted


def _add_placeholders(writer: GGUFWriter, rows: int) -> None:
    """Write a tokenizer of ``rows`` tokens that nobody uses, since texts come and go as ids; OpenVINO wants one."""
    from gguf import TokenType

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([str(number) for number in range(rows)])
    writer.add_token_types([TokenType.NORMAL] * (rows - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["1 1"])
    writer.add_bos_token_id(rows - 1)
    writer.add_eos_token_id(rows - 1)
