"""Scenes with their questions -> training rows.

A row is a scene with up to `questions_per_row` questions and `tokens_per_row` tokens of them. Nothing is drawn from
global state: a row follows from (seed, epoch, row id) alone, so workers, resumes and process counts do not change it.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ross3d.data.annotations import Annotation, check_object_ids, check_query_coords, find_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.geometry_features import SceneFeatures
from ross3d.data.latents import SceneLatents
from ross3d.data.prepared import SceneReader
from ross3d.data.proposal_sources import ProposalSet
from ross3d.data.rows import (
    PlannedRow,
    choose_labelled,
    count_rows,
    count_unlabelled_rows,
    cut_questions,
    deal_questions,
    order_rows,
    take_turns,
)
from ross3d.data.scene import BLIND_PICTURE, Scene
from ross3d.data.tensor_cache import Stored
from ross3d.geometry_ross3d import unproject
from ross3d.inputs_ross3d import INPUTS


def get_row_seed(seed: int, epoch: int, row_id: str) -> int:
    """A seed in [0, 2**60) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 4


def get_seen(scene: Scene, fitted: Any = None) -> tuple[Any, Callable[[], torch.Tensor]]:
    """Cameras (V, 4, 4) of a scene with depth, else None, and a function that returns the points (N, 3) of its depth.

    Args:
        fitted (`FittedScene`, *optional*): the processor's cached form of the scene, if it was prepared.
    """
    if fitted is not None:
        return fitted.cam2world, lambda: fitted.patch_coords[fitted.patch_valid]
    if scene.depth_maps is None:
        return None, lambda: torch.zeros(0, 3)
    depth = torch.as_tensor(scene.depth_maps)
    return scene.cam2world, lambda: unproject(depth, scene.intrinsics, scene.cam2world)[depth > 0]


def check_stored(
    stored: Stored, row: dict[str, torch.Tensor], views: Sequence[str], file: Path
) -> dict[str, torch.Tensor]:
    """The tensors of a file; refused if they are of other views than the row that they are added to.

    Args:
        views: the names of the row's views; empty where they are not known.
    """
    num_views = len(row["pixel_values"])
    for name, tensor in stored.tensors.items():
        if "V" in INPUTS[name].axes and len(tensor) != num_views:
            raise ValueError(
                f"{file}: expected {name} of {num_views} views, as this run reads of the scene, got {len(tensor)};"
                " remove the file, and make it again with the command that made it."
            )
    pairs = zip(views, stored.views, strict=False)
    other = next(((ours, theirs) for ours, theirs in pairs if ours != theirs), None)
    if other is not None:
        raise ValueError(
            f"{file}: expected the view {other[0]!r}, which this run reads of the scene, got {other[1]!r} in its"
            " place; remove the file, and make it again with the command that made it."
        )
    return stored.tensors


class SceneRows(Dataset):
    """Training rows of all epochs, in order: item `epoch * rows_per_epoch + place`.

    The epoch is part of the index because a resumed `Trainer` does not announce it again; train with sequential
    sampling over one pass.

    Args:
        data (`DataArguments`): how questions are dealt to rows, how many passes there are, and what rows leave out.
        scenes (sequence of `Path`): scene folders.
        annotations (`dict`): scene id -> its annotations; a scene without any trains reconstruction only.
        processor (`Ross3DProcessor`): makes the tensors.
        reader (`SceneReader`): reads a scene's folder; `PreparedScenes` skips its pictures from the second time on.
        make_proposals: (scene, seed) -> `ProposalSet` that the row's grounding questions choose among.
        seed (`int`): of order, choice of questions, proposals and diffusion draws.
        rows_per_step (`int`): rows of one optimizer step; where a pass visits questions, those are of similar length.
        unlabelled (sequence of `Path`): folders of scans without questions, which take turns.
        stores (sequence of `SceneLatents` and `SceneFeatures`): tensors of scenes in files, added to the rows.
    """

    def __init__(
        self,
        data: DataArguments,
        scenes: Sequence[Path],
        annotations: dict[str, list[Annotation]],
        processor: Any,
        reader: SceneReader,
        make_proposals: Callable[[Scene, int], ProposalSet],
        *,
        seed: int,
        rows_per_step: int = 1,
        unlabelled: Sequence[Path] = (),
        stores: Sequence[SceneLatents | SceneFeatures] = (),
    ):
        # Scenes with questions first, then scans without.
        self.num_scenes = len(scenes)
        self.scenes = [*scenes, *unlabelled]
        self.data = data
        # Named in errors.
        self.file = str(find_annotations(data.root, data.split))
        self.annotations = annotations
        self.processor = processor
        self.reader = reader
        self.make_proposals = make_proposals
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.stores = stores
        self.lengths: dict[str, list[int]] = {}
        self.planned: tuple[int, list[PlannedRow]] | None = None
        if not data.blind:
            reader.warn_again(self.scenes)

    @cached_property
    def labelled_scenes(self) -> np.ndarray:
        """Which scenes keep their text, in runs that visit scenes."""
        return choose_labelled(self.num_scenes, self.data.labelled_share, self.seed)

    @cached_property
    def labelled_questions(self) -> list[tuple[list[int], list[int]]]:
        """For each scene the places of the questions that keep their text and of those that do not."""
        counts = [len(self.annotations.get(path.name, [])) for path in self.scenes[: self.num_scenes]]
        kept = choose_labelled(sum(counts), self.data.labelled_share, self.seed)
        parts = np.split(kept, np.cumsum(counts)[:-1])
        return [(np.flatnonzero(part).tolist(), np.flatnonzero(~part).tolist()) for part in parts]

    @cached_property
    def rows_per_epoch(self) -> int:
        """Number of rows of an epoch; the same in every epoch, however its questions are dealt."""
        return self.num_labelled_rows + count_unlabelled_rows(self.num_labelled_rows, self.data.unlabelled_share)

    @cached_property
    def num_labelled_rows(self) -> int:
        """Number of rows of an epoch, without the rows of scans that have no questions."""
        if self.data.visit == "scenes":
            return self.num_scenes
        parts = [(scene, places) for scene in range(self.num_scenes) for places, _ in self.split_questions(scene)]
        return sum(self.count_rows(scene, places) for scene, places in parts)

    def split_questions(self, scene: int) -> list[tuple[list[int], bool]]:
        """Positions of a scene's questions with text and of those without, empty parts left out; one empty part for a
        scene without questions."""
        kept, dropped = self.labelled_questions[scene]
        return [part for part in ((kept, True), (dropped, False)) if part[0]] or [([], True)]

    def count_rows(self, scene: int, places: list[int]) -> int:
        lengths = self.get_lengths(self.scenes[scene].name) if places else []
        return count_rows([lengths[place] for place in places], self.data.questions_per_row, self.data.tokens_per_row)

    def __len__(self) -> int:
        return self.data.epochs * self.rows_per_epoch

    def get_lengths(self, scene_id: str) -> list[int]:
        """Tokens of each of a scene's questions and its answer."""
        if scene_id not in self.lengths:
            texts = [question.question + question.answer for question in self.annotations.get(scene_id, [])]
            encoded = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            self.lengths[scene_id] = [len(ids) for ids in encoded]
        return self.lengths[scene_id]

    def plan_epoch(self, epoch: int) -> list[PlannedRow]:
        """The rows of an epoch in their order; the last plan is cached."""
        if self.planned is None or self.planned[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            if self.data.visit == "scenes":
                rows = [PlannedRow(scene, 0, ()) for scene in range(self.num_scenes)]
                rows += self.plan_unlabelled(epoch, [0], rng)
                rows = [rows[place] for place in rng.permutation(len(rows))]
            else:
                begun = epoch * self.rows_per_epoch % self.rows_per_step
                rows = self.deal_epoch(rng)
                rows += self.plan_unlabelled(epoch, [row.num_tokens for row in rows], rng)
                rows = order_rows(rows, self.rows_per_step, self.data.one_task_per_step, rng, begun)
            self.planned = (epoch, rows)
        return self.planned[1]

    def plan_unlabelled(self, epoch: int, num_tokens: list[int], rng: np.random.Generator) -> list[PlannedRow]:
        """An epoch's rows of scans without questions; each gets one of these lengths, for sorting."""
        count = self.rows_per_epoch - self.num_labelled_rows
        if not count:
            return []
        num_scans, first = len(self.scenes) - self.num_scenes, epoch * count
        places, lengths = take_turns(first, count, num_scans, self.seed), rng.choice(num_tokens, count)
        # A scan that comes again in the same epoch is another row.
        return [
            PlannedRow(self.num_scenes + place, (first + turn) // num_scans - first // num_scans, (), int(length))
            for turn, (place, length) in enumerate(zip(places, lengths, strict=True))
        ]

    def deal_epoch(self, rng: np.random.Generator) -> list[PlannedRow]:
        """Deal all questions to rows of their scene; unlabelled ones lose their text."""
        rows = []
        for scene in range(self.num_scenes):
            path, number = self.scenes[scene], 0
            lengths, questions = self.get_lengths(path.name), self.annotations.get(path.name, [])
            for places, labelled in self.split_questions(scene):
                num_rows = self.count_rows(scene, places)
                for dealt in deal_questions([lengths[i] for i in places], num_rows, self.data.questions_per_row, rng):
                    asked = tuple(places[i] for i in dealt) if labelled else ()
                    num_tokens = sum(lengths[places[i]] for i in dealt)
                    grounds = any(questions[place].object_ids is not None for place in asked)
                    rows.append(PlannedRow(scene, number, asked, num_tokens, grounds))
                    number += 1
        return rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, self.rows_per_epoch)
        row = self.plan_epoch(epoch)[place]
        path = self.scenes[row.scene]
        name = path.name if row.number == 0 else f"{path.name}/{row.number}"
        row_seed = get_row_seed(self.seed, epoch, name)
        if row.scene >= self.num_scenes:
            questions = []
        elif self.data.visit == "scenes":
            labelled = self.labelled_scenes[row.scene]
            questions = self.choose_questions(path.name, row_seed) if labelled else []
        else:
            questions = [self.annotations[path.name][place] for place in row.questions]
        if self.data.blind:
            return self.process(self.get_blind_inputs(questions), row_seed)
        scene, fitted = self.reader.read(path)
        row = self.process(self.get_inputs(scene, fitted, path, questions, row_seed), row_seed)
        for store in self.stores:
            row |= check_stored(store.read(path), row, scene.view_names, store.get_file(path))
        return row

    def process(self, inputs: dict[str, Any], row_seed: int) -> dict[str, torch.Tensor]:
        """The tensors of one row."""
        row = {key: value[0] for key, value in self.processor(**inputs, return_tensors="pt").items()}
        return row | {"row_seed": torch.tensor(row_seed)}

    def choose_questions(self, scene_id: str, row_seed: int) -> list[Annotation]:
        """Draw the questions of a row: up to `questions_per_row` of the scene's, as far as their tokens fit."""
        questions = self.annotations.get(scene_id, [])
        order = np.random.default_rng(row_seed).permutation(len(questions))[: self.data.questions_per_row]
        if self.data.tokens_per_row is not None and len(order):
            order = cut_questions(order, self.get_lengths(scene_id), self.data.tokens_per_row)
        return [questions[i] for i in order]

    def get_text(self, questions: list[Annotation]) -> dict[str, Any]:
        """The processor's text arguments; none for a scene without questions."""
        if not questions:
            return {}
        return {
            "text": [question.question for question in questions],
            "answers": [question.answer for question in questions],
            "query_coords": [question.query_coords for question in questions],
        }

    def get_inputs(
        self, scene: Scene, fitted: Any, path: Path, questions: list[Annotation], row_seed: int
    ) -> dict[str, Any]:
        """The processor's arguments for a scene, as the reader gives it from its folder, and its questions.

        Raises:
            ValueError: for a question about objects that the scene does not have, or about a place far outside of it.
        """
        inputs = self.get_text(questions)
        proposals = None if scene.boxes is None else self.make_proposals(scene, row_seed)
        boxes = None if proposals is None else proposals.boxes
        for question in questions:
            check_object_ids(question, None if scene.boxes is None else len(scene.boxes), str(path))
            check_query_coords(question, *get_seen(scene, fitted), self.file)
        if questions and proposals is not None:
            inputs["target_objects"] = [
                None
                if question.object_ids is None
                else sorted({place for number in question.object_ids for place in proposals.targets[number]})
                for question in questions
            ]
        if fitted is not None:
            return inputs | {"images": fitted, "proposal_boxes": boxes, "scene_ids": [scene.scene_id]}
        return inputs | scene.get_inputs(bev=True) | {"proposal_boxes": boxes}

    def get_blind_inputs(self, questions: list[Annotation]) -> dict[str, Any]:
        """The same text with one grey picture: no pixels, no geometry, no proposals, every `<coord>` at 0."""
        inputs = self.get_text([question for question in questions if question.object_ids is None])
        if inputs:
            inputs["query_coords"] = [None if xyz is None else np.zeros(3) for xyz in inputs["query_coords"]]
        return inputs | {"images": [BLIND_PICTURE]}
