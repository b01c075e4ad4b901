"""Facts that a card's text and its metadata share."""

from types import SimpleNamespace

from gptask.config.schemas import Hub, Sample
from gptask.runs.cards.card_facts import CardFacts, hub_id
from gptask.training.builder import build_corpus
from gptask_tasks.sentiment import Sentiment


def test_only_names_that_the_hub_accepts_are_ids():
    names = ["gpt2", "org/model.v1", "/home/me/model", "a/b/c", "a b", "../x", "模型"]
    assert [hub_id(name) for name in names] == ["gpt2", "org/model.v1", None, None, None, None, None]


def test_a_data_set_of_the_hub_is_no_file_however_long_its_name_is():
    for name in ("org/set", "a" * 5000):
        data = SimpleNamespace(
            corpus=SimpleNamespace(options=Hub(path=name), sources=lambda split, n=name: {f"{n}[x]": ""})
        )
        facts = CardFacts(*[None] * 4, data, *[None] * 3)
        assert facts.hub_dataset("test") == name


def test_a_users_licence_replaces_the_samples_and_does_not_change_the_cache_key():
    users, bundled = (build_corpus(Sentiment(), Sample(license=text), seed=0) for text in ("CC0-1.0", None))
    assert (users.options.license, bundled.options.license) == ("CC0-1.0", "Apache-2.0")
    assert users.split("test").key == bundled.split("test").key
