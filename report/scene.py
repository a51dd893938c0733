"""The page of one scene: its views, itself from above with cameras and boxes, and the numbers behind them."""

from collections.abc import Sequence

import numpy as np

from ross3d.data.scene import Scene
from ross3d.report.html import Markup, make_figure, make_page, make_row, make_section, make_table
from ross3d.report.plan import DrawnBox, make_plan


PAGE_VIEWS = 24
# CSS names of the colours that box labels use, where the two differ.
FALLBACK_COLOR = "#ffd60a"


def describe_scene(scene: Scene) -> list[tuple[str, str]]:
    """A few figures of a scene, as (name, value)."""
    facts = [("views", str(scene.num_views)), ("pixels", "{1} × {0}".format(*scene.images.shape[1:3]))]
    if scene.depth_maps is not None:
        readings = scene.depth_maps[scene.depth_maps > 0]
        low, high = np.quantile(readings, [0.01, 0.99])
        facts.append(("depth, m (1st to 99th percentile)", f"{low:.2f} – {high:.2f}"))
        facts.append(("pixels with depth, %", f"{100 * len(readings) / scene.depth_maps.size:.0f}"))
    if scene.cam2world is not None:
        heights = scene.cam2world[:, 2, 3]
        facts.append(("cameras above the floor, m", f"{heights.min():.2f} – {heights.max():.2f}"))
    if scene.boxes is not None:
        facts.append(("boxes", str(len(scene.boxes))))
    return facts


def get_box_names(scene: Scene) -> list[str]:
    labels = scene.box_labels or [{}] * len(scene.boxes)
    names = (" ".join(str(label[key]) for key in ("color", "category") if label.get(key)) for label in labels)
    return [f"{index} {name}".strip() for index, name in enumerate(names)]


def make_views_section(scene: Scene, hidden: Sequence[int] = (), note: str = "") -> Markup:
    """The views with their names, at most `PAGE_VIEWS`, evenly spread."""
    shown = np.unique(np.linspace(0, scene.num_views - 1, min(PAGE_VIEWS, scene.num_views)).astype(int))
    names = scene.view_names or [f"view {index}" for index in range(scene.num_views)]
    figures = [
        make_figure(
            scene.images[index],
            f"{index}: {names[index]}" + (", hidden" if index in hidden else ""),
            width=165,
            hidden=index in hidden,
        )
        for index in shown
    ]
    if len(shown) < scene.num_views:
        note = f"{note} {len(shown)} of {scene.num_views} shown.".strip()
    return make_section("Views", make_row(*figures), note=note)


def make_scene_page(
    scene: Scene, bev_image: np.ndarray | None, bev_bounds: Sequence[float] | None, sanity: Markup | None = None
) -> str:
    """The whole page as HTML.

    Args:
        scene (`Scene`): see there.
        bev_image (`np.ndarray` of shape `(H, W, 3)`, *optional*), bev_bounds (4,): the scene from above.
        sanity (`Markup`, *optional*): of `make_sanity_section`.
    """
    sections = []
    if bev_image is not None:
        plan = make_plan(
            bev_image, bev_bounds, cam2world=scene.cam2world, width=480,
            caption="Cameras: the tip of a wedge is where a camera stands, it opens to where it looks.",
        )  # fmt: skip
        drawings = [plan]
        if scene.boxes is not None and len(scene.boxes):
            boxes = [
                DrawnBox(box, FALLBACK_COLOR, name.split(" ")[0])
                for box, name in zip(scene.boxes, get_box_names(scene), strict=True)
            ]
            drawings.append(make_plan(bev_image, bev_bounds, boxes, width=480, caption="Boxes, by number."))
        note = "Seen from above, ceiling removed; x to the right, y up. Void is black."
        sections.append(make_section("From above", make_row(*drawings), note=note))
    if sanity is not None:
        sections.append(sanity)
    sections.append(make_views_section(scene))
    if scene.boxes is not None and len(scene.boxes):
        rows = [
            [name, *[f"{value:.2f}" for value in box]]
            for name, box in zip(get_box_names(scene), scene.boxes, strict=True)
        ]
        headers = ["box", "x", "y", "z", "size x", "size y", "size z"]
        sections.append(make_section("Boxes", make_table(headers, rows, numeric=range(1, 7)), note="Metres."))
    return make_page(f"Scene {scene.scene_id}", "Posed views in metres, z up.", describe_scene(scene), sections)


__all__ = ["describe_scene", "make_scene_page", "make_views_section"]
