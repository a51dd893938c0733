"""Command-line options of all programs that read scans; `train.py` and `eval.py` have them as settings."""

import argparse
from typing import Any

from ross3d.command_line import spell_option
from ross3d.data.sources import make_reading
from ross3d.data.sources.frames import MAX_ABSENT, MAX_EXCLUDED, ROTATIONS


def add_scan_options(parser: argparse.ArgumentParser) -> None:
    """Add `--rotate`, `--max-excluded` and `--allow-outside`."""
    parser.add_argument(
        "--rotate",
        choices=[str(value) for value in ROTATIONS],
        help="turn pictures, with their depth and cameras, by this many degrees counter-clockwise, in addition to what"
        " their own tags say; auto: each until the world's z points up in it (default: auto for ARKitScenes, else 0)",
    )
    parser.add_argument(
        "--max-excluded",
        type=float,
        metavar="SHARE",
        help="share of a scan's frames that may be lost, missing or damaged, from 0 to below 1 (default:"
        f" {MAX_EXCLUDED:g}, and {MAX_ABSENT:g} of pictures that transforms.json lists and that are not there)",
    )
    add_allow_outside(parser)


def add_allow_outside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="let transforms.json and links name pictures outside the scan's folder; only for scans that you trust",
    )


def get_scan_options(options: Any) -> dict[str, Any]:
    """Options of `read_scene` from the parsed arguments; options not given keep the layout's default.

    Raises:
        ValueError: `--max-excluded` is not a share, or `--rotate` is none of its choices.
    """
    try:
        return make_reading(options.rotate, options.max_excluded, options.allow_outside)
    except ValueError as error:
        name, told = str(error).split(" ", 1)
        error.args = (f"{spell_option(name)} {told}",)
        raise


__all__ = ["add_allow_outside", "add_scan_options", "get_scan_options"]
