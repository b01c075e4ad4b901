import pytest
from gptask.data.words import words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It's Angela's, isn't it?", ["It", "'s", "Angela", "'s", ",", "is", "n't", "it", "?"]),
        ("can’t won't", ["ca", "n’t", "wo", "n't"]),
        ("The U.S. paid 3.5 or 10,000 at 12:30.", ["The", "U.S.", "paid", "3.5", "or", "10,000", "at", "12:30", "."]),
        ("a well-known AT&T café…", ["a", "well-known", "AT&T", "café", "…"]),
        ("@paul #tag https://a.b/c?d wait...", ["@paul", "#tag", "https://a.b/c?d", "wait", "..."]),
        ("北京GPT-4很好。The end", ["北", "京", "GPT-4", "很", "好", "。", "The", "end"]),
        ("東京タワー 서울", ["東", "京", "タ", "ワ", "ー", "서", "울"]),
        (" \n", []),
    ],
)
def test_a_text_is_split_at_spaces_and_around_punctuation(text: str, parts: list[str]) -> None:
    assert words(text) == parts
