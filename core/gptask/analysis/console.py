"""rich's console for texts of data: what is printed can neither move the cursor nor set a colour or a link."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from gptask.errors import visible


class VisibleConsole(Console):
    """A console that makes the control characters of texts visible; colours and boxes that rich adds stay.

    A text has neither markup nor the names of emojis.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """See `rich.console.Console`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
