"""The page of questions asked about a scan: the chosen views and their cameras, the answers, and reconstructions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ross3d.data.scene import Scene
from ross3d.report.bev import DrawnBox, make_bev_drawing
from ross3d.report.html import Markup, element, join, make_figure, make_page, make_row, make_section, make_table
from ross3d.report.scene import describe_scene, make_views_section


FOUND_COLOR, PROPOSAL_COLOR = "#34c759", "#9fb3c8"


@dataclass
class Answer:
    """The answer to one question.

    Attributes:
        question (`str`), text (`str`): the question, and the answer in words.
        boxes (list of 6 `float`): the boxes that were found; None when the question was not about boxes.
        numbers (list of `int`): their indices among the proposals.
        token_probability (`float`, *optional*): mean probability of the tokens of an answer in words.
        scores, margins (list of `float`): of the found boxes, or of the best one where none was found: score, and
            how far it is above that of "no target".
        confidences (list of `float`): probability that the answer in words is right, that each found box is meant, or
            that no box is; empty without calibration.
    """

    question: str
    text: str
    boxes: list[list[float]] | None = None
    numbers: list[int] = field(default_factory=list)
    token_probability: float | None = None
    scores: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    def describe_confidence(self) -> str:
        """The confidences in percent, one a box; without calibration the raw numbers; empty if there are none."""
        if self.confidences:
            return ", ".join(f"{100 * value:.0f} %" for value in self.confidences)
        if self.token_probability is not None:
            return f"token probability {self.token_probability:.2f}"
        return f"margin {', '.join(f'{value:+.2f}' for value in self.margins)}" if self.margins else ""


@dataclass
class Rebuilt:
    """Pictures sampled for what the model did not see.

    Attributes:
        masked_view (`int`): which of the views was masked.
        truth, sample (`np.ndarray` of shape `(H, W, 3)`): that view, and the model's sample of it.
        bev_sample (`np.ndarray` of shape `(H, W, 3)`): the model's sample of the bird's-eye picture.
    """

    masked_view: int
    truth: np.ndarray
    sample: np.ndarray
    bev_sample: np.ndarray | None = None


@dataclass
class BevPicture:
    """A bird's-eye picture (H, W, 3) and its bounds (4,), metres."""

    image: np.ndarray
    bounds: Sequence[float]
    boxes: Sequence[Sequence[float]] = field(default_factory=list)


def make_answers_section(
    answers: Sequence[Answer], bev: BevPicture | None, has_metres: bool = True, unlike: Sequence[str] = ()
) -> Markup:
    """The answers, after the things in which the scan is unlike those of the training."""
    rows = [[answer.question, answer.text, answer.describe_confidence()] for answer in answers]
    warned = element("ul", *(element("li", sentence, class_="bad") for sentence in unlike)) if unlike else ""
    table = join([warned, make_table(["question", "answer", "confidence"], rows)])
    grounded = [answer for answer in answers if answer.boxes is not None]
    figures = []
    if bev is not None:
        for answer in grounded:
            boxes = [DrawnBox(box, PROPOSAL_COLOR, width=1.0) for box in bev.boxes]
            found = zip(answer.boxes, answer.numbers, strict=True)
            boxes += [DrawnBox(box, FOUND_COLOR, str(number), width=3.0) for box, number in found]
            caption = join([answer.question, element("span", f" ({answer.text})", class_="soft")])
            figures.append(
                make_bev_drawing(bev.image, bev.bounds, boxes, caption=caption, width=330, has_metres=has_metres)
            )
    extra = [element("h3", "Boxes found, among all candidates"), make_row(*figures)] if figures else []
    return make_section("Answers", table, *extra)


def make_bev_section(scene: Scene, bev: BevPicture, masked: Sequence[int]) -> Markup:
    has_metres = scene.depth_maps is not None
    drawn = make_bev_drawing(
        bev.image, bev.bounds, cam2world=scene.cam2world, masked=masked, width=560, has_metres=has_metres,
        caption="Cameras of the chosen views: each wedge starts at the camera and opens in the viewing direction.",
    )  # fmt: skip
    bare = make_bev_drawing(
        bev.image, bev.bounds, width=420, caption="The same picture without cameras.", has_metres=has_metres
    )
    note = "Bird's-eye picture with the ceiling removed; x points right, y up. Unobserved areas are black."
    return make_section("Cameras", make_row(drawn, bare), note=note)


def make_rebuilt_section(rebuilt: Rebuilt, bev: BevPicture | None) -> Markup:
    figures = [
        make_figure(rebuilt.truth, f"view {rebuilt.masked_view}: original", 240),
        make_figure(rebuilt.sample, f"view {rebuilt.masked_view}: reconstructed from the other views", 240),
    ]
    if rebuilt.bev_sample is not None:
        truth = [] if bev is None else [make_figure(bev.image, "bird's-eye picture: from depth", 240)]
        figures += [*truth, make_figure(rebuilt.bev_sample, "bird's-eye picture: reconstructed", 240)]
    return make_section("Reconstruction", make_row(*figures), note="One sample of each.")


def make_ask_page(
    scene: Scene,
    answers: Sequence[Answer],
    bev: BevPicture | None,
    rebuilt: Rebuilt | None,
    model_name: str,
    world: str,
    sanity: Markup | None = None,
    boxes: Markup | None = None,
    floor_height: float | None = None,
    unlike: Sequence[str] = (),
) -> str:
    """The whole page as HTML.

    Args:
        scene (`Scene`): the chosen views only.
        world (`str`): a sentence about what is known of unit and axes.
        sanity (`Markup`, *optional*): of `make_sanity_section`. boxes (`Markup`, *optional*): the found ones, of
            `make_boxes_section`.
        floor_height (`float`, *optional*): see `describe_scene`.
        unlike (list of `str`): in what the scan is unlike those that the model was trained on.
    """
    masked = [] if rebuilt is None else [rebuilt.masked_view]
    sections = [make_answers_section(answers, bev, scene.depth_maps is not None, unlike)]
    if boxes is not None:
        sections.append(boxes)
    if bev is not None:
        sections.append(make_bev_section(scene, bev, masked))
    if sanity is not None:
        sections.append(sanity)
    note = "Views at even intervals over the scan. Answers use all of them; the reconstruction masks one."
    sections.append(make_views_section(scene, masked, note))
    if rebuilt is not None:
        sections.append(make_rebuilt_section(rebuilt, bev))
    lead = f"Answered by {model_name}. {world}"
    return make_page(f"Questions about {scene.scene_id}", lead, describe_scene(scene, floor_height), sections)


__all__ = ["Answer", "BevPicture", "Rebuilt", "make_ask_page"]
