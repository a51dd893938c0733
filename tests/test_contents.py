"""What lies in place of a picture, a depth map, a mesh or a text is told by its content, whatever its name."""

import gc
import io
import json
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from ross3d.data.sources.frames import read_matrix
from ross3d.data.sources.pictures import decode_color, open_image, read_depth
from ross3d.data.sources.ply import read_ply
from ross3d.data.sources.sens import read_sens_cameras
from ross3d.data.text_files import check_file, read_json, read_json_lines, read_yaml
from ross3d.image_processing_ross3d import (
    MAX_PICTURE_BYTES,
    ORIENTATION_TAG,
    decode_upright,
    open_named_picture,
    open_picture,
)
from ross3d.tools.checkpoints.files import list_tensors
from ross3d.training.checkpoint import check_model_files
from ross3d.training.damage import COMPLETE_MARK, check_checkpoint_files


POINTER = b"version https:" + b"//git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"a" + b"\nsize 123456\n"
POINTED = "got a Git-LFS pointer in place of the file; fetch the file: git lfs pull"


def make_media(brand: bytes) -> bytes:
    """The first box of HEIC, AVIF and MP4, which have one container."""
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(40)


def make_tiff(**tags: int) -> bytes:
    """A TIFF of one strip of zeros that Pillow cannot decode: 14 bits of a sensor's colour filter."""
    values = {256: 30, 257: 20, 258: 14, 259: 7, 262: 32803, 273: 200, 277: 1, 278: 20, 279: 900}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(1000)


CONVERT, GIVE, AGAIN = (
    "convert it to JPEG or PNG first",
    "pictures are read from JPEG, .* depth from",
    "copy it again, or",
)
CONTENTS = {
    "HEIC": (make_media(b"heic"), "a HEIC picture", CONVERT),
    "HEIC of another brand": (make_media(b"hevx"), "a HEIC picture", CONVERT),
    "AVIF": (make_media(b"avif"), "an AVIF picture, which this Pillow cannot decode or which is damaged", CONVERT),
    "JPEG XL": (b"\xff\x0a" + bytes(60), "a JPEG XL picture", CONVERT),
    "JPEG XL in a box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "a JPEG XL picture", CONVERT),
    "CR3": (make_media(b"crx ").replace(b"mif1", b"crx "), r"a raw picture of a camera \(CR3\)", CONVERT),
    "MP4": (struct.pack(">I", 20) + b"ftypisom" + bytes(40), "a video", "save its frames as pictures"),
    "Matroska": (b"\x1a\x45\xdf\xa3" + bytes(40), "a video", "save its frames"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(400), "an HDF5 file", GIVE),
    "NumPy": (b"\x93NUMPY\x01\x00" + bytes(40), "a NumPy array", GIVE),
    "OpenEXR": (b"\x76\x2f\x31\x01" + bytes(40), "an OpenEXR picture", GIVE),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive, such as torch.save and numpy.savez write", GIVE),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "a compressed file", "unpack it first"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "a PDF or PostScript document", CONVERT),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 8\n", "a PDF or PostScript document", CONVERT),
    "GRIB": (b"GRIB\0\0\0\1" + bytes(40), "the format GRIB, which holds no pixels", CONVERT),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page", "download the file itself, not the"),
    "SVG": (b"<?xml version='1.0'?><svg/>", "an XML or SVG text", CONVERT),
    "JSON": (b'{"error": "caf\xc3\xa9"}', "a text that looks like JSON", "check whether the right file has another"),
    "text": (b"not found\n", "a text", "check whether the right file has another name"),
    "nothing": (b"", "an empty file", AGAIN),
    "half a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(9), "a picture that is truncated or damaged, or of a kind .*", AGAIN),
    "noise": (bytes(range(128, 228)), "bytes that no known format begins with: no picture, or a damaged one", AGAIN),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_no_picture_is_told_by_its_content(tmp_path, kind):
    content, kind, remedy = CONTENTS[kind]
    file = tmp_path / "view.png"
    file.write_bytes(content)
    for read, name in (
        (lambda: decode_color(file, file), str(file)),
        (lambda: decode_color(io.BytesIO(content), "frame 3"), "frame 3"),
        (lambda: read_depth(file), str(file)),
        (lambda: open_picture(file, "images[1]"), r"images\[1\]"),
        (lambda: open_named_picture(str(file), "images[1]"), r"images\[1\]"),
    ):
        got = rf"got ({kind}|{kind} \(.*view.png\)); {remedy}"
        with pytest.raises(ValueError, match=f"^{name}: expected a readable picture, {got}") as error:
            read()
        assert "BytesIO" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(ValueError, match=rf"got {kind} \(.*view.png\); {remedy}"):
        open_picture(file, "images[1]")


def test_raw_pictures_of_cameras_are_not_read_by_their_previews(tmp_path):
    preview = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0xC612] = bytes([1, 4, 0, 0])
    preview.save(tmp_path / "with_preview.dng", format="TIFF", tiffinfo=tags)
    preview.save(tmp_path / "by_tag.tif", format="TIFF", tiffinfo=tags)
    preview.save(tmp_path / "by_name.NEF", format="TIFF")
    preview.save(tmp_path / "plain.tif", format="TIFF")
    (tmp_path / "without_preview.dng").write_bytes(make_tiff())
    for name in ("with_preview.dng", "by_tag.tif", "by_name.NEF", "without_preview.dng"):
        with pytest.raises(ValueError, match=f"{name}: .*got a raw picture of a camera; develop it to JPEG first"):
            decode_color(tmp_path / name, tmp_path / name)
    assert decode_color(tmp_path / "plain.tif", "here")[1] == (30, 20)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
@pytest.mark.parametrize("shape", [(20, 30), (34, 16)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_read_upright(tmp_path, shape, orientation):
    """As PNG of the same tag, in scans and by the processor."""
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[:, : shape[1] // 2], pixels[: shape[0] // 2, shape[1] // 2 :] = (40, 90, 160), (200, 40, 40)
    files = [tmp_path / "a.avif", tmp_path / "a.png"]
    for file, options in zip(files, ({"quality": 100}, {}), strict=True):
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[ORIENTATION_TAG] = orientation
        image.save(file, exif=exif, **options)
    found, wanted = (decode_color(file, file)[0].astype(int) for file in files)
    assert found.shape == wanted.shape == (shape if orientation < 5 else shape[::-1]) + (3,)
    assert np.abs(found - wanted).mean() < 12
    given = decode_upright(open_picture(files[0], "view"), "view")
    assert np.array_equal(np.asarray(given), found)


def test_no_file_stays_open(tmp_path):
    """Whether it is decoded, refused before that, or broken."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for suffix in ("gif", "png", "jpg", "tif", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels[..., 0].astype(np.uint16) + 500).save(tmp_path / "depth.png")
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:200])
    (tmp_path / "a.h5").write_bytes(CONTENTS["HDF5"][0])
    (tmp_path / "h5.png").write_bytes(CONTENTS["HDF5"][0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for file in sorted(tmp_path.iterdir()):
            for read in (lambda file: decode_color(file, file), open_image, read_depth, decode_given):
                try:
                    read(file)
                except ValueError as error:
                    del error
        gc.collect()
    assert not [warning.message for warning in caught if warning.category is ResourceWarning]


def decode_given(file):
    return decode_upright(open_picture(file, "view"), "view")


def test_files_of_pictures_are_bounded(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)
    with pytest.raises(ValueError, match="view: expected a picture's file of at most 529 MB, got 529 MB; make"):
        open_picture(tmp_path / "a.png", "view")


READERS = {
    "picture": ("a.jpg", lambda file: decode_color(file, file)),
    "processor": ("a.jpg", lambda file: open_named_picture(str(file), f"view {file}")),
    "depth picture": ("a.png", read_depth),
    "depth array": ("a.npy", read_depth),
    "depth of PGM": ("a.pgm", read_depth),
    "mesh": ("a.ply", read_ply),
    "recording": ("a.sens", read_sens_cameras),
    "matrix": ("a.txt", lambda file: read_matrix(file, (4, 4), "a camera")),
    "JSON": ("a.json", read_json),
    "JSON lines": ("a.jsonl", lambda file: list(read_json_lines(file))),
    "YAML": ("a.yaml", read_yaml),
    "any file": ("a", lambda file: check_file(file, "anything")),
}


@pytest.mark.parametrize("kind", READERS)
def test_pointers_of_git_lfs_are_told(tmp_path, kind):
    name, read = READERS[kind]
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{tmp_path / name}.*, {POINTED}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_pointers_of_git_lfs_in_place_of_weights_are_told(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(POINTER)
    (tmp_path / COMPLETE_MARK).write_text(json.dumps({name: 9000}))
    for read in (
        lambda: check_model_files(tmp_path),
        lambda: check_checkpoint_files(tmp_path, 1),
        lambda: list_tensors(tmp_path / name),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected .*, {POINTED}"):
            read()
