"""Run folders of strangers: real runs with files changed, whose manifest lists what the stranger wrote."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.runs.manifest import FILES, MANIFEST
from hypothesis import strategies as st

from tests.fuzz.guard import CANARY
from tests.fuzz.hostile import byte_changes, changed, changed_bytes, changes, numbers, texts
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.target import Setting, Target

VERBS = (
    "compare", "compare", "compare two", "report", "report two", "predict", "predict", "export", "serve", "evaluate",
    "resume", "backbone", "load", "adapter", "explain", "compress", "gguf",
)  # fmt: skip
RUNS = ("sentiment", "adapted", "tags", "translation", "several")
TREES = (".json", ".yaml", ".jsonl", ".safetensors", ".ckpt")
NEW_FILES = {
    "model/adapter_model.bin": b"\x80\x04cgptask_fuzz_canary\nEvil\n.",
    "model/pytorch_model.bin": b"\x80\x04cgptask_fuzz_canary\nEvil\n.",
    "model/model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}',
    "model/modeling_evil.py": b"import " + CANARY.encode(),
    "model/chat_template.jinja": b"{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% end %}",
    "model/generation_config.json": b'{"max_new_tokens": -1, "num_beams": "x"}',
    "model/added_tokens.json": b'{"<x>": -5}',
    "model/special_tokens_map.json": b'{"eos_token": 3}',
    "model/assets/x.json": b"{",
    "metrics.before-resume-1.csv": b"epoch,step\n1",
    "metrics.before-resume-99999999999999999999999.csv": b"step,train/loss\nx,y",
    "pruned.json": b"[",
    "notes.txt": b"x",
}
CHANGED_KEYS = (
    "auto_map", "architectures", "model_type", "peft_type", "auto_mapping", "parent", "kind", "source", "_target_",
    "tokenizer_class", "quantization_config", "dtype", "base_model_name_or_path", "name", "format",
)  # fmt: skip
KEY_VALUES = st.one_of(
    st.sampled_from(
        [
            {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
            {"base_model_class": "Evil", "parent_library": CANARY},
            {"quant_method": "bitsandbytes"},
            [f"{CANARY}.Evil"],
            *(CANARY, "gpt2", "llama", "bert", "t5", "IA3", "PROMPT_TUNING", "full_schema", "lora_schema", "../.."),
        ]
    ),
    texts,
    numbers,
    st.none(),
)


@dataclass(frozen=True)
class FolderCase:
    """Edits of the files of a run, and the verb that then reads it.

    Each edit names a file by a number, and changes what is parsed of it, or its bytes, or the file itself. ``sealed``:
    the manifest is written anew, as a stranger's would be.
    """

    run: str
    verb: str
    edits: list[tuple[str, int, Any]]
    sealed: bool
    detail: int


tree_edits = st.tuples(
    st.just("tree"),
    st.integers(0, 40),
    st.lists(
        st.one_of(
            changes, changes, st.tuples(st.just("add"), st.integers(0, 40), st.sampled_from(CHANGED_KEYS), KEY_VALUES)
        ),
        min_size=1,
        max_size=3,
    ),
)
edits = st.one_of(
    tree_edits,
    tree_edits,
    tree_edits,
    st.tuples(st.just("bytes"), st.integers(0, 40), st.lists(byte_changes, min_size=1, max_size=2)),
    st.tuples(
        st.just("file"), st.integers(0, 40), st.sampled_from(["remove", "folder", "fifo", "link", "loop", "device"])
    ),
    st.tuples(st.just("new"), st.integers(0, 40), st.sampled_from(sorted(NEW_FILES))),
)
folder_cases = st.builds(
    FolderCase,
    st.sampled_from(RUNS),
    st.sampled_from(VERBS),
    st.lists(edits, min_size=1, max_size=3),
    st.integers(0, 9).map(lambda number: number > 0),
    st.integers(0, 1000),
)


def run_folder_case(case: FolderCase, sandbox: Sandbox, setting: Setting) -> None:
    """Change a copy of the run, and let the verb read it."""
    folder = sandbox.folder / "run"
    shutil.copytree(setting.runs[case.run], folder)
    for kind, number, detail in case.edits:
        _edit(folder, kind, number, detail)
    if case.sealed:
        for path in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
            reseal(path)
    _read(case, sandbox, setting, folder)


def _edit(folder: Path, kind: str, number: int, detail: Any) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if kind == "new":
        path = folder / detail
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to itself by now
        path.write_bytes(NEW_FILES[detail])
        return
    if kind == "tree":
        paths = [path for path in paths if path.suffix in TREES]
    if not paths:
        return
    path = paths[number % len(paths)]
    if kind == "bytes":
        path.write_bytes(changed_bytes(path.read_bytes(), detail))
    elif kind == "tree":
        edit_tree(path, detail)
    else:
        _replace(path, detail)


def _replace(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")


def edit_tree(path: Path, edits: list[tuple[Any, ...]]) -> None:
    """Change what is parsed of a file; one that can't be parsed any more stays."""
    content = path.read_bytes()
    try:
        new = _edited(path.suffix, content, edits)
    except Exception:  # of whatever parses it
        return
    path.write_bytes(new)


def _edited(suffix: str, content: bytes, edits: list[tuple[Any, ...]]) -> bytes:
    if suffix == ".json":
        return json.dumps(changed(json.loads(content), edits)).encode()
    if suffix == ".jsonl":
        rows = changed([json.loads(line) for line in content.decode().split("\n")[:-1]], edits)
        return b"".join(json.dumps(row).encode() + b"\n" for row in (rows if isinstance(rows, list) else [rows]))
    if suffix == ".yaml":
        import yaml

        return yaml.safe_dump(changed(yaml.safe_load(content), edits), allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    if suffix == ".safetensors":
        return _edited_tensors(content, edits)
    return _edited_checkpoint(content, edits)


def _edited_tensors(content: bytes, edits: list[tuple[Any, ...]]) -> bytes:
    """The header changed as JSON, or where the first edit is a number, the tensors filled with it."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if edits[0][0] == "set" and isinstance(edits[0][-1], float):
        filled = struct.pack("<f", edits[0][-1]) * (len(body) // 4 + 1)
        return content[: 8 + length] + filled[: len(body)]
    new = json.dumps(changed(header, edits)).encode()
    return struct.pack("<Q", len(new)) + new + body


def _edited_checkpoint(content: bytes, edits: list[tuple[Any, ...]]) -> bytes:
    """The checkpoint's dictionaries changed; one that torch can't load safely any more is written all the same."""
    import io

    import torch

    tree = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    stream = io.BytesIO()
    torch.save(changed(tree, edits), stream)
    return stream.getvalue()


def reseal(folder: Path) -> None:
    """Put the sizes and hashes of the files that are there into the folder's manifest, if it still is one."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        return
    try:
        values = json.loads(path.read_bytes())
        names = [name for name in FILES if (folder / name).is_file()]
        model = folder / "model"
        names += [p.relative_to(folder).as_posix() for p in sorted(model.rglob("*")) if p.is_file()]
        values["files"] = {name: _entry(folder / name) for name in names}
        path.write_bytes(json.dumps(values).encode())
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read(case: FolderCase, sandbox: Sandbox, setting: Setting, folder: Path) -> None:
    """Let the verb of the case read the folder, or that of one of its tasks."""
    run = folder / "sentiment" if case.run == "several" and case.verb not in ("resume", "load") else folder
    other, out, new = setting.runs[case.run], sandbox.out, "out/new"
    if case.run == "several":
        other = other / "sentiment"
    # a folder may name another backbone, which is looked for as one that the user named
    hub = {"may_ask_hub": True}
    source = _input(case.run)
    if case.verb == "compare":
        formats = ("table", "markdown", "csv", "json", "html")
        sandbox.command("compare", str(run), "--format", formats[case.detail % 5], writable=[])
    elif case.verb == "compare two":
        more = (["--fail-if-worse"], ["--force"], ["--metric", "accuracy"], [])[case.detail % 4]
        sandbox.command("compare", str(run), str(other), *more, writable=[])
        if case.detail % 5 == 0:
            sandbox.command("compare", str(run), "--leaderboard", writable=[sandbox.folder])
    elif case.verb.startswith("report"):
        runs = [str(run), str(other)] if case.verb == "report two" else [str(run)]
        labels = ["--labels", "out/issues.jsonl"] * (case.detail % 4 == 0)
        sandbox.command("report", *runs, "--output", "out/report.html", *labels)
    elif case.verb == "predict":
        sandbox.command("predict", f"run={run}", "input=-", "output=out/p.jsonl", "on_error=skip", stdin=source, **hub)
    elif case.verb == "export":
        adapter = ["adapter=true"] * (case.detail % 3 == 0)
        sandbox.command("export", f"run={run}", f"output={new}", *adapter, **hub)
    elif case.verb == "gguf":
        sandbox.command("export", f"run={run}", "output=out/model.gguf", "format=gguf", **hub)
    elif case.verb == "explain":
        method = ("ig", "occlusion", "attention")[case.detail % 3]
        examples = ("-", "worst", "surprising")[case.detail % 5 % 3]
        options = [f"method={method}", "steps=2"] if method == "ig" else [f"method={method}"]
        sandbox.command("explain", f"run={run}", f"input={examples}", "output=out/why.html", "examples=2", *options,
                        stdin=source, **hub)  # fmt: skip
    elif case.verb == "compress":
        method = ("prune", "distil")[case.detail % 2]
        options = ["keep=1", "trainer.max_steps=1", "probe=false", "baseline=false"]
        sandbox.command("compress", f"run={run}", f"method={method}", f"folder={new}", *options, **hub)
    elif case.verb == "serve":
        backbone = [f"backbone.source={setting.runs['backbone']}"] * (case.detail % 2)
        sandbox.command("serve", f"runs=[{run}]", "check=true", "port=0", *backbone, writable=[], **hub)
    elif case.verb == "evaluate":
        sandbox.command("evaluate", f"run={run}", f"folder={new}", "baseline=false", **hub)
    elif case.verb == "resume":
        epochs = ["trainer.max_epochs=2"] * (case.detail % 2)
        sandbox.command(
            "train", f"resume={run}", "probe=false", "baseline=false", *epochs, writable=[folder, out], **hub
        )
    elif case.verb == "backbone":
        options = ["task=sentiment", "data.limit.train=8", "data.limit.validation=4", "data.limit.test=4",
                   "trainer.max_steps=1", "data.max_tokens=64", "probe=false", "baseline=false"]  # fmt: skip
        sandbox.command("train", f"backbone.source={run}", f"folder={new}", *options, **hub)
    else:
        _load(case, sandbox, run, setting)


def _load(case: FolderCase, sandbox: Sandbox, run: Path, setting: Setting) -> None:
    """From Python: the task, the weights' hash, all tasks, or the adapter beside others of a backbone."""
    import gptask
    from gptask.runs import run as runs

    if case.verb == "adapter":
        from gptask.model.backbone.backbone import from_folder
        from gptask.model.backbone.locate import BackboneOrigin

        backbone = from_folder(BackboneOrigin(str(setting.runs["backbone"]), "local folder", ""))
        sandbox.call(lambda: runs.load_run_onto(backbone, run), may_ask_hub=True)
        return
    functions = (runs.load_task, runs.weights_hash, gptask.load_run, gptask.load_runs)
    sandbox.call(lambda: functions[case.detail % 4](run), may_ask_hub=True)


def _input(run: str) -> bytes:
    """A row that the run's task reads."""
    row = {"tags": {"tokens": ["a", "b"]}, "translation": {"source": "a dog"}}.get(run, {"text": "a fine film"})
    return json.dumps(row).encode() + b"\n"


RUN_FOLDERS = Target("run folders", 0.2, folder_cases, run_folder_case)
