"""Check whether a scan is upright: bird's-eye picture, two side views with cameras, floor line and boxes, and figures.

Drawing coordinates of a side view: x or y of the world to the right, z up, one scale on both axes, metres on the left.
"""

from collections.abc import Sequence

import numpy as np

from ross3d.report.bev import CAMERA_COLOR, SIDE, DrawnBox, make_bev_drawing
from ross3d.report.charts import make_text
from ross3d.report.html import Markup, element, encode_data_uri, encode_png, make_row, make_section, make_table


BOX_COLOR, FLOOR_COLOR, READING_COLOR = "#ffd60a", "#ff453a", (142, 180, 220)
# The range of z, metres, that a side view shows at least, and the limits beyond which it never shows anything.
LEAST_HEIGHT, MOST_HEIGHT = (-0.3, 2.0), (-2.0, 4.0)
# The number of readings in a pixel that has full brightness.
BRIGHTEST = 20


def make_density(
    across: np.ndarray, heights: np.ndarray, span: Sequence[float], levels: Sequence[float]
) -> np.ndarray:
    """Picture (H, SIDE, 3) of the number of readings per pixel, logarithmic; row 0 is the highest."""
    rows = max(1, round(SIDE * (levels[1] - levels[0]) / (span[1] - span[0])))
    counts, _, _ = np.histogram2d(heights, across, (rows, SIDE), (levels, span))
    shade = np.clip(np.log1p(counts[::-1]) / np.log1p(BRIGHTEST), 0, 1)
    return np.round(shade[..., None] * np.array(READING_COLOR)).astype(np.uint8)


def make_side(
    points: np.ndarray, cam2world: np.ndarray, boxes: Sequence[Sequence[float]], bounds: Sequence[float], axis: int
) -> Markup:
    """A side view of a room.

    Args:
        points (`np.ndarray` of shape `(N, 3)`): readings, metres.
        cam2world (`np.ndarray` of shape `(V, 4, 4)`), boxes (K, 6): what is drawn on them.
        bounds (4,): xmin, ymin, xmax, ymax of the bird's-eye picture, metres.
        axis (`int`): 0 draws x against z, 1 y against z.
    """
    span = float(bounds[axis]), float(bounds[axis + 2])
    eyes = np.asarray(cam2world, np.float64)[:, :3, 3]
    seen = np.concatenate([np.quantile(points[:, 2], (0.001, 0.999)) if len(points) else [0.0], eyes[:, 2]])
    levels = (
        float(np.clip(seen.min() - 0.1, MOST_HEIGHT[0], LEAST_HEIGHT[0])),
        float(np.clip(seen.max() + 0.1, LEAST_HEIGHT[1], MOST_HEIGHT[1])),
    )
    image = make_density(points[:, axis], points[:, 2], span, levels)
    scale, height = SIDE / (span[1] - span[0]), len(image)

    def place(across: float, up: float) -> tuple[float, float]:
        return round((across - span[0]) * scale, 1), round((levels[1] - up) * scale, 1)

    marks = [element("image", href=encode_data_uri(encode_png(image)), width=SIDE, height=height)]
    for box in np.reshape(boxes, (-1, 6)):
        left, top = place(box[axis] - box[axis + 3] / 2, box[2] + box[5] / 2)
        width, tall = round(float(box[axis + 3]) * scale, 1), round(float(box[5]) * scale, 1)
        marks.append(element("rect", x=left, y=top, width=width, height=tall, fill="none", stroke=BOX_COLOR))
    for eye in eyes:
        x, y = place(eye[axis], eye[2])
        marks.append(element("circle", cx=x, cy=y, r=3.5, fill=CAMERA_COLOR, stroke="#fff"))
    for level in range(int(np.ceil(levels[0])), int(np.floor(levels[1])) + 1):
        marks.append(make_text(4, place(0, level)[1] - 3, f"{level} m", "start", "#fff", 11))
    floor = place(0, 0)[1]
    marks.append(element("line", x1=0, x2=SIDE, y1=floor, y2=floor, stroke=FLOOR_COLOR, stroke_dasharray="6 4"))
    name = "xy"[axis]
    drawing = element(
        "svg", *marks, viewBox=f"0 0 {SIDE} {height}", width=SIDE, height=height, role="img",
        aria_label=f"the scene from the side, {name} and z axes",
    )  # fmt: skip
    return element("figure", drawing, element("figcaption", f"Side view: {name} points right, z up."))


def make_sanity_section(
    cam2world: np.ndarray,
    boxes: Sequence[Sequence[float]],
    bev: tuple[np.ndarray, Sequence[float]],
    points: np.ndarray,
    facts: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    notes: Sequence[str],
) -> Markup:
    """The section of a page that shows whether a scan is upright.

    Args:
        cam2world (`np.ndarray` of shape `(V, 4, 4)`), boxes (K, 6), points (N, 3): cameras, boxes, readings, metres.
        bev: bird's-eye picture (H, W, 3) and its bounds (4,), metres.
        facts, warnings, notes: figures by name, what looks wrong, the origin of alignment and boxes; all as text.
    """
    image, bounds = bev
    drawn = [DrawnBox(box, BOX_COLOR, width=1.5) for box in boxes]
    nameless = [""] * len(cam2world)
    top = make_bev_drawing(image, bounds, drawn, cam2world, nameless, caption="Cameras and boxes, bird's-eye view.")
    sides = element("div", *(make_side(points, cam2world, boxes, bounds, axis) for axis in (0, 1)))
    lines = [element("p", f"{note[0].upper()}{note[1:]}.") for note in notes]
    lines += [element("p", f"Warning: {warning}.", class_="bad") for warning in warnings]
    note = (
        "Depth readings and cameras should be on or above the red line (z = 0), and walls parallel to the picture's"
        " edges."
    )
    table = make_table(["measured", ""], facts, numeric=[1])
    return make_section("Is it upright?", *lines, make_row(top, sides, table), note=note)


__all__ = ["make_sanity_section", "make_side"]
