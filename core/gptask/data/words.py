"""What counts as a word in any script: for scores, for tasks that tag each word, and for texts with nothing in them."""

import unicodedata

import regex

# Chinese, Japanese and the scripts of Unicode's line-break class SA (Thai, Lao, Khmer, Burmese and others) have no
# spaces between words; Korean has. A combining mark stays with its letter.
UNSPACED = r"(?:(?=[\p{L}\p{N}\p{M}])[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{Line_Break=SA}])"
CHARACTER = rf"(?:{UNSPACED}\p{{M}}*)"
WIDE = rf"(?:{CHARACTER}|[\u2e80-\u303f\uff00-\uffef])"  # full-width forms and punctuation too
WORDS_SIGNATURE = "words; characters in scripts without spaces"  # how `normalized_words` splits, for signatures

INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # joiners, zero-width spaces, soft hyphens, BOM
BLANK = regex.compile(r"[\s\p{Cc}\p{Default_Ignorable_Code_Point}]*")
UNSPACED_CHARACTER = regex.compile(UNSPACED)
WIDE_CHARACTER = regex.compile(WIDE)
NORMALIZED_WORD = regex.compile(
    rf"{CHARACTER}|(?!{UNSPACED})[\p{{L}}\p{{N}}](?:(?!{UNSPACED})[\p{{L}}\p{{N}}\p{{M}}])*"
)
WORD = regex.compile(
    rf"""
    {WIDE}                                               # scripts without spaces by characters
  | https?://(?:(?!{WIDE})\S)+ | [@\#](?:(?!{WIDE})\w)+  # addresses, names and tags of posts
  | \d+ (?: [.,:] \d+ )+                                 # 3.5 and 10,000
  | (?: [^\W\d_] \. ){{2,}}                              # U.S.
  | (?: ['’](?: s|m|d|re|ve|ll ) | n['’]t ) \b           # 's
  | (?: (?! {WIDE} | n['’]t \b ) \w )+ (?: [-&] (?: (?! {WIDE} ) \w )+ )*    # well-known
  | \.{{2,}} | \S
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Divide a text much as published corpora are: at spaces, around punctuation, ``It's`` into ``It`` and ``'s``."""
    parts: list[str] = WORD.findall(text)
    return parts


def normalized_words(text: str) -> list[str]:
    """Split a text into the words by which scores compare it: without case, punctuation and compatibility forms.

    For ASCII these are the words of the package rouge-score before stemming. A script without spaces is split into
    characters. Letters, digits and their combining marks form a word; the text is normalised to NFKC, so that composed
    and decomposed letters are equal.
    """
    normalized = INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    parts: list[str] = NORMALIZED_WORD.findall(normalized)
    return parts


def space_characters(text: str) -> str:
    """Put spaces around each character of a script without spaces; text in other scripts stays as it is."""
    return str(WIDE_CHARACTER.sub(r" \g<0> ", text))


def is_unspaced(character: str) -> bool:
    """Return whether a character belongs to a script without spaces between words."""
    return UNSPACED_CHARACTER.match(character) is not None


def is_blank(text: str) -> bool:
    """Return whether a text holds nothing to see: only spaces, control characters and invisible ones."""
    return BLANK.fullmatch(text) is not None
