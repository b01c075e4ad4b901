"""The clause of the plugin contract that is about the scores of a head, from which distilling and explaining start."""

from __future__ import annotations

from gptask.testing.expectations import NotApplicable, expect
from gptask.testing.trial import Trial


def scores_are_log_probabilities(trial: Trial) -> None:
    """What `Head.scores` returns sums to 1 along ``score_axis``, and has the classes that `Task.score_labels` names."""
    import torch

    from gptask.data.datamodule import collate

    head, labels = trial.parts.head, trial.task.score_labels()
    for item in trial.items(trial.examples):
        batch = collate([item])
        with torch.inference_mode():
            scores = head.scores(trial.parts.backbone.hidden(batch.input_ids), batch)
        if scores is None:
            raise NotApplicable
        probabilities, words = scores.double().exp(), head.scored_words(batch)
        highest = float(probabilities.max())
        expect(highest <= 1.001, f"Head.scores() must return log-probabilities; a probability is {highest:.4g}")
        if head.score_axis is not None:
            sums = probabilities.sum(head.score_axis)
            wrong = float(sums.flatten()[(sums - 1).abs().argmax()])
            expect(
                abs(wrong - 1) < 1e-3,
                f"the probabilities of Head.scores() must sum to 1 along its axis {head.score_axis}, got {wrong:.4g}; "
                "look at Head.score_axis (1: positions of a span, None: each class is a yes or no of its own)",
            )
        expect(
            len(labels) in (0, scores.shape[-1]),
            f"Task.score_labels() names {len(labels)} labels, and Head.scores() has {scores.shape[-1]} of them",
        )
        expect(
            words is None or words.shape == scores.shape[:2],
            f"Head.scored_words() must be a mask of shape {tuple(scores.shape[:2])}, as the words of Head.scores()",
        )
