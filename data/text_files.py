"""Read text, JSON, JSON lines and YAML within size limits, with errors that name the file and the position.

Every function here reads a regular file of bounded size: pipes and devices, which may be endless, are refused.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ross3d.image_processing_ross3d import check_no_pointer


# Maximum size of a file and of a line; the annotations of the largest benchmark take 200 MB.
MAX_TEXT_BYTES = 1 << 29
MAX_LINE_BYTES = 1 << 24
# A run file has a few hundred values, with its references (`*name`) expanded.
MAX_YAML_VALUES = 100_000
# Digits of a whole number: longer ones do not fit into a float64, and no id or coordinate needs them.
MAX_DIGITS = 300

AGAIN = "write or copy it again"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_BETWEEN_NUMBERS = re.compile(r"[][(),;]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def describe_size(num_bytes: int) -> str:
    """A size for an error message, in MB or kB."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def check_file(file: str | os.PathLike, meaning: str, max_bytes: int | None = None) -> Path:
    """Return the path if it is a regular file of at most `max_bytes`; `meaning` says in errors what is expected.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, a pipe or a device, a larger file, or a pointer of Git LFS.
    """
    path = Path(file)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path} does not exist; expected {meaning}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)[:200]!r}: expected {meaning}, got a path that cannot be read: {error}."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise ValueError(f"{path}: expected {meaning}, got {kind}; give the path of a regular file.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ValueError(
            f"{path}: expected {meaning}, of at most {describe_size(max_bytes)}, got {describe_size(status.st_size)},"
            " which is too large; check that it is the right file."
        )
    check_no_pointer(path, str(path), meaning)
    return path


def read_text(file: str | os.PathLike, meaning: str = "UTF-8 text", max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        FileNotFoundError, ValueError: as `check_file`, and for invalid UTF-8, with the line.
    """
    path = check_file(file, meaning, max_bytes)
    with path.open("rb") as opened:
        # Reads no further if the file grows in the meantime.
        content = opened.read(os.fstat(opened.fileno()).st_size)
    return _decode(content, 1, path, meaning)


def _decode(content: bytes, first_line: int, path: Path, meaning: str) -> str:
    if first_line == 1:
        content = content.removeprefix(_BYTE_ORDER_MARK)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        kind = "UTF-16 text" if first_line == 1 and content.startswith(_UTF_16_MARKS) else "bytes that are not UTF-8"
        raise ValueError(
            f"{path}:{line}: expected {meaning}, got {kind} (byte 0x{content[error.start]:02x}); save it as UTF-8."
        ) from error


def parse_numbers(text: str) -> list[float]:
    """The numbers of a text, with blanks, commas, semicolons or brackets between them; `#` begins a comment.

    Raises:
        ValueError: quotes the word that is no number.
    """
    numbers = []
    for line in text.splitlines():
        for word in _BETWEEN_NUMBERS.sub(" ", line.partition("#")[0]).split():
            try:
                numbers.append(float(word))
            except ValueError as error:
                raise ValueError(f"{word[:40]!r}, which is no number") from error
    return numbers


def read_json(
    file: str | os.PathLike,
    meaning: str = "a JSON document",
    *,
    kind: type[dict] | type[list] | None = None,
    keys: Sequence[str] = (),
    max_bytes: int = MAX_TEXT_BYTES,
    remedy: str = AGAIN,
) -> Any:
    """The content of a JSON file.

    Args:
        file (`str` or `Path`): a UTF-8 file.
        meaning (`str`): what it should hold, for errors.
        kind (`type`, *optional*): `dict` or `list`, the required type of the outermost value.
        keys (sequence of `str`): required keys of the outermost object.
        max_bytes (`int`): larger files are refused.
        remedy (`str`): what to do about a broken file, for errors.

    Raises:
        FileNotFoundError, ValueError: as `read_text`; also for invalid JSON, with line and column, and for JSON that
            nests too deep, has numbers of hundreds of digits, lone surrogates or a duplicate key in an object, or is
            of another kind.
    """
    value = parse_json(read_text(file, meaning, max_bytes), str(file), meaning, remedy)
    return _check_kind(value, dict if keys else kind, keys, str(file), meaning, remedy)


def _check_kind(
    value: Any, kind: type | None, keys: Sequence[str], where: str, meaning: str, remedy: str = AGAIN
) -> Any:
    remedy = "check that it is the intended file" if remedy == AGAIN else remedy
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"{where}: expected {meaning}, got {describe_kind(value)}; {remedy}.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"{where}: expected {meaning}, got no {', '.join(missing)}; check that the file is complete.")
    return value


def describe_kind(value: Any) -> str:
    """The name of a value's type in JSON and YAML."""
    if value is None:
        return "nothing (null)"
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def parse_json(
    text: str, where: str, meaning: str = "a JSON document", remedy: str = AGAIN, is_line: bool = False
) -> Any:
    """The value that a JSON text holds; `where` (a file, or file:line) begins every error.

    Args:
        is_line (`bool`): `where` tells the line, so that errors add the column alone.

    Raises:
        ValueError: as `read_json`.
    """
    try:
        value = json.loads(text, parse_int=_parse_int, object_pairs_hook=_make_object)
        if _ESCAPED_SURROGATE.search(text):
            # A pair of surrogates is one character; a lone one can be neither written nor tokenized.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        place = f"{error.msg}: column {error.colno}" if is_line else str(error)
        problem = "it is empty" if not text.strip() else place
    except UnicodeEncodeError as error:
        near = error.object[max(error.start - 20, 0) : error.end]
        problem = f"a lone surrogate (half of a character), {error.object[error.start]!r}, in {near!r}"
    except RecursionError:
        problem = "too deeply nested brackets"
    except ValueError as error:
        problem = f"{error}{_describe_place(text, _LONG_NUMBER.search(text))}"
    else:
        return value
    raise ValueError(f"{where}: expected {meaning}, but the file is not valid JSON ({problem}); {remedy}.")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object and refuse duplicate keys, of which the JSON parser would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    return found


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, at most {MAX_DIGITS} can be read")
    return int(digits)


def _describe_place(text: str, found: re.Match | None) -> str:
    if found is None:
        return ""
    place = found.start()
    return f": line {text.count(chr(10), 0, place) + 1} column {place - text.rfind(chr(10), 0, place)}"


def read_json_lines(
    file: str | os.PathLike,
    meaning: str = "one JSON value per line",
    *,
    kind: type[dict] | type[list] | None = None,
    keys: Sequence[str] = (),
) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of every line of a file of JSON lines that is not blank.

    Raises:
        FileNotFoundError, ValueError: as `read_json`, with file:line.
    """
    path = check_file(file, meaning, MAX_TEXT_BYTES)
    with path.open("rb") as opened:
        number = 0
        while line := opened.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where}: expected {meaning}, of at most {MAX_LINE_BYTES / 1e6:.0f} MB, got a longer line; write"
                    " one value per line."
                )
            text = _decode(line, number, path, meaning)
            if text.strip():
                yield (
                    number,
                    _check_kind(
                        parse_json(text.rstrip("\r\n"), where, meaning, is_line=True), kind, keys, where, meaning
                    ),
                )


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that refuses a duplicate key in a section, where YAML would take the last one."""

    def construct_mapping(self, node, deep=False):
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in known:
                    raise yaml.constructor.ConstructorError(
                        f"the key {key.value!r} occurs twice in a section", None, None, key.start_mark
                    )
                known.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(file: str | os.PathLike, meaning: str = "YAML settings", max_bytes: int = 1 << 20) -> Any:
    """The content of a YAML file; only plain values, no code is run.

    Raises:
        FileNotFoundError, ValueError: as `read_text`; also for invalid YAML, with line and column.
    """
    return parse_yaml(read_text(file, meaning, max_bytes), str(file), meaning)


def parse_yaml(text: str, where: str, meaning: str = "YAML settings") -> Any:
    """The value that a YAML text holds; `where` begins every error.

    Raises:
        ValueError: for invalid YAML, duplicate keys, and references that make it huge or endless.
    """
    loader = None
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
        if _has_more_values(value, MAX_YAML_VALUES):
            problem = f"more than {MAX_YAML_VALUES} values after expanding references"
        else:
            return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = f"{error.problem or error.context}{place}"
    except RecursionError:
        problem = "too deeply nested lists"
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
    # Other errors of the library's constructors, for values that do not fit their tag, such as `!!int ""`.
    except (LookupError, AttributeError, TypeError):
        problem = "a value does not fit its tag (`!!...`)"
    finally:
        if loader is not None:
            loader.dispose()
    raise ValueError(f"{where}: expected {meaning}, but the file is not valid YAML ({problem}); correct it.")


def _has_more_values(value: Any, limit: int) -> bool:
    """Whether a value contains more than `limit` values; repeated references count each time."""
    waiting, count = [value], 0
    while waiting:
        found = waiting.pop()
        children = [*found.keys(), *found.values()] if isinstance(found, dict) else found
        if isinstance(children, list | tuple | set):
            count += len(children)
            if count > limit:
                return True
            waiting += children
    return False


__all__ = [
    "MAX_LINE_BYTES",
    "MAX_TEXT_BYTES",
    "check_file",
    "describe_kind",
    "parse_json",
    "parse_numbers",
    "parse_yaml",
    "read_json",
    "read_json_lines",
    "read_text",
    "read_yaml",
]
