"""Answer questions about scenes: each scene is read once, its questions are answered in batches.

Shapes: K proposals.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import (
    Annotation,
    check_all_object_ids,
    check_object_ids,
    check_query_coords,
    find_annotations,
    load_annotations,
)
from ross3d.data.proposal_sources import check_given
from ross3d.data.scene import BLIND_PICTURE, Scene
from ross3d.metrics.grounding import (
    choose_proposal,
    compute_margin,
    drop_duplicates,
    select_above_no_target,
    select_proposals,
)
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, limit_scenes


END_OF_TURN = "<|im_end|>"
# Decimals of written scores, so that records agree between machines.
DECIMALS = 5


def iterate_batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def load_questions(
    data_dir: Path, settings: EvalSettings, task_name: str, question_types: Sequence[str] | None = None
) -> list[Annotation]:
    """Load a benchmark's annotations of a split, limited to the first `--limit` scenes.

    Raises:
        ValueError: for no annotations, an unknown question type, or a question about objects that its scene does not
            have.
    """
    path = find_annotations(data_dir, settings.split)
    loaded = load_annotations(path, settings.allow_outside)
    annotations = [annotation for annotation in loaded if annotation.task == task_name]
    if not annotations:
        raise ValueError(
            f"{path}: expected questions of task {task_name!r}, got none; check that it is this benchmark's file."
        )
    for annotation in annotations:
        if question_types is not None and annotation.question_type not in question_types:
            raise ValueError(
                f"{path.name}, id {annotation.id!r}: expected a question_type of {list(question_types)}, got"
                f" {annotation.question_type!r}; {task_name} scores no other types."
            )
    chosen = limit_scenes(annotations, settings.limit)
    own = [annotation for annotation in chosen if annotation.target_boxes is None]
    check_all_object_ids(own, lambda name: data_dir / settings.split / name)
    return chosen


def get_question(annotation: Annotation) -> str:
    """The question unchanged, with blanks at its ends: prepared files contain the published text."""
    return annotation.question


def clean_response(annotation: Annotation, response: str) -> str:
    """The model's response without surrounding blanks and without an end mark written as text (published)."""
    return response.strip().removesuffix(END_OF_TURN).strip()


def get_columns(records: list[Record], *names: str) -> list[list[Any]]:
    """The named values of all records, one list per name."""
    return [[record[name] for record in records] for name in names]


def check_detected(data_dir: Path, items: Sequence[Annotation], settings: EvalSettings) -> None:
    """Refuse to start with `given` boxes if scenes have none, see `check_given`."""
    folders = dict.fromkeys(data_dir / settings.split / item.scene_id for item in items)
    if settings.proposals == "given":
        check_given(list(folders), f"--data {data_dir}", "--proposals")


def get_proposals(context: EvalContext, scene: Scene) -> np.ndarray:
    """The boxes (K, 6) that grounding chooses among, from the source of `--proposals`, or the task's own.

    Raises:
        ValueError: for a task without a source, and for a scene that lacks what the source needs.
    """
    source = context.settings.proposals
    if source is None:
        raise ValueError(
            "proposals: expected the source of the boxes of a task with grounding questions, got None; end its file"
            ' with Task(..., proposals="given").'
        )
    seed = context.get_seed(context.settings.seed, f"proposals/{scene.scene_id}")
    return context.make_proposals(scene, source, seed)


def make_record(task_name: str, annotation: Annotation, **values: Any) -> Record:
    """The part of a record that all questions share, and `values`."""
    return {
        "task": task_name,
        "id": annotation.id,
        "scene_id": annotation.scene_id,
        "question_type": annotation.question_type,
        "question": annotation.question,
        "query_coords": None if annotation.query_coords is None else list(annotation.query_coords),
        "references": list(annotation.references) or [annotation.answer],
        **values,
    }


@dataclass(frozen=True)
class Prompt:
    """A question about scene number `scene` of the scenes that are answered together."""

    annotation: Annotation
    text: str
    scene: int


def ask_questions(context: EvalContext, scene_cache: Any, prompts: list[Prompt]) -> list[tuple[str, float]]:
    """Greedy text answers to questions about encoded scenes, each with the mean probability of its tokens."""
    responses: list[tuple[str, float]] = []
    for batch in iterate_batches(prompts, context.settings.batch_size):
        given = [prompt.annotation.query_coords for prompt in batch]
        points = [None if point is None else np.asarray(point, np.float32) for point in given]
        if context.settings.blind:
            points = [None if point is None else np.zeros(3, np.float32) for point in points]
        coords = {"query_coords": points} if any(point is not None for point in points) else {}
        asks = context.processor(text=[prompt.text for prompt in batch], **coords, return_tensors="pt")
        asks = asks.to(context.device)
        outputs = context.model.generate(
            scene=scene_cache,
            scene_index=[prompt.scene for prompt in batch],
            **asks,
            max_new_tokens=context.settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
        )
        answers = outputs.sequences[:, asks["input_ids"].shape[1] :]
        texts = context.processor.batch_decode(answers, skip_special_tokens=True)
        responses += zip(texts, outputs.token_probability.tolist(), strict=True)
    return responses


def ground_questions(context: EvalContext, scene_cache: Any, prompts: list[Prompt]) -> list[np.ndarray]:
    """Scores (K + 1,) of the proposals that each prompt's scene was encoded with, then of "no target"."""
    counts = scene_cache.proposal_mask.sum(dim=1).tolist()
    scores: list[np.ndarray] = []
    for batch in iterate_batches(prompts, context.settings.batch_size):
        asks = context.processor(text=[prompt.text for prompt in batch], return_tensors="pt").to(context.device)
        index = [prompt.scene for prompt in batch]
        rows = context.model.ground(scene=scene_cache, scene_index=index, **asks).float().cpu().numpy()
        # Scenes with fewer proposals than others are padded before the last column.
        scores += [np.append(row[: counts[scene]], row[-1]) for row, scene in zip(rows, index, strict=True)]
    return scores


def draw_scores(context: EvalContext, annotation: Annotation, num_proposals: int) -> np.ndarray:
    """Blind scores: the proposals and "no target" in a seeded random order."""
    rng = np.random.default_rng(context.get_seed(context.settings.seed, f"blind/{annotation.id}"))
    return rng.permutation(num_proposals + 1).astype(np.float64)


def list_boxes(boxes: np.ndarray) -> list[list[float]]:
    return np.asarray(boxes, np.float64).reshape(-1, 6).tolist()


def make_grounding_record(
    task_name: str,
    annotation: Annotation,
    scores: np.ndarray,
    proposal_boxes: np.ndarray,
    scene_boxes: np.ndarray,
    source: str,
) -> Record:
    """A record with the boxes that the published rules select from scores (K + 1,); without duplicates where they come
    from depth."""
    targets = annotation.target_boxes
    if targets is None:
        targets = list_boxes(scene_boxes[annotation.object_ids])
    scores = np.asarray(scores, np.float64)
    best, margin = choose_proposal(scores), compute_margin(scores)
    several = select_proposals(scores), select_above_no_target(scores)
    if source == "depth":
        several = [drop_duplicates(selected, proposal_boxes) for selected in several]
    return make_record(
        task_name,
        annotation,
        response=None,
        prediction=None,
        scores=np.round(scores, DECIMALS).tolist(),
        best_box=None if best is None else list_boxes(proposal_boxes[best])[0],
        best_score=None if best is None else round(scores[best], DECIMALS),
        margin=None if margin is None else round(margin, DECIMALS),
        no_target_wins=bool(scores.argmax() == len(scores) - 1),
        predicted_boxes=list_boxes(proposal_boxes[several[0]]),
        boxes_above_no_target=list_boxes(proposal_boxes[several[1]]),
        target_boxes=targets,
    )


@dataclass
class SceneForQuestions:
    """The inputs that questions about a scene need, prepared without the model.

    Attributes:
        inputs (`BatchFeature`): of the processor, for the scene alone; None once the scene is encoded.
        proposal_boxes (`np.ndarray` of shape `(K, 6)`, *optional*), scene_boxes: for grounding questions.
    """

    inputs: Any
    proposal_boxes: np.ndarray | None = None
    scene_boxes: np.ndarray | None = None


def prepare_questions_about_boxes(context: EvalContext, annotations: list[Annotation]) -> SceneForQuestions:
    """`prepare_questions` with the boxes that grounding chooses among."""
    return prepare_questions(context, annotations, about_boxes=True)


def prepare_questions(
    context: EvalContext, annotations: list[Annotation], about_boxes: bool = False
) -> SceneForQuestions:
    """Read the scene of these annotations and let the processor prepare it; a blind model gets a grey picture."""
    blind = context.settings.blind
    grounds = any(annotation.object_ids is not None for annotation in annotations)
    without_boxes = blind or not about_boxes
    scene = None if blind and not grounds else context.load_scene(annotations[0].scene_id)
    folder = "" if scene is None else str(scene.path)
    # An empty list rather than None, so that scenes with and without grounding questions can share a cache.
    boxes = None if without_boxes or scene.depth_maps is None else np.zeros((0, 6), np.float32)
    for annotation in annotations:
        if annotation.target_boxes is None:
            check_object_ids(annotation, None if scene is None or scene.boxes is None else len(scene.boxes), folder)
    if grounds:
        boxes = get_proposals(context, scene)
    inputs = {"images": [BLIND_PICTURE]} if blind else scene.get_inputs(proposal_boxes=boxes)
    tensors = context.processor(**inputs, return_tensors="pt")
    if not blind and scene.depth_maps is not None:
        # Checked here, because the processor later gets the questions without their scene.
        file = str(find_annotations(context.data_dir, context.settings.split))
        for annotation in annotations:
            check_query_coords(
                annotation, scene.cam2world, lambda: tensors["patch_coords"][tensors["patch_valid"]], file
            )
    return SceneForQuestions(tensors, boxes, scene.boxes if grounds else None)


def score_proposals(context: EvalContext, cache: Any, prompts: list[Prompt], counts: list[int]) -> list[np.ndarray]:
    """Scores (K + 1,) for each prompt: the model's, or blind ones."""
    if not context.settings.blind:
        return ground_questions(context, cache, prompts)
    return [draw_scores(context, prompt.annotation, counts[prompt.scene]) for prompt in prompts]


def answer_questions(
    context: EvalContext,
    scenes: list[OpenScene],
    task_name: str,
    get_prompt: Callable[[Annotation], str],
    parse_answer: Callable[[Annotation, str], str],
) -> list[list[Record]]:
    """Answer all questions about some scenes; returns their records in order.

    Args:
        context (`EvalContext`): see there.
        scenes (list of `OpenScene`): annotations of each scene, prepared by `prepare_questions`.
        task_name (`str`): goes into the records.
        get_prompt: annotation -> the model's prompt.
        parse_answer: (annotation, response) -> the answer that is scored.
    """
    # Scenes without depth cannot be grounded in: they have no proposals, not even an empty list, and a separate cache.
    apart: dict[bool, list[OpenScene]] = {}
    for scene in scenes:
        apart.setdefault(scene.prepared.proposal_boxes is None, []).append(scene)
    answered = {
        id(scene): records
        for group in apart.values()
        for scene, records in zip(
            group, answer_together(context, group, task_name, get_prompt, parse_answer), strict=True
        )
    }
    return [answered[id(scene)] for scene in scenes]


def encode_scenes(context: EvalContext, prepared: list[SceneForQuestions]) -> Any:
    """Encode the scenes with the model, each cached once; the processor's inputs are released."""
    encoded = []
    for scene in prepared:
        encoded.append(context.model.encode_scene(**scene.inputs.to(context.device)))
        scene.inputs = None
    return type(encoded[0]).join(encoded)


def answer_together(
    context: EvalContext,
    scenes: list[OpenScene],
    task_name: str,
    get_prompt: Callable[[Annotation], str],
    parse_answer: Callable[[Annotation, str], str],
) -> list[list[Record]]:
    """Answer the questions about scenes in one cache; arguments as in `answer_questions`."""
    prepared: list[SceneForQuestions] = [scene.prepared for scene in scenes]
    cache = encode_scenes(context, prepared)
    prompts = [
        Prompt(annotation, get_prompt(annotation), number)
        for number, scene in enumerate(scenes)
        for annotation in scene.items
    ]
    spoken = [prompt for prompt in prompts if prompt.annotation.object_ids is None]
    grounding = [prompt for prompt in prompts if prompt.annotation.object_ids is not None]
    records: dict[str, Record] = {}
    for prompt, (response, probability) in zip(spoken, ask_questions(context, cache, spoken), strict=True):
        values = {"response": response, "prediction": parse_answer(prompt.annotation, response)}
        values["token_probability"] = round(probability, DECIMALS)
        records[prompt.annotation.id] = make_record(task_name, prompt.annotation, **values)
    if grounding:
        counts = [0 if scene.proposal_boxes is None else len(scene.proposal_boxes) for scene in prepared]
        scores = score_proposals(context, cache, grounding, counts)
        for prompt, row in zip(grounding, scores, strict=True):
            boxes = prepared[prompt.scene]
            records[prompt.annotation.id] = make_grounding_record(
                task_name,
                prompt.annotation,
                row,
                boxes.proposal_boxes,
                boxes.scene_boxes,
                context.settings.proposals,
            )
    return [[records[annotation.id] for annotation in scene.items] for scene in scenes]


__all__ = [
    "SceneForQuestions",
    "answer_questions",
    "check_detected",
    "clean_response",
    "get_columns",
    "get_proposals",
    "get_question",
    "load_questions",
    "make_record",
    "prepare_questions",
    "prepare_questions_about_boxes",
]
