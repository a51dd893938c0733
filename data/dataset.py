"""Scenes with their questions -> training rows.

A row is a scene with up to `questions_per_row` questions and `tokens_per_row` tokens of them. Nothing is drawn from
global state: a row follows from (seed, epoch, row id) alone, so workers, resumes and process counts do not change it.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from ross3d.data.annotations import Annotation
from ross3d.data.latents import SceneLatents
from ross3d.data.prepared import PreparedScenes
from ross3d.data.rows import PlannedRow, count_rows, cut_questions, deal_questions, order_rows
from ross3d.data.scene import BLIND_PICTURE, Scene


def get_row_seed(seed: int, epoch: int, row_id: str) -> int:
    """A seed in [0, 2**60) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 4


def take_boxes(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The objects' own boxes as proposals, in their order (published for training)."""
    return scene.boxes, np.arange(len(scene.boxes))


class SceneRows(Dataset):
    """Training rows of all epochs, in order: item `epoch * rows_per_epoch + place`.

    The epoch travels in the index because a resumed `Trainer` does not announce it again; train with sequential
    sampling over one pass.

    Args:
        scenes (sequence of `Path`): scene folders.
        annotations (`dict`): scene id -> its annotations; a scene without any trains reconstruction only.
        processor (`Ross3DProcessor`): makes the tensors.
        read_scene: folder -> `Scene`.
        make_proposals: (scene, seed) -> proposal boxes (K, 6) and object index -> proposal index.
        epochs (`int`): passes over the scenes, or over the questions.
        questions_per_row (`int`): at most so many questions of a scene in a row.
        tokens_per_row (`int`, *optional*): about so many tokens of questions and answers in a row, at most.
        visit (`str`): what an epoch visits once: `"scenes"`, each with as many of its questions as fit into a row,
            drawn anew every epoch; or `"questions"`, in as many rows of their scenes as they need.
        rows_per_step (`int`): rows of one optimizer step; with `visit="questions"` those are of similar length.
        one_task_per_step (`bool`): with `visit="questions"`, no step mixes grounding rows with others.
        seed (`int`): of order, choice of questions, proposals and diffusion draws.
        prepared (`PreparedScenes`, *optional*): reads scenes in place of `read_scene`, from the second time without
            their pictures.
        latents (`SceneLatents`, *optional*): what the teacher makes of the pictures; rows carry it.
        reconstruct (`bool`): whether rows carry the bird's-eye picture.
        blind (`bool`): leave out views, geometry and proposals: what a model knows from the words alone.
    """

    def __init__(
        self,
        scenes: Sequence[Path],
        annotations: dict[str, list[Annotation]],
        processor: Any,
        read_scene: Callable[[Path], Scene],
        make_proposals: Callable[[Scene, int], tuple[np.ndarray, list[int]]],
        *,
        epochs: int,
        questions_per_row: int,
        seed: int,
        tokens_per_row: int | None = None,
        visit: Literal["scenes", "questions"] = "scenes",
        rows_per_step: int = 1,
        one_task_per_step: bool = False,
        prepared: PreparedScenes | None = None,
        latents: SceneLatents | None = None,
        reconstruct: bool = True,
        blind: bool = False,
    ):
        self.scenes = list(scenes)
        self.annotations = annotations
        self.processor = processor
        self.read_scene = read_scene
        self.make_proposals = make_proposals
        self.epochs = epochs
        self.questions_per_row = questions_per_row
        self.seed = seed
        self.tokens_per_row = tokens_per_row
        self.visit = visit
        self.rows_per_step = rows_per_step
        self.one_task_per_step = one_task_per_step
        self.prepared = prepared
        self.latents = latents
        self.lengths: dict[str, list[int]] = {}
        self.planned: tuple[int, list[PlannedRow]] | None = None
        self.reconstruct = reconstruct
        self.blind = blind

    @cached_property
    def rows_per_epoch(self) -> int:
        """The same in every epoch, however its questions are dealt."""
        if self.visit == "scenes":
            return len(self.scenes)
        lengths = (self.get_lengths(path.name) for path in self.scenes)
        return sum(count_rows(of_scene, self.questions_per_row, self.tokens_per_row) for of_scene in lengths)

    def __len__(self) -> int:
        return self.epochs * self.rows_per_epoch

    def get_lengths(self, scene_id: str) -> list[int]:
        """Tokens of each of a scene's questions and its answer."""
        if scene_id not in self.lengths:
            texts = [question.question + question.answer for question in self.annotations.get(scene_id, [])]
            encoded = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            self.lengths[scene_id] = [len(ids) for ids in encoded]
        return self.lengths[scene_id]

    def plan_epoch(self, epoch: int) -> list[PlannedRow]:
        """The rows of an epoch in their order; the last plan is kept."""
        if self.planned is None or self.planned[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            if self.visit == "scenes":
                rows = [PlannedRow(int(scene), 0, ()) for scene in rng.permutation(len(self.scenes))]
            else:
                begun = epoch * self.rows_per_epoch % self.rows_per_step
                rows = order_rows(self.deal_epoch(rng), self.rows_per_step, self.one_task_per_step, rng, begun)
            self.planned = (epoch, rows)
        return self.planned[1]

    def deal_epoch(self, rng: np.random.Generator) -> list[PlannedRow]:
        """Every question in a row of its scene."""
        rows = []
        for scene, path in enumerate(self.scenes):
            lengths, questions = self.get_lengths(path.name), self.annotations.get(path.name, [])
            num_rows = count_rows(lengths, self.questions_per_row, self.tokens_per_row)
            for number, dealt in enumerate(deal_questions(lengths, num_rows, self.questions_per_row, rng)):
                num_tokens = sum(lengths[place] for place in dealt)
                grounds = any(questions[place].object_ids is not None for place in dealt)
                rows.append(PlannedRow(scene, number, tuple(dealt), num_tokens, grounds))
        return rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, self.rows_per_epoch)
        row = self.plan_epoch(epoch)[place]
        path = self.scenes[row.scene]
        name = path.name if row.number == 0 else f"{path.name}/{row.number}"
        row_seed = get_row_seed(self.seed, epoch, name)
        if self.visit == "scenes":
            questions = self.choose_questions(path.name, row_seed)
        else:
            questions = [self.annotations[path.name][place] for place in row.questions]
        inputs = self.get_blind_inputs(questions) if self.blind else self.get_inputs(path, questions, row_seed)
        row = {key: value[0] for key, value in self.processor(**inputs, return_tensors="pt").items()}
        if self.latents is not None and not self.blind:
            row |= self.latents.read(path)
        return row | {"row_seed": torch.tensor(row_seed)}

    def choose_questions(self, scene_id: str, row_seed: int) -> list[Annotation]:
        """The questions of a row: `questions_per_row` of the scene's, in drawn order, as far as their tokens fit."""
        questions = self.annotations.get(scene_id, [])
        order = np.random.default_rng(row_seed).permutation(len(questions))[: self.questions_per_row]
        if self.tokens_per_row is not None and len(order):
            order = cut_questions(order, self.get_lengths(scene_id), self.tokens_per_row)
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

    def get_inputs(self, path: Path, questions: list[Annotation], row_seed: int) -> dict[str, Any]:
        """What the processor gets for a scene and its questions.

        Raises:
            ValueError: for a question about objects of a scene without boxes.
        """
        fitted = None
        if self.prepared is None:
            scene = self.read_scene(path)
        else:
            scene, fitted = self.prepared.read(path)
        inputs, boxes = self.get_text(questions), None
        if scene.boxes is not None:
            boxes, proposal_of = self.make_proposals(scene, row_seed)
        elif any(question.object_ids is not None for question in questions):
            name = next(question.id for question in questions if question.object_ids is not None)
            raise ValueError(
                f"object_ids of question {name!r}: expected boxes of scene {scene.scene_id!r} that they number, got"
                f" none; add {path / 'boxes.json'} or leave the question out."
            )
        if questions and boxes is not None:
            inputs["target_objects"] = [
                None if question.object_ids is None else [int(proposal_of[i]) for i in question.object_ids]
                for question in questions
            ]
        if fitted is not None:
            if not self.reconstruct:
                fitted.bev_pixels = fitted.bev_valid = fitted.bev_bounds = None
            return inputs | {"images": fitted, "proposal_boxes": boxes, "scene_ids": [scene.scene_id]}
        return inputs | scene.get_inputs(bev=self.reconstruct) | {"proposal_boxes": boxes}

    def get_blind_inputs(self, questions: list[Annotation]) -> dict[str, Any]:
        """The same words behind one grey picture: no pixels, no geometry, no proposals, every `<coord>` at 0."""
        inputs = self.get_text([question for question in questions if question.object_ids is None])
        if inputs:
            inputs["query_coords"] = [None if xyz is None else np.zeros(3) for xyz in inputs["query_coords"]]
        return inputs | {"images": [BLIND_PICTURE]}
