"""Ask a model about a scan of posed RGB-D frames.

    python tools/ask.py SCAN --model DIR_OR_REPO [--axis-align FILE] [--boxes FILE] [--views 8] [--output PAGE.html]
        [--rotate auto|0|90|180|270] [--max-excluded SHARE] [--allow-outside]
        "How many chairs are there?" "find the table" ...

SCAN is a folder of any layout that `data/sources` reads, or a video. A scan without an alignment is turned upright by
an estimate from its depth, and boxes are proposed if none are given; both are reported, and can be checked on the
page. Prints which views it chose, encodes them once, answers each question, and writes a page. Questions that begin
with "find " (all of them, with `--ground`) are answered by boxes if there are any. Boxes are given in the upright
world and in the scan's own frame, on the page and in a JSON file with the page's name. Answers in words have a token
probability, boxes a score and a margin to "no target". With a `calibration.json` beside the model's weights, which
`python -m ross3d.tools.calibrate` writes, they have a confidence, and a scan that is unlike the training causes a
warning. If the checkpoint has a teacher, one view is masked and rebuilt.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ross3d.command_line import COUNT, COUNT_OR_NONE, NUM_VIEWS, add_debug, parse_path, run_program
from ross3d.data.annotations import MARKS
from ross3d.data.atomic import check_output_file, write_text
from ross3d.data.bev import BEVPicture, render_scene_bev
from ross3d.data.consistency import measure_scene_agreement
from ross3d.data.own_scan import OwnScan, get_box_corners, read_own_scan
from ross3d.data.sanity import Sanity, measure_sanity
from ross3d.data.scene import Scene
from ross3d.data.sources.options import add_scan_options, get_scan_options
from ross3d.data.text_files import read_json
from ross3d.data.upright import LOW_CONFIDENCE
from ross3d.metrics.grounding import choose_proposal, drop_duplicates, select_proposals
from ross3d.report.ask import Answer, BevPicture, Rebuilt, make_ask_page
from ross3d.report.html import Markup
from ross3d.report.run import write_page
from ross3d.report.sanity import make_sanity_section
from ross3d.report.scene import make_boxes_section
from ross3d.tasks.confidence import CALIBRATION_FILE, get_box_confidence, get_text_confidence
from ross3d.training.calibration import list_scan_warnings, load_calibration
from ross3d.training.checkpoint import GEOMETRY_MODES, find_checkpoint, load_processor
from ross3d.training.loading import load_model as read_weights


NO_CONFIDENCE = (
    f"no {CALIBRATION_FILE} for this model's weights (python -m ross3d.tools.calibrate): its answers have no"
    " confidence, and the scan is not compared with those of its training."
)


def load_model(
    name: str, device: str, geometry_mode: str | None = None, allow_missing: bool = False
) -> tuple[Any, Any, bool]:
    """Model and processor of a checkpoint folder or Hub id, and whether it has a teacher, which is then attached."""
    folder = find_checkpoint(name)
    processor = load_processor(folder, geometry_mode)
    model = read_weights(folder, allow_missing=allow_missing).to(device).eval()
    has_teacher = (folder / "teacher").is_dir() and model.reconstruction_head is not None
    if has_teacher:
        model.attach_teacher(folder / "teacher")
    return model, processor, has_teacher


def check_questions(questions: Sequence[str]) -> None:
    """Refuse questions that cannot be asked with this tool, before the scan is read.

    Raises:
        ValueError: names the first, and what to write instead.
    """
    for question in questions:
        if not question.strip():
            raise ValueError(f"questions: expected text in each question, got {list(questions)}; write a question.")
        marks = [mark for mark in MARKS if mark in question]
        if marks:
            raise ValueError(
                f"questions: expected plain text, got the special tokens {marks} in {question[:100]!r}; remove them:"
                ' describe a place in words, and start with "find " (or use --ground) to get boxes.'
            )
        try:
            question.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"questions: expected text in UTF-8, got other bytes at character {error.start} of"
                f" {question[:100]!r}; type it again."
            ) from error


def choose_grounded(questions: list[str], ground_all: bool, has_boxes: bool, has_head: bool) -> list[bool]:
    """For each question, whether it is answered by boxes.

    Raises:
        ValueError: when all are to be grounded and there are no boxes or the model
            has no grounding head.
    """
    if ground_all and not has_boxes:
        raise ValueError("--ground: expected candidate boxes, got none; give --boxes FILE or a boxes.json.")
    if ground_all and not has_head:
        raise ValueError("--ground: expected a model with a grounding head, got one without; leave out --ground.")
    about_boxes = [ground_all or question.lower().startswith("find ") for question in questions]
    if any(about_boxes) and not has_boxes:
        print('there are no candidate boxes (--boxes FILE or a boxes.json): "find ..." is answered with text.')
    elif any(about_boxes) and not has_head:
        print('this model has no grounding head: "find ..." is answered with text.')
    return [has_boxes and has_head and about for about in about_boxes]


def answer_in_words(
    model: Any, processor: Any, cache: Any, questions: list[str], max_new_tokens: int, calibration: dict | None = None
) -> list[Answer]:
    """Greedy answers to questions about an encoded scene."""
    if not questions:
        return []
    asks = processor(text=questions, return_tensors="pt").to(model.device)
    outputs = model.generate(
        scene=cache, **asks, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True
    )
    texts = processor.batch_decode(outputs.sequences[:, asks["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = []
    for question, text, probability in zip(questions, texts, outputs.token_probability.tolist(), strict=True):
        confidences = list_known([get_text_confidence(calibration, probability)])
        answers.append(Answer(question, text.strip(), token_probability=probability, confidences=confidences))
    return answers


def answer_with_boxes(
    model: Any,
    processor: Any,
    cache: Any,
    questions: list[str],
    boxes: np.ndarray,
    are_proposed: bool,
    calibration: dict | None = None,
) -> list[Answer]:
    """The boxes that answer each question: none, one or several; no duplicates of those `are_proposed` from depth."""
    if not questions:
        return []
    asks = processor(text=questions, return_tensors="pt").to(model.device)
    answers = []
    for question, scores in zip(questions, model.ground(scene=cache, **asks).float().cpu().numpy(), strict=True):
        chosen = select_proposals(scores)
        chosen = drop_duplicates(chosen, boxes) if are_proposed else chosen
        text = "; ".join(describe_box(number, boxes[number]) for number in chosen) or "none of the boxes"
        # Without a box that was chosen, the best one tells how sure that is.
        judged = chosen or list_known([choose_proposal(scores)])
        margins = [float(scores[number] - scores[-1]) for number in judged]
        confidences = list_known([get_box_confidence(calibration, margin, bool(chosen)) for margin in margins])
        scored = [float(scores[number]) for number in judged]
        answers.append(Answer(question, text, boxes[chosen].tolist(), chosen, None, scored, margins, confidences))
    return answers


def list_known(values: Sequence[Any]) -> list:
    """The values that are not None."""
    return [value for value in values if value is not None]


def make_boxes_table(scan: OwnScan, title: str, names: Sequence[str], boxes: np.ndarray) -> Markup:
    """A table of boxes (K, 6) of the upright world, in both frames, for a page."""
    return make_boxes_section(title, names, boxes, get_box_corners(boxes, scan.scan_to_world), scan.scan_to_world)


def make_found_boxes(scan: OwnScan, answers: Sequence[Answer]) -> Markup | None:
    """A table of the boxes that answers found, each once, in both frames; None if none was found."""
    numbers = sorted({number for answer in answers for number in answer.numbers})
    if not numbers:
        return None
    return make_boxes_table(scan, "Found boxes", [str(number) for number in numbers], scan.boxes[numbers])


def describe_in_scan(scan: OwnScan, answer: Answer) -> list[str]:
    """One line per box of an answer: its centre in the scan's own frame, metres; no lines if that is the world's."""
    if not answer.boxes or np.array_equal(scan.scan_to_world, np.eye(4)):
        return []
    centres = get_box_corners(np.array(answer.boxes), scan.scan_to_world).mean(1)
    return [
        "box {} in the scan frame: centre ({:.2f}, {:.2f}, {:.2f})".format(number, *centre)
        for number, centre in zip(answer.numbers, centres, strict=True)
    ]


def check_record_file(file: Path) -> None:
    """Refuse to replace a JSON file that is no record of answers, such as `transforms.json`.

    Raises:
        ValueError: names the file and what to do.
    """
    if not file.exists():
        return
    try:
        read_json(file, "a record of answers", keys=["answers", "scan_to_world"])
    except ValueError as error:
        raise ValueError(
            f"--output: expected no other file at {file}, where the answers are written as JSON; choose another name"
            " for the page."
        ) from error


def make_record(
    scan: OwnScan, scene: Scene, answers: Sequence[Answer], model_name: str, unlike: Sequence[str]
) -> dict:
    """The answers as JSON data: boxes in the upright world and in the scan's own frame, metres."""
    return {
        "scene_id": scene.scene_id,
        "model": model_name,
        "world": scan.describe_world(),
        "scan_to_world": scan.scan_to_world.tolist(),
        "views": scene.view_names,
        "answers": [
            {"question": answer.question, "answer": answer.text}
            | make_confidence_record(answer)
            | ({} if answer.boxes is None else {"boxes": make_box_records(scan, answer)})
            for answer in answers
        ],
        "unlike_training": list(unlike),
    }


def make_confidence_record(answer: Answer) -> dict:
    """How sure an answer as a whole is: of an answer in words, and of "none of the boxes"."""
    if answer.boxes:
        return {}
    names = {"token_probability": answer.token_probability}
    for name, values in (("score", answer.scores), ("margin", answer.margins), ("confidence", answer.confidences)):
        names[name] = values[0] if values else None
    return {name: value for name, value in names.items() if value is not None}


def make_box_records(scan: OwnScan, answer: Answer) -> list[dict]:
    """The number, centre and size in the upright world, and corners in the scan's frame, of each box of an answer."""
    if not answer.boxes:
        return []
    corners = get_box_corners(np.array(answer.boxes), scan.scan_to_world)
    records = [
        {
            "number": int(number),
            "box": box,
            "corners_in_scan": eight.tolist(),
            "centre_in_scan": eight.mean(0).tolist(),
            "score": score,
            "margin": margin,
        }
        for number, box, eight, score, margin in zip(
            answer.numbers, answer.boxes, corners, answer.scores, answer.margins, strict=True
        )
    ]
    for record, confidence in zip(records, answer.confidences, strict=False):
        record["confidence"] = confidence
    return records


def describe_box(number: int, box: np.ndarray) -> str:
    """A text with number, centre and size of a box, metres in the upright world."""
    middle, size = ([f"{value:.1f}" for value in part] for part in (box[:3], box[3:]))
    return f"box {number} at ({', '.join(middle)}), {' x '.join(size)} m"


def rebuild_masked_view(
    model: Any, inputs: Any, scene: Scene, masked_view: int, picture: BEVPicture, num_inference_steps: int
) -> Rebuilt:
    """Mask one view, then sample it and the bird's-eye picture from the other views."""
    views, bev = model.reconstruct(
        **inputs,
        masked_views=[masked_view],
        bev_bounds=torch.as_tensor(picture.bounds)[None].to(model.device),
        num_inference_steps=num_inference_steps,
        generator=torch.Generator().manual_seed(0),
    )
    sample, above = (p.float().permute(1, 2, 0).cpu().numpy() for p in (views[0][0], bev[0]))
    return Rebuilt(masked_view, scene.images[masked_view], sample, above)


def list_doubts(scan: OwnScan) -> list[str]:
    """Warnings for a low-confidence alignment."""
    if scan.estimate is None or scan.estimate.confidence >= LOW_CONFIDENCE:
        return []
    confidence, weakest = scan.estimate.confidence, scan.estimate.weakest
    return [f"the alignment has a confidence of only {confidence:.2f} (weakest: {weakest})"]


def check_scan(scan: OwnScan, sanity: Sanity, bev_image: np.ndarray, bev_bounds: np.ndarray) -> Markup:
    """The sanity section of a scan with posed depth and a bird's-eye picture; its warnings are printed too."""
    doubts = list_doubts(scan) + sanity.list_warnings()
    for warning in doubts:
        print(f"warning, see the page: {warning}.")
    facts = sanity.list_facts()
    agreement = measure_scene_agreement(scan.scene)
    if agreement is not None:
        facts.append(("depth confirmed by other views, %", f"{100 * agreement:.0f}"))
    notes = [scan.alignment, scan.describe_boxes()]
    bev = bev_image, bev_bounds
    return make_sanity_section(scan.scene.cam2world, scan.boxes, bev, sanity.points, facts, doubts, notes)


def parse_device(name: str) -> str:
    """Parse the name of a device, which has to hold tensors on this machine."""
    try:
        torch.empty(0, device=name)
    # A torch that was built without a device's library raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"expected a device such as cpu or cuda:0, got {name!r}: {reason}") from error
    return name


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=parse_path, help="folder of a scan, or a video")
    parser.add_argument("questions", nargs="+", help="questions, each in quotation marks")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument(
        "--axis-align",
        type=parse_path,
        help="4x4 matrix from the scan to the upright world (default: the scan's own, or estimated)",
    )
    parser.add_argument(
        "--boxes", type=parse_path, help="JSON file of candidate boxes (default: the scan's own, or proposed)"
    )
    parser.add_argument("--views", type=NUM_VIEWS, default=8, help="number of views")
    add_scan_options(parser)
    parser.add_argument("--ground", action="store_true", help="answer every question with boxes")
    parser.add_argument("--mask", type=COUNT_OR_NONE, help="view to mask and reconstruct (default: the middle one)")
    parser.add_argument("--steps", type=COUNT, default=50, help="sampler steps")
    parser.add_argument("--max-new-tokens", type=COUNT, default=48, help="maximum length of an answer, in tokens")
    parser.add_argument(
        "--geometry-mode",
        choices=GEOMETRY_MODES,
        help=(
            "how views are cropped and depth is pooled (default: the model's setting); published refuses to crop"
            " portrait images"
        ),
    )
    parser.add_argument("--allow-missing-weights", action="store_true", help="initialise missing weights at random")
    parser.add_argument(
        "--device",
        type=parse_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device, such as cpu or cuda:0 (default: a GPU if available)",
    )
    parser.add_argument("--output", type=parse_path, default=Path("ask.html"), help="HTML page to write")
    add_debug(parser)
    return parser.parse_args(args)


@torch.no_grad()
def main(args: list[str] | None = None) -> list[Answer]:
    """Read, answer, rebuild, write; returns the answers in the order of the questions."""
    options = parse_arguments(args)
    check_output_file(options.output, "--output", ".html")
    check_record_file(options.output.with_suffix(".json"))
    check_questions(options.questions)
    if options.mask is not None and options.mask >= options.views:
        raise ValueError(
            f"--mask: expected a view from 0 to {options.views - 1} (--views {options.views}), got {options.mask};"
            " choose one of them."
        )
    calibration = load_calibration(find_checkpoint(options.model))
    scan = read_own_scan(
        options.scan,
        axis_align_matrix=options.axis_align,
        boxes=options.boxes,
        reading=get_scan_options(options),
    )
    scene = scan.read_views(options.views)
    print(f"{scan.alignment}\n{scan.describe_boxes()}\n{scene.num_views} views: {', '.join(scene.view_names)}")
    masked_view = scene.num_views // 2 if options.mask is None else options.mask
    if not 0 <= masked_view < scene.num_views:
        raise ValueError(f"--mask: expected a view from 0 to {scene.num_views - 1}, got {options.mask}.")
    model, processor, has_teacher = load_model(
        options.model, options.device, options.geometry_mode, options.allow_missing_weights
    )
    has_boxes = len(scan.boxes) > 0
    given = scene.get_inputs(proposal_boxes=scan.boxes if has_boxes else None)
    inputs = processor(**given, return_tensors="pt").to(options.device)
    cache = model.encode_scene(**inputs)
    unlike = list_scan_warnings(calibration, model, processor, inputs, scene.cam2world)
    for sentence in unlike:
        print(f"warning: answers may be worse than their confidence says: {sentence}.")

    has_head = model.grounding_head is not None
    about_boxes = choose_grounded(options.questions, options.ground, has_boxes, has_head)
    asked = list(zip(options.questions, about_boxes, strict=True))
    spoken = [question for question, boxes in asked if not boxes]
    grounded = [question for question, boxes in asked if boxes]
    in_words = iter(answer_in_words(model, processor, cache, spoken, options.max_new_tokens, calibration))
    are_proposed = scan.proposals is not None
    with_boxes = iter(answer_with_boxes(model, processor, cache, grounded, scan.boxes, are_proposed, calibration))
    answers = [next(with_boxes if boxes else in_words) for _, boxes in asked]
    for answer in answers:
        sure = answer.describe_confidence()
        text = f"{answer.text} ({'confidence ' if answer.confidences else ''}{sure})" if sure else answer.text
        print("\n  ".join([answer.question, text, *describe_in_scan(scan, answer)]))
    if calibration is None:
        print(NO_CONFIDENCE)

    bev, rebuilt, section, floor_height = None, None, None, None
    if scene.depth_maps is not None:
        picture = render_scene_bev(scan.scene)
        bev = BevPicture(picture.image, picture.bounds, scan.boxes)
        sanity = measure_sanity(scan.scene, scan.surface)
        section, floor_height = check_scan(scan, sanity, picture.image, picture.bounds), sanity.floor_height
        if has_teacher:
            rebuilt = rebuild_masked_view(model, inputs, scene, masked_view, picture, options.steps)
    boxes = make_found_boxes(scan, answers)
    page = make_ask_page(
        scene, answers, bev, rebuilt, options.model, scan.describe_world(), section, boxes, floor_height, unlike
    )
    print(write_page(options.output, page))
    record = options.output.with_suffix(".json")
    write_text(record, json.dumps(make_record(scan, scene, answers, options.model, unlike), indent=1) + "\n")
    print(record)
    return answers


if __name__ == "__main__":
    run_program(main)
