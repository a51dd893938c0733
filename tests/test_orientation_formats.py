"""The orientation that a file states is obeyed once, whatever its format: Pillow turns TIFF by itself, others not."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ross3d.data.sources import read_scene
from ross3d.data.sources.pictures import decode_stored, open_image
from ross3d.image_processing_ross3d import ORIENTATION_TAG, get_orientation, get_stored_turns, get_upright_size
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.posed_views import make_poses, make_test_processor
from ross3d.tests.raw_scannet import COLOR_SIZE, DEPTH_SIZE, write_raw_scan
from ross3d.tests.scan_folders import decode_colors, get_depth_metres, lay_on_side, save_transforms, write_nerfstudio


# (height, width), pixels; the short side is that of a view, so that crops of turned pictures are turned crops.
SIZES = [(40, 60), (52, 40)]
FORMATS = {
    "TIFF": {},
    "TIFF, LZW": {"format": "TIFF", "compression": "tiff_lzw"},
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
}
KINDS = ["path", "string", "opened", "loaded", "asked twice", "data URI", "chat"]
# Quarter turns, counter-clockwise, of the stored pixels; None where they are mirrored as well.
TURNS = {1: 0, 2: None, 3: 2, 4: None, 5: None, 6: 3, 7: None, 8: 1}


@pytest.fixture(scope="module")
def processor() -> Ross3DProcessor:
    return make_test_processor(geometry_mode="valid_depth")


def make_pictures(height: int, width: int) -> np.ndarray:
    """Two pictures (2, height, width, 3) without symmetry, smooth enough for JPEG."""
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    first = np.stack(np.broadcast_arrays(255 * x, 255 * y, 200 * x * y), axis=-1)
    return np.stack([first, first[..., ::-1]]).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, orientation: int) -> bytes:
    image, stream = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    exif = image.getexif()
    exif[ORIENTATION_TAG] = orientation
    image.save(stream, exif=exif, **({"format": kind} | FORMATS[kind]))
    return stream.getvalue()


def show(pixels: np.ndarray, kind: str, orientation: int) -> np.ndarray:
    """A picture as it is to be seen after a round through a format, by a copy that states no orientation."""
    image = Image.open(io.BytesIO(encode(pixels, kind, 1))).convert("RGB")
    image.getexif()[ORIENTATION_TAG] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def give(content: bytes, how: str, file):
    if how in ("path", "string", "chat"):
        file.write_bytes(content)
        return file if how == "path" else str(file)
    if how == "data URI":
        return "data:image/any;base64," + base64.b64encode(content).decode()
    picture = Image.open(io.BytesIO(content))
    if how == "loaded":
        picture.load()
    return picture


def ask(processor, given: list, how: str, **scene) -> dict:
    if how == "chat":
        blocks = [{"type": "image", "image": item} for item in given]
        chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": "What is it?"}]}]
        return processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    if how == "asked twice":
        processor(images=given, **scene)
    return processor(images=given, **scene)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("how", KINDS)
def test_the_processor_sees_pictures_upright(processor, tmp_path, size, kind, how):
    pictures = make_pictures(*size)
    for orientation in TURNS:
        given = [give(encode(picture, kind, orientation), how, tmp_path / f"{n}.{orientation}")
                 for n, picture in enumerate(pictures)]  # fmt: skip
        found = ask(processor, given, how)["pixel_values"]
        wanted = processor(images=[show(picture, kind, orientation) for picture in pictures])["pixel_values"]
        assert torch.equal(found, wanted), orientation


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("how", [how for how in KINDS if how != "chat"])
def test_depth_turns_with_the_stored_pixels(processor, tmp_path, size, kind, how):
    pictures, (height, width) = make_pictures(*size), size
    rng = np.random.default_rng(0)
    scene = {
        "depth_maps": rng.uniform(0.5, 3, (2, height, width)).astype(np.float32),
        "intrinsics": np.array([[45.0, 0, 0.5 * width + 2], [0, 47.0, 0.5 * height - 3], [0, 0, 1]]),
        "cam2world": make_poses(2, 0),
    }
    stored = processor(images=list(pictures), **scene)["patch_coords"][0]
    # Decoded by the caller, TIFF is upright and has no tag: what comes with it has to be, too.
    has_lost_tag = how == "loaded" and kind.startswith("TIFF")
    for orientation, turns in {1: 0, 2: 0, 3: 0, 4: 0}.items() if has_lost_tag else TURNS.items():
        given = [give(encode(picture, kind, orientation), how, tmp_path / f"{n}.{orientation}")
                 for n, picture in enumerate(pictures)]  # fmt: skip
        if turns is None:
            with pytest.raises(ValueError, match="only turns, with a depth map, got a mirrored one"):
                ask(processor, given, how, **scene)
        else:
            found = ask(processor, given, how, **scene)["patch_coords"][0]
            torch.testing.assert_close(found, torch.rot90(stored, turns, (1, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_told_of_a_file_does_not_change_when_it_is_decoded(size, kind):
    for orientation, turns in TURNS.items():
        picture = Image.open(io.BytesIO(encode(make_pictures(*size)[0], kind, orientation)))
        for _ in range(2):
            assert get_orientation(picture) == orientation and get_stored_turns(picture) == turns
            assert get_upright_size(picture) == (size[::-1] if orientation >= 5 else size)
            picture.load()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", TURNS)
def test_the_reader_has_pixels_as_they_are_stored_and_upright(tmp_path, size, kind, orientation):
    pixels = make_pictures(*size)[0]
    picture = decode_stored(io.BytesIO(encode(pixels, kind, orientation)), "here")
    assert np.array_equal(picture.pixels, show(pixels, kind, 1)) and picture.size == size[::-1]
    upright = picture.turn_upright()
    assert np.array_equal(upright.pixels, show(pixels, kind, orientation))
    assert upright.size == picture.upright_size == upright.pixels.shape[1::-1]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pictures_that_pillow_maps_into_memory(processor, tmp_path, size, mode):
    for orientation in TURNS:
        image = Image.fromarray(make_pictures(*size)[0]).convert(mode)
        exif = image.getexif()
        exif[ORIENTATION_TAG] = orientation
        image.save(tmp_path / "a.tif", exif=exif)
        stored = np.asarray(image.convert("RGB"))
        assert np.array_equal(decode_stored(tmp_path / "a.tif", "here").pixels, stored), orientation
        wanted = processor(images=[show(stored, "PNG", orientation)])["pixel_values"]
        for given in (tmp_path / "a.tif", Image.open(tmp_path / "a.tif")):
            assert torch.equal(processor(images=[given])["pixel_values"], wanted), orientation


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("orientation", TURNS)
def test_depth_maps_are_read_as_they_are_stored(tmp_path, size, orientation):
    depth = np.random.default_rng(0).integers(500, 3000, size).astype(np.uint16)
    image = Image.fromarray(depth)
    exif = image.getexif()
    exif[ORIENTATION_TAG] = orientation
    for suffix in ("tif", "png"):
        image.save(tmp_path / f"depth.{suffix}", exif=exif)
        assert np.array_equal(np.asarray(open_image(tmp_path / f"depth.{suffix}")), depth), suffix


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", TURNS)
def test_scans_come_upright_with_their_depth(tmp_path, factor, kind, orientation):
    raw = write_raw_scan(tmp_path / "raw", num_frames=2, index=2)
    content = write_nerfstudio(raw, tmp_path / "room")
    turns, size = TURNS[orientation] or 0, tuple(factor * side for side in COLOR_SIZE)
    centre = raw.color_intrinsics.copy()
    centre[:2] *= factor
    centre[:2, 2] += 0.5 * (factor - 1)
    colors = decode_colors(raw).repeat(factor, axis=1).repeat(factor, axis=2)
    for index, frame in enumerate(content["frames"]):
        frame["file_path"] = f"images/{index}.{kind[:4].lower()}"
        stored = np.rot90(colors[index], -turns)
        (tmp_path / "room" / frame["file_path"]).write_bytes(encode(stored, kind, orientation))
        depth = Image.fromarray(np.ascontiguousarray(np.rot90(raw.depth_mm[index], -turns)))
        depth.save(tmp_path / "room" / frame["depth_file_path"])
        intrinsics, cam2world = lay_on_side(centre, raw.cam2world[index], size, turns)
        frame["transform_matrix"] = (cam2world @ np.diag([1.0, -1, -1, 1])).tolist()
    width, height = size[:: -1 if turns % 2 else 1]
    content |= {"fl_x": intrinsics[0, 0], "fl_y": intrinsics[1, 1], "w": width, "h": height}
    content |= {"cx": intrinsics[0, 2] + 0.5, "cy": intrinsics[1, 2] + 0.5}
    save_transforms(tmp_path / "room", content)
    # Upside down and mirrored: cameras that are upright as they are belong to the upright picture.
    if TURNS[orientation] is None and orientation != 4:
        with pytest.raises(ValueError, match="is stored mirrored .EXIF orientation"):
            read_scene(tmp_path / "room")
        return
    scene = read_scene(tmp_path / "room")
    stored = [np.rot90(color, -turns) for color in colors]
    assert np.array_equal(scene.images, [show(picture, kind, orientation) for picture in stored])
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-8
    assert scene.intrinsics[..., 0, 2].max() < DEPTH_SIZE[0]
