"""Alignments of scans that came without one: `python -m ross3d.data.prepare align --data DIR`.

A scan's `axis_align.txt` (4x4, scan to upright world) is estimated from its posed depth (`data/upright.py`). A scan
that is already upright gets the identity, so that it is not estimated again. An existing file stays, unless --force is
given; an alignment that comes with the recording itself (ScanNet's) is never replaced.

Existing boxes, proposals and bird's-eye pictures of a scan are in its unaligned world and are not transformed. Such a
scan is refused if its world would change: delete them first.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.atomic import hold_folder, remove_leftovers, write_text
from ross3d.data.own_scan import NUM_FRAMES, PICTURE_SIZE, is_upright
from ross3d.data.prepare.bev import list_scene_folders
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.scene import Scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.frames import read_alignment_file
from ross3d.data.surface import sample_surface
from ross3d.data.upright import (
    AUTO,
    LOW_CONFIDENCE,
    TURN_BACK,
    UprightEstimate,
    describe_disagreement,
    describe_pictures,
    find_alignment,
)
from ross3d.data.world import ALIGNMENT, MAX_TILT, recall_warnings


# Files whose coordinates are in the world of the scan's folder.
IN_ITS_WORLD = ("boxes.json", "proposals.json", "bev.json")


@dataclass(frozen=True)
class Aligned:
    """The result for a scan: `outcome` is one of `OUTCOMES`, `told` a sentence for people."""

    outcome: str
    told: str


OUTCOMES = ("aligned", "upright already", "there already")


def align_folder(folder: Path, force: bool, min_confidence: float, reading: dict[str, Any] | None = None) -> Aligned:
    """Give a scan its `axis_align.txt`, unless it has an alignment; `reading` are options of `read_scene`.

    Raises:
        ValueError: without posed depth or a floor in view; where the pictures disagree about up; with too little
            confidence; if existing files of the scan
            are in another world.
    """
    file = folder / ALIGNMENT
    if file.is_file() and not force:
        return Aligned("there already", f"has {ALIGNMENT} already")
    reading = {"look_at_world": False} | (reading or {})
    # No picture can be turned by a world that is not known yet; they are looked at in the one that is found.
    is_auto = reading.get("rotate") == "auto"
    reading |= {"rotate": 0} if is_auto else {}
    if not file.is_file() and read_scene(folder, num_views=1, **reading).axis_align_matrix is not None:
        return Aligned("there already", "its recording has an alignment already")
    # With --force the scan is read without its alignment: a given identity does that.
    given = {"axis_align_matrix": np.eye(4)} if file.is_file() else {}
    scene = read_scene(folder, num_views=NUM_FRAMES, reduce_to=PICTURE_SIZE, **given, **reading)
    if scene.depth_maps is None or scene.cam2world is None:
        raise ValueError(
            f"scene {scene.scene_id!r}: expected depth and cameras to estimate an alignment from, got a scan without; "
            f"write your own 4x4 matrix, scan to upright world, as {file}, or leave the scan as it is."
        )
    estimate = find_alignment(scene, sample_surface(scene))
    check_estimate(estimate, scene, file, min_confidence)
    matrix = np.eye(4) if is_upright(estimate) else estimate.axis_align_matrix
    before = read_alignment_file(file) if file.is_file() else np.eye(4)
    present = [name for name in IN_ITS_WORLD if (folder / name).is_file()]
    if present and not np.allclose(matrix, before, atol=1e-6):
        keep = f"write the identity as {ALIGNMENT} to keep the world"
        if file.is_file():
            keep = f"leave out --force to keep the world of {ALIGNMENT}"
        raise ValueError(
            f"scene {scene.scene_id!r}: {' and '.join(present)} lie in the world as it is, which the alignment would "
            f"change ({describe_change(estimate)}); move them away, give this command again, and make them anew "
            f"(python -m ross3d.data.prepare proposals and bev), or {keep}."
        )
    remove_leftovers(folder)
    write_text(file, "\n".join(" ".join(f"{value:.9g}" for value in row) for row in matrix) + "\n")
    told = None if is_auto else describe_pictures(replace(scene, cam2world=matrix @ scene.cam2world))
    pictures = "" if told is None else f"; {told}"
    if is_upright(estimate):
        told = f"upright already, confidence {estimate.confidence:.2f}: the identity was written{pictures}"
        return Aligned("upright already", told)
    return Aligned("aligned", f"{describe_change(estimate)}, confidence {estimate.confidence:.2f}{pictures}")


def check_estimate(estimate: UprightEstimate | None, scene: Scene, file: Path, min_confidence: float) -> None:
    """Refuse an estimate with too little evidence.

    Raises:
        ValueError: the pictures disagree about up; no floor was found; the confidence is below `min_confidence`.
    """
    scene_id = scene.scene_id
    disagreement = describe_disagreement(scene) if estimate is None else None
    if disagreement is not None:
        raise ValueError(
            f"scene {scene_id!r}: {disagreement}; {TURN_BACK}, or write your own 4x4 matrix, scan to upright "
            f"world, as {file}, and read the scan with {AUTO}."
        )
    if estimate is None:
        raise ValueError(
            f"scene {scene_id!r}: no floor is in view, so nothing says where up is; take frames that show it, or "
            f"write your own 4x4 matrix, scan to upright world, as {file}."
        )
    if estimate.confidence < min_confidence:
        found = recall_warnings(scene)
        way_out = "mend first what was found of its views"
        if not found:
            look = f"look at it (python tools/view.py {file.parent})"
            way_out = f"{look}, then give a lower --min-confidence, or write your own 4x4 matrix as {file}."
        raise ValueError(
            f"scene {scene_id!r}: the estimate has a confidence of {estimate.confidence:.2f} (weakest evidence: "
            f"{estimate.weakest}), less than --min-confidence {min_confidence:g}; {': '.join([way_out, *found])}"
        )


def describe_change(estimate: UprightEstimate) -> str:
    """In a few words, what an alignment does to the world."""
    if estimate.tilt < MAX_TILT:
        return f"its floor was at z = {estimate.floor_height:.2f} m, tilted by {estimate.tilt:.1f} degrees"
    return f"its floor was tilted by {estimate.tilt:.1f} degrees"


def prepare_alignments(
    data_dir: Path,
    force: bool,
    num_workers: int,
    min_confidence: float = LOW_CONFIDENCE,
    reading: dict[str, Any] | None = None,
) -> dict[str, int]:
    """Align all scans below `data_dir`; prints the result of each, returns how many had each outcome.

    Raises:
        ValueError: `min_confidence` is not from 0 to 1; or lists the scans that failed, after all others are aligned.
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(
            f"--min-confidence: expected a number from 0 to 1, got {min_confidence}; leave it out for 0.5."
        )
    folders = list_scene_folders(data_dir)
    job = partial(_align_and_tell, force=force, min_confidence=min_confidence, reading=reading)
    with hold_folder(data_dir, option="--data"):
        done = run_jobs(job, folders, num_workers, "alignments", lambda path: path.name)
    return {outcome: sum(one.outcome == outcome for one in done) for outcome in OUTCOMES}


def _align_and_tell(folder: Path, force: bool, min_confidence: float, reading: dict[str, Any] | None) -> Aligned:
    aligned = align_folder(folder, force, min_confidence, reading)
    print(f"{folder.name}: {aligned.told}", flush=True)
    return aligned


__all__ = ["ALIGNMENT", "Aligned", "align_folder", "prepare_alignments"]
