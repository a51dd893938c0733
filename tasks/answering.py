"""Questions about a scene -> records: the scene is read once, its questions are answered in batches.

Shapes: K proposals.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.data.scene import BLIND_PICTURE, Scene
from ross3d.metrics.grounding import choose_proposal, select_above_no_target, select_proposals
from ross3d.tasks.task import EvalContext, Record


# Written numbers keep as many decimals, so that a record reads the same wherever it was computed.
DECIMALS = 5


def iterate_batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def get_scene_inputs(scene: Scene, proposal_boxes: np.ndarray | None) -> dict[str, Any]:
    """The processor's arguments for a scene alone; what the scene lacks is left out."""
    inputs = {
        "images": list(scene.images),
        "depth_maps": scene.depth_maps,
        "intrinsics": scene.intrinsics,
        "cam2world": scene.cam2world,
        "proposal_boxes": proposal_boxes,
        "scene_ids": [scene.scene_id],
    }
    if scene.depth_maps is None:
        inputs |= {"intrinsics": None, "cam2world": None}
    return {name: value for name, value in inputs.items() if value is not None}


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


def ask_questions(
    context: EvalContext, scene_cache: Any, annotations: list[Annotation], prompts: list[str]
) -> list[str]:
    """Greedy answers, as text, to questions about a scene that was encoded."""
    responses: list[str] = []
    for batch in iterate_batches(list(zip(annotations, prompts, strict=True)), context.settings.batch_size):
        points = [None if a.query_coords is None else np.asarray(a.query_coords, np.float32) for a, _ in batch]
        if context.settings.blind:
            points = [None if point is None else np.zeros(3, np.float32) for point in points]
        coords = {"query_coords": points} if any(point is not None for point in points) else {}
        asks = context.processor(text=[prompt for _, prompt in batch], **coords, return_tensors="pt")
        asks = asks.to(context.device)
        ids = context.model.generate(
            scene=scene_cache, **asks, max_new_tokens=context.settings.max_new_tokens, do_sample=False, num_beams=1
        )
        answers = ids[:, asks["input_ids"].shape[1] :]
        responses += context.processor.batch_decode(answers, skip_special_tokens=True)
    return responses


def ground_questions(context: EvalContext, scene_cache: Any, prompts: list[str]) -> np.ndarray:
    """Scores (number of prompts, K + 1) of the proposals that the scene was encoded with, then of "no target"."""
    scores = []
    for batch in iterate_batches(prompts, context.settings.batch_size):
        asks = context.processor(text=batch, return_tensors="pt").to(context.device)
        scores.append(context.model.ground(scene=scene_cache, **asks).float().cpu().numpy())
    return np.concatenate(scores)


def draw_scores(context: EvalContext, annotation: Annotation, num_proposals: int) -> np.ndarray:
    """Scores of a model that knows nothing: the proposals and "no target" in a seeded random order."""
    rng = np.random.default_rng(context.get_seed(context.settings.seed, f"blind/{annotation.id}"))
    return rng.permutation(num_proposals + 1).astype(np.float64)


def round_boxes(boxes: np.ndarray) -> list[list[float]]:
    return np.round(np.asarray(boxes, np.float64).reshape(-1, 6), DECIMALS).tolist()


def make_grounding_record(
    task_name: str, annotation: Annotation, scores: np.ndarray, proposal_boxes: np.ndarray, scene_boxes: np.ndarray
) -> Record:
    """A record with the boxes that the published rules read from scores (K + 1,)."""
    scores = np.round(np.asarray(scores, np.float64), DECIMALS)
    best = choose_proposal(scores)
    return make_record(
        task_name,
        annotation,
        response=None,
        prediction=None,
        scores=scores.tolist(),
        best_box=None if best is None else round_boxes(proposal_boxes[best])[0],
        no_target_wins=bool(scores.argmax() == len(scores) - 1),
        predicted_boxes=round_boxes(proposal_boxes[select_proposals(scores)]),
        boxes_above_no_target=round_boxes(proposal_boxes[select_above_no_target(scores)]),
        target_boxes=round_boxes(scene_boxes[annotation.object_ids]),
    )


def encode_for_questions(context: EvalContext, scene: Scene | None, proposal_boxes: np.ndarray | None) -> Any:
    """Encode a scene once; None is the blind model's grey picture."""
    inputs = {"images": [BLIND_PICTURE]} if scene is None else get_scene_inputs(scene, proposal_boxes)
    inputs = context.processor(**inputs, return_tensors="pt").to(context.device)
    return context.model.encode_scene(**inputs)


def answer_questions(
    context: EvalContext,
    annotations: list[Annotation],
    task_name: str,
    get_prompt: Callable[[Annotation], str],
    parse_answer: Callable[[Annotation, str], str],
) -> list[Record]:
    """Records of all questions about one scene, in their order.

    Args:
        context (`EvalContext`): see there.
        annotations (list of `Annotation`): of one scene.
        task_name (`str`): goes into the records.
        get_prompt: annotation -> what the model is asked.
        parse_answer: (annotation, response) -> the answer that is scored.
    """
    grounding = [index for index, a in enumerate(annotations) if a.object_ids is not None]
    spoken = [index for index, a in enumerate(annotations) if a.object_ids is None]
    blind = context.settings.blind
    scene = None if blind and not grounding else context.load_scene(annotations[0].scene_id)
    proposal_boxes = None
    if grounding:
        seed = context.get_seed(context.settings.seed, f"proposals/{scene.scene_id}")
        proposal_boxes, _ = context.make_proposals(scene, seed)
    prompts = [get_prompt(annotation) for annotation in annotations]
    records: dict[int, Record] = {}
    cache = None
    if spoken or not blind:
        cache = encode_for_questions(context, None if blind else scene, proposal_boxes)
    if spoken:
        asked = [annotations[index] for index in spoken]
        responses = ask_questions(context, cache, asked, [prompts[index] for index in spoken])
        for index, annotation, response in zip(spoken, asked, responses, strict=True):
            answer = parse_answer(annotation, response)
            records[index] = make_record(task_name, annotation, response=response, prediction=answer)
    if grounding:
        if blind:
            scores = [draw_scores(context, annotations[index], len(proposal_boxes)) for index in grounding]
        else:
            scores = ground_questions(context, cache, [prompts[index] for index in grounding])
        for index, row in zip(grounding, scores, strict=True):
            records[index] = make_grounding_record(task_name, annotations[index], row, proposal_boxes, scene.boxes)
    return [records[index] for index in range(len(annotations))]


__all__ = ["answer_questions", "encode_for_questions", "get_scene_inputs", "ground_questions"]
