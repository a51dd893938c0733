"""The boxes that grounding chooses among, by the name of their source, for evaluation and for training.

`given`: a detector's, in the scene's `proposals.json`. `depth`: proposed by this repository from the scene's depth.
`jittered`: the objects' boxes, moved by a few per cent, among boxes of no object. `ground_truth`: the objects' boxes.
Training has `mixed` as well: half of the rows have jittered boxes, the others boxes like those from depth
(`ross3d.data.simulated_proposals`).

Shape letters: K objects, P proposals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import Scene
from ross3d.data.simulated_proposals import compute_overlaps, simulate_proposals


PROPOSAL_SOURCES = ("given", "depth", "jittered", "ground_truth")
TRAINING_SOURCES = (*PROPOSAL_SOURCES, "mixed")
# The file of a scene's folder that a source reads, the field of the scene, and where such boxes come from.
FILES = {
    "given": ("proposals.json", "proposal_boxes", "boxes of a detector"),
    "jittered": ("boxes.json", "boxes", "the labels of the scan"),
    "ground_truth": ("boxes.json", "boxes", "the labels of the scan"),
}
# IoU from which on a proposal counts as its object: what evaluations call found.
TARGET_IOU = 0.5
# Standard deviation of the noise of jittered boxes, as a share of the object's size.
JITTER = 0.05


@dataclass(frozen=True)
class ProposalSet:
    """Proposals for a training row, and what they stand for.

    Attributes:
        boxes (`np.ndarray` of shape `(P, 6)`, float32): centre and size, metres.
        targets (`list[list[int]]`): for each of K objects the proposals that stand for it, one or more.
    """

    boxes: np.ndarray
    targets: list[list[int]]


def check_given(folders: Sequence[Path], where: str, option: str) -> None:
    """Refuse to start if scenes have no given boxes, rather than fail when their turn comes.

    Args:
        where (`str`): the setting that names the scenes. option (`str`): the setting that asks for given boxes.

    Raises:
        ValueError: gives the number of such scenes and the first one.
    """
    missing = [folder for folder in folders if not (folder / "proposals.json").is_file()]
    if missing:
        raise ValueError(
            f"{where}: expected detected boxes in proposals.json of {len(folders)} scenes, got none in"
            f" {len(missing)}, first {missing[0].name}; prepare them with --proposals or with `python -m"
            f" ross3d.data.prepare proposals` (docs/DATA.md), or choose {option} depth or ground_truth."
        )


def jitter(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes (K, 6) moved and resized by noise of `JITTER`, cut at two standard deviations: IoU stays above 0.5."""
    noise = np.clip(rng.standard_normal((len(boxes), 6)), -2, 2) * JITTER
    jittered = np.array(boxes, dtype=np.float64)
    jittered[:, :3] += noise[:, :3] * boxes[:, 3:]
    jittered[:, 3:] *= 1 + noise[:, 3:]
    return jittered


def jitter_objects(boxes: np.ndarray, seed, num_distractors: int = 4) -> ProposalSet:
    """Proposals as an imperfect detector would give them: jittered objects among distractors, shuffled.

    Args:
        boxes (`np.ndarray` of shape `(K, 6)`): the objects.
        seed (`int` or `list[int]`): the same seed gives the same proposals.
        num_distractors (`int`, defaults to 4): boxes that match no object (overlap at most 0.25 with each), of sizes
            and heights borrowed from the scene's objects.
    """
    rng = np.random.default_rng(seed)
    boxes = np.asarray(boxes, dtype=np.float64)
    if not len(boxes):
        return ProposalSet(np.zeros((0, 6), np.float32), [])
    proposals = np.concatenate([jitter(boxes, rng), make_distractors(boxes, num_distractors, rng)])
    order = rng.permutation(len(proposals))
    rows = np.argsort(order)[: len(boxes)]
    return ProposalSet(proposals[order].astype(np.float32), [[int(row)] for row in rows])


def make_distractors(boxes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes (count, 6) that overlap none of objects (K, 6) by more than a quarter."""
    low = (boxes[:, :3] - boxes[:, 3:] / 2).min(0)
    high = (boxes[:, :3] + boxes[:, 3:] / 2).max(0)
    distractors = np.zeros((count, 6))
    for row in distractors:
        for attempt in range(50):
            model = boxes[rng.integers(len(boxes))]
            row[3:] = model[3:] * rng.uniform(0.7, 1.2, 3) * 0.93**attempt
            row[:2] = rng.uniform(low, high)[:2]
            row[2] = model[2] * rng.uniform(0.85, 1.15)
            if compute_overlaps(row[None], boxes).max() <= 0.25:
                break
    return distractors


def match_objects(boxes: np.ndarray, objects: np.ndarray, rng: np.random.Generator) -> ProposalSet:
    """Proposals (P, 6) with, for each of objects (K, 6), those of IoU 0.5 or more.

    A question about an object that none reaches would have a wrong answer, so its own box is added, jittered.
    """
    boxes, objects = np.asarray(boxes, np.float64).reshape(-1, 6), np.asarray(objects, np.float64).reshape(-1, 6)
    missed = np.flatnonzero((compute_overlaps(boxes, objects) < TARGET_IOU).all(0))
    boxes = np.concatenate([boxes, jitter(objects[missed], rng)])
    targets = [np.flatnonzero(column >= TARGET_IOU).tolist() for column in compute_overlaps(boxes, objects).T]
    # Also for a flat object, which overlaps nothing.
    for row, place in enumerate(missed, len(boxes) - len(missed)):
        targets[place] = sorted({*targets[place], row})
    return ProposalSet(boxes.astype(np.float32), targets)


@dataclass
class ProposalMaker:
    """Makes the proposals of scenes; those from depth and given ones are found once per folder.

    Attributes:
        option (`str`): what errors call the setting that chooses the source.
        read_scene (*optional*): folder -> `Scene`, for scenes that come without their depth and given boxes because
            they were prepared earlier.
        found (`dict`): boxes by folder and source.
    """

    option: str
    read_scene: Callable[[Path], Scene] | None = None
    found: dict[tuple[Path, str], np.ndarray] = field(default_factory=dict)

    def propose(self, scene: Scene, source: str, seed: int) -> np.ndarray:
        """Boxes (P, 6) of a source that evaluations know, float32, metres.

        Raises:
            ValueError: for a scene that lacks what the source needs, or is not upright.
        """
        if source in ("jittered", "ground_truth") or scene.path is None:
            boxes = self.find_boxes(scene, source)
            return jitter_objects(boxes, seed).boxes if source == "jittered" else boxes
        if (scene.path, source) not in self.found:
            whole = scene if self.read_scene is None else self.read_scene(scene.path)
            self.found[scene.path, source] = self.find_boxes(whole, source)
        return self.found[scene.path, source]

    def find_boxes(self, scene: Scene, source: str) -> np.ndarray:
        """The boxes of a scene that a source starts from."""
        if source == "depth":
            if scene.depth_maps is None:
                raise ValueError(
                    f"scene {scene.scene_id!r}: expected depth and cameras with {self.option} depth, got none; add"
                    f" them, or choose {self.option} given, for boxes in {scene.path}/proposals.json, or ground_truth."
                )
            return propose_boxes(scene).boxes
        file, name, way_out = FILES[source]
        boxes = getattr(scene, name)
        if boxes is None:
            raise ValueError(
                f"scene {scene.scene_id!r}: expected candidate boxes in {scene.path}/{file}, got no such file; prepare"
                f" the scene with {way_out} (docs/DATA.md), or choose {self.option} depth or"
                f" {'ground_truth' if source == 'given' else 'given'}."
            )
        return boxes

    def make_set(self, scene: Scene, seed: int, source: str) -> ProposalSet:
        """The proposals of a training row about a scene with boxes, drawn from the row's seed.

        Raises:
            ValueError: as `propose`.
        """
        rng = np.random.default_rng([seed, 1])
        if source == "mixed":
            if rng.integers(2):
                return match_objects(simulate_proposals(scene.boxes, rng), scene.boxes, rng)
            source = "jittered"
        if source == "jittered":
            return jitter_objects(scene.boxes, seed)
        if source == "ground_truth":
            return ProposalSet(scene.boxes, [[place] for place in range(len(scene.boxes))])
        return match_objects(self.propose(scene, source, seed), scene.boxes, rng)


__all__ = [
    "PROPOSAL_SOURCES",
    "TRAINING_SOURCES",
    "ProposalMaker",
    "ProposalSet",
    "check_given",
    "jitter_objects",
    "match_objects",
]
