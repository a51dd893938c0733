"""Recordings in ScanNet's .sens format: frames as they were written, little memory, refusals that teach."""

import os
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest

from ross3d.data.sources.sens import iterate_sens_frames, read_sens_cameras, read_sens_header
from ross3d.tests.limited_memory import call_within
from ross3d.tests.raw_scannet import COLOR_SIZE, DEPTH_SIZE, encode_jpeg, write_raw_scan, write_sens


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("scannet"), num_frames=7, lost=(2, 5))


def get_sens(scan):
    return scan.folder / f"{scan.folder.name}.sens"


def make_recording(path, count=3, payload=b"", **header):
    """A recording of noise, `count` frames of 5 x 4 depth pixels; `payload` follows each picture."""
    rng = np.random.default_rng(0)
    jpegs = [encode_jpeg(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) + payload for _ in range(count)]
    depth = rng.integers(0, 6000, (count, 4, 5)).astype(np.uint16)
    write_sens(path, jpegs, depth, np.tile(np.eye(4), (count, 1, 1)), np.eye(3), np.eye(3), **header)
    return path, jpegs, depth


def test_frames_come_back_as_written(scan):
    with get_sens(scan).open("rb") as file:
        header = read_sens_header(file)
    assert (header.color_size, header.depth_size, header.num_frames) == (COLOR_SIZE, DEPTH_SIZE, 7)
    assert (header.sensor_name, header.depth_shift) == ("StructureSensor", 1000)
    assert np.allclose(header.depth_intrinsics[:3, :3], scan.depth_intrinsics, rtol=1e-6)
    assert np.allclose(header.color_intrinsics[:3, :3], scan.color_intrinsics, rtol=1e-6)
    frames = list(iterate_sens_frames(get_sens(scan)))
    assert [frame.index for frame in frames] == list(range(7))
    tracked = [bool(np.isfinite(frame.cam2world).all()) for frame in frames]
    assert tracked == [index not in (2, 5) for index in range(7)]
    for frame, jpeg, depth, cam2world in zip(frames, scan.color_jpegs, scan.depth_mm, scan.cam2world, strict=True):
        assert frame.color_jpeg == jpeg
        assert frame.depth.dtype == np.uint16 and np.array_equal(frame.depth, depth)
        if tracked[frame.index]:
            assert np.allclose(scan.axis_align_matrix @ frame.cam2world, cam2world, atol=1e-5)
        else:
            assert np.isneginf(frame.cam2world).all()


def test_frames_are_skipped(scan):
    assert [frame.index for frame in iterate_sens_frames(get_sens(scan), step=3)] == [0, 3, 6]
    chosen = list(iterate_sens_frames(get_sens(scan), indices={4, 1}))
    assert [frame.index for frame in chosen] == [1, 4]
    assert np.array_equal(chosen[1].depth, scan.depth_mm[4])
    header, cameras = read_sens_cameras(get_sens(scan))
    assert header.num_frames == 7 and cameras.shape == (7, 4, 4)
    assert np.array_equal(cameras[4], chosen[1].cam2world) and np.isneginf(cameras[5]).all()


def test_memory_is_that_of_one_frame(tmp_path):
    """24 frames of 1 MiB each: never more than two of them are in memory."""
    path, _, _ = make_recording(tmp_path / "long.sens", count=24, payload=bytes(2**20))
    tracemalloc.start()
    assert sum(frame.index for frame in iterate_sens_frames(path)) == 276
    assert tracemalloc.get_traced_memory()[1] < 2.6 * 2**20
    tracemalloc.reset_peak()
    assert [frame.index for frame in iterate_sens_frames(path, indices=())] == []
    assert tracemalloc.get_traced_memory()[1] < 2**19
    tracemalloc.stop()


def test_depth_of_another_shift_becomes_millimetres(tmp_path):
    path, _, depth = make_recording(tmp_path / "room.sens", depth_shift=5000.0)
    found = next(iterate_sens_frames(path)).depth
    assert found.dtype == np.uint16 and np.array_equal(found, np.round(depth[0] / 5.0))
    path, _, _ = make_recording(tmp_path / "far.sens", depth_shift=10.0)
    with pytest.raises(ValueError, match=r"far.sens, frame 0: depth reaches \d+.\d m, more than uint16 millim.*of 10"):
        np.array(next(iterate_sens_frames(path)).depth)


def test_a_recording_without_frames_is_read(tmp_path):
    path, _, _ = make_recording(tmp_path / "empty.sens", count=1, num_frames=0)
    assert list(iterate_sens_frames(path)) == []
    assert read_sens_cameras(path)[1].shape == (0, 4, 4)


HEADER_FAULTS = {
    "version": ({"version": 3}, r"room.sens: expected a .sens file of version 4, got version 3; export it again"),
    "colour": (
        {"color_compression": 1},
        r"expected colour compression 2 \(JPEG\) and depth comp.*got 1 and 1",
    ),
    "depth": (
        {"depth_compression": 2},
        r"expected colour compression 2 \(JPEG\) and depth comp.*got 2 and 2",
    ),
    "shift": ({"depth_shift": 0.0}, r"room.sens: the header makes no sense: colour 8x6, depth 5x4, depth shift 0.0"),
    "name": ({"sensor_name": bytes(5000)}, r"the sensor's name would take 5000 bytes, so this is no .sens file"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_headers_that_are_wrong_are_refused(tmp_path, fault):
    header, message = HEADER_FAULTS[fault]
    path, _, _ = make_recording(tmp_path / "room.sens")
    assert len(list(iterate_sens_frames(path))) == 3
    path, _, _ = make_recording(tmp_path / "room.sens", **header)
    with pytest.raises(ValueError, match=message):
        next(iterate_sens_frames(path))


def test_files_that_end_early_are_refused(tmp_path):
    path, _, _ = make_recording(tmp_path / "room.sens")
    whole = path.read_bytes()
    cuts = {
        2: r"room.sens: the file ends in the header, 2 bytes short; download or copy it again",
        200: r"room.sens: the file ends in the header, \d+ bytes short",
        len(whole) - 1: r"room.sens: the file ends in frame 2 of 3, 1 bytes short",
        len(whole) - 2000: r"room.sens: the file ends in frame [01] of 3, \d+ bytes short",
    }
    for length, message in cuts.items():
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=message):
            list(iterate_sens_frames(path))
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="the file ends in frame 2 of 3, 1 bytes short"):
        list(iterate_sens_frames(path, step=2, indices=(0,)))
    with pytest.raises(ValueError, match="the file ends in frame 2 of 3, 1 bytes short"):
        read_sens_cameras(path)
    make_recording(path, num_frames=4)
    with pytest.raises(ValueError, match="the file ends in frame 3 of 4, 96 bytes short"):
        read_sens_cameras(path)
    with pytest.raises(ValueError, match="step must be at least 1 frame, got 0"):
        next(iterate_sens_frames(path, step=0))


def test_a_damaged_depth_map_names_its_frame(tmp_path):
    path, _, depth = make_recording(tmp_path / "room.sens")
    frame = list(iterate_sens_frames(path))[1]
    assert np.array_equal(frame.depth, depth[1])
    for payload, message in {
        b"no zlib": r"room.sens, frame 1: expected depth that zlib packed, got damaged bytes \(.*\); export",
        zlib.compress(bytes(7)): r"room.sens, frame 1: depth unpacks to 7 bytes, expected 40 for 5x4 uint16",
    }.items():
        with pytest.raises(ValueError, match=message):
            np.array(replace(frame, depth_zlib=payload).depth)


def test_depth_that_unpacks_to_gigabytes_takes_no_memory(tmp_path):
    path, _, _ = make_recording(tmp_path / "room.sens")
    frame = next(iterate_sens_frames(path))
    bomb = zlib.compress(bytes(2**27))
    with pytest.raises(ValueError, match=r"frame 0: depth unpacks to more than 40 bytes, expected 40 for 5x4 uint16"):
        call_within(64, lambda: replace(frame, depth_zlib=bomb).depth)
    whole = zlib.compress(bytes(40))
    for cut in (whole[:-2], whole[:-6]):
        with pytest.raises(ValueError, match=r"depth unpacks to \d+ bytes and then is cut off, expected 40"):
            np.array(replace(frame, depth_zlib=cut).depth)


LIES = {
    "a picture of 20 GB": (
        "color",
        20 * 2**30,
        r"frame 1 of 3: expected a compressed picture of 8x6 pixels, got 214748",
    ),
    "a depth map of 20 GB": (
        "depth",
        20 * 2**30,
        r"expected a compressed depth map of 5x4 pixels, got 21474836480 byt",
    ),
    "beyond all files": ("color", 2**64 - 1, r"got 18446744073709551615 bytes, more than it has plain"),
    "frames": ("frames", 10**12, r"room.sens: expected a recording of at most 1000000 frames, the header counts 1000"),
    "a width": ("width", 2**32 - 1, r"room.sens, depth: expected a picture of 1 to 64 megapixels, got 4294967295 x 4"),
    "a colour width": (
        "color_width",
        10**8,
        r"room.sens, colour: expected a picture of 1 to 64 megapixels, got 10000",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_recordings_of_holes_take_no_memory(tmp_path, lie):
    """A file of 21 GB that is all holes behind its second frame, whose header promises them."""
    what, value, message = LIES[lie]
    path, jpegs, depth = make_recording(tmp_path / "room.sens")
    content = bytearray(path.read_bytes())
    head = len(content) - sum(
        96 + len(jpeg) + len(zlib.compress(d.tobytes())) for jpeg, d in zip(jpegs, depth, strict=True)
    )
    second = head + 96 + len(jpegs[0]) + len(zlib.compress(depth[0].tobytes()))
    place = {
        "color": second + 80,
        "depth": second + 88,
        "frames": head - 8,
        "width": head - 20,
        "color_width": head - 28,
    }
    size = 8 if what in ("color", "depth", "frames") else 4
    content[place[what] : place[what] + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    os.truncate(path, 21 * 2**30)
    for read in (read_sens_cameras, lambda file: list(iterate_sens_frames(file))):
        with pytest.raises(ValueError, match=message):
            call_within(64, read, path)
    os.mkfifo(tmp_path / "pipe.sens")
    with pytest.raises(ValueError, match="recording: expected a regular file, got the pipe"):
        read_sens_cameras(tmp_path / "pipe.sens")
