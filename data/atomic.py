"""Files that are written at once: a kill, or a reader in another process, sees the old one or the whole new one."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


# How torch and safetensors say that a disk is full, each in its own words.
DISK_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "unexpected pos")

# Names of what is being written, with the number of the process.
PARTIAL_FILE, PART_FOLDER = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.partial"), re.compile(r"\..+\.(\d+)\.part")


def tell_full_disk(error: Exception, path: Path) -> None:
    """Raise an error that says so where another one comes from a full disk; otherwise nothing.

    Raises:
        OSError: names the file.
    """
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or any(words in str(error) for words in DISK_FULL_WORDS):
        raise OSError(
            f"{path}: there is no room left to write it: the disk is full, or a limit of the system is reached; make"
            " room and run the same command again."
        ) from error


def check_output_folder(folder: str | os.PathLike, option: str) -> None:
    """Refuse a folder into which nothing can be written, before there is anything to write; it is made.

    Args:
        option (`str`): what the user set, for errors, such as `--output`.

    Raises:
        ValueError: names the option, the folder and why.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    # A name with a character that no name has is a ValueError.
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if is_file else getattr(error, "strerror", None) or error
        raise ValueError(
            f"{option}: expected a folder to write into, got {str(folder)[:200]!r}: {reason}; choose another place."
        ) from error


def check_output_file(file: str | os.PathLike, option: str) -> None:
    """Refuse a file that cannot be written, before there is anything to write; its folder is made.

    Args:
        option (`str`): what the user set, for errors, such as `--output`.

    Raises:
        ValueError: names the option, the file and why.
    """
    file = Path(file)
    check_output_folder(file.parent, option)
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        kind = getattr(error, "strerror", None) or error
    if kind != stat.S_IFREG:
        kinds = {stat.S_IFDIR: "a folder is in its place"}
        reason = kind if not isinstance(kind, int) else kinds.get(kind, "a pipe, socket or device is in its place")
        raise ValueError(
            f"{option}: expected a file to write, got {str(file)[:200]!r}: {reason}; name one, such as page.html."
        )


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write to; what was written is on disk and under its name when the block is left.

    The block's name is `.NAME.PROCESS.CHANCE.partial`; only a killed process leaves it behind.

    Raises:
        OSError: when there is no room left on the disk, whatever the block raised then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except Exception as error:
        tell_full_disk(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder: files of `replace_file`, and folders `.NAME.PROCESS.part`.

    Hidden files and folders of other names are somebody else's.
    """
    for leftover in folder.glob(".*.partial"):
        if PARTIAL_FILE.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
    for leftover in folder.glob(".*.part"):
        if PART_FOLDER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_leftovers_of_the_dead(folder: Path) -> None:
    """Remove files of `replace_file` whose process is gone, from a folder that others may be writing to."""
    for leftover in folder.glob(".*.partial"):
        named = PARTIAL_FILE.fullmatch(leftover.name)
        if named is not None and not is_running(int(named[1])):
            leftover.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Somebody else's, or no number of a process.
    except (PermissionError, OverflowError):
        pass
    return True


def take_lock(path: Path) -> IO[str] | None:
    """The open file that holds a lock until it is closed; None while another process has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it before may have removed the file between: then it locks nothing.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


@contextmanager
def hold_folder(folder: str | os.PathLike, patience: float = 1.0, option: str = "output folder") -> Iterator[None]:
    """Nobody else holds the folder (made when it is not there) while the block runs; a kill lets go of it.

    Workers of a killed process hold on for some seconds more: `patience` says how many to wait for.

    Args:
        option (`str`): what the user set, for errors, such as `--output`.

    Raises:
        BlockingIOError: when another process holds it.
        ValueError: nothing can be written into it.
    """
    folder, begin = Path(folder), time.monotonic()
    check_output_folder(folder, option)
    while (file := take_lock(folder / ".lock")) is None:
        if time.monotonic() - begin >= patience:
            raise BlockingIOError(
                f"{option}: another process is at work in {folder}; wait for it, or choose another folder."
            )
        time.sleep(0.1)
    with file:
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file at once."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
