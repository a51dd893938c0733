"""Scenes read ahead: while one is worked on, a thread reads the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ross3d.data.scene import Scene


class ReadAhead:
    """A reader of scene folders that can be told which folder comes next.

    Args:
        read: folder -> `Scene`. Its errors are raised where the scene is asked for.
    """

    def __init__(self, read: Callable[[Path], Scene]):
        self.read = read
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self.expected: dict[Path, Future] = {}

    def expect(self, path: Path) -> None:
        """Begin to read a folder that will be asked for."""
        if path not in self.expected:
            self.expected[path] = self.thread.submit(self.read, path)

    def __call__(self, path: Path) -> Scene:
        future = self.expected.pop(path, None)
        return self.read(path) if future is None else future.result()

    def close(self) -> None:
        """Forget what was expected and not asked for."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.expected.clear()
