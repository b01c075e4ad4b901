"""A text as its words, for tasks that tag each word."""

import re

WIDE = r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"  # written without spaces
WORD = re.compile(
    rf"""
    {WIDE}                                               # Chinese, Japanese and Korean by characters
  | https?://[^\s\u2e80-\u9fff]+ | [@\#]\w+              # addresses, names and tags of posts
  | \d+ (?: [.,:] \d+ )+                                 # 3.5 and 10,000
  | (?: [^\W\d_] \. ){{2,}}                              # U.S.
  | (?: ['’](?: s|m|d|re|ve|ll ) | n['’]t ) \b           # 's
  | (?: (?! {WIDE} | n['’]t \b ) \w )+ (?: [-&] (?: (?! {WIDE} ) \w )+ )*    # well-known
  | \.{{2,}} | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Divide a text much as published corpora are: at spaces, around punctuation, ``It's`` into ``It`` and ``'s``."""
    return WORD.findall(text)
