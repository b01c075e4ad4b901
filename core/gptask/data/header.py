"""Whether the first row of a table is its header: as told, or by what the row holds and the rows below it."""

from __future__ import annotations

import re

from gptask.config.schemas import Files
from gptask.data.rows import ReadingNotes, wanted_positions
from gptask.errors import listing

NAME = re.compile(r"[^\W\d][\w .\-/()#:]{0,39}")
MAX_WORDS_OF_NAME = 3
HEADER_WORDS = set(
    re.findall(
        r"\w+",
        "text texts sentence sentences review reviews comment content title body tweet message document dialogue "
        "article abstract description headline post query utterance question context answer answers passage premise "
        "hypothesis source target translation summary highlights prompt completion response instruction input output "
        "label labels class category categories sentiment polarity emotion intent topic tag tags stars rating score "
        "grade id idx index lang language domain english german french chinese en de fr zh src tgt ",
    )
)
MISSING_MARKS = frozenset({"na", "n/a", "nan", "none", "null", "unknown"})
MIN_ROWS = 4  # below the first, to say what a column of labels holds


def decide_header(rows: list[list[str]], options: Files, header_names: set[str], notes: ReadingNotes) -> bool:
    """Whether the first of ``rows`` is the header.

    Unless ``data.header`` tells, it is where columns are named; where all are positions, it needs evidence. ``notes``
    gets the decision, and a warning where what was told or decided looks wrong.
    """
    wanted = wanted_positions(options.columns)
    by_position = bool(wanted)
    if not rows:
        return bool(options.header) if options.header is not None else not by_position
    shown = listing((cell[:30] for cell in rows[0]), 6)
    positions = wanted or range(len(rows[0]))
    reason = _evidence(rows, [place for place in positions if place < len(rows[0])], header_names)
    if options.header is not None:
        if not options.header and reason:
            notes.warnings.append(f"data.header=false, but the first row ({shown}) looks like a header: {reason}")
        elif options.header and by_position and (reason := _contradiction(rows, positions)):
            notes.warnings.append(
                f"data.header=true, so the first row ({shown}) is no example, but it looks like one: {reason}"
            )
        return options.header
    if not by_position:
        return True
    if reason:
        notes.decisions.append(
            f"the first row ({shown}) is the header, because {reason}; data.header=false takes it for an example"
        )
    elif _all_names(rows[0]) and any(_is_new_label(rows, place) for place in positions if place < len(rows[0])):
        notes.warnings.append(f"the first row ({shown}) is read as an example; data.header=true if it is the header")
    return bool(reason)


def _evidence(rows: list[list[str]], positions: list[int], header_names: set[str]) -> str | None:
    """Why the first row is a header, or None."""
    first, others = rows[0], [row for row in rows[1:] if row != rows[0]]
    for place, cell in enumerate(first):
        if cell.strip() in header_names and cell not in _column(others, place):
            return f"'{cell.strip()}' is the name of a field"
    if not _all_names(first):
        return None
    for place, cell in enumerate(first):
        below = _column(others, place)
        if len(below) >= 2 and all(map(is_number, below)) and cell.strip().casefold() not in {"", *MISSING_MARKS}:
            return f"'{cell.strip()}' is no number, as all below it are"
    known = [place for place in positions if HEADER_WORDS.intersection(re.split(r"[\W_]+", first[place].casefold()))]
    recurring = [place for place in known if first[place] in _column(others, place)]
    if recurring:
        return None
    if len(known) == len(positions) >= 2:
        return f"{listing(repr(first[place]) for place in known)} are usual names of columns"
    new_label = next((place for place in known if _is_new_label(rows, place)), None)
    return None if new_label is None else f"'{first[new_label]}' occurs once in a column of few different values"


def is_named_header(cells: list[str], names: set[str]) -> bool:
    """Whether cells are names of columns, one of ``names`` among them."""
    return _all_names(cells) and all(cell == cell.strip() for cell in cells) and not names.isdisjoint(cells)


def _contradiction(rows: list[list[str]], positions: list[int] | range) -> str | None:
    """Why the first row is no header, or None."""
    first, others = rows[0], [row for row in rows[1:] if row != rows[0]]
    for place in positions:
        below = _column(others, place)
        if len(below) < 2 or place >= len(first):
            continue
        if is_number(first[place]) and all(map(is_number, below)):
            return f"'{first[place]}' is a number, as all below it are"
        if len(set(below)) <= len(below) / 2 and first[place] in below:
            return f"'{first[place]}' occurs below, too"
    return None


def _is_new_label(rows: list[list[str]], place: int) -> bool:
    """Whether a column has few different values below the first row, and another one in it."""
    below = _column([row for row in rows[1:] if row != rows[0]], place)
    return len(below) >= MIN_ROWS and len(set(below)) <= len(below) / 2 and rows[0][place] not in below


def _column(rows: list[list[str]], place: int) -> list[str]:
    """The cells of a column that are not empty."""
    return [row[place] for row in rows if place < len(row) and row[place].strip()]


def _all_names(cells: list[str]) -> bool:
    """Whether cells may be names of columns; the first has none in what pandas writes with its index."""
    return all(
        (NAME.fullmatch(cell.strip()) and len(cell.split()) <= MAX_WORDS_OF_NAME) or (place == 0 and not cell.strip())
        for place, cell in enumerate(cells)
    ) and any(cell.strip() for cell in cells)


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with a point or a comma."""
    return re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*%?\s*", cell) is not None
