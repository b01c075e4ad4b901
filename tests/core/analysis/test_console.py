"""rich's console: its own colours stay, what data holds is visible."""

import io

from gptask.analysis.console import VisibleConsole
from rich.table import Table
from rich.text import Text


def printed(*values):
    console = VisibleConsole(
        file=io.StringIO(), force_terminal=True, color_system="standard", width=60, highlight=False
    )
    for value in values:
        console.print(value)
    return console.file.getvalue()


def test_colours_of_rich_stay_and_those_of_data_do_not():
    text = printed(Text("a\x1b[32m\x9b2J\u202e", style="red"))
    assert text == "\x1b[31ma\\u001b[32m\\u009b2J\\u202e\x1b[0m\n"


def test_cells_titles_and_texts_have_no_markup():
    table = Table("metric\x1b[1m", title="title\x9b")
    table.add_row("[link=http://x]f1[/link]\x1b]8;;http://x\x1b\\")
    table.add_row(Text("plain"))
    text = printed(table, "[red]x[/red] :smile: \x1b[5m")
    assert "\x1b]" not in text
    assert "\x1b[5m" not in text
    assert "\x9b" not in text
    assert "[link=http://x]f1[/link]\\u001b]8" in text  # cut to the width that rich has measured
    assert "[red]x[/red] :smile: \\u001b[5m" in text
    borders = {line.rstrip().rfind("┃") for line in text.splitlines() if "┃" in line}
    assert len(borders) == 1
