"""Bad input: each error says what was expected, what came and what to do, beside input that only just passes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.rows_ross3d import COORD_TOKEN, GROUND_TOKEN, LLAVA_VIDEO
from ross3d.scenes.tokenizer import make_tokenizer
from ross3d.tests.posed_views import (
    HEIGHT,
    NUM_PROPOSALS,
    NUM_VIEWS,
    WIDTH,
    make_bev,
    make_test_processor,
    make_views,
)


ANSWER_HEADER = LLAVA_VIDEO.answer_header
SCENE_PREFIX = LLAVA_VIDEO.scene_prefix
TURN_END = LLAVA_VIDEO.turn_end


SCENE = "kitchen-7"


@pytest.fixture(scope="module")
def processor() -> Ross3DProcessor:
    return make_test_processor()


@pytest.fixture(scope="module")
def ours(processor) -> Ross3DProcessor:
    return make_test_processor(processor.tokenizer, geometry_mode="valid_depth")


@dataclass
class Case:
    """Input that is refused, what the error must say (in this order), and its nearest legal neighbour."""

    name: str
    bad: dict
    expected: str
    got: str
    remedy: str
    good: dict
    argument: str = ""

    def get_message(self) -> str:
        parts = [
            self.argument or self.name,
            SCENE,
            ": expected ",
            self.expected,
            ", got ",
            self.got,
            "; ",
            self.remedy,
        ]
        return ".*".join(re.escape(part) for part in parts)


def change(key: str, index, value) -> dict:
    """One argument of the scene with some of its entries replaced."""
    array = np.array(make_views()[key])
    array[index] = value
    return {key: array}


def rotate(scale: float = 1.0, flip: bool = False, digits: int | None = None) -> dict:
    poses = make_views()["cam2world"].copy()
    poses[1, :3, :3] *= scale
    if flip:
        poses[1, :3, 0] *= -1
    if digits is not None:
        poses = poses.round(digits)
    return {"cam2world": poses}


def without(*keys: str) -> dict:
    return dict.fromkeys(keys)


def make_camera(focal_x: float, focal_y: float, centre_x: float, centre_y: float) -> np.ndarray:
    return np.array([[focal_x, 0, centre_x], [0, focal_y, centre_y], [0, 0, 1]])


CAMERA = make_views()["intrinsics"]
GOOD_DEPTH = make_views()["depth_maps"]
BOXES = make_views()["proposal_boxes"]

GEOMETRY_CASES = [
    Case("depth_maps", {"depth_maps": (GOOD_DEPTH * 1000).astype(np.uint16)}, "metres as floating point",
         "dtype torch.uint16", "divide millimetres by 1000",
         {"depth_maps": (GOOD_DEPTH * 1000).astype(np.uint16) / 1000.0}),
    Case("depth_maps", {"depth_maps": GOOD_DEPTH * 1000}, "metres", "in views [0, 1, 2], which looks",
         "divide millimetres by 1000", {"depth_maps": GOOD_DEPTH * 16}),
    Case("depth_maps", change("depth_maps", 1, GOOD_DEPTH[1] * 1000), "metres", "a median depth of 1836 in views [1]",
         "divide millimetres by 1000", change("depth_maps", 1, GOOD_DEPTH[1] * 16)),
    Case("depth_maps", {"depth_maps": GOOD_DEPTH / 1000}, "metres", "which looks divided by 1000 twice", "pass metres",
         {"depth_maps": GOOD_DEPTH / 10}),
    Case("depth_maps", {"depth_maps": np.zeros_like(GOOD_DEPTH)}, "a reading in at least one view",
         "no depth above 0 in any view", "leave depth_maps out", change("depth_maps", slice(1, None), 0)),
    Case("depth_maps", change("depth_maps", (0, 3, 4), np.nan), "finite metres >= 0",
         "negative, infinite or NaN depth", "write 0 where the sensor has no reading",
         change("depth_maps", (0, 3, 4), 0)),
    Case("depth_maps", change("depth_maps", (0, 3, 4), np.inf), "finite metres >= 0", "infinite", "write 0",
         change("depth_maps", (0, 3, 4), 20)),
    Case("depth_maps", change("depth_maps", (2, 0, 0), -0.1), "finite metres >= 0", "negative", "write 0",
         change("depth_maps", (2, 0, 0), 0.1)),
    Case("depth_maps", change("depth_maps", (1, 7, 5), 65535.0), "readings up to 500 metres", "one of 65535",
         "write 0 where the sensor has no reading", change("depth_maps", (1, 7, 5), 65.0)),
    Case("depth_maps", {"depth_maps": GOOD_DEPTH[:2]}, "shape (3, H, W)", "(2, 36, 48)", "give one depth map a view",
         {"depth_maps": list(GOOD_DEPTH)}),
    Case("depth_maps", {"depth_maps": [GOOD_DEPTH[0], GOOD_DEPTH[1], GOOD_DEPTH[2][:20]]}, "arrays of one shape",
         "[(20, 48), (36, 48)]", "resize them", {"depth_maps": list(GOOD_DEPTH)}),
    Case("intrinsics", without("intrinsics"), "cameras with depth_maps", "None", "give intrinsics and cam2world",
         without("intrinsics", "depth_maps")),
    Case("cam2world", without("cam2world"), "cameras with depth_maps", "None", "give intrinsics and cam2world",
         without("cam2world", "intrinsics", "depth_maps")),
    Case("intrinsics", {"intrinsics": np.eye(4) * 40}, "shape (3, 3)", "(4, 4)", "of a 4 x 4 matrix pass [:3, :3]",
         {"intrinsics": CAMERA}),
    Case("intrinsics", {"intrinsics": np.stack([CAMERA] * 2)}, "shape (3, 3, 3)", "(2, 3, 3)", "pass one matrix",
         {"intrinsics": np.stack([CAMERA] * 3)}),
    Case("intrinsics", {"intrinsics": make_camera(90, 94, 47, 35)}, "in pixels of the 36 x 48 depth map",
         "focal [90, 94], centre [47, 35], which looks made for pictures 2 times as large", "scale the calibration",
         {"intrinsics": make_camera(90, 94, 29, 22)}),
    Case("intrinsics", {"intrinsics": make_camera(22, 23, 11.5, 8.5)}, "in pixels of the 36 x 48 depth map",
         "centre [11.5, 8.5], which looks made for pictures 0.5 times as large", "scale the calibration",
         {"intrinsics": make_camera(22, 23, 17, 12.5)}),
    Case("intrinsics", {"intrinsics": make_camera(45, 47, 23.5 / 1.5, 17.5 / 1.5)}, "in pixels of the 36 x 48 depth",
         "which looks made for pictures 0.6", "scale the calibration", {"intrinsics": make_camera(45, 47, 23, 17)}),
    Case("intrinsics", {"intrinsics": make_camera(47, 45, 17.5, 23.5)}, "in pixels of the 36 x 48 depth map",
         "centre [17.5, 23.5], which seems to belong to the image rotated by 90", "swap fx with fy and cx with",
         {"intrinsics": make_camera(47, 45, 17.5, 17.5)}),
    Case("intrinsics", {"intrinsics": make_camera(45, 47, 23.5, 0)}, "in pixels of the 36 x 48 depth map",
         "centre [23.5, 0], which is far from the image centre", "scale the calibration",
         {"intrinsics": make_camera(45, 47, 23.5, 8)}),
    Case("intrinsics", {"intrinsics": make_camera(0.94, 0.98, 0.5, 0.5)}, "focal lengths in pixels, above 1",
         "focal [0.94, 0.98]", "multiply normalised values by the size", {"intrinsics": CAMERA}),
    Case("intrinsics", {"intrinsics": make_camera(1e9, 47, 23.5, 17.5)}, "in pixels of the 36 x 48 depth map",
         "focal [1e+09, 47]", "scale the calibration", {"intrinsics": make_camera(400, 400, 23.5, 17.5)}),
    Case("intrinsics", {"intrinsics": make_camera(45, -47, 23.5, 17.5)}, "focal lengths in pixels, above 1",
         "focal [45, -47]", "look for a mirrored axis", {"intrinsics": make_camera(45, 47, 23.5, 17.5)}),
    Case("intrinsics", {"intrinsics": CAMERA.T}, "a pinhole camera fx 0 cx, 0 fy cy, 0 0 1",
         ", which looks transposed", "transpose matrices that are stored by columns", {"intrinsics": CAMERA}),
    Case("intrinsics", {"intrinsics": CAMERA[:, [2, 1, 0]]}, "a pinhole camera", "[23.5, 0.0, 45.0]", "transpose",
         {"intrinsics": CAMERA}),
    Case("intrinsics", {"intrinsics": CAMERA * 2}, "a pinhole camera", "[0.0, 0.0, 2.0]", "divide by the last entry",
         {"intrinsics": CAMERA * 2 / 2}),
    Case("intrinsics", change("intrinsics", (0, 1), 3.0), "a pinhole camera", "[45.0, 3.0, 23.5]",
         "rectify pictures with skew", change("intrinsics", (0, 1), 0.01)),
    Case("intrinsics", {"intrinsics": np.stack([CAMERA, CAMERA.T, CAMERA])}, "a pinhole camera",
         ", which looks transposed", "transpose matrices", {"intrinsics": np.stack([CAMERA] * 3)}),
    Case("intrinsics", {"intrinsics": np.full((3, 3), np.nan)}, "finite numbers", "NaN", "repair the calibration",
         {"intrinsics": CAMERA}),
    Case("cam2world", change("cam2world", (2, 0, 3), np.nan), "finite numbers", "NaN or infinity in views [2]",
         "drop the views", change("cam2world", (2, 0, 3), 1.0)),
    Case("cam2world", change("cam2world", (0,), -np.inf), "finite numbers", "NaN or infinity in views [0]",
         "drop the views", change("cam2world", (0,), np.eye(4))),
    Case("cam2world", rotate(scale=1.01), "rigid transforms",
         "deviation 0.0201 from a rotation, determinant 1.03, last row [0.0, 0.0, 0.0, 1.0] in views [1]",
         "remove scale", rotate(scale=1.0005)),
    Case("cam2world", rotate(flip=True), "rigid transforms",
         "from a rotation, determinant -1, last row [0.0, 0.0, 0.0, 1.0] in views [1]", "a mirrored axis",
         rotate(digits=4)),
    Case("cam2world", {"cam2world": make_views()["cam2world"].transpose(0, 2, 1)}, "last row 0 0 0 1",
         "1.0] in views [0, 1, 2]", "transpose matrices that are stored by columns", rotate()),
    Case("cam2world", {"cam2world": np.zeros((3, 4, 4))}, "a rotation",
         "a rotation of zeros in views [0, 1, 2]", "drop the views whose tracking was lost",
         rotate()),
    Case("cam2world", {"cam2world": make_views()["cam2world"][:, :3]}, "shape (3, 4, 4)", "(3, 3, 4)",
         "pass one camera-to-world matrix a view", rotate()),
    Case("cam2world", change("cam2world", (0, 0, 3), 2150.0), "translations in metres",
         "a camera 2150 from the origin in views [0]",
         "divide the translations by 1000", change("cam2world", (0, 0, 3), 215.0)),
    Case("proposal_boxes", change("proposal_boxes", (3, 4), -0.1), "sizes >= 0",
         "a negative size in boxes [3]", "turn corners into centre and size",
         change("proposal_boxes", (3, 4), 0.0)),
    Case("proposal_boxes", {"proposal_boxes": np.zeros((2, 7))}, "shape (K, 6)", "(2, 7)", "pass centre xyz and size",
         {"proposal_boxes": np.zeros((2, 6))}),
    Case("proposal_boxes", change("proposal_boxes", (0, 0), np.nan), "finite metres", "NaN", "drop the broken",
         change("proposal_boxes", (0, 0), 40.0)),
    Case("proposal_boxes", change("proposal_boxes", (0, 5), np.inf), "finite metres", "infinity", "drop the broken",
         change("proposal_boxes", (0, 5), 40.0)),
    Case("proposal_boxes", {"proposal_boxes": BOXES * 1000}, "coordinates in metres, within 500 of the origin",
         "in entries [0, 1, 2, 3, 4], which looks like millimetres", "divide millimetres by 1000",
         {"proposal_boxes": BOXES * 10}),
    Case("proposal_boxes", change("proposal_boxes", (3, 1), -90.0), "metres, within 50 of what the views show",
         "others in proposals [3]", "in the frame of cam2world", change("proposal_boxes", (3, 1), -30.0)),
    Case("proposal_boxes", change("proposal_boxes", (2, 4), 400.0), "metres, within 50 of what the views show",
         "others in proposals [2]", "divide millimetres", change("proposal_boxes", (2, 4), 40.0)),
    Case("proposal_boxes", {"proposal_boxes": [{"centre": [0, 0, 0], "size": [1, 1, 1]}] * 2}, "an array of numbers",
         "dict", "pass numbers alone", {"proposal_boxes": [[0, 0, 0, 1, 1, 1]] * 2}),
    Case("proposal_boxes", {"proposal_boxes": {"boxes": BOXES}}, "an array of numbers", "dict", "pass numbers alone",
         {"proposal_boxes": BOXES}),
    Case("proposal_boxes", {"proposal_boxes": "boxes.json"}, "an array of numbers", "str", "read the file, and pass",
         {"proposal_boxes": BOXES.astype(">f4")}),
    Case("proposal_boxes", {"proposal_boxes": BOXES.astype(str)}, "an array of numbers", "an array of dtype <U",
         "pass numbers alone", {"proposal_boxes": BOXES.astype(object)}),
    Case("proposal_boxes", {"proposal_boxes": (box for box in BOXES)}, "an array of numbers", "generator",
         "pass numbers alone", {"proposal_boxes": tuple(BOXES)}),
    Case("proposal_boxes", {"proposal_boxes": [[0, 1, 2, 1, 1, None]]}, "an array of numbers",
         "NoneType in a list", "give numbers for it, or leave", {"proposal_boxes": [[0, 1, 2, 1, 1, 1]]},
         "item 0 of proposal_boxes"),
    Case("proposal_boxes", {"proposal_boxes": np.zeros((5, 0))}, "shape (K, 6)", "(5, 0)", "pass centre xyz and size",
         {"proposal_boxes": np.zeros((0, 6))}),
    Case("proposal_boxes", {"proposal_boxes": BOXES > 0}, "real numbers", "dtype torch.bool", "pass floating point",
         {"proposal_boxes": (BOXES > 0).astype(int)}),
    Case("cam2world", {"cam2world": make_views()["cam2world"] + 0j}, "an array of numbers", "dtype complex128",
         "pass numbers alone", {"cam2world": make_views()["cam2world"].astype(">f8")}),
    Case("depth_maps", {"depth_maps": np.zeros((3, 0, 0))}, "maps that hold pixels", "shape (3, 0, 0)",
         "leave depth_maps out", {"depth_maps": GOOD_DEPTH.astype(">f4")}),
    Case("depth_maps", {"depth_maps": [[0, 1]] * 3}, "shape (3, H, W)", "(3, 2)", "give one depth map a view",
         {"depth_maps": GOOD_DEPTH.tolist()}),
    Case("depth_maps", {"depth_maps": [f"{view}.png" for view in range(3)]}, "an array of numbers", "str",
         "read the file, and pass the array", {"depth_maps": torch.from_numpy(GOOD_DEPTH).to(torch.bfloat16)}),
    Case("depth_maps", {"depth_maps": [GOOD_DEPTH[0], Path("1.png"), GOOD_DEPTH[2]]}, "an array of numbers", "Path",
         "read the file", {"depth_maps": GOOD_DEPTH[:, None]}, "item 1 of depth_maps"),
    Case("depth_maps", {"depth_maps": [GOOD_DEPTH[0], GOOD_DEPTH[1], None]}, "an array of numbers", "NoneType",
         "give numbers for it", {"depth_maps": list(GOOD_DEPTH[..., None])}, "item 2 of depth_maps"),
    Case("cam2world", {"cam2world": [make_views()["cam2world"][0], None, None]}, "an array of numbers", "NoneType",
         "give numbers for it, or leave the argument", {"cam2world": list(make_views()["cam2world"])},
         "item 1 of cam2world"),
    Case("intrinsics", {"intrinsics": b"45 0 23"}, "an array of numbers", "bytes", "read the file, and pass",
         {"intrinsics": CAMERA}),
    Case("depth_maps", {"depth_maps": np.ma.masked_less(GOOD_DEPTH, 1)}, "an array without a mask", "masked values",
         "fill them", {"depth_maps": np.ma.masked_less(GOOD_DEPTH, 1).filled(0)}),
    Case("depth_maps", {"depth_maps": np.ones((3, 4, 81))}, "a picture at most 20 times as long as wide", "81 x 4",
         "crop it", {"depth_maps": np.ones((3, 4, 80)), "intrinsics": make_camera(45, 45, 40, 1.5),
                     "images": [np.zeros((20, 400, 3), dtype=np.uint8)] * 3}),
]  # fmt: skip


def make_picture(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


VIEWS = make_views()["images"]
PICTURE_CASES = [
    Case("images", {"images": []}, "at least one view", "none", "pass the scene's pictures",
         {"images": VIEWS[:1]} | without("depth_maps")),
    Case("images[1]", {"images": [VIEWS[0], {"bytes": b""}, VIEWS[2]]}, "a picture (of PIL, its file or", "dict",
         "pass one of these, or leave the view out with its depth and camera", {"images": tuple(VIEWS)}),
    Case("images[2]", {"images": [*VIEWS[:2], None]}, "a picture (of PIL, its file or address, or an array of uint8)",
         "NoneType", "pass one of these", {"images": VIEWS}),
    Case("images[0]", {"images": [5, *VIEWS[1:]]}, "a picture (of PIL,", "int", "pass one of these",
         {"images": VIEWS}),
    Case("images[0]", {"images": [b"JFIF", *VIEWS[1:]]}, "a picture (of PIL,", "bytes",
         "open it first: PIL.Image.open(io.BytesIO(...))", {"images": VIEWS}),
    Case("images[1]", {"images": [VIEWS[0], "s3://bucket/1.png", VIEWS[2]]},
         "a path, a data URI or an address that begins with one of http://, https://, file://", "'s3://bucket/1.png'",
         "download the picture, and pass its path", {"images": VIEWS}),
    Case("images[0]", {"images": [" ", *VIEWS[1:]]}, "a path, a data URI or an address", "' '", "download",
         {"images": VIEWS}),
    Case("images[0]", {"images": torch.zeros(3, 3, 4, 4, device="meta")}, "a dense tensor that holds numbers",
         "torch.strided on meta", "load the tensor first", {"images": torch.from_numpy(np.stack(VIEWS))}),
    Case("images[2]", {"images": [*VIEWS[:2], make_picture(1, 60_000, 3)]}, "a picture at most 20 times", "60000 x 1",
         "crop it", {"images": [*VIEWS[:2], make_picture(HEIGHT, WIDTH, 3)]}),
    Case("images[2]", {"images": [*VIEWS[:2], torch.zeros((3, 8001, 1), dtype=torch.uint8).expand(3, 8001, 8001)]},
         "a picture of 1 to 64 megapixels", "8001 x 8001", "make it smaller", {"images": VIEWS}),
    Case("images[1]", {"images": [VIEWS[0], VIEWS[1] / 255.0, VIEWS[2]]}, "uint8 colours in 0..255", "dtype float64",
         "scale colours", {"images": VIEWS}),
    Case("images[2]", {"images": [*VIEWS[:2], make_picture(HEIGHT, WIDTH)]}, "shape (H, W, 3)", "(36, 48)",
         "pass RGB pictures", {"images": [*VIEWS[:2], make_picture(HEIGHT, WIDTH, 3)]}),
    Case("images[2]", {"images": [*VIEWS[:2], make_picture(HEIGHT, WIDTH, 4)]}, "shape (H, W, 3)", "(36, 48, 4)",
         "pass RGB pictures", {"images": [*VIEWS[:2], Image.fromarray(make_picture(HEIGHT, WIDTH, 4))]}),
    Case("images[0]", {"images": [Image.fromarray(make_picture(HEIGHT, WIDTH, dtype=np.uint16)), *VIEWS[1:]]},
         "a colour picture", "PIL mode I;16", "16-bit pictures are depth",
         {"images": [Image.fromarray(make_picture(HEIGHT, WIDTH)), *VIEWS[1:]]}),
]  # fmt: skip

WORDS_CASES = [
    Case("text", {"text": ["Hm?", f"{GROUND_TOKEN} or {GROUND_TOKEN}"]}, "at most one <ground>", "2 of them",
         "one referring expression at a time", {"text": ["Hm?", f"or {GROUND_TOKEN}"]}, "text of question 1"),
    Case("text", {"text": f"Which? {GROUND_TOKEN}", "answers": GROUND_TOKEN, "target_objects": [0]},
         "at most one <ground>, the answer's included", "2 of them", "one referring expression",
         {"text": "Which?", "answers": GROUND_TOKEN, "target_objects": [0]}),
    Case("text", {"text": f"{COORD_TOKEN} {COORD_TOKEN}", "query_coords": (0, 0, 0)}, "at most one <coord>",
         "2 of them", "ask about one place", {"text": COORD_TOKEN, "query_coords": (0, 0, 0)}),
    Case("text", {"text": f"<|im_start|>user\nHm?{TURN_END}\n{ANSWER_HEADER}"}, "exactly one <image>", "0 of them",
         "write one <image>", {"text": f"<|im_start|>user\n<image>Hm?{TURN_END}\n{ANSWER_HEADER}"}),
    Case("text", {"text": "Is <image> a room?"}, "<image> at the beginning or at the end of a plain question",
         "one among its words: 'Is <image> a room?'", "leave <image> out", {"text": "<image> Is this a room?"}),
    Case("text", {"text": "<image>Is <image> a room?"}, "<image> at the beginning or at the end",
         "one among its words", "leave <image> out", {"text": "<image><image>\n<image>Is this a room?"}),
    Case("text", {"text": "<image> <image> Hm?"}, "one <image> for all 3 views, or one a view", "2 of them",
         "leave <image> out", {"text": "Hm? <image>"}),
    Case("text", {"text": "<image>\n"}, "words, not blank text", "''", "leave text out", {"text": "<image>\n?"}),
    Case("text", {"text": ["Hm?", " \n\t"]}, "words, not blank text", r"' \n\t'", "leave text out",
         {"text": ["Hm?", " ?\n"]}, "text of question 1"),
    Case("text", {"text": "Hm\ud800?"}, "text that UTF-8 can hold", r"'\ud800' at letter 2, half of a surrogate pair",
         "write the text again", {"text": "Hm\U0001f600?"}),
    Case("text", {"text": [7]}, "a string", "int", "pass words, or no text at all", {"text": ["7"]}),
    Case("text", {"text": ["Hm?", f"<image>Hm?{TURN_END}\n"]}, "questions with the same text before <image>",
         "2 different beginnings", "scenes of their own",
         {"text": ["Hm?", f"{SCENE_PREFIX}Hm?{TURN_END}\n"]}),
    Case("text", {"text": f"<image>Hm?{TURN_END}", "answers": "yes"}, "a whole prompt that ends with",
         f"'Hm?{TURN_END}'", "add the assistant's header", {"text": f"<image>Hm?{ANSWER_HEADER}", "answers": "yes"}),
    Case("text", {"text": [f"{SCENE_PREFIX}{ANSWER_HEADER}", f"{SCENE_PREFIX}\n{ANSWER_HEADER}"],
                  "answers": ["yes", "no"]},
         "segments whose first supervised token is the same", "token ids", "pass one question a row",
         {"text": [f"{SCENE_PREFIX}\nHm?{ANSWER_HEADER}", f"{SCENE_PREFIX}\n{ANSWER_HEADER}"],
          "answers": ["yes", "no"]}),
    Case("query_coords", {"text": f"At {COORD_TOKEN} ?"}, "a point (x, y, z) in metres", "none", "pass query_coords=",
         {"text": f"At {COORD_TOKEN} ?", "query_coords": (0, 0, 0)}),
    Case("query_coords", {"text": ["A?", "B?"], "query_coords": [None, (0, 0, 0)]}, "none, since it has no <coord>",
         "[0.0, 0.0, 0.0]", "write <coord> where",
         {"text": ["A?", f"{COORD_TOKEN}?"], "query_coords": [None, (0, 0, 0)]},
         "query_coords of question 1"),
    Case("query_coords", {"text": ["A?", "B?"], "query_coords": (0, 0, 0)}, "a question with <coord>", "none",
         "write <coord>", {"text": ["A?", f"{COORD_TOKEN}?"], "query_coords": (0, 0, 0)}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": (0, np.nan, 0)}, "finite metres", "nan",
         "leave the point out", {"text": COORD_TOKEN, "query_coords": (0, 40, 0)}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": (350, -200, 80)},
         "a point in metres, within 50 of what the views show", "[350.0, -200.0, 80.0]", "divide millimetres by 1000",
         {"text": COORD_TOKEN, "query_coords": (0.35, -0.2, 0.08)}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": (2350, 0, 1e9)}, "metres, within 500 of the origin",
         "which looks like millimetres", "divide millimetres by 1000",
         {"text": COORD_TOKEN, "query_coords": (2.35, 0, 1)}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": ["0 1 2"]}, "an array of numbers", "str",
         "read the file, and pass", {"text": COORD_TOKEN, "query_coords": (0, 1, 2)}),
    Case("query_coords", {"text": [COORD_TOKEN], "query_coords": 3}, "1 items", "3", "nest it as text is nested",
         {"text": [COORD_TOKEN], "query_coords": [(3, 3, 3)]}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": (True, False, True)}, "real numbers",
         "dtype torch.bool", "pass floating point numbers", {"text": COORD_TOKEN, "query_coords": (1, 0, 1)}),
    Case("query_coords", {"text": COORD_TOKEN, "query_coords": [(0, 1, 2, 3, 4, 5)]}, "shape (3,)", "(6,)",
         "pass x, y, z", {"text": COORD_TOKEN, "query_coords": [(0, 1, 2)]}),
    Case("query_coords", {"text": [COORD_TOKEN] * 2, "query_coords": [(0, 1, 2)]}, "2 items", "[(0, 1, 2)]",
         "nest it as text", {"text": [COORD_TOKEN] * 2, "query_coords": [(0, 1, 2)] * 2}),
    Case("answers", {"text": ["A?", "B?"], "answers": ["yes"]}, "2 items", "['yes']", "nest it as text is nested",
         {"text": ["A?", "B?"], "answers": ["yes", "no"]}),
    Case("answers", {"text": ["A?", "B?"], "answers": "yes"}, "2 items", "'yes'", "nest it as text is nested",
         {"text": "A?", "answers": "yes"}),
    Case("answers", {"text": "A?", "answers": 3}, "a string", "int", "convert numbers with str()",
         {"text": "A?", "answers": "3"}),
    Case("answers", {"text": ["A?", "B?"], "answers": ["yes", None]}, "a string", "None", "leave the question out",
         {"text": ["A?", "B?"], "answers": ["yes", "?"]}, "answers of question 1"),
    Case("answers", {"text": ["A?", "B?"], "answers": ["yes", " "]}, "words, not blank text", "' '",
         "leave the question out", {"text": ["A?", "B?"], "answers": ["yes", " no"]}, "answers of question 1"),
    Case("answers", {"text": "A?", "answers": "\udfffyes"}, "text that UTF-8 can hold", "at letter 0",
         "write the text again", {"text": "A?", "answers": "\uffffyes"}),
    Case("answers", {"text": ["A?", "B?"], "answers": (word for word in "ab")}, "2 items", "<generator",
         "nest it as text is nested", {"text": ["A?", "B?"], "answers": list("ab")}),
    Case("answers", {"text": "A?", "answers": f"yes{TURN_END}"}, "plain words", "<|im_end|>", "remove these marks",
         {"text": "A?", "answers": "yes <end>"}),
    Case("answers", {"text": "A?", "answers": f"it is {GROUND_TOKEN}"}, "<ground> alone", "<ground>", "remove",
         {"text": "A?", "answers": GROUND_TOKEN, "target_objects": []}),
    Case("answers", {"text": "A?", "answers": "\nyes"}, "no line break at the beginning", r"'\nyes'",
         "strip the answer first", {"text": "A?", "answers": " yes\n"}),
    Case("target_objects", {"text": "A?", "answers": GROUND_TOKEN}, "a list of proposal indices ([] = no target)",
         "None", "pass target_objects=", {"text": "A?", "answers": GROUND_TOKEN, "target_objects": []}),
    Case("target_objects", {"text": "A?", "answers": "yes", "target_objects": [0]},
         "None for a question that is not answered by <ground>", "[0]", "pass '<ground>' as its answer",
         {"text": "A?", "answers": "yes", "target_objects": [None]}),
    Case("target_objects", {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [1, NUM_PROPOSALS]},
         "indices of the 5 proposals", "[1, 5]", "count proposals from 0",
         {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [1, NUM_PROPOSALS - 1]}),
    Case("target_objects", {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [True]},
         "indices of the 5 proposals", "[True]", "count proposals from 0",
         {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [1]}),
    Case("target_objects", {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [1.0]},
         "indices of the 5 proposals", "[1.0]", "count proposals from 0",
         {"text": "A?", "answers": GROUND_TOKEN, "target_objects": torch.tensor([1])}),
    Case("target_objects", {"text": ["A?", "B?"], "answers": [GROUND_TOKEN] * 2, "target_objects": [0, [1]]},
         "a list of proposal indices, or None", "0", "put one index into a list",
         {"text": ["A?", "B?"], "answers": [GROUND_TOKEN] * 2, "target_objects": [[0], [1]]}),
    Case("target_objects", {"text": "A?", "answers": GROUND_TOKEN, "target_objects": []} | without("proposal_boxes"),
         "proposal_boxes with it", "None", "pass proposal_boxes=",
         {"text": "A?", "answers": GROUND_TOKEN, "target_objects": [], "proposal_boxes": np.zeros((0, 6))}),
]  # fmt: skip

BEV = make_bev()
BEV_CASES = [
    Case("bev_image", {"bev_image": make_picture(20, 30, 3)}, "a square picture", "20 x 30", "square bounds",
         {"bev_image": make_picture(30, 30, 3)}),
    Case("bev_valid", {"bev_image": BEV["bev_image"], "bev_valid": np.ones((24, 24), dtype=bool)}, "shape (30, 30)",
         "(24, 24)", "pass one value a pixel", {"bev_image": BEV["bev_image"], "bev_valid": BEV["bev_valid"]}),
    Case("bev_bounds", {"bev_image": BEV["bev_image"], "bev_bounds": [4.0, -3.0, -2.0, 3.0]}, "xmin < xmax",
         "[4.0, -3.0, -2.0, 3.0]", "pass xmin, ymin, xmax, ymax",
         {"bev_image": BEV["bev_image"], "bev_bounds": [-2.0, -3.0, 4.0, 3.0]}),
    Case("bev_bounds", {"bev_image": BEV["bev_image"], "bev_bounds": [-2000.0, -3.0, 4.0, 3.0]},
         "coordinates in metres, within 500 of the origin", "[2000.0] in entries [0]", "divide millimetres by 1000",
         {"bev_image": BEV["bev_image"], "bev_bounds": [-20.0, -3.0, 4.0, 3.0]}),
    Case("bev_bounds", {"bev_image": BEV["bev_image"], "bev_bounds": [-2.0, np.nan, 4.0, 3.0]}, "xmin < xmax", "nan",
         "pass xmin, ymin, xmax, ymax", {"bev_image": BEV["bev_image"], "bev_bounds": (-2, -3, 4, 3)}),
    Case("bev_valid", {"bev_image": BEV["bev_image"], "bev_valid": BEV["bev_valid"] * np.nan}, "truth values",
         "torch.float64", "compare it", {"bev_image": BEV["bev_image"], "bev_valid": BEV["bev_valid"].astype(int)}),
    Case("bev_valid", {"bev_valid": BEV["bev_valid"]}, "bev_image with it", "None", "pass bev_image=",
         {"bev_valid": BEV["bev_valid"], "bev_image": BEV["bev_image"]}),
    Case("bev_bounds", {"bev_bounds": BEV["bev_bounds"]}, "bev_image with it", "None", "pass bev_image=",
         {"bev_bounds": BEV["bev_bounds"], "bev_image": BEV["bev_image"]}),
]  # fmt: skip

CASES = GEOMETRY_CASES + PICTURE_CASES + WORDS_CASES + BEV_CASES


@pytest.mark.filterwarnings("ignore:depth_maps of scene")
@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.name}" for i, case in enumerate(CASES)])
def test_refused_with_the_way_out(ours, case):
    scene = make_views() | {"scene_ids": [SCENE]}
    with pytest.raises(ValueError, match=case.get_message()):
        ours(**scene | case.bad)
    ours(**scene | case.good)


class TestFiles:
    def make_jpeg(self, file, keep: float):
        picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(picture).save(file, quality=95)
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])

    @pytest.mark.parametrize("as_image", [True, False])
    def test_truncated_jpeg(self, processor, tmp_path, as_image):
        whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
        self.make_jpeg(whole, 1.0)
        self.make_jpeg(cut, 0.6)
        load: Callable = Image.open if as_image else str
        message = rf"images\[1\] of scene {SCENE}: expected a readable picture, got .*cut\.jpg.*truncated.*; copy it"
        with pytest.raises(ValueError, match=message):
            processor(images=[load(whole), load(cut)], scene_ids=SCENE)
        processor(images=[load(whole), load(whole)], scene_ids=SCENE)

    def test_no_picture_at_all(self, processor, tmp_path):
        text, missing = tmp_path / "notes.jpg", tmp_path / "gone.jpg"
        text.write_text("no picture")
        for file in (text, str(text)):
            with pytest.raises(
                ValueError, match=r"images\[0\] of scene 0: expected a readable picture, got .*notes.jpg"
            ):
                processor(images=[file])
        for file in (missing, str(missing)):
            with pytest.raises(FileNotFoundError, match=r"images\[0\] of scene 0: the file .*gone.jpg does not exist"):
                processor(images=[file])


class TestLength:
    def test_rows_beyond_the_context(self, processor):
        """3 views of 12 positions and the words: one position too few is refused, the very number passes."""
        length = processor(images=VIEWS, text="Hm?")["input_ids"].shape[1]
        exact = make_test_processor(processor.tokenizer, max_position_embeddings=length)
        short = make_test_processor(processor.tokenizer, max_position_embeddings=length - 1)
        message = (
            rf"input_ids of scene {SCENE}: expected at most {length - 1} positions \(max_position_embeddings\), got"
            rf" {length}: {NUM_VIEWS} views of 12 and {length - 36} of text; use fewer views"
        )
        with pytest.raises(ValueError, match=message):
            short(images=VIEWS, text="Hm?", scene_ids=SCENE)
        found, wanted = (own(images=VIEWS, text="Hm?")["input_ids"] for own in (exact, processor))
        assert torch.equal(found, wanted)

    def test_questions_alone(self, processor):
        length = processor(text="Hm?")["input_ids"].shape[1]
        make_test_processor(processor.tokenizer, max_position_embeddings=length)(text="Hm?")
        short = make_test_processor(processor.tokenizer, max_position_embeddings=length - 1)
        with pytest.raises(ValueError, match=r"input_ids of question 0 of scene 0: expected at most"):
            short(text="Hm?")


class TestNesting:
    def test_batches_must_agree(self, processor):
        views = [VIEWS[:2], VIEWS]
        scenes = [make_views(2), make_views(3)]
        one_each = [np.zeros((4, 6)), np.zeros((1, 6))]
        nest_words, nest = "nest the words as images are nested", "nest it as images are nested"
        cases = [
            ({"text": ["A?"]}, f"text: expected 2 items, one a scene, got 1; {nest_words}", {"text": ["A?", "B?"]}),
            ({"text": ["A?", "B?"], "answers": ["yes"]}, "answers: expected 2 items", {"text": ["A?", "B?"]}),
            ({"proposal_boxes": one_each * 2}, f"proposal_boxes: expected 2 items, one a scene, got 4; {nest}",
             {"proposal_boxes": one_each}),
            ({"scene_ids": ["a"]}, "scene_ids: expected 2 names, one a scene, got 1", {"scene_ids": ["a", "b"]}),
        ]  # fmt: skip
        for bad, message, good in cases:
            with pytest.raises(ValueError, match=message):
                processor(images=views, **bad)
            processor(images=views, **good)
        geometry = {key: [scene[key] for scene in scenes] for key in ("depth_maps", "intrinsics", "cam2world")}
        processor(images=views, **geometry)
        with pytest.raises(ValueError, match=r"cam2world of scene 1: expected cameras with depth_maps"):
            processor(images=views, **geometry | {"cam2world": [scenes[0]["cam2world"], None]})

    def test_an_empty_scene_is_named(self, processor):
        with pytest.raises(ValueError, match="images of scene b: expected at least one view, got none"):
            processor(images=[VIEWS, []], scene_ids=["a", "b"])

    def test_a_long_name_of_a_scene_is_shortened(self, processor):
        with pytest.raises(ValueError, match=r"images of scene x{160} \.\.\. x{20}: expected at least one view"):
            processor(images=[[]], scene_ids=["x" * 9000])

    def test_words_without_questions(self, processor):
        with pytest.raises(ValueError, match=r"text: expected questions with \['answers'\], got None; pass text="):
            processor(images=VIEWS, answers="yes")
        processor(images=VIEWS)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"images": 7},
                "images: expected a picture, a list of pictures, or a list of such lists, got int; pass pict",
            ),
            ({"images": {"a": VIEWS[0]}}, "images: expected a picture, a list of pictures, .* got dict"),
            (
                {"images": [VIEWS, VIEWS[0]]},
                r"images: expected a list of pictures for every scene, got .*\['ndarray'\]",
            ),
            ({"scene_ids": 1.5}, "scene_ids: expected a name, or a list of one a scene, got float; pass one a scene"),
            ({"text": 7}, "text: expected a string, or a list of strings, got int; pass words, or no text at all"),
            ({"text": (word for word in "ab")}, "text: expected a string, or a list of strings, got generator"),
            (
                {"images": [VIEWS, VIEWS], "text": ["A?", "B?"], "answers": 3},
                "answers: expected 2 items, .* got int; nest",
            ),
        ],
    )
    def test_what_has_no_items(self, processor, given, message):
        with pytest.raises(ValueError, match=message):
            processor(**{"images": VIEWS} | given)
        processor(images=iter(VIEWS), text=("A?", "B?"), answers=("yes", "no"))

    def test_nothing(self, processor):
        with pytest.raises(ValueError, match="images: expected views of a scene, got neither images nor text; pass"):
            processor()
        processor(text="Hm?")


class TestQuestionsAlone:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"answers": "yes"}, "answers: expected views with it, got no images; pass images= as well"),
            ({"target_objects": [0]}, "target_objects: expected views with it, got no images"),
            ({"bev_image": BEV["bev_image"]}, "bev_image: expected views with it, got no images"),
            ({"depth_maps": GOOD_DEPTH}, "depth_maps: expected views or new proposals with it, got questions alone"),
            (
                {"text": "<image>Hm?"},
                "text of question 0 of scene 0: expected no <image>, since there are no views, got one; pass images=",
            ),
            ({"text": []}, "text: expected at least one question, got none"),
            ({"scene_index": [0, 1]}, r"scene_index: expected shape \(1,\), got \(2,\); pass one number a question"),
            ({"scene_index": [0.5]}, r"scene_index: expected whole numbers, scenes being counted from 0, got \[0.5\]"),
            ({"scene_index": [-1]}, r"scene_index: expected whole numbers, .* got \[-1\] .*number the scenes in the"),
            ({"scene_index": [True]}, r"scene_index: expected whole numbers, .* got \[True\] \(torch.bool\)"),
            ({"scene_index": "0"}, "scene_index: expected an array of numbers, got str"),
            ({"text": 5}, "text: expected a string, or a list of strings, got int; pass words"),
            (
                {"padding_side": "right"},
                "padding_side: expected 'left' for questions, whose answers go on at the ends of rows, got 'right'",
            ),
            (
                {"text": COORD_TOKEN, "query_coords": (0, 0, 5000)},
                "query_coords of .*: expected coordinates in metres, within 500 of the origin",
            ),
        ],
    )
    def test_what_needs_views(self, processor, given, message):
        with pytest.raises(ValueError, match=message):
            processor(**{"text": "Hm?"} | given)
        processor(text="Hm?", scene_index=[0])

    def test_scene_index_beside_views(self, processor):
        with pytest.raises(ValueError, match=r"scene_index: expected None with images, got \[0\]; row i is scene i"):
            processor(images=VIEWS, text="Hm?", scene_index=[0])


class TestModes:
    def test_a_leading_line_break_merges_with_the_instruction(self, processor):
        own = make_test_processor(processor.tokenizer, spatial_instruction=True)
        with pytest.raises(
            ValueError,
            match=r"text of question 0 .* no line break at the beginning, which would merge with that of the",
        ):
            own(images=VIEWS, text="\nHm?")
        own(images=VIEWS, text=" Hm?\n")
        processor(images=VIEWS, text="\nHm?")

    def test_pictures_and_depth_of_other_aspects(self, processor, ours):
        """Published mode stretches pictures to the aspect of the depth map; ours refuses to."""
        scene = make_views()
        message = r"images\[0\] of scene 0: expected the aspect of its 36 x 48 depth map, got a 48 x 36 picture"
        with pytest.raises(ValueError, match=message):
            ours(**scene | {"images": [view.transpose(1, 0, 2) for view in scene["images"]]})
        ours(**scene | {"images": [view[:, 1:] for view in scene["images"]]})
        processor(**scene | {"images": [view.transpose(1, 0, 2) for view in scene["images"]]})

    def test_portrait_depth_in_published_mode(self, processor, ours):
        scene = make_views() | {"intrinsics": CAMERA[[1, 0, 2]][:, [1, 0, 2]]}
        scene["depth_maps"] = scene["depth_maps"].transpose(0, 2, 1).copy()
        scene["images"] = [view.transpose(1, 0, 2) for view in scene["images"]]
        message = r"images\[0\] of scene 0: expected pictures at least as wide as high.*got 48 x 36.*'valid_depth'"
        with pytest.raises(ValueError, match=message):
            processor(**scene)
        ours(**scene)

    def test_readings_outside_the_crop_alone(self, ours):
        """The crop of a wide view leaves its sides out: readings there place no token."""
        scene = make_views()
        scene["depth_maps"] = np.zeros((NUM_VIEWS, HEIGHT, WIDTH), dtype=np.float32)
        scene["depth_maps"][:, :, 0] = 1.0
        with pytest.raises(ValueError, match="depth_maps of scene 0: expected a reading in the part of a view"):
            ours(**scene)
        scene["depth_maps"][:, :, WIDTH // 2] = 1.0
        ours(**scene)

    def test_scenes_are_named_by_number_otherwise(self, processor):
        scenes = [make_views(), make_views() | {"depth_maps": GOOD_DEPTH * 1000}]
        with pytest.raises(ValueError, match="depth_maps of scene 1: expected metres"):
            processor(**{key: [scene[key] for scene in scenes] for key in scenes[0]})


SCORES = torch.tensor([[0.2, 0.5, 0.9, 0.1], [0.3, 0.1, 0.8, 0.4]])


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"geometry_mode": "ours"}, r"geometry_mode: expected one of \('published', 'valid_depth'\), got 'ours'"),
            ({"label_rule": "all"}, r"label_rule: expected one of \('published', 'answer_only'\), got 'all'"),
            ({"spatial_instruction": "no"}, r"spatial_instruction: expected one of \(False, True\), got 'no'"),
            ({"patch_size": 41}, r"image_processor\.size: expected a square of at least one patch of 41 pixels"),
        ],
    )
    def test_constructor(self, processor, settings, message):
        with pytest.raises(ValueError, match=message):
            make_test_processor(processor.tokenizer, **settings)
        make_test_processor(processor.tokenizer, patch_size=40)

    def test_misspelt_settings(self, processor):
        with pytest.raises(TypeError, match="geometry_mod"):
            make_test_processor(processor.tokenizer, geometry_mod="published")

    def test_a_side_that_is_not_square(self, processor):
        with pytest.raises(
            ValueError, match=r"image_processor\.size: expected a square.*got \{'height': 40, 'width': 50"
        ):
            Ross3DProcessor(Ross3DImageProcessor(size={"height": 40, "width": 50}), processor.tokenizer)

    def test_a_tokenizer_without_the_marks(self):
        tokenizer = make_tokenizer(["chair"], vocab_size=300)
        stripped = type(tokenizer)(tokenizer_object=make_plain_tokenizer(), pad_token="<|endoftext|>")
        message = r"tokenizer: expected one token for <image>, got ids \[.*\]; add it with tokenizer\.add_tokens"
        with pytest.raises(ValueError, match=message):
            make_test_processor(stripped)
        stripped.add_tokens(["<image>", GROUND_TOKEN, COORD_TOKEN])
        make_test_processor(stripped)

    def test_no_padding_token(self):
        tokenizer = make_tokenizer(["chair"], vocab_size=300)
        tokenizer.pad_token = None
        own = make_test_processor(tokenizer)
        with pytest.raises(ValueError, match="tokenizer.pad_token: expected a padding token for rows of different"):
            own(text=["A?", "Is this longer?"])
        own(text=["A?", "B?"])

    def test_unknown_arguments_of_a_call(self, processor):
        with pytest.raises(ValueError, match=r"Ross3DProcessor: expected the arguments .*, got \['depths'\]; see"):
            processor(images=VIEWS, depths=GOOD_DEPTH)
        with pytest.raises(
            ValueError, match="videos: expected None: this model sees pictures, got list; pass the frames"
        ):
            processor(images=VIEWS, videos=VIEWS)
        with pytest.raises(ValueError, match="return_tensors: expected 'pt' or 'np', got 'tf'"):
            processor(images=VIEWS, return_tensors="tf")
        processor(images=VIEWS, videos=None, padding=True)

    def test_grounding_answers(self, processor):
        scores, boxes = torch.rand(2, 4), torch.rand(2, 3, 6)
        with pytest.raises(ValueError, match="selection: expected one of .*, got 'all'"):
            processor.post_process_grounding(scores, boxes[0], selection="all")
        with pytest.raises(ValueError, match="scene_index: expected the scene of each question, got None for several"):
            processor.post_process_grounding(scores, boxes)
        with pytest.raises(ValueError, match=r"scores: expected shape \(2, 4\), got \(2, 3\)"):
            processor.post_process_grounding(scores[:, 1:], boxes, scene_index=[0, 1])
        processor.post_process_grounding(scores, boxes, scene_index=[0, 1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 0}, "temperature: expected a number above 0, got 0; leave it out for the published one"),
            ({"temperature": float("nan")}, "temperature: expected a number above 0, got nan"),
            ({"temperature": float("inf")}, "temperature: expected a number above 0, got inf"),
            ({"threshold": 1.5}, "threshold: expected a number above 0 and at most 1, got 1.5"),
            ({"threshold": True}, "threshold: expected a number above 0 and at most 1, got True"),
            ({"max_overlap": 0}, "max_overlap: expected an IoU above 0 and at most 1, or None, got 0; choose 0.5 for"),
            ({"max_overlap": "0.5"}, "max_overlap: expected an IoU above 0 and at most 1, or None, got '0.5'"),
            (
                {"scores": SCORES + float("nan")},
                r"scores: expected numbers, .* got NaN or infinity in questions \[0, 1",
            ),
            ({"scores": SCORES.log() * -float("inf")}, "scores: expected numbers, -inf at padded proposals alone"),
            (
                {"scene_index": [0, 2]},
                r"scene_index: expected numbers of the 2 scenes of proposal_boxes, got \[0, 2\]",
            ),
            ({"scene_index": [0, -1]}, r"scene_index: expected whole numbers, .* got \[0, -1\]"),
            ({"proposal_boxes": torch.rand(2, 3, 7)}, r"proposal_boxes: expected shape \(B, K, 6\), got \(2, 3, 7\)"),
            ({"proposal_boxes": "all"}, "proposal_boxes: expected an array of numbers, got str"),
        ],
    )
    def test_grounding_of_what_is_no_number(self, processor, change, message):
        good = {"scores": SCORES, "proposal_boxes": torch.rand(2, 3, 6), "scene_index": [0, 1]}
        for selection in ("best", "cumulative"):
            with pytest.raises(ValueError, match=message):
                processor.post_process_grounding(**good | change, selection=selection)
            padded = SCORES.clone()
            padded[0, 2] = -torch.inf
            answers = processor.post_process_grounding(**good | {"scores": padded.tolist()}, selection=selection)
            assert len(answers) == 2 and 2 not in answers[0]["proposals"]


def make_plain_tokenizer():
    """Words and chat marks, without `<image>`, `<ground>`, `<coord>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        ["a chair"], BpeTrainer(special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer
