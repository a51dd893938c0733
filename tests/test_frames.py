"""What all readers of scans share: lost and damaged frames are counted up to a limit, pictures are decoded once."""

import io

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources.frames import (
    Exclusions,
    StoredDepth,
    decode_color,
    decode_views,
    merge_intrinsics,
    scale_depth,
    scale_intrinsics,
)
from ross3d.tests.raw_scannet import encode_jpeg


def make_reader(broken=(), missing=(), value=7):
    def read(name):
        if name in missing:
            raise FileNotFoundError(f"{name} is not there")
        if name in broken:
            raise ValueError(f"{name} is damaged")
        return value

    return read


# ---- exclusions


def test_exclusions_are_counted_with_their_reasons():
    exclusions = Exclusions("scene 'room'", 0.5)
    names = [f"{k:02d}" for k in range(9)]
    assert list(exclusions.read_each(names, make_reader(["03"], ["01", "08"]), "pose")) == [
        *("00", "02", "04", "05", "06", "07")
    ]
    assert exclusions.reasons == {"01": "pose is missing", "03": "pose cannot be read", "08": "pose is missing"}
    with pytest.warns(UserWarning) as caught:
        exclusions.warn()
    assert str(caught[0].message) == (
        "scene 'room': left out 3 of 9 frames (pose is missing: 2, such as 01 is not there; pose cannot be read: 1,"
        " such as 03 is damaged)"
    )


def test_the_limit_holds_for_each_step_and_for_all_together():
    names = [f"{k:02d}" for k in range(20)]
    exclusions = Exclusions("scene 'room'", 0.2)
    cameras = dict.fromkeys(names, np.eye(4)) | dict.fromkeys(names[:3], np.full((4, 4), -np.inf))
    left = exclusions.drop_lost(cameras)
    assert list(left) == names[3:]
    exclusions.read_each(names[5:10], make_reader(["07"]), "picture")
    message = (
        r"scene 'room': 5 of 20 frames cannot be used, more than max_excluded = 0.2 of them \(tracking was lost: 3"
    )
    with pytest.raises(ValueError, match=message):
        exclusions.read_each(names[10:], make_reader(["12"]), "picture")
    few = Exclusions("scene 'room'", 0.2)
    few.drop_lost(dict.fromkeys(names, np.eye(4)))
    with pytest.raises(
        ValueError, match="1 of 4 frames cannot be used, .*; repair the scan, or raise the limit: --max"
    ):
        few.read_each(names[:4], make_reader(missing=["02"]), "picture")


def test_without_a_limit_the_first_error_is_raised():
    exclusions = Exclusions("scene 'room'", 0)
    with pytest.raises(ValueError, match="^03 is damaged; or raise the limit: --max-excluded SHARE .*$"):
        exclusions.read_each(["02", "03"], make_reader(["03"]), "pose")
    with pytest.raises(ValueError, match="scene 'room', 04: cam2world is not finite, so tracking was lost there"):
        exclusions.drop_lost({"04": np.full((4, 4), np.nan)})
    for share in (-0.1, 1.0):
        with pytest.raises(
            ValueError, match="max_excluded must be a share of the frames, at least 0 and below 1, got"
        ):
            Exclusions("scene 'room'", share)


# ---- pictures


def make_picture(height=97, width=130):
    """Smooth colours, as pictures of rooms have."""
    rows, columns = np.mgrid[:height, :width]
    values = [128 + 90 * np.sin(rows / 20 + k) * np.cos(columns / (25 + 5 * k)) for k in range(3)]
    return np.stack(values, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("reduce_to", "shape"),
    [
        (None, (97, 130)),
        (49, (97, 130)),
        (48, (49, 65)),
        (24, (25, 33)),
        (12, (13, 17)),
        (1, (13, 17)),
        (98, (97, 130)),
    ],
)
def test_jpeg_is_decoded_no_larger_than_needed(reduce_to, shape):
    picture = make_picture()
    decoded, stored_size = decode_color(io.BytesIO(encode_jpeg(picture)), "here", reduce_to)
    assert decoded.shape == (*shape, 3) and decoded.dtype == np.uint8 and stored_size == (130, 97)
    # The same picture at that size: a reduced pixel is the mean of those it covers.
    scale = -(-97 // shape[0])
    covered = picture[: 97 // scale * scale, : 130 // scale * scale].astype(float)
    covered = covered.reshape(97 // scale, scale, 130 // scale, scale, 3).mean(axis=(1, 3))
    assert np.abs(decoded[: len(covered), : covered.shape[1]] - covered).max() < 8


def test_other_pictures_are_exact_at_every_size():
    for picture, mode in ((make_picture(), "RGB"), (make_picture()[..., 0], "L")):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        decoded, _ = decode_color(buffer, "here", 12)
        assert np.array_equal(decoded, picture if mode == "RGB" else np.stack([picture] * 3, axis=-1))
    grey = io.BytesIO(encode_jpeg(make_picture()[..., 0]))
    assert decode_color(grey, "here", 48)[0].shape == (49, 65, 3)


def test_broken_pictures_are_named(tmp_path):
    whole = encode_jpeg(make_picture())
    cut = "truncated or damaged.* copy it again, or leave"
    for content, message in (
        (whole[:500], cut),
        (whole[:40] + bytes(40), cut),
        (b"", "an empty file; copy it again"),
        (b"no picture", "a text; check whether the right file has another name"),
    ):
        for reduce_to in (None, 24):
            with pytest.raises(ValueError, match=f"scene 'room', 00010: .*{message}"):
                decode_color(io.BytesIO(content), "scene 'room', 00010", reduce_to)
    with pytest.raises(
        FileNotFoundError, match="none.jpg: the picture does not exist; copy it again, or leave it out"
    ):
        decode_color(tmp_path / "none.jpg", tmp_path / "none.jpg")


def test_views_are_decoded(tmp_path):
    """Pictures of files and of bytes; sizes are compared as they are stored."""
    files = {}
    for name, (height, width) in {"a": (97, 130), "b": (97, 130), "c": (98, 130)}.items():
        files[name] = tmp_path / f"{name}.jpg"
        files[name].write_bytes(encode_jpeg(make_picture(height, width)))
    exclusions = Exclusions("scene 'room'", 0)
    views = decode_views(["b", "a"], files.get, None, exclusions, 48)
    assert views.names == ["b", "a"] and views.images.shape == (2, 49, 65, 3) and views.depth_maps is None
    assert (views.stored_size, views.image_size, views.depth_size) == ((130, 97), (65, 49), (65, 49))
    depth = np.ones((24, 32), np.float32)
    stored = {"a": StoredDepth(depth, "a")}
    views = decode_views(["a"], lambda name: io.BytesIO(files[name].read_bytes()), stored.get, exclusions, 48)
    assert views.depth_size == (32, 24) and np.array_equal(views.depth_maps, depth[None])
    for reduce_to in (None, 48):
        with pytest.raises(
            ValueError, match="scene 'room', c: picture of size 130x98 differs from a with 130x97; the"
        ):
            decode_views(["a", "b", "c"], files.get, None, exclusions, reduce_to)
    with pytest.raises(
        ValueError, match="scene 'room', b: depth map of size 30x24 differs from a with 32x24; the vie"
    ):
        maps = {"a": StoredDepth(depth, "a"), "b": StoredDepth(depth[:, :30], "b")}
        decode_views(["a", "b"], files.get, maps.get, exclusions)
    with pytest.raises(ValueError, match="reduce_to must be at least 1 pixel, or None for exact pictures, got 0"):
        decode_views(["a"], files.get, None, exclusions, 0)


# ---- depth and intrinsics


def test_depth_of_both_marks_of_no_reading():
    depth = scale_depth(np.array([[0, 1234, 65535]], np.uint16), "here")
    assert depth.dtype == np.float32 and depth.tolist() == [[0, np.float32(1.234), 0]]
    assert scale_depth(np.array([[0, 250]], np.uint16), "here", 4000).tolist() == [[0, 0.0625]]
    assert scale_depth(np.zeros((2, 3), np.uint16), "here").max() == 0
    with pytest.raises(
        ValueError, match="here: the largest depth is 9, which looks like metres; expected millimetres"
    ):
        scale_depth(np.array([[9, 1]], np.uint16), "here")


def test_intrinsics_are_scaled_about_the_corner_of_the_picture():
    """A ray meets the same place of the picture, measured from its outer corner, at both sizes."""
    before = np.array([[570.0, 0, 319.5], [0, 571, 239.5], [0, 0, 1]])
    after = scale_intrinsics(before, (640, 480), (320, 120))
    ray = np.array([0.2, -0.3, 1])
    pixel, small = before @ ray, after @ ray
    assert np.allclose((pixel[:2] + 0.5) / (640, 480), (small[:2] + 0.5) / (320, 120))
    assert np.array_equal(scale_intrinsics(after, (320, 120), (640, 480)), before)
    same = np.stack([before, before])
    assert merge_intrinsics(same).shape == (3, 3)
    same[1, 0, 0] += 1
    assert np.array_equal(merge_intrinsics(same), same)
