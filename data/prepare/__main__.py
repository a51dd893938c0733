"""Prepare data once: `python -m ross3d.data.prepare COMMAND --help`.

    scannet         raw ScanNet scans and official annotations -> a data folder for train.py, eval.py and `datasets`
    posed-images    Video-3D-LLM's public files -> the same
    align           axis_align.txt for scans that came without an alignment, estimated from their depth
    bev             bird's-eye pictures of the scenes of a data folder
    proposals       boxes to choose among, for the scenes of a data folder: from depth, masks or a list

An interrupted command continues when it is run again.
"""

import argparse
import os

from ross3d.command_line import COUNT, DEBUG_HELP, NUM_VIEWS, Number, parse_path, run_program
from ross3d.data.bev import MAX_BEV_SIZE
from ross3d.data.prepare.align import prepare_alignments
from ross3d.data.prepare.bev import SOURCES, prepare_bev
from ross3d.data.prepare.finish import format_account
from ross3d.data.prepare.posed_images import prepare_posed_images
from ross3d.data.prepare.proposals import ProposalSource, prepare_proposals
from ross3d.data.prepare.scannet import CHOICES, ScanSettings, prepare_scannet
from ross3d.data.sources.options import add_allow_outside, add_scan_options, get_scan_options
from ross3d.data.upright import LOW_CONFIDENCE


BEV_SIZE = Number(whole=True, least=1, most=MAX_BEV_SIZE)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ross3d.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    scannet = commands.add_parser("scannet", help="raw scans and official annotations")
    scannet.add_argument("--scans", required=True, type=parse_path, help="folder with sceneNNNN_NN folders")
    scannet.add_argument(
        "--annotations", required=True, type=parse_path, help="folder that contains the official files, at any depth"
    )
    scannet.add_argument("--proposals", type=parse_path, help="folder with Mask3D's SCENE.mask.npz")
    scannet.add_argument("--bev", choices=SOURCES, default="mesh", help="source of the bird's-eye picture")
    scannet.add_argument("--published", action="store_true", help="also write processed/ and metadata/ as published")
    scannet.add_argument(
        "--choose",
        choices=CHOICES,
        default="uniform",
        help="views to choose: evenly spaced, or those that cover most of the mesh",
    )
    public = commands.add_parser("posed-images", help="Video-3D-LLM's public files")
    public.add_argument(
        "--root", required=True, type=parse_path, help="the folder `data` with scannet/, processed/, ..."
    )
    public.add_argument(
        "--bev",
        choices=("depth", "published"),
        default="depth",
        help="bird's-eye picture: rendered from depth, or the published view_0.jpg",
    )
    for command in (scannet, public):
        command.add_argument("--output", required=True, type=parse_path, help="data folder to write")
        command.add_argument("--views", type=NUM_VIEWS, default=32, help="views per scan")
        command.add_argument("--partial", action="store_true", help="leave out questions about missing scans")
        add_allow_outside(command)
    align = commands.add_parser("align", help="write axis_align.txt for scans without an alignment")
    align.add_argument("--data", required=True, type=parse_path, help="a data folder, a split or a scan of it")
    align.add_argument("--force", action="store_true", help="also replace an existing axis_align.txt")
    align.add_argument(
        "--min-confidence",
        type=float,
        default=LOW_CONFIDENCE,
        help=f"write nothing below this confidence, from 0 to 1 (default: {LOW_CONFIDENCE})",
    )
    bev = commands.add_parser("bev", help="bird's-eye pictures")
    bev.add_argument("--data", required=True, type=parse_path, help="a data folder, a split or a scene of it")
    bev.add_argument("--from", dest="source", choices=SOURCES, default="depth", help="source of the pictures")
    bev.add_argument("--scans", type=parse_path, help="folder of the sceneNNNN_NN folders with meshes or view_0.jpg")
    proposals = commands.add_parser("proposals", help="candidate boxes for grounding")
    proposals.add_argument("--data", required=True, type=parse_path, help="a data folder, a split or a scene of it")
    made_elsewhere = proposals.add_mutually_exclusive_group()
    made_elsewhere.add_argument(
        "--masks", type=parse_path, help="SCENE.txt of Mask3D or SCENE.mask.npz, or their folder"
    )
    made_elsewhere.add_argument(
        "--boxes", type=parse_path, help="JSON file of boxes, keyed by scene if there are several"
    )
    proposals.add_argument("--scans", type=parse_path, help="folder of the scans whose meshes the masks belong to")
    proposals.add_argument(
        "--force", action="store_true", help="also replace existing boxes, even those of a benchmark"
    )
    for command in (align, bev, proposals):
        add_scan_options(command)
    for command in (scannet, public, bev):
        command.add_argument(
            "--bev-size", type=BEV_SIZE, default=432, help="side length of the bird's-eye picture, in pixels"
        )
    for command in (scannet, public, align, bev, proposals):
        command.add_argument(
            "--num-workers",
            type=COUNT,
            default=os.cpu_count() or 1,
            help="number of processes (default: one per core)",
        )
        command.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.command in ("align", "bev", "proposals"):
        if arguments.command == "align":
            counts = prepare_alignments(
                arguments.data,
                arguments.force,
                arguments.num_workers,
                arguments.min_confidence,
                get_scan_options(arguments),
            )
        elif arguments.command == "bev":
            counts = prepare_bev(
                arguments.data,
                arguments.source,
                arguments.bev_size,
                arguments.scans,
                arguments.num_workers,
                get_scan_options(arguments),
            )
        else:
            source = ProposalSource(arguments.masks, arguments.boxes, arguments.scans, get_scan_options(arguments))
            counts = prepare_proposals(arguments.data, source, arguments.force, arguments.num_workers)
        print(f"{arguments.data}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        return
    if arguments.command == "scannet":
        finished = prepare_scannet(
            arguments.scans,
            arguments.annotations,
            arguments.output,
            ScanSettings(arguments.views, arguments.choose, arguments.bev, arguments.bev_size),
            arguments.proposals,
            arguments.partial,
            arguments.published,
            arguments.num_workers,
            arguments.allow_outside,
        )
    else:
        finished = prepare_posed_images(
            arguments.root,
            arguments.output,
            arguments.views,
            arguments.bev,
            arguments.bev_size,
            arguments.partial,
            arguments.num_workers,
            arguments.allow_outside,
        )
    print(format_account(finished, arguments.output))


if __name__ == "__main__":
    run_program(main)
