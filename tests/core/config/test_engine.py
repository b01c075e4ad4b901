"""The engine of a config: what Python or ``GPTASK_ENGINE`` names, and which values are refused."""

import pytest
from gptask import Fast, OpenVino, Reference, UserError
from gptask.config.engine import engine_from_environment, engine_from_overrides, environment_overrides, refuse_openvino
from gptask.config.schemas import Evaluate, Export, Predict, Train


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("", Fast()),
        ("fast", Fast()),
        ("reference", Reference()),
        (" OpenVino", OpenVino()),
        ("fast,packing=off,norm=off", Fast(packing=False, norm=False)),
        (" fast, packing=No, norm=on, loss=false,linear=TRUE,rotary=yes ", Fast(packing=False, loss=False)),
    ],
)
def test_the_environment_names_an_engine(text, engine, monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", text)
    assert engine_from_environment() == engine


def test_without_the_variable_the_engine_is_the_fast_one(monkeypatch):
    monkeypatch.delenv("GPTASK_ENGINE", raising=False)
    assert engine_from_environment() == Fast()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fsat",
            "GPTASK_ENGINE=fsat: unknown engine 'fsat'; expected fast, reference or openvino (GPTASK_ENGINE takes",
        ),
        ("fsat", "Did you mean 'fast'?"),
        ("packing=off", "unknown engine 'packing=off'"),
        ("reference,packing=off", "GPTASK_ENGINE=reference,packing=off: the reference engine has no components"),
        ("openvino,packing=off", "the openvino engine has no components, as engine=fast has"),
        ("fast,pakcing=off", "unknown component 'pakcing'; available: attention, packing"),
        ("fast,pakcing=off", "Did you mean 'packing'?"),
        ("fast,packing=0", "packing takes on, true, yes, off, false, no, got '0'"),
        ("fast,packing", "packing takes on, true, yes, off, false, no, got ''"),
        ("fast,", "unknown component ''"),
    ],
)
def test_nonsense_in_the_environment_is_refused(text, message, monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", text)
    with pytest.raises(UserError) as raised:
        engine_from_environment()
    assert message in str(raised.value)


@pytest.mark.parametrize("verb", [Train, Evaluate, Predict, Export])
def test_every_verb_takes_the_environments_engine_unless_python_names_one(verb, monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", "reference")
    assert verb().engine == Reference()
    assert verb(engine=Fast(norm=False)).engine == Fast(norm=False)


@pytest.mark.parametrize(
    ("environment", "overrides", "engine"),
    [
        ("", [], Fast()),
        ("reference", [], Reference()),
        ("openvino", [], OpenVino()),
        ("fast", ["engine=openvino"], OpenVino()),
        ("reference", ["engine=fast"], Fast()),
        ("fast,norm=off", ["engine=fast"], Fast()),
        ("fast,norm=off", ["engine.packing=off"], Fast(norm=False, packing=False)),
        ("fast,norm=off", ["engine.norm=on"], Fast()),
        ("nonsense", ["engine.loss=no", "engine=reference", "engine=fast"], Fast(loss=False)),
    ],
)
def test_overrides_go_over_the_environment(environment, overrides, engine, monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", environment)
    assert engine_from_overrides(overrides) == engine


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine=fsat"], "engine=fsat: unknown engine 'fsat'; expected fast, reference or openvino"),
        (["engine.packing=7"], "engine.packing=7: packing takes on, true"),
        (["engine.pack=off"], "engine.pack=off: unknown component 'pack'"),
        (["engine=reference", "engine.packing=off"], "engine.packing=off: the reference engine has no components"),
    ],
)
def test_nonsense_in_overrides_is_refused(overrides, message):
    with pytest.raises(UserError) as raised:
        engine_from_overrides(overrides)
    assert message in str(raised.value)


def test_the_environments_overrides_name_every_component(monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", "fast,norm=off")
    overrides = environment_overrides(["seed=3"])
    assert engine_from_overrides(overrides) == Fast(norm=False)
    assert len(overrides) == 10
    assert environment_overrides(["engine=fast"]) == []
    monkeypatch.setenv("GPTASK_ENGINE", "openvino")
    assert environment_overrides(["seed=3"]) == ["engine=openvino"]
    with pytest.raises(UserError, match="the openvino engine \\(from GPTASK_ENGINE\\) has no components"):
        environment_overrides(["engine.norm=off"])
    monkeypatch.delenv("GPTASK_ENGINE")
    assert environment_overrides([]) == []


def test_openvino_is_refused_by_the_name_of_what_it_can_not_do(monkeypatch):
    refuse_openvino(Fast(), "train")
    refuse_openvino(Reference(), "train")
    monkeypatch.setenv("GPTASK_ENGINE", "fast")
    with pytest.raises(UserError, match="engine=openvino writes the texts of a finished run: predict, evaluate, chat"):
        refuse_openvino(OpenVino(), "train")
    monkeypatch.setenv("GPTASK_ENGINE", "openvino")
    with pytest.raises(UserError, match=r"engine=openvino \(GPTASK_ENGINE names it\) .* take it, serve does not"):
        refuse_openvino(OpenVino(), "serve")
