"""Reading ahead: the same scenes, begun before they are asked for, errors where they belong."""

import threading
from pathlib import Path

import pytest

from ross3d.data.ahead import ReadAhead


def test_what_is_expected_is_read_once_in_another_thread():
    reads = []

    def read(path: Path) -> str:
        reads.append((path.name, threading.current_thread().name.startswith("read-ahead")))
        return path.name

    reader = ReadAhead(read)
    reader.expect(Path("a"))
    reader.expect(Path("a"))
    assert reader(Path("b")) == "b" and reader(Path("a")) == "a" and reader(Path("a")) == "a"
    assert sorted(reads) == [("a", False), ("a", True), ("b", False)]
    reader.close()
    assert not reader.expected


def test_an_error_comes_where_the_scene_is_asked_for():
    def read(path: Path):
        raise ValueError(f"{path}: broken")

    reader = ReadAhead(read)
    reader.expect(Path("a"))
    with pytest.raises(ValueError, match="a: broken"):
        reader(Path("a"))
    reader.close()
