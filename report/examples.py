"""Examples of right and wrong answers: of each kind of question those that the model was surest of, with pictures.

The rule is the same for every page: nothing is chosen by hand or at random.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ross3d.data.scene import Scene
from ross3d.metrics.grounding import compute_iou
from ross3d.report.bev import DrawnBox, make_bev_drawing
from ross3d.report.boxes import VIEW_PIXELS, choose_views, draw_view
from ross3d.report.html import Markup, clip_text, element, join, make_details, make_figure, make_row, make_section
from ross3d.report.words import count, format_share, get_rank, get_title


EXAMPLES = 3
MAX_VIEWS = 2
PICTURE_WIDTH = VIEW_PIXELS // 2
TARGET_COLOR, RIGHT_COLOR, WRONG_COLOR = "#ffd60a", "#34c759", "#ff453a"
# Side of the cube around a point, metres, whose readings tell which view sees it best.
NEAR_POINT = 0.2
PLURALS = {"shelf": "shelves"}
# Nouns that name an object of any category by its colour alone.
ANY_OBJECT = ("object", "objects")
# What examples are divided into, by the value of `right`.
VERDICTS = {True: "Right", False: "Wrong", None: "Not judged one by one"}


@dataclass(frozen=True)
class Examples:
    """The answers to one kind of question.

    Attributes:
        task, question_type (`str`): of all of them.
        counts (`dict`): value of `right` (True, False, None) -> how many answers.
        chosen (`dict`): value of `right` -> records, the surest first, at most `EXAMPLES`.
    """

    task: str
    question_type: str
    counts: dict[bool | None, int]
    chosen: dict[bool | None, list[dict[str, Any]]]

    def list_chosen(self) -> list[dict[str, Any]]:
        return [record for records in self.chosen.values() for record in records]


def get_sureness(record: Mapping[str, Any]) -> float:
    """How sure the model was: confidence, or without calibration token probability, or the margin of what it chose."""
    for name in ("confidence", "token_probability"):
        if record.get(name) is not None:
            return record[name]
    margin = record.get("margin") or 0.0
    return margin if record.get("answer_boxes") else -margin


def choose_examples(records: Sequence[dict[str, Any]]) -> list[Examples]:
    """The surest answers of each kind of question, in the order of `TITLES`; of equally sure ones the first."""
    groups: dict[tuple[str, str], dict[bool | None, list[dict[str, Any]]]] = {}
    for record in records:
        group = groups.setdefault((record["task"], record["question_type"]), {})
        group.setdefault(record.get("right"), []).append(record)
    return [
        Examples(
            *kind,
            {right: len(group.get(right, [])) for right in VERDICTS},
            {right: sorted(group.get(right, []), key=get_sureness, reverse=True)[:EXAMPLES] for right in VERDICTS},
        )
        for kind, group in sorted(groups.items(), key=lambda item: get_rank(item[0][1]))
    ]


def make_mark(right: bool | None) -> Markup:
    """A tick for right answers, a cross for wrong ones, a dash for answers that are neither."""
    sign, look, told = {
        True: ("✓", "good", "right"),
        False: ("✗", "bad", "wrong"),
        None: ("–", "soft", "not judged"),
    }[right]
    return element("span", sign, class_=look, role="img", aria_label=told)


def describe_sureness(record: Mapping[str, Any]) -> str:
    """A record's confidence in percent, or without one its raw token probability, or margin to "no target"."""
    if record.get("confidence") is not None:
        return f"{format_share(record['confidence'])} sure"
    if record.get("token_probability") is not None:
        return f"token probability {record['token_probability']:.2f}"
    return "" if record.get("margin") is None else f"margin {record['margin']:+.2f}"


def describe_question(record: Mapping[str, Any]) -> str:
    """The question with its place in metres."""
    coords = record.get("query_coords")
    if coords is None:
        return record["question"]
    return record["question"].replace("<coord>", "(" + ", ".join(f"{value:.1f}" for value in coords) + ")")


def describe_answer(record: Mapping[str, Any]) -> str:
    """What the model said, or how the boxes that it chose overlap the true ones."""
    if record["prediction"] is not None:
        return clip_text(record["prediction"]) or "(nothing)"
    chosen, true = (np.reshape(record.get(name) or [], (-1, 6)) for name in ("answer_boxes", "target_boxes"))
    if not len(chosen):
        return "nothing fits"
    if not len(true):
        return count(len(chosen), "box", "boxes")
    overlaps = ", ".join(map(format_share, compute_iou(chosen, true).max(axis=0)))
    return f"{count(len(chosen), 'box', 'boxes')}, overlap {overlaps}"


def describe_truth(record: Mapping[str, Any]) -> str:
    if record["prediction"] is not None:
        return clip_text(record["references"][0])
    true = record.get("target_boxes") or []
    return count(len(true), "box", "boxes") if true else "nothing fits"


def find_named_boxes(question: str, scene: Scene) -> list[Sequence[float]]:
    """The boxes of the objects that a question names: "the lamps", "the red lamp", "red objects"."""
    labels = scene.box_labels or []
    colors = {label.get("color") for label in labels} - {None}
    words = re.findall(r"[a-z]+", question.lower())
    found = []
    for box, label in zip(scene.boxes if labels else [], labels, strict=True):
        noun, color = label.get("category"), label.get("color")
        if not noun or not color:
            continue
        forms = (noun, PLURALS.get(noun, f"{noun}s"))
        pairs = list(zip(["", *words], words, strict=False))
        is_colored = any(before == color and word in forms + ANY_OBJECT for before, word in pairs)
        if is_colored or any(before not in colors and word in forms for before, word in pairs):
            found.append(box)
    return found


def find_asked_boxes(record: Mapping[str, Any], scene: Scene) -> list[Sequence[float]]:
    """The true boxes (6,) of what is asked about: the targets, the objects at its place, or those that it names."""
    if record.get("target_boxes") is not None:
        return record["target_boxes"]
    if scene.boxes is None:
        return []
    if record.get("query_coords") is not None:
        distance = np.abs(np.asarray(record["query_coords"]) - scene.boxes[:, :3]) - scene.boxes[:, 3:] / 2
        return list(scene.boxes[distance.max(axis=1) <= NEAR_POINT / 2])
    return find_named_boxes(record["question"], scene)


def make_pictures(record: Mapping[str, Any], scene: Scene) -> list[Markup]:
    """The views that best see what is asked about and what was chosen; or else the scene from above."""
    true, chosen = find_asked_boxes(record, scene), record.get("answer_boxes") or []
    points = [] if record.get("query_coords") is None else [record["query_coords"]]
    look = RIGHT_COLOR if record.get("right") else WRONG_COLOR
    boxes = [DrawnBox(box, look, width=4.0) for box in chosen]
    boxes += [DrawnBox(box, TARGET_COLOR, dashed=True, width=2.0) for box in true]
    cubes = [[*point, NEAR_POINT, NEAR_POINT, NEAR_POINT] for point in points]
    # Objects that a question names are each looked for in their own view.
    asked = [true] if record.get("target_boxes") is not None else [[box] for box in true]
    views = choose_views(scene, [cubes, *asked, chosen])[:MAX_VIEWS]
    drawn = ["a ring at the place"] * bool(points) + [count(len(true), "true box", "true boxes")] * bool(true)
    drawn += [count(len(chosen), "box that the model chose", "boxes that the model chose")] * bool(chosen)
    told = f" of {scene.scene_id}" + (f" with {', '.join(drawn)}" if drawn else "")
    figures = [
        make_figure(draw_view(scene, view, boxes, points, TARGET_COLOR), f"view {view}", PICTURE_WIDTH,
                    alt=f"view {view}{told}")
        for view in views
    ]  # fmt: skip
    # Two pictures are enough to see where a box is.
    if len(figures) < MAX_VIEWS and scene.bev_bounds is not None and (chosen or not figures):
        above = make_bev_drawing(
            scene.bev_image, scene.bev_bounds, boxes, caption="from above", width=PICTURE_WIDTH,
            has_metres=scene.depth_maps is not None, alt=f"bird's-eye picture{told}",
        )  # fmt: skip
        return [*figures, above]
    return figures or [make_figure(scene.images[0], "view 0", PICTURE_WIDTH, alt=f"view 0 of {scene.scene_id}")]


def make_example(record: Mapping[str, Any], scene: Scene | None) -> Markup:
    """One question with its answer, the right answer and pictures; without a scene only in words."""
    sure = describe_sureness(record)
    said = join([element("b", describe_answer(record)), element("span", f" ({sure})" if sure else "", class_="soft")])
    lines = [
        element("p", make_mark(record.get("right")), " ", describe_question(record)),
        element("p", "Answer: ", said, class_="small"),
        element("p", f"Right answer: {describe_truth(record)}", class_="small"),
        element("p", record["scene_id"], class_="small soft"),
    ]
    pictures = [] if scene is None else [make_row(*make_pictures(record, scene))]
    return element("div", *pictures, *lines, class_="example")


def make_kind(group: Examples, examples: Mapping[tuple[str, str], Markup], is_open: bool) -> Markup:
    """The examples of one kind of question, to unfold."""
    judged = group.counts[True] + group.counts[False]
    score = f"{group.counts[True]} of {judged} answers right" if judged else "answers not judged one by one"
    parts = []
    for right, verdict in VERDICTS.items():
        chosen, number = group.chosen[right], group.counts[right]
        if not number:
            continue
        of = f"{verdict.lower()} answers" if right is not None else "answers"
        title = f"{verdict}: the surest {len(chosen)} of {number} {of}"
        cards = element("div", *(examples[record["task"], record["id"]] for record in chosen), class_="columns")
        parts += [element("h3", title), cards]
    title = element("b", get_title(group.question_type))
    return make_details(join([title, f" · {score}"]), *parts, is_open=is_open)


def make_examples_section(groups: Sequence[Examples], examples: Mapping[tuple[str, str], Markup]) -> Markup:
    """All kinds of questions with their examples.

    Args:
        examples: task and id of a record -> `make_example` of it.
    """
    note = (
        f"Of each kind of question, up to {EXAMPLES} right and {EXAMPLES} wrong answers: those that the model was"
        " surest of; of equally sure ones the first. So the wrong ones are its worst mistakes."
    )
    if any(group.task == "rooms" for group in groups):
        note += (
            " Here a number is right within a tenth, a description with all its words, a box from an overlap of half."
        )
    chosen = [record for group in groups for record in group.list_chosen()]
    if any(record.get("query_coords") or "target_boxes" in record for record in chosen):
        note += (
            " Dashed yellow: the true box of what is asked about. Green or red: the box that the model chose, right or"
            " wrong. A yellow ring: the place that is asked about. The views are those that see the boxes best, by"
            " depth. Overlap: what two boxes share, as a part of what they cover together."
        )
    kinds = [make_kind(group, examples, place == 0) for place, group in enumerate(groups)]
    return make_section("Examples", *kinds, note=note)


__all__ = [
    "PICTURE_WIDTH",
    "Examples",
    "choose_examples",
    "describe_answer",
    "describe_question",
    "describe_sureness",
    "describe_truth",
    "find_asked_boxes",
    "make_example",
    "make_examples_section",
    "make_mark",
]
