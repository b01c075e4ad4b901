"""Tasks that are no more than a test needs of them."""

from gptask import Field


class TaskWithFields:
    """As much of a task as reading columns needs."""

    def __init__(self, *fields: Field) -> None:
        self.own = list(fields)

    def fields(self) -> list[Field]:
        return self.own
