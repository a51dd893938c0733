"""Values that nobody should give, and ways to spoil a right one."""

import copy
import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image


NUMBERS = [0, -1, 1, 2.5, 1e9, -1e9, 1e300, 10**400, math.nan, math.inf, -math.inf, True]
TEXTS = [
    "", " ", "\n", "text", "1", "nan", "\ud800", "\x00", "../../etc", "<image>", "<ground>", "<coord>", "<|im_end|>",
    "x" * 100_000, "data:,", "data:image/png;base64,AAAA", "file://", "/dev/zero", ".", "absent.png",
]  # fmt: skip
OTHERS = [
    None, [], {}, (), [[]], [[[]]], [None], {"a": 1}, {1, 2}, b"bytes", bytearray(b"ab"), object(), object, Ellipsis,
    range(3), 3 + 4j, [1, "two"], [[1], [2, 3]], Image.new("RGB", (4, 4)), Image.new("I;16", (4, 4)),
    Image.new("L", (1, 50)),
]  # fmt: skip
ARRAYS = [
    np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0, 0)), np.zeros(3), np.array("word"), np.array([None, 1]),
    np.full((2, 2), np.nan), np.ones(3, bool), np.zeros((2, 3, 4, 5)), np.array(7), np.float32(2),
    np.ones((3, 3), ">f8"), np.zeros(2, dtype=[("a", "f4")]), np.datetime64("2020"), np.ma.masked_all((3, 3)),
    torch.zeros(0), torch.tensor(3.0), torch.zeros(3, 4, dtype=torch.bfloat16),
    torch.ones(2, 2, dtype=torch.complex64), torch.zeros(3).to_sparse(), torch.zeros(2, 3, device="meta"),
]  # fmt: skip


def junk() -> st.SearchStrategy:
    """Anything."""
    values = [*NUMBERS, *TEXTS, *OTHERS, *ARRAYS]
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def json_junk() -> st.SearchStrategy:
    """Anything that JSON and YAML can say."""
    plain = st.sampled_from(
        [
            *[number for number in NUMBERS if number != 10**400],
            *[text for text in TEXTS if text != "\ud800" and len(text) < 1000],
            None,
            [],
            {},
            [[]],
            {"a": 1},
        ]
    )
    return st.one_of(plain, st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5))


@st.composite
def spoiled_array(draw, array: np.ndarray) -> Any:
    """An array with one thing wrong: a value, its scale, its type, its shape."""
    array = np.array(array)
    kind = draw(
        st.sampled_from(["value", "scale", "type", "turned", "cut", "longer", "flat", "list", "bytes swapped"])
    )
    if kind == "value" and array.size:
        place = draw(st.integers(0, array.size - 1))
        array = array.astype(np.float64) if array.dtype.kind in "fiu" else array
        array.reshape(-1)[place] = draw(st.sampled_from([math.nan, math.inf, -1e6, 1e12, -1.0]))
    elif kind == "scale" and array.dtype.kind in "fiub":
        array = array.astype(np.float64) * draw(st.sampled_from([0, -1, 1000, 1e-3, 1e30]))
    elif kind == "type":
        with np.errstate(all="ignore"):
            array = array.astype(draw(st.sampled_from([np.int64, np.uint8, np.float16, bool, complex, object, str])))
    elif kind == "turned":
        array = array.T
    elif kind == "cut":
        array = array[:-1] if array.ndim else array
    elif kind == "longer":
        array = np.concatenate([array, array]) if array.ndim else array
    elif kind == "flat":
        array = array.reshape(-1)
    elif kind == "bytes swapped":
        array = array.astype(array.dtype.newbyteorder(">"))
    return array.tolist() if kind == "list" else array


def list_places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside nested dicts and lists, the outermost first."""
    places = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        places += list_places(item, (*path, key))
    return places


@st.composite
def spoiled_document(draw, value: Any, values: st.SearchStrategy | None = None) -> Any:
    """Nested dicts and lists with one to three values replaced, renamed or left out."""
    values = json_junk() if values is None else values
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in list_places(value) if place]
        if not places:
            return draw(values)
        *path, last = draw(st.sampled_from(places))
        holder = value
        for key in path:
            holder = holder[key]
        kind = draw(st.sampled_from(["replaced", "replaced", "left out", "renamed"]))
        if kind == "replaced":
            # A copy: the next change may fall into it.
            holder[last] = copy.deepcopy(draw(values))
        elif kind == "left out":
            del holder[last]
        elif isinstance(holder, dict):
            holder[f"{last}s"] = holder.pop(last)
    return value


@st.composite
def spoiled_bytes(draw, content: bytes) -> bytes:
    """A file cut off, with bytes changed, emptied, or of another kind."""
    kind = draw(st.sampled_from(["cut", "changed", "empty", "longer", "zeros", "noise", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if kind == "changed":
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 8))):
            if changed:
                changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    if kind == "longer":
        return content + draw(st.sampled_from([b"\n", b"\x00" * 100, b"1 2 3\n", content]))
    return {"empty": b"", "zeros": b"\x00" * max(len(content), 1), "noise": bytes(range(256)) * 4,
            "other": b"\xff\xfea\x00{"}.get(kind, b"")  # fmt: skip
