"""The page of one scene: its views, its bird's-eye picture with cameras and boxes, and the numbers behind them."""

from collections.abc import Sequence

import numpy as np

from ross3d.data.scene import Scene
from ross3d.report.bev import DrawnBox, make_bev_drawing
from ross3d.report.html import (
    Markup,
    element,
    make_details,
    make_figure,
    make_page,
    make_row,
    make_section,
    make_table,
)


PAGE_VIEWS = 24
# CSS names of the colours that box labels use, where the two differ.
FALLBACK_COLOR = "#ffd60a"


def describe_scene(scene: Scene, floor_height: float | None = None) -> list[tuple[str, str]]:
    """A few figures of a scene, as (name, value).

    Args:
        floor_height (`float`, *optional*): z of the floor, metres, if it was seen; without it, heights above the floor
            are left out.
    """
    facts = [("views", str(scene.num_views)), ("pixels", "{1} × {0}".format(*scene.images.shape[1:3]))]
    if scene.depth_maps is not None:
        readings = scene.depth_maps[scene.depth_maps > 0]
        low, high = np.quantile(readings, [0.01, 0.99])
        facts.append(("depth, m (1st to 99th percentile)", f"{low:.2f} – {high:.2f}"))
        facts.append(("pixels with depth, %", f"{100 * len(readings) / scene.depth_maps.size:.0f}"))
    if scene.cam2world is not None and floor_height is not None:
        heights = scene.cam2world[:, 2, 3] - floor_height
        facts.append(("camera height above the floor, m", f"{heights.min():.2f} – {heights.max():.2f}"))
    if scene.boxes is not None:
        facts.append(("boxes", str(len(scene.boxes))))
    return facts


def get_box_names(scene: Scene) -> list[str]:
    labels = scene.box_labels or [{}] * len(scene.boxes)
    names = (" ".join(str(label[key]) for key in ("color", "category") if label.get(key)) for label in labels)
    return [f"{index} {name}".strip() for index, name in enumerate(names)]


def make_views_section(scene: Scene, masked: Sequence[int] = (), note: str = "") -> Markup:
    """The views with their names, at most `PAGE_VIEWS`, evenly spread."""
    shown = np.unique(np.linspace(0, scene.num_views - 1, min(PAGE_VIEWS, scene.num_views)).astype(int))
    names = scene.view_names or [f"view {index}" for index in range(scene.num_views)]
    figures = [
        make_figure(
            scene.images[index],
            f"{index}: {names[index]}" + (", masked" if index in masked else ""),
            width=165,
            masked=index in masked,
        )
        for index in shown
    ]
    if len(shown) < scene.num_views:
        note = f"{note} {len(shown)} of {scene.num_views} shown.".strip()
    return make_section("Views", make_row(*figures), note=note)


def make_boxes_section(
    title: str, names: Sequence[str], boxes: np.ndarray, corners: np.ndarray, scan_to_world: np.ndarray
) -> Markup:
    """Boxes in the upright world and in the scan's own frame, with the matrix between the two.

    Args:
        names: one per box. boxes (`np.ndarray` of shape `(K, 6)`): centre and size, metres, upright world.
        corners (`np.ndarray` of shape `(K, 8, 3)`): of each box in the scan's own frame, metres.
        scan_to_world (`np.ndarray` of shape `(4, 4)`): from the scan's own frame to the upright world.
    """
    rows = [[name, *[f"{value:.2f}" for value in box]] for name, box in zip(names, boxes, strict=True)]
    headers = ["box", "x", "y", "z", "size x", "size y", "size z"]
    if np.array_equal(scan_to_world, np.eye(4)):
        note = "Metres. The scan frame equals the upright world."
        return make_section(title, make_table(headers, rows, numeric=range(1, 7)), note=note)
    for row, eight in zip(rows, corners, strict=True):
        row += [f"{value:.2f}" for value in eight.mean(0)]
    headers += ["x in the scan", "y in the scan", "z in the scan"]
    note = (
        "Metres. x, y, z and sizes are in the upright world; the last three columns give the centre in the scan"
        " frame, that of the camera files. The matrix transforms points from the scan frame to the upright world."
    )
    matrix = make_table(["", "", "", ""], [[f"{value:.6f}" for value in row] for row in scan_to_world], range(4))
    eights = [[name, "  ".join("({:.2f}, {:.2f}, {:.2f})".format(*corner) for corner in eight)]
              for name, eight in zip(names, corners, strict=True)]  # fmt: skip
    return make_section(
        title,
        make_table(headers, rows, numeric=range(1, 10)),
        element("h3", "Scan frame to upright world"),
        matrix,
        make_details("Corners in the scan frame", make_table(["box", "eight corners, metres"], eights)),
        note=note,
    )


def make_scene_page(
    scene: Scene,
    lead: str,
    bev: tuple[np.ndarray, Sequence[float]] | None = None,
    sanity: Markup | None = None,
    boxes: Markup | None = None,
    floor_height: float | None = None,
) -> str:
    """The whole page as HTML.

    Args:
        scene (`Scene`): the scene.
        lead (`str`): a sentence about what is known of unit and axes.
        bev (*optional*): bird's-eye picture (H, W, 3) and its bounds (4,), metres.
        sanity (`Markup`, *optional*): of `make_sanity_section`. boxes (`Markup`, *optional*): of `make_boxes_section`.
        floor_height (`float`, *optional*): see `describe_scene`.
    """
    sections = []
    if bev is not None:
        image, bounds = bev
        # Without depth the unit of the world is unknown.
        has_metres = scene.depth_maps is not None
        bev = make_bev_drawing(
            image, bounds, cam2world=scene.cam2world, width=480, has_metres=has_metres,
            caption="Cameras: each wedge starts at the camera and opens in the viewing direction.",
        )  # fmt: skip
        drawings = [bev]
        if scene.boxes is not None and len(scene.boxes):
            drawn = [
                DrawnBox(box, FALLBACK_COLOR, name.split(" ")[0])
                for box, name in zip(scene.boxes, get_box_names(scene), strict=True)
            ]
            drawings.append(
                make_bev_drawing(
                    image, bounds, drawn, width=480, caption="Boxes with their numbers.", has_metres=has_metres
                )
            )
        note = "The ceiling is removed; x points right, y up. Unobserved areas are black."
        sections.append(make_section("Bird's-eye picture", make_row(*drawings), note=note))
    if sanity is not None:
        sections.append(sanity)
    sections.append(make_views_section(scene))
    if boxes is not None:
        sections.append(boxes)
    return make_page(f"Scene {scene.scene_id}", lead, describe_scene(scene, floor_height), sections)


__all__ = ["describe_scene", "get_box_names", "make_boxes_section", "make_scene_page", "make_views_section"]
