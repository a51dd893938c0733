"""What `python -m ross3d.data.prepare scannet` is given, made once for all tests of a process; and the command."""

import shutil
from functools import cache
from pathlib import Path

from ross3d.data.prepare.__main__ import main
from ross3d.tests.official_annotations import write_given
from ross3d.tests.tiny import get_folder


@cache
def get_given() -> Path:
    """A folder with `raw`, `official` and `masks`, to be read."""
    folder = Path(get_folder().name) / "given"
    write_given(folder)
    return folder


def copy_given(folder: Path) -> Path:
    """The same, to be spoiled."""
    return shutil.copytree(get_given(), folder)


def prepare_given(given: Path, *more, masks: bool = False) -> None:
    """Prepare such a folder into `out` in it, with its masks as proposals or without."""
    arguments = ["scannet", "--scans", given / "raw", "--annotations", given / "official", "--output", given / "out"]
    arguments += ["--proposals", given / "masks"] if masks else []
    main([str(argument) for argument in [*arguments, "--views", 2, "--bev-size", 24, "--num-workers", 1, *more]])
