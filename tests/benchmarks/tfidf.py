"""TF-IDF and logistic regression on the splits of an experiment; validation chooses C and threshold.

python tests/benchmarks/tfidf.py [experiment ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
from harness import DATA
from ours import config
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline, make_union

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)


def score(experiment: str) -> str:
    """The task's main metric on the test split, with its interval."""
    from gptask import Prediction
    from gptask.plugins.metric import interval_text, score_all
    from gptask.training import builder

    options = config("train", [f"experiment={experiment}", f"data.root={DATA}"])
    corpus = builder.build_corpus(options.task, options.data, options.seed)
    task = replace(corpus.task, **corpus.task.prepare(corpus.all_rows("train")))
    splits = {name: list(corpus.split(name)) for name in ("train", "validation", "test")}
    texts = {name: [example["text"] for example in rows] for name, rows in splits.items()}

    def truth(name: str) -> Any:
        if task.multi_label:
            return np.asarray([task.label_vector(example) for example in splits[name]])
        return np.asarray([task.labels.index(example["label"]) for example in splits[name]])

    def predict(task: Any, model: Any, name: str) -> list[Prediction]:
        table = model.predict_proba(texts[name])
        return [task.prediction(e, [row.tolist()]) for e, row in zip(splits[name], table, strict=True)]

    def main_score(task: Any, model: Any, name: str) -> Any:
        return score_all(task.metrics()[:1], predict(task, model, name), splits[name])[0][0]

    candidates = []
    for strength in STRENGTHS:
        regression: Any = LogisticRegression(C=strength, max_iter=1000)
        if task.multi_label:
            regression = OneVsRestClassifier(regression)
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=2)
        model = make_pipeline(make_union(words, letters), regression).fit(texts["train"], truth("train"))
        chosen = task.tune_on_validation(predict(task, model, "validation"), splits["validation"])
        tuned = replace(task, **chosen)
        candidates.append((main_score(tuned, model, "validation").value, strength, chosen, model))
    _, strength, chosen, model = max(candidates, key=lambda item: item[0])
    result = main_score(replace(task, **chosen), model, "test")
    value, interval = f"{result.value:.1f}", interval_text(result.to_dict(), 1)
    return f"{experiment}: {result.name} {value} ({interval}), C={strength:g} {chosen or ''}"


if __name__ == "__main__":
    for experiment in sys.argv[1:] or ("sst2", "trec", "banking77", "goemotions"):
        print(score(experiment), flush=True)
