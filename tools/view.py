"""Write an HTML page of a scene or of an evaluated run.

    python tools/view.py SCENE_OR_RUN [--output PAGE.html] [--blind DIR] [--picture PICTURE.png]
        [--axis-align FILE] [--boxes FILE] [--rotate auto|0|90|180|270] [--max-excluded SHARE] [--allow-outside]
        [--rerun]

A folder with `metrics.json` is a run: its page is written to `report.html` in it, and `--picture` also writes its
reconstructions as one picture. Evaluations in folders of the run stand beside it on the page, under the names of
their folders; `blind` is the blind model. Anything else is read as a scan or a video, and turned upright by an
estimate if it has no alignment. `--rerun` opens the scan in the rerun viewer, if rerun is installed.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ross3d.command_line import add_debug, parse_path, run_program
from ross3d.data.atomic import check_output_file
from ross3d.data.bev import get_scene_points, render_scene_bev
from ross3d.data.own_scan import OwnScan, has_any, read_own_scan
from ross3d.data.sanity import measure_sanity
from ross3d.data.scene import Scene
from ross3d.data.sources import get_reading, read_scene
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.sources.options import add_scan_options, get_scan_options
from ross3d.data.text_files import read_json
from ross3d.report.picture import make_picture, save_picture
from ross3d.report.run import make_run_page, write_page
from ross3d.report.scene import get_box_names, make_scene_page
from ross3d.tools.ask import check_scan, make_boxes_table


MAX_RERUN_POINTS = 500_000


def get_bev(scene: Scene) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Bird's-eye picture and its bounds: the stored ones, or rendered from the depth; None without depth."""
    if scene.bev_bounds is not None:
        return scene.bev_image, scene.bev_bounds
    if scene.depth_maps is None:
        return None, None
    picture = render_scene_bev(scene)
    return picture.image, picture.bounds


def get_run_reader(run_dir: Path) -> Callable[[Path], Scene]:
    """A function that reads the views that a run used, for scenes inside its data folder."""
    file = run_dir / "metrics.json"
    settings = read_json(file, "the output of eval.py", keys=["settings", "scores"])["settings"]
    missing = [name for name in ("num_views", "decode", "view_size", "data", "model", "tasks") if name not in settings]
    if missing:
        raise ValueError(f"{file}: expected the settings of an evaluation, got none of {missing}; evaluate again.")
    # Older runs lack these settings.
    given = {name: settings.get(name) for name in ("rotate", "max_excluded")}
    allow_outside = bool(settings.get("allow_outside"))
    reading = get_reading(
        settings["num_views"], settings["decode"], settings["view_size"], **given, allow_outside=allow_outside
    )

    def read(folder: Path) -> Scene:
        root = Path(settings["data"])
        resolve_inside(
            root,
            os.path.relpath(folder, root),
            where=str(run_dir / "metrics.json"),
            # The run recorded whether this was allowed; the options of this command do not change it.
            allow_outside=allow_outside or None,
            check_links=False,
        )
        return read_scene(folder, **reading)

    return read


def open_rerun(scene: Scene) -> None:
    """Show points, cameras, pictures and boxes in rerun.

    Raises:
        ImportError: when rerun is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise ImportError("--rerun: expected the package rerun-sdk, got none; run `pip install rerun-sdk`.") from error
    rerun.init(f"ross3d {scene.scene_id}", spawn=True)
    rerun.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    points, colors = get_scene_points(scene)
    kept = np.random.default_rng(0).permutation(len(points))[:MAX_RERUN_POINTS]
    rerun.log("world/points", rerun.Points3D(points[kept], colors=colors[kept]), static=True)
    for index, matrix in enumerate(scene.cam2world):
        name = f"world/cameras/{index}"
        intrinsics = np.broadcast_to(scene.intrinsics, (scene.num_views, 3, 3))[index]
        height, width = scene.depth_maps.shape[1:]
        rerun.log(name, rerun.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3]), static=True)
        rerun.log(name, rerun.Pinhole(image_from_camera=intrinsics, width=width, height=height), static=True)
        rerun.log(f"{name}/picture", rerun.Image(scene.images[index]), static=True)
    if scene.boxes is not None:
        rerun.log("world/boxes", rerun.Boxes3D(centers=scene.boxes[:, :3], sizes=scene.boxes[:, 3:]), static=True)


def make_page_of_scan(scan: OwnScan) -> str:
    """The page of a scan as HTML; its warnings are printed too."""
    scene, section, floor_height = scan.scene, None, None
    image, bounds = get_bev(scene)
    if bounds is not None and scene.depth_maps is not None:
        sanity = measure_sanity(scene, scan.surface)
        section, floor_height = check_scan(scan, sanity, image, bounds), sanity.floor_height
    names = get_box_names(scene) if has_any(scene.boxes) else [str(number) for number in range(len(scan.boxes))]
    title = "Boxes" if scan.proposals is None else "Boxes proposed from depth"
    boxes = make_boxes_table(scan, title, names, scan.boxes) if len(scan.boxes) else None
    bev = None if bounds is None else (image, bounds)
    return make_scene_page(scene, scan.describe_world(), bev, section, boxes, floor_height)


def check_options(options: argparse.Namespace, is_run: bool) -> None:
    """Refuse options that do not apply to what is shown.

    Raises:
        ValueError: names them.
    """
    of_run, of_scan = ("blind", "picture"), ("axis_align", "boxes", "rotate", "max_excluded", "allow_outside", "rerun")
    given = [f"--{name.replace('_', '-')}" for name in (of_scan if is_run else of_run) if getattr(options, name)]
    if given:
        kind, other = ("an evaluated run", "a scan") if is_run else ("a scan (no metrics.json)", "an evaluated run")
        raise ValueError(
            f"{', '.join(given)}: expected {other}, the only kind that uses it, got {kind} in {options.path}; leave"
            " it out."
        )
    if options.rerun and importlib.util.find_spec("rerun") is None:
        raise ImportError("--rerun: expected the package rerun-sdk, got none; run `pip install rerun-sdk`.")


def main(args: list[str] | None = None) -> Path:
    """Parse, read, write; returns the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=parse_path, help="folder of a scan, or output folder of eval.py")
    parser.add_argument("--output", type=parse_path, help="HTML page to write")
    parser.add_argument("--blind", type=parse_path, help="run: output folder of the evaluation of the blind model")
    parser.add_argument("--picture", type=parse_path, help="run: write an image of its reconstructions to this file")
    parser.add_argument("--axis-align", type=parse_path, help="scan: 4x4 matrix from the scan to the upright world")
    parser.add_argument("--boxes", type=parse_path, help="scan: JSON file of boxes")
    parser.add_argument("--rerun", action="store_true", help="scan: also open the rerun viewer")
    add_scan_options(parser)
    add_debug(parser)
    options = parser.parse_args(args)
    for option, suffix in (("output", ".html"), ("picture", ".png")):
        if (file := getattr(options, option)) is not None:
            check_output_file(file, f"--{option}", suffix)
    is_run = (options.path / "metrics.json").is_file()
    check_options(options, is_run)
    if is_run:
        page = make_run_page(options.path, get_run_reader(options.path), options.blind)
        output = options.output or options.path / "report.html"
        if options.picture is not None:
            save_picture(options.picture, make_picture(options.path))
    else:
        scan = read_own_scan(
            options.path,
            axis_align_matrix=options.axis_align,
            boxes=options.boxes,
            reading=get_scan_options(options),
        )
        scene = scan.scene
        print(f"{scan.alignment}\n{scan.describe_boxes()}")
        if options.rerun:
            open_rerun(scene)
        page = make_page_of_scan(scan)
        output = options.output or Path(f"{scene.scene_id}.html")
    print(write_page(output, page))
    return output


if __name__ == "__main__":
    run_program(main)
