"""Resolve names from files and annotations to paths inside their own folder, unless outside paths are allowed.

Otherwise a `transforms.json`, a row of a benchmark or a link in a downloaded folder could name any picture of this
machine, and a page would show it.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ross3d.data.names import is_inside


# Limits of file systems.
MAX_NAME_LENGTH, MAX_PART_LENGTH = 4096, 255
WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
COPY = "copy it there and make its path relative"
WAY_OUT = (
    f"{COPY}; or, where you trust whoever wrote this, add --allow-outside (train.py: --data.allow_outside true, in"
    " Python allow_outside=True)"
)


class OutsideError(ValueError):
    """A name that leads out of the folder it belongs to."""


def split_name(name: Any, where: str) -> list[str]:
    """The parts of a relative path, written with slashes or, on Windows, with backslashes; `.` is left out.

    Raises:
        ValueError: it is not a string, is empty, or is longer than file systems allow.
    """
    if not isinstance(name, str) or "\0" in name:
        raise ValueError(f"{where}: expected the name of a file, got {str(name)[:80]!r}; correct it.")
    if ADDRESS.match(name):
        raise ValueError(
            f"{where}: expected the name of a file, got the address {name[:200]!r}; download it, and name the copy."
        )
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or len(name) > MAX_NAME_LENGTH or max(map(len, parts)) > MAX_PART_LENGTH:
        shown = name if len(name) <= 80 else f"{name[:40]}... of {len(name)} letters"
        raise ValueError(f"{where}: expected the name of a file, got {shown!r}; correct it.")
    return parts


def resolve_inside(
    root: str | os.PathLike,
    name: str,
    *,
    where: str | None = None,
    allow_outside: bool | None = False,
    check_links: bool = True,
    expected: str | None = None,
) -> Path:
    """The path of `name` below `root`, which need not exist.

    Args:
        root: the folder that `name` belongs to; it may itself be a link to another place.
        name (`str`): a path below `root`, with slashes or backslashes; any path when `allow_outside`.
        where (`str`, *optional*): the source of the name, for errors; `root` by default.
        allow_outside (`bool`, *optional*): let the name lead anywhere; None for callers without that option, so that
            errors do not offer it.
        check_links (`bool`): links on the way must stay inside too; False where folders below `root` may be links to
            other disks, as the scenes of a data folder.
        expected (`str`, *optional*): what the name has to be, for errors; by default a file inside `root`.

    Raises:
        OutsideError: the name, or a link on its way, leads out of `root`.
        ValueError: it is not a valid file name.
    """
    root, where = Path(root), where or str(root)
    remedy = COPY if allow_outside is None else WAY_OUT
    parts = split_name(name, where)
    path = Path("/", *parts) if name.startswith("/") else root.joinpath(*parts)
    expected = expected or f"a file inside {root}"
    # An absolute path of another operating system counts as outside.
    if name.startswith("\\") or WINDOWS_DRIVE.match(name) is not None:
        raise OutsideError(
            f"{where}: expected {expected}, got {name[:200]!r}, which leads out of it, a path of another machine;"
            f" {COPY}."
        )
    if allow_outside:
        return path
    whole, real_root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if not whole.is_relative_to(real_root):
        raise OutsideError(f"{where}: expected {expected}, got {name[:200]!r}, which leads out of it; {remedy}.")
    if ".." in parts:
        path = root / whole.relative_to(real_root)
    if check_links:
        try:
            stays = is_inside(path, root)
        # A circular link.
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{where}: {path} cannot be followed ({error}); remove the link.") from error
        if not stays:
            raise OutsideError(
                f"{where}: expected {expected}, got {name[:200]!r}, a link to {path.resolve()}, which lies outside;"
                f" {remedy}."
            )
    return path


def check_all_inside(root: Path, names: Iterable[str], allow_outside: bool = False) -> None:
    """Refuse links among files of `root` that lead out of it; they need not exist.

    Raises:
        OutsideError, ValueError: as `resolve_inside`.
    """
    for name in names:
        resolve_inside(root, name, allow_outside=allow_outside)


__all__ = ["OutsideError", "check_all_inside", "resolve_inside", "split_name"]
