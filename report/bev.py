"""The bird's-eye picture of a scene with drawings on it: cameras, proposals, targets, answers.

Drawing coordinates are those of `geometry_ross3d.project_bev`: x to the right, y up, row 0 along the largest y.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ross3d.report.charts import make_text
from ross3d.report.html import Markup, element, encode_data_uri, encode_picture, shrink


# Side of a drawing in its own units.
SIDE = 400
CAMERA_COLOR, MASKED_COLOR = "#2457c5", "#d9730d"


@dataclass(frozen=True)
class DrawnBox:
    """A box (6,) of centre and size, metres, with the style of its outline."""

    box: Sequence[float]
    color: str
    label: str = ""
    dashed: bool = False
    width: float = 2.0


def place_points(points: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """World x and y (N, 2+), metres -> drawing coordinates (N, 2)."""
    xmin, ymin, xmax, ymax = (float(value) for value in bounds)
    points = np.asarray(points, np.float64)
    across = (points[..., 0] - xmin) / (xmax - xmin) * SIDE
    down = (ymax - points[..., 1]) / (ymax - ymin) * SIDE
    return np.stack([across, down], axis=-1)


def draw_box(drawn: DrawnBox, bounds: Sequence[float]) -> list[Markup]:
    centre, size = np.asarray(drawn.box[:2], np.float64), np.asarray(drawn.box[3:5], np.float64)
    (left, bottom), (right, top) = place_points(np.stack([centre - size / 2, centre + size / 2]), bounds)
    outline = element(
        "rect",
        x=f"{left:.1f}",
        y=f"{top:.1f}",
        width=f"{max(right - left, 1):.1f}",
        height=f"{max(bottom - top, 1):.1f}",
        fill="none",
        stroke=drawn.color,
        stroke_width=drawn.width,
        stroke_dasharray="6 4" if drawn.dashed else None,
        rx=2,
    )
    return [outline, draw_label(left + 3, top + 13, drawn.label)] if drawn.label else [outline]


def draw_label(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    """Text with a dark rim, readable on any picture."""
    return element(
        "text",
        text,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        fill="#fff",
        stroke="#111827",
        stroke_width=3,
        paint_order="stroke",
        font_size=12,
        font_weight=600,
    )


def draw_cameras(
    cam2world: np.ndarray, names: Sequence[str], bounds: Sequence[float], masked: Sequence[int] = ()
) -> list[Markup]:
    """A wedge for each camera: its tip is at the camera's position, its opening points where the camera looks.

    Args:
        cam2world (`np.ndarray` of shape `(V, 4, 4)`): OpenCV axes, so the third column looks forward.
        names (list of `str`): one per view.
        masked (list of `int`): views drawn in the colour of masked ones.
    """
    marks = []
    length = 0.06 * (float(bounds[2]) - float(bounds[0]))
    for index, matrix in enumerate(np.asarray(cam2world, np.float64)):
        eye, forward = matrix[:2, 3], matrix[:2, 2]
        norm = np.linalg.norm(forward)
        # A camera that looks straight down has no heading; its wedge shrinks to its projected length on the floor.
        forward = forward / norm * max(norm, 0.35) if norm > 1e-6 else np.array([0.0, 1e-3])
        across = np.array([-forward[1], forward[0]]) * 0.45
        corners = np.stack([eye, eye + length * (forward + across), eye + length * (forward - across)])
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place_points(corners, bounds))
        color = MASKED_COLOR if index in masked else CAMERA_COLOR
        marks.append(element("polygon", points=path, fill=color, fill_opacity=0.75, stroke="#fff", stroke_width=1))
        x, y = place_points(eye[None] - length * 0.55 * forward, bounds)[0]
        marks.append(draw_label(x, y + 4, names[index], "middle"))
    return marks


def draw_scale(bounds: Sequence[float]) -> list[Markup]:
    """A bar of one metre in the lower left corner."""
    metre = SIDE / (float(bounds[2]) - float(bounds[0]))
    line = element("line", x1=10, x2=f"{10 + metre:.1f}", y1=SIDE - 10, y2=SIDE - 10, stroke="#fff", stroke_width=3)
    return [line, make_text(10, SIDE - 16, "1 m", "start", "#fff", 12)]


def make_bev_drawing(
    image: np.ndarray,
    bounds: Sequence[float],
    boxes: Sequence[DrawnBox] = (),
    cam2world: np.ndarray | None = None,
    camera_names: Sequence[str] = (),
    masked: Sequence[int] = (),
    caption="",
    width: int = 400,
    has_metres: bool = True,
    alt: str = "bird's-eye picture of the scene",
) -> Markup:
    """The bird's-eye picture (H, W, 3) of `bounds` (xmin, ymin, xmax, ymax) with drawings on it.

    Args:
        has_metres (`bool`): whether bounds are known to be metres, so that a bar of one metre can be drawn.
        alt (`str`): what the drawing shows, for those who do not see it.
    """
    href = encode_data_uri(encode_picture(shrink(image, 2 * SIDE)))
    backdrop = element("rect", width=SIDE, height=SIDE, fill="#0d1117")
    picture = element("image", href=href, width=SIDE, height=SIDE, style="image-rendering:pixelated")
    marks = draw_scale(bounds) if has_metres else []
    for drawn in boxes:
        marks += draw_box(drawn, bounds)
    if cam2world is not None:
        names = camera_names or [str(index) for index in range(len(cam2world))]
        marks += draw_cameras(cam2world, names, bounds, masked)
    drawing = element(
        "svg",
        backdrop,
        picture,
        *marks,
        viewBox=f"0 0 {SIDE} {SIDE}",
        width=width,
        height=width,
        role="img",
        aria_label=alt,
    )
    captions = [element("figcaption", caption)] if str(caption) else []
    return element("figure", drawing, *captions, style=f"width:{width}px")


__all__ = ["DrawnBox", "make_bev_drawing", "place_points"]
