"""A copy of a task with other options keeps what its hooks have put on it."""

from dataclasses import dataclass
from functools import cached_property

from gptask.plugins.task import with_options
from gptask_tasks.sentiment import Sentiment


@dataclass
class Collecting(Sentiment):
    """Collects words beside its options."""

    @cached_property
    def first_label(self):
        return self.labels[0]


def test_a_copy_with_other_options_keeps_what_prepare_collected():
    task = Collecting(labels=["a", "b"])
    task.words = ["good", "bad"]
    assert task.first_label == "a"
    copy = with_options(task, {"labels": ["c", "d"]})
    assert (copy.labels, copy.words, copy.first_label) == (["c", "d"], ["good", "bad"], "c")
    assert (task.labels, task.first_label) == (["a", "b"], "a")
    assert type(copy) is Collecting
