"""The page of explanations: one HTML file, whose texts are JSON that the browser reads as far as it shows them."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from gptask.analysis.explain.explanation import AttentionMaps, Explanation, Faithfulness
from gptask.analysis.html_page import json_in_html, rendered
from gptask.analysis.report.page import REPORT_STYLE
from gptask.runs.atomic_write import json_text

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("element.js", "word_group.js", "attention.js", "explanation.js", "page.js")  # each imports earlier ones only
SHARED = (*SCRIPTS[:-1], "explanation.css")  # what the page of `gptask serve` is made of, too
STYLES = (REPORT_STYLE, STATIC / "explanation.css", STATIC / "page.css")
METHOD_NAMES = {
    "ig": "Integrated gradients (Sundararajan et al. 2017)",
    "occlusion": "Leave one word out",
    "attention": "Attention rollout (Abnar and Zuidema 2020)",
}
MAX_MAP_WORDS = 128  # of a text whose attention is in the page: its maps grow with the square
MAX_ATTENTION_MB = 12  # of all maps together, compressed: the browser reads them before it shows anything
MAX_CLASSES = 500  # in the list that chooses one


def explain_page(
    explanations: Sequence[Explanation],
    faithfulness: Faithfulness | None,
    *,
    method: str,
    run: str,
    run_digest: str,
    order: str = "",
) -> str:
    """The HTML of the page of what a method explains about a run's predictions.

    ``run_digest`` is that of `gptask.runs.prediction_identity`: by it, the report knows a page of other weights.
    ``order`` says which texts they are, and in which order.
    """
    attention, left_out = _attention(explanations)
    lines = (replace(explanation, attention=None).to_json() for explanation in explanations)
    classes = dict.fromkeys(entry.target for e in explanations if e.probabilities for entry in e.maps)
    count = f"{len(explanations):,} text{'' if len(explanations) == 1 else 's'}"
    return rendered(
        STATIC / "page.html",
        style="\n".join(path.read_text(encoding="utf-8") for path in STYLES),
        script=_script(),
        run=run,
        run_digest=run_digest,
        method=method,
        method_name=METHOD_NAMES.get(method, method),
        texts=f"{count}: {order}" if order else count,
        faithfulness=faithfulness,
        attention_note=method == "attention" and (left_out or True),
        has_right=any(e.probabilities and e.reference is not None for e in explanations),
        classes=list(classes)[:MAX_CLASSES] if len(classes) > 1 else [],
        lines=json_in_html("\n".join(lines)),
        attention=attention,
    )


def _attention(explanations: Iterable[Explanation]) -> tuple[list[tuple[int, Markup]], str]:
    """The compressed maps of heads, each with its text's number, as far as they fit; and a sentence on the others."""
    maps: list[tuple[int, Markup]] = []
    size, left_out = 0, 0
    for number, explanation in enumerate(explanations):
        if explanation.attention is None:
            continue
        if len(explanation.words) <= MAX_MAP_WORDS and size < MAX_ATTENTION_MB * 2**20:
            maps.append((number, _compressed(explanation.attention)))
            size += len(maps[-1][1])
        else:
            left_out += 1
    if not left_out:
        return maps, ""
    limits = f"of more than {MAX_MAP_WORDS} words, or beyond {MAX_ATTENTION_MB} MB in all"
    return maps, f"The heads of {left_out:,} texts ({limits}) are left out here; output=FILE.jsonl has them."


def _compressed(attention: AttentionMaps) -> Markup:
    deflated = base64.b64encode(zlib.compress(attention.weights.tobytes(), 6)).decode()
    return json_in_html(json_text({"shape": list(attention.weights.shape), "deflated": deflated}))


def _script() -> str:
    """The page's modules as one, in which an import or an export means nothing."""
    return "\n".join(_without_imports((STATIC / name).read_text(encoding="utf-8")) for name in SCRIPTS)


def _without_imports(code: str) -> str:
    return re.sub(r"^export (?=function|class|const)", "", re.sub(r"^import .*;\n", "", code, flags=re.M), flags=re.M)
