"""Hostile values, and changes of JSON-like trees and of bytes, as hypothesis draws them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.guard import CANARY

MARK = "zqfz"  # in every hostile markup, so that a page shows what became of it
TEXTS = [
    "",
    " ",
    "a",
    "²",
    "٣",
    "1e309",
    "-0",
    "nan",
    "null",
    "~",
    "=1+1",
    "\x00",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202e\u2066bidi",
    "\ud800",
    "\udcff",
    "\r\n\x0b\x0c\x1c\x85\u2028",
    "é" * 50,
    "a" * 5000,
    "中文 👩‍🚀",
    "../../../etc/passwd",
    "/etc/passwd",
    "~root",
    "/dev/zero",
    "C:\\temp",
    "file:///etc/passwd",
    "http://127.0.0.1:9/",
    "${oc.env:HOME}",
    "${data}",
    "${",
    "{{7*7}}{% for x in y %}",
    "{text.__class__}",
    "%s%n%(x)d",
    "$\\frac{1}{2}$",
    f"<script>{MARK}()</script>",
    f'"><img src=x onerror={MARK}()>',
    f"' onmouseover='{MARK}()",
    f"</style></svg></details></title></textarea><iframe src=//{MARK}.example>",
    f"]]>--><!--<a href=javascript:{MARK}()>",
    f"[x](javascript:{MARK})",
    f"![x](http://{MARK}.example/x.png)",
    f"\n# {MARK}\n\n---\n{MARK}: 1\n---\n",
    f"```\n# {MARK}\n~~~",
    f"`{MARK}` | | \\|",
    f"&lt;{MARK}&gt; &#x27;",
    CANARY,
    f"{CANARY}:Evil",
    "__proto__",
    "constructor",
]
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20), st.text(st.characters(codec="utf-8"), max_size=8))
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 255, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400]),
    st.sampled_from([0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.integers(-10, 10),
    st.floats(),
)


def _nested(depth: int, kind: str) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


@st.composite
def _deep(draw: st.DrawFn) -> Any:
    return _nested(draw(st.sampled_from([3, 60, 300])), draw(st.sampled_from(["list", "dict"])))


leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    leaves,
    leaves,
    st.lists(leaves, max_size=4),
    st.dictionaries(texts, leaves, max_size=3),
    st.sampled_from([[[]], [{}], {"": None}, [0] * 1000, [[1, 2], [3]], {"labels": ["a"], "a": {"b": {"c": 1}}}]),
    _deep(),
)
places = st.integers(0, 400)
changes = st.one_of(
    st.tuples(st.just("set"), places, values),
    st.tuples(st.just("set"), places, values),
    st.tuples(st.just("delete"), places),
    st.tuples(st.just("rename"), places, texts),
    st.tuples(st.just("add"), places, texts, values),
    st.tuples(st.just("wrap"), places, st.sampled_from(["list", "dict"])),
    st.tuples(st.just("swap"), places, places),
    st.tuples(st.just("double"), places),
)


def changed(tree: Any, edits: list[tuple[Any, ...]]) -> Any:
    """A copy of a tree of dictionaries and lists after some of `changes`; a place counts its nodes in order."""
    tree = [copy.deepcopy(tree)]
    for name, place, *details in edits:
        nodes = list(_nodes(tree))
        holder, key = nodes[place % len(nodes)]
        value = holder[key]
        if name == "set":
            holder[key] = copy.deepcopy(details[0])
        elif name == "delete" and holder is not tree:
            del holder[key]
        elif name == "rename" and isinstance(holder, dict):
            holder[details[0]] = holder.pop(key)
        elif name == "add" and isinstance(value, dict):
            value[details[0]] = copy.deepcopy(details[1])
        elif name == "wrap":
            holder[key] = [value] if details[0] == "list" else {"x": value}
        elif name == "swap":
            other, other_key = nodes[details[0] % len(nodes)]
            holder[key] = copy.deepcopy(other[other_key])
        elif name == "double" and isinstance(holder, list) and holder is not tree:
            holder.insert(key, copy.deepcopy(value))
    return tree[0]


def _nodes(holder: Any) -> Any:
    """Every value below a tree, as what holds it and its key there."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _nodes(holder[key])


shares = st.floats(0, 1, allow_nan=False)
byte_changes = st.one_of(
    st.tuples(st.just("cut"), shares),
    st.tuples(st.just("flip"), shares, st.integers(1, 255)),
    st.tuples(st.just("insert"), shares, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), shares, st.sampled_from([b"\x00", b"\xff\xfe", b"\n", b'"', b"}{", b"[" * 3000])),
    st.tuples(st.just("drop"), shares, st.integers(1, 64)),
    st.tuples(st.just("all"), st.sampled_from([b"", b"{", b"null", b"[]", b"{}", b"\x80\x04.", b"PK\x03\x04", b"1"])),
)


def changed_bytes(content: bytes, edits: list[tuple[Any, ...]]) -> bytes:
    """The content after some of `byte_changes`."""
    for name, *details in edits:
        if name == "all":
            content = details[0]
            continue
        place = int(details[0] * len(content))
        if name == "cut":
            content = content[:place]
        elif name == "flip" and place < len(content):
            content = content[:place] + bytes([content[place] ^ details[1]]) + content[place + 1 :]
        elif name == "insert":
            content = content[:place] + details[1] + content[place:]
        elif name == "drop":
            content = content[:place] + content[place + details[1] :]
    return content
