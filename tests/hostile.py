"""A call on hostile input, in a process of its own with limits, which tells what it read, changed and started."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ross3d.tests.limited_memory import limit_memory


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"}
# What asks for the checkout's own commit.
KNOWN_PROGRAM = "git"


@dataclass
class Told:
    """What a call did.

    Attributes:
        error (`str`, *optional*): kind and words of what it raised; None when it returned.
        read, changed (`list[str]`): real paths of files that Python opened to read, and of what was written, made,
            moved or removed.
        started (`list[str]`): programs that were started and addresses that were asked for.
    """

    error: str | None = None
    read: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def take(self, event: str, arguments: tuple) -> None:
        """Note an event of `sys.addaudithook`."""
        names = [os.fsdecode(part) for part in arguments[:2] if isinstance(part, str | bytes)]
        # What no file can be called is opened by nobody.
        paths = [os.path.realpath(name) for name in names if "\0" not in name]
        if event == "open" and paths:
            (self.changed if isinstance(arguments[2], int) and arguments[2] & WRITES else self.read).append(paths[0])
        elif event in CHANGES:
            self.changed += paths
        elif event in STARTS and arguments[0] != KNOWN_PROGRAM:
            self.started.append(f"{event} {arguments[:2]!r:.200}")


def watch(function: Callable, *arguments: Any, megabytes: int = 2048, seconds: float = 300) -> Told:
    """Call a function in a copy of this process that may take so many more megabytes, and so many seconds.

    Raises:
        AssertionError: it did not end in time, or the process was killed, as by a fault of memory.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        told = Told()
        # As workers of a data loader do: threads of the parent are not there.
        torch.set_num_threads(1)
        limit_memory(megabytes)
        sys.addaudithook(told.take)
        try:
            function(*arguments)
        except (Exception, SystemExit) as error:
            told.error = f"{type(error).__name__}: {error}"
        sender.send((told.error, sorted(set(told.read)), sorted(set(told.changed)), told.started))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        assert receiver.poll(seconds), f"no end after {seconds} s"
        return Told(*receiver.recv())
    except EOFError:
        process.join()
        raise AssertionError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


class Home:
    """A folder of somebody's own files, which no hostile input may reach.

    Args:
        folder (`Path`): made here, with files of the kinds that are read.
    """

    SECRET = "nobody is to read this"

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.write("id_rsa", self.SECRET)
        self.write("thesis.txt", self.SECRET)

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        return self.folder / name

    def describe(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of all that is there."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}

    def watch(self, function: Callable, *arguments: Any, **limits: Any) -> Told:
        """`watch`, and a check that nothing here was read, changed or copied, and that nothing was started."""
        before = self.describe()
        told = watch(function, *arguments, **limits)
        root = f"{os.path.realpath(self.folder)}{os.sep}"
        reached = [path for path in [*told.read, *told.changed] if f"{path}{os.sep}".startswith(root)]
        assert not reached, f"reached {reached}, and ended with {told.error}"
        assert not told.started, f"started {told.started}"
        assert self.describe() == before, f"changed {self.folder}, and ended with {told.error}"
        copies = [path for path in self.folder.parent.rglob("*") if is_copy(path, self.folder, self.SECRET)]
        assert not copies, f"copied to {copies}"
        assert self.SECRET not in (told.error or ""), told.error
        return told


def is_copy(path: Path, folder: Path, secret: str) -> bool:
    """Whether a file outside of a folder, and no link to one in it, holds some words."""
    if path.is_symlink() or not path.is_file() or path.is_relative_to(folder):
        return False
    # A link on the way leads to the file itself.
    if path.resolve().is_relative_to(folder.resolve()):
        return False
    return secret.encode() in path.read_bytes()


__all__ = ["Home", "Told", "watch"]
