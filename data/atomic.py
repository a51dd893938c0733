"""Atomic writes and locks: after a kill, or from another process, a file is the old one or the complete new one."""

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


# How torch and safetensors report a full disk.
DISK_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "unexpected pos")

# Names of unfinished files and folders, with the process id.
PARTIAL_FILE, PART_FOLDER = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.partial"), re.compile(r"\..+\.(\d+)\.part")


def tell_full_disk(error: Exception, path: Path) -> None:
    """If `error` was caused by a full disk, raise one that says so; otherwise do nothing.

    Raises:
        OSError: names the file.
    """
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or any(words in str(error) for words in DISK_FULL_WORDS):
        raise OSError(
            f"{path}: there is no space left to write it: the disk is full or a quota is reached; free space and run"
            " the same command again."
        ) from error


def check_output_folder(folder: str | os.PathLike, option: str) -> None:
    """Create a folder and refuse it if it cannot be written to, before any work is done.

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
    # A path with an invalid character (NUL) is a ValueError.
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "this is a file" if is_file else getattr(error, "strerror", None) or error
        raise ValueError(
            f"{option}: expected a folder to write into, got {str(folder)[:200]!r}: {reason}; choose another folder."
        ) from error


def check_output_file(file: str | os.PathLike, option: str, suffix: str) -> None:
    """Create a file's folder and refuse the file if it cannot be written, before any work is done.

    Args:
        option (`str`): what the user set, for errors, such as `--output`.
        suffix (`str`): the suffix that the file must have, so that no file of another kind is overwritten.

    Raises:
        ValueError: names the option, the file and why.
    """
    file = Path(file)
    if file.suffix.lower() != suffix and not file.is_dir():
        raise ValueError(
            f"{option}: expected the name of a {suffix} file, got {str(file)[:200]!r}; choose another path, such as"
            f" page{suffix}."
        )
    check_output_folder(file.parent, option)
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        kind = getattr(error, "strerror", None) or error
    if kind != stat.S_IFREG:
        kinds = {stat.S_IFDIR: "this is a folder"}
        reason = kind if not isinstance(kind, int) else kinds.get(kind, "this is a pipe, socket or device")
        raise ValueError(
            f"{option}: expected a file to write, got {str(file)[:200]!r}: {reason}; choose another path, such as"
            f" page{suffix}."
        )


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager for an atomic write: yields a temporary path in the same folder, renamed to `path` on exit.

    The temporary name is `.NAME.PROCESS.CHANCE.partial`; only a killed process leaves such a file behind.

    Raises:
        OSError: when the disk is full, regardless of the error that the block raised.
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
    """Remove leftovers of killed processes from a folder: files of `replace_file`, and folders `.NAME.PROCESS.part`.

    Other hidden files and folders are left alone.
    """
    for leftover in folder.glob(".*.partial"):
        if PARTIAL_FILE.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
    for leftover in folder.glob(".*.part"):
        if PART_FOLDER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_leftovers_of_the_dead(folder: Path) -> None:
    """Remove `replace_file` leftovers of ended processes from a folder that others may be writing to."""
    for leftover in folder.glob(".*.partial"):
        named = PARTIAL_FILE.fullmatch(leftover.name)
        if named is not None and not is_running(int(named[1])):
            leftover.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Another user's process, or not a process id.
    except (PermissionError, OverflowError):
        pass
    return True


def take_lock(path: Path) -> IO[str] | None:
    """Take a file lock, held until the returned file is closed; None while another process holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have removed the file in the meantime: then it locks nothing.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


@contextmanager
def hold_folder(folder: str | os.PathLike, patience: float = 1.0, option: str = "output folder") -> Iterator[None]:
    """Hold an exclusive lock on a folder (created if missing) while the block runs; a kill releases it.

    Workers of a killed process keep the lock for some seconds: `patience` is how many seconds to wait for it.

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
                f"{option}: another process is writing to {folder}; wait for it, or choose another folder."
            )
        time.sleep(0.1)
    with file:
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
