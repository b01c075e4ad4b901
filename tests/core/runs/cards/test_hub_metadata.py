"""A card's metadata holds nothing that the hub would refuse."""

from dataclasses import dataclass

import pytest
from gptask.runs.cards.hub_metadata import languages, license_of
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-SA 4.0", {"license": "cc-by-sa-4.0"}),
        ("MIT licence", {"license": "mit"}),
        ("Gemma Terms of Use (ai.google.dev/gemma/terms)", {"license": "gemma"}),
        ("ours (https://x.org/l)", {"license": "other", "license_name": "ours", "license_link": "https://x.org/l"}),
        ("仅供研究", {"license": "other", "license_name": "other"}),
    ],
)
def test_a_licence_is_one_of_the_hubs_or_other_with_a_name(text, expected):
    assert license_of(text) == expected


def test_languages_come_from_the_tasks_options():
    @dataclass
    class WithoutLanguage:
        prompt: str = "de"

    assert languages(Translation(source_lang="deu_Latn", target_lang="en")) == ["deu", "en"]
    assert languages(Sentiment(language="zh")) == ["zh"]
    assert languages(WithoutLanguage()) == []
