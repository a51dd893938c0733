"""Read pickles of arrays and builtins without running anything in them.

Numpy's own unpickling is not trusted either: the state of a `dtype` that hides an object field, or an offset beyond
its item, makes numpy take raw bytes for addresses. Types and arrays are therefore built here, from a type's plain
name, a shape and bytes.
"""

import codecs
import collections
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.text_files import check_file


# Integers, floats, complex numbers, booleans and strings of fixed length; no objects, no fields.
PLAIN_TYPE = re.compile(r"[biufcSU]\d{1,6}")
MAX_PICKLE_BYTES = 1 << 32


class _Type:
    """A dtype of a pickle: named first, its byte order set afterwards."""

    def __init__(self, name: str):
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        # Version, order, parts of a type with fields (three times None), sizes and flags.
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has an array of a type with fields, which is no plain number or text")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has an array whose order of bytes is {state[1]!r:.20}")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array of a pickle, empty until its state comes."""

    def __init__(self):
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        try:
            _, shape, kind, is_fortran, content = state
        except (TypeError, ValueError) as error:
            raise pickle.UnpicklingError("it has an array without shape, type and bytes") from error
        self.array = _make_array(content, kind, shape, "F" if is_fortran else "C")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.array, dtype=dtype)


class _ArrayClass:
    """Placeholder for `numpy.ndarray`, which a pickle names but need not call."""

    def __init__(self, *arguments):
        raise pickle.UnpicklingError("it calls numpy.ndarray")


def _make_array(content: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it has an array of objects, which is no plain number or text")
    return np.frombuffer(bytes(content), dtype=kind.dtype).reshape(shape, order=order)


def _make_type(name: Any, align: Any, copy: Any) -> _Type:
    del align, copy
    if not isinstance(name, str) or not PLAIN_TYPE.fullmatch(name):
        raise pickle.UnpicklingError(f"it has an array of type {name!r:.40}, which is no plain number or text")
    return _Type(name)


def _reconstruct(array_class: Any, shape: Any, kind: Any) -> _Array:
    del array_class, shape, kind
    return _Array()


def _make_scalar(kind: Any, content: Any) -> Any:
    return _make_array(content, kind, (1,), "C")[0]


def _read_buffer(content: Any, kind: Any, shape: Any, order: Any, *axes: Any) -> np.ndarray:
    if order not in ("C", "F", "K"):
        raise pickle.UnpicklingError(f"it has an array whose order of axes is {order!r:.20}")
    array = _make_array(content, kind, shape, "C" if order == "K" else order)
    return array.transpose(*axes) if order == "K" and axes and axes[0] is not None else array


def _make_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it has bytes in another form than pickles of arrays have")
    return codecs.encode(text, "latin1")


def _make_empty_bytes() -> bytes:
    return b""


def _make_bytearray(*content: Any) -> bytearray:
    if content and isinstance(content[0], str):
        return bytearray(content[0], "latin1")
    if content and not isinstance(content[0], bytes):
        raise pickle.UnpicklingError("it has a bytearray that is made of no bytes")
    return bytearray(*content[:1])


PARTS = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _make_type,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _make_scalar,
    ("numpy._core.numeric", "_frombuffer"): _read_buffer,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): _make_bytearray,
    ("builtins", "bytes"): _make_empty_bytes,
    ("builtins", "complex"): complex,
    # Bytes of older pickles.
    ("_codecs", "encode"): _make_bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    """Hands out the parts above; refuses everything else by name."""

    def find_class(self, module: str, name: str):
        # NumPy 2 moved its inner parts, Python 3 its builtins; files written before still name the old places.
        module = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (module, name) not in PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a builtin")
        return PARTS[module, name]


def load_plain_pickle(path: Path, meaning: str) -> Any:
    """The content of a pickle of builtins and arrays; arrays are returned as objects that `numpy.asarray` accepts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle that is larger than 4 GB, damaged, or made of more than arrays and builtins; `meaning`
            says what was expected.
    """
    check_file(path, meaning, MAX_PICKLE_BYTES)
    try:
        # Read from memory, a string with a false length cannot take more than the file.
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    # Damaged bytes can make an unpickler raise anything.
    except Exception as error:
        raise ValueError(
            f"{path}: the pickle is refused ({error}); expected {meaning}, made of numpy arrays alone."
        ) from error


__all__ = ["load_plain_pickle"]
