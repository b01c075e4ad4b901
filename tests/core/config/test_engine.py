"""The engine of a config: what Python or ``GPTASK_ENGINE`` names, and which values are refused."""

import pytest
from gptask import Fast, Reference, UserError
from gptask.config.engine import engine_from_environment
from gptask.config.schemas import Evaluate, Export, Predict, Train


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("", Fast()),
        ("fast", Fast()),
        ("reference", Reference()),
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
        ("fsat", "GPTASK_ENGINE=fsat: unknown engine 'fsat'; expected 'reference', 'fast', or 'fast' without"),
        ("fsat", "Did you mean 'fast'?"),
        ("packing=off", "unknown engine 'packing=off'"),
        ("reference,packing=off", "the reference engine has no components, got 'packing=off'"),
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
