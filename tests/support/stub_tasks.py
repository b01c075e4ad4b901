"""Stand-ins for tasks, with only what a test needs."""

from gptask import Field


class TaskWithFields:
    """A task that has nothing but fields: reading columns needs no more."""

    def __init__(self, *fields: Field) -> None:
        self.task_fields = list(fields)

    def fields(self) -> list[Field]:
        return self.task_fields

    def inputs(self) -> list[Field]:
        return [field for field in self.task_fields if not field.target]

    def targets(self) -> list[Field]:
        return [field for field in self.task_fields if field.target]
