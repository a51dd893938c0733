"""Pools of processes leave objects of the process that opened them alone."""

import gc
import os
from pathlib import Path

import pytest

from ross3d.data.processes import open_pool


class Noted:
    """Writes a file when it is freed; part of a cycle, so that only the garbage collector frees it."""

    def __init__(self, file: Path):
        self.file, self.itself = file, self

    def __del__(self):
        self.file.with_suffix(f".{os.getpid()}").touch()


def collect(number: int) -> int:
    gc.collect()
    return number


def start(folder: Path) -> None:
    (folder / f"started.{os.getpid()}").touch()


@pytest.mark.parametrize(("num_workers", "num_jobs"), [(1, 3), (2, 5)])
def test_garbage_is_freed_where_it_was_made(tmp_path, num_workers, num_jobs):
    gc.disable()
    try:
        for number in range(4):
            Noted(tmp_path / f"{number}.freed")
        with open_pool(num_workers, start, tmp_path) as pool:
            assert list(pool.map(collect, range(num_jobs))) == list(range(num_jobs))
    finally:
        gc.enable()
    freed = {file.name for file in tmp_path.iterdir() if not file.name.startswith("started")}
    assert freed == {f"{number}.{os.getpid()}" for number in range(4)}
    assert 1 <= len(list(tmp_path.glob("started.*"))) <= num_workers
