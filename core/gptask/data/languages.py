"""Which encoding a text that is not Unicode is in, by the letters that languages use beyond ASCII."""

from __future__ import annotations

import re
from collections.abc import Callable

MARKS = frozenset("‘’“”„–—…€£§°©®™·•«»¿¡ªº´")  # in texts of any language, but not inside a word
WORDS = frozenset("àèéóíáåőÀÈÉ")  # letters that are words
WESTERN = (  # the letters of German, French, Spanish, Portuguese, Italian, Swedish, Danish
    "äöüßÄÖÜ",
    "éèàçêâîôûëïùœæÉÈÀÇÊÂÎÔÛŒ",
    "áéíóúñüÁÉÍÓÚÑ",
    "ãõçáéíóúâêôàÃÇÁÉÍÓÚÂÊÔÀ",
    "àèéìòùÀÈÉ",
    "åäöÅÄÖé",
    "åæøÅÆØé",
)
CENTRAL = (  # of Polish, Czech, Slovak, Hungarian, Croatian, Romanian
    "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ",
    "áčďéěíňóřšťúůýžÁČĎÉÍŇÓŘŠŤÚŮÝŽ",
    "áäčďéíľňóôšťúýžÁČĽŠŽ",
    "áéíóöőúüűÁÉÍÓÖŐÚÜŰ",
    "čćđšžČĆĐŠŽ",
    "ăâîşţĂÂÎŞŢ",
)
LATIN = {  # encoding → the letters of each language written in it; of equal readings the first is named
    "cp1252": WESTERN,
    "cp1250": CENTRAL,
    "iso8859_2": CENTRAL,
    "cp1254": ("çğıöşüâÇĞİÖŞÜ",),
    "cp850": WESTERN,
    "mac_roman": WESTERN,
}
OLD = ("cp850", "mac_roman")  # of DOS and the old Macintosh: named only where all others are less plausible
CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъёії"
ALPHABETS = {  # encoding → its letters, the most frequent first
    "cp1251": CYRILLIC,
    "koi8_r": CYRILLIC,
    "iso8859_5": CYRILLIC,
    "cp866": CYRILLIC,
    "cp1253": "αοιετσνηυρπκμλςωδγάίόχθέήώφύβξζψ",
    "cp1255": "יוהלאמרתבשנםקחדפעצטגכסןזךףץ",
    "cp1256": "اليمنرتوبعدسهكفحقةجشصخطذأضزىئغءثظ",
}
KANA = "いのんたしてにかとなるはでもがりすうこまをあれっらさおきくそだけよみどじつめやえせルン、。"
CHARACTERS = {  # encoding → the most frequent characters
    "gb18030": "的了我是不一有在个这人好他很大到和时们为你没要中上以来点么送会还国可能间年多对分都用就子下过地也"
    "生度小吃家出发行后说里道房天法什方餐店学电成于次高得汤服开理太最机现比前新酒作务给性定果去公本您"
    "进特错面经意自与其图员体吗被价快动但结通明外想日水工主如提实问住合常看两全将那基系等量力数所味种"
    "之化她重加车物因打少非单应关",
    "big5": "的了我是不一有在個這人好他很大到和時們為你沒要中上以來點麼送會還國可能間年多對分都用就子下過地也"
    "生度小吃家出發行後說裡道房天法什方餐店學電成於次高得湯服開理太最機現比前新酒作務給性定果去公本您"
    "進特錯面經意自與其圖員體嗎被價快動但結通明外想日水工主如提實問住合常看兩全將那基系等量力數所味種"
    "之化她重加車物因打少非單應關",
    "cp932": KANA,
    "euc_jp": KANA,
    "cp949": "이다는을가에의고하지은도를한기사서로리아나어있습니게자만시수그인대해부정일전보여없라요스장주음",
}
MIN_SHARE_OF_FREQUENT = 0.1  # of characters; titles in Chinese have 0.15, texts in another encoding below 0.03
MAX_MEAN_RANK = 12.0  # of letters in their alphabet; texts have about 8, those of another encoding 14 and more
MIN_MARGIN = 1.25  # of the best alphabet over the second
MAX_SHARE_OF_MISSES = 0.02
LETTER = re.compile(r"[^\W\d_]")
Readings = list[tuple[str, str]]  # an encoding, and a few words of the first line in it


def guess_encoding(lines: list[bytes]) -> tuple[str | None, Readings]:
    """The encoding of lines that are not UTF-8, None where none, or more than one, gives a plausible text.

    Also returns the plausible readings, the best first.
    """
    raw = b"".join(lines)
    runs = re.findall(rb"[\x80-\xff]+", raw)
    choose = _alphabets if sum(map(len, runs)) >= 2 * len(runs) else _latin
    encodings, is_clear = _characters(raw)
    if not encodings:
        encodings, is_clear = choose(raw)
    readings = [(encoding, _excerpt(lines[0].decode(encoding, "replace"))) for encoding in encodings[:3]]
    return (encodings[0] if is_clear else None), readings


def _scores(raw: bytes, encodings: dict[str, str], score: Callable[[str, str], float]) -> list[tuple[float, str]]:
    """The score of each encoding that can decode all bytes, sorted; that of the characters beyond ASCII."""
    scores = []
    for encoding, letters in encodings.items():
        try:
            characters = re.sub(r"[\x00-\x7f]+", "", raw.decode(encoding))
        except UnicodeDecodeError:
            continue
        scores.append((score(characters, letters) / max(1, len(characters)), encoding))
    return sorted(scores)


def _characters(raw: bytes) -> tuple[list[str], bool]:
    """Encodings of Chinese, Japanese and Korean by their share of frequent characters, and if the first is clear."""
    scores = _scores(raw, CHARACTERS, lambda text, frequent: -sum(map(set(frequent).__contains__, text)))
    encodings = [encoding for score, encoding in scores if -score >= MIN_SHARE_OF_FREQUENT]
    return encodings, len(encodings) == 1 or (bool(encodings) and scores[0][0] <= 2 * scores[1][0])


def _alphabets(raw: bytes) -> tuple[list[str], bool]:
    """Encodings of other alphabets by the mean rank of the letters, and if the first is clear."""

    def rank_sum(text: str, letters: str) -> float:
        ranks = {letter: rank for rank, letter in enumerate(letters)}
        return sum(ranks.get(letter, ranks.get(letter.lower(), 60) + 5) for letter in text)

    scores = _scores(raw, ALPHABETS, rank_sum)
    encodings = [encoding for score, encoding in scores if score <= MAX_MEAN_RANK]
    return encodings, len(encodings) == 1 or (bool(encodings) and scores[1][0] >= MIN_MARGIN * scores[0][0])


def _latin(raw: bytes) -> tuple[list[str], bool]:
    """Encodings of the Latin alphabet by the letters that no one language has, and if the first is clear."""
    readings: dict[str, tuple[int, str]] = {}  # by what is read: its misses, and the first encoding that reads it so
    for encoding, languages in LATIN.items():
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        readings.setdefault(text, (_misses(f" {text} ", languages), encoding))
    n_letters = sum(byte > 127 for byte in raw)
    ordered = sorted(readings.values(), key=lambda reading: (reading[0], reading[1] in OLD))  # stable
    plausible = [reading for reading in ordered if reading[0] <= MAX_SHARE_OF_MISSES * n_letters]
    encodings = [encoding for _, encoding in plausible]
    rivals = [encoding for misses, encoding in plausible[1:] if misses == plausible[0][0]]
    is_clear = bool(encodings) and all(rival in OLD and encodings[0] not in OLD for rival in rivals)
    return encodings, is_clear


def _misses(text: str, languages: tuple[str, ...]) -> int:
    """The characters beyond ASCII that are implausible in the language that fits best."""
    places = [place for place, character in enumerate(text) if not character.isascii()]
    around = [text[place - 1 : place + 2] for place in places]
    return min(sum(not _is_plausible(three, letters) for three in around) for letters in languages)


def _is_plausible(around: str, letters: str) -> bool:
    """Whether a character, with those before and after it, occurs so in a language."""
    before, character, after = tuple(around)
    in_word = bool(LETTER.match(before)), bool(LETTER.match(after))
    if character in letters:
        return not (before.islower() and character.isupper()) and (
            any(in_word) or (before == after == " " and character in WORDS)
        )
    return character in MARKS and (character in "’–—…·" or not all(in_word))


def _excerpt(line: str) -> str:
    """A few words around the first letter beyond ASCII."""
    place = next((place for place, character in enumerate(line) if not character.isascii()), 0)
    return line[max(0, place - 20) : place + 20].strip()
