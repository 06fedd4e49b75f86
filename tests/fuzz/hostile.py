"""Strategies of hostile values, trees and bytes, by altering valid ones."""

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

DIGITS, DEEP = "@digits@", "@deep@"  # written as 5,000 digits and as 5,000 lists within one another
NUMBERS = (None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-320, 1e39, 1e308, -1e308, math.nan, math.inf, -math.inf)
LARGE = (2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**9, 10**400)
STRINGS = (
    "",
    " ",
    "x",
    "1",
    "1e3",
    "nan",
    "true",
    "null",
    "\0",
    "\ud800",
    "a\u2028b",
    "e\u0301",
    "\ufeff",
    "../..",
    "/",
)
MARKS = ("<|end|>", "<|user|>", "{goal}", "{{ x }}", "%s", "a" * 5_000, DIGITS, DEEP)
SCALARS = (*NUMBERS, *LARGE, *STRINGS, *MARKS)
CONTAINERS = ([], {}, [[]], [{}], [None], ["x"], [1, 2], {"x": 1}, {"": {}}, {"role": "user"}, {"role": []}, {"1": [1]})
VALUES = st.one_of(
    st.sampled_from(SCALARS),
    st.sampled_from(CONTAINERS).map(copy.deepcopy),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4).map(repr),
)
DAMAGES = ("cut", "flip", "insert", "repeat", "drop", "nul", "utf-16", "bom", "empty")
STRAYS = (b"\0", b"\xff\xfe", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b"\n", b"\r", b":", b"-", b"\\u", b"9" * 400)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a tree of dicts and lists."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    found = [(tree, key) for key, _ in items]
    return found + [place for _, value in items for place in places(value)]


@st.composite
def altered(draw, trees: list[Any], *, keys: tuple[str, ...] = ()) -> Any:
    """One of the trees with one to three changes: a value replaced, removed, renamed, wrapped, or a key added."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 3))):
        if not (inside := places(tree)):
            break
        container, key = inside[draw(st.integers(0, len(inside) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "add"]))
        if how == "replace":
            container[key] = draw(VALUES)
        elif how == "remove":
            del container[key]
        elif how == "wrap":
            container[key] = draw(st.sampled_from([lambda v: [v], lambda v: {"x": v}, lambda v: [v, v]]))(
                container[key]
            )
        elif isinstance(container, dict):
            name = draw(st.one_of(st.sampled_from(keys), st.text(max_size=4)) if keys else st.text(max_size=4))
            container[name] = draw(VALUES)
        else:
            container.append(draw(VALUES))
    return draw(VALUES) if draw(st.integers(0, 30)) == 0 else tree


def as_json(tree: Any) -> bytes:
    """JSON in ASCII, with what json.dumps cannot write in its place."""
    text = json.dumps(tree).replace(f'"{DIGITS}"', "9" * 5_000).replace(f'"{DEEP}"', "[" * 5_000 + "]" * 5_000)
    return text.encode()


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Bytes that were cut, flipped, mixed or written in another encoding."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(whole)))
        how = draw(st.sampled_from(DAMAGES))
        if how == "cut":
            whole = whole[:at]
        elif how == "flip" and at < len(whole):
            whole = whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]
        elif how == "insert":
            whole = whole[:at] + draw(st.one_of(st.sampled_from(STRAYS), st.binary(max_size=8))) + whole[at:]
        elif how in ("repeat", "drop"):
            end = min(len(whole), at + draw(st.integers(0, 200)))
            whole = whole[:at] + whole[at:end] * (0 if how == "drop" else 2) + whole[end:]
        elif how == "nul":
            whole = whole[:at] + bytes(min(64, len(whole) - at)) + whole[at + 64 :]
        elif how == "utf-16":
            whole = whole.decode("utf-8", "replace").encode("utf-16")
        elif how == "bom":
            whole = b"\xef\xbb\xbf" + whole
        elif how == "empty" and draw(st.booleans()):
            whole = b""
    return whole
