"""Depth in its right unit whatever it was kept in; pictures, arrays, pickles and scenes that are wrong are refused."""

import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.sources import read_scene
from ross3d.data.sources.frames import check_memory, read_matrix
from ross3d.data.sources.pictures import (
    NOT_READ_DEPTH,
    StoredDepth,
    decode_color,
    find_float_units,
    read_depth,
    read_stored_depth,
    scale_depth,
)
from ross3d.data.sources.plain_pickle import load_plain_pickle
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import get_depth_metres, save_transforms, write_nerfstudio, write_rgbd


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=3, index=2)


# ---- depth under other names and in other forms


def save_pgm(file, values, largest=65535, comment=b""):
    head = b"P5\n%s%d %d\n%d\n" % (comment, values.shape[1], values.shape[0], largest)
    file.write_bytes(head + values.astype(">u2").tobytes())


def save_npy(dtype, metres_per_unit):
    def save(file, millimetres):
        np.save(file, (millimetres * (1e-3 / metres_per_unit)).astype(dtype))

    return save


def save_tiff(dtype, metres_per_unit):
    def save(file, millimetres):
        Image.fromarray((millimetres * (1e-3 / metres_per_unit)).astype(dtype)).save(file)

    return save


DEPTH_FORMS = {
    "pgm": (".pgm", save_pgm),
    "pgm of another largest value": (".pgm", lambda file, mm: save_pgm(file, mm, 9000, b"# sensor\n")),
    "npy millimetres": (".npy", save_npy(np.uint16, 1e-3)),
    "npy float millimetres": (".npy", save_npy(np.float32, 1e-3)),
    "npy metres": (".npy", save_npy(np.float32, 1.0)),
    "npy of three axes": (".npy", lambda file, mm: np.save(file, mm[..., None])),
    "tiff millimetres": (".tif", save_tiff(np.uint16, 1e-3)),
    "tiff metres": (".tiff", save_tiff(np.float32, 1.0)),
}


@pytest.mark.parametrize("form", DEPTH_FORMS)
def test_depth_is_read_in_its_unit_in_both_layouts(raw, tmp_path, form):
    suffix, save = DEPTH_FORMS[form]
    folder = write_rgbd(raw, tmp_path / "room")
    content = write_nerfstudio(raw, tmp_path / "capture")
    for index, frame in enumerate(content["frames"]):
        (folder / f"frame-{index:06d}.depth.png").unlink()
        save(folder / f"frame-{index:06d}.depth{suffix}", raw.depth_mm[index])
        frame["depth_file_path"] = f"depth/{index}{suffix}"
        save(tmp_path / "capture" / "depth" / f"{index}{suffix}", raw.depth_mm[index])
    save_transforms(tmp_path / "capture", content)
    for scan in (folder, tmp_path / "capture"):
        assert np.abs(read_scene(scan).depth_maps - get_depth_metres(raw)).max() < 1e-6, scan


@pytest.mark.parametrize("unit", [1e-3, 10 / 65535, 2.5e-4])
def test_depth_of_instant_ngp_has_its_own_key_and_unit(raw, tmp_path, unit):
    content = write_nerfstudio(raw, tmp_path / "capture", depth_unit=unit)
    for frame in content["frames"]:
        frame["depth_path"] = frame.pop("depth_file_path").replace("/", "\\")
        frame["file_path"] = frame["file_path"].replace("/", "\\")
    save_transforms(tmp_path / "capture", content | {"integer_depth_scale": unit})
    scene = read_scene(tmp_path / "capture")
    assert np.abs(scene.depth_maps - get_depth_metres(raw)).max() < unit
    assert scene.view_names == [f"images/frame_{index:05d}" for index in range(3)]
    save_transforms(tmp_path / "capture", content)
    with pytest.raises(ValueError, match="names depth as depth_path and lacks integer_depth_scale, the metres of one"):
        read_scene(tmp_path / "capture")


OTHER_DEPTH = {
    "a.exr": (r"OpenEXR \(.exr\), which is not read; convert it: with OPENCV_IO_ENABLE_OPENEXR=1, np.save\('a.npy'"),
    "a.npz": r"a NumPy archive \(.npz\), .*: np.save\('a.npy', np.load\('a.npz'\)\['depth'\]\), with the name of",
    "a.depth": r"Record3D's compressed depth \(.depth\), .*: export from the app as EXR \+ RGB",
    "frame-1.depth.pt": r"a file of torch.save .*: np.save\('frame-1.depth.npy', torch.load\('frame-1.depth.pt'\)",
    "a.raw": r"raw numbers .*: np.save\('a.npy', np.fromfile\('a.raw', TYPE\).reshape\(HEIGHT, WIDTH\)\)",
    "a.h5": r"HDF5 .*: np.save\('a.npy', h5py.File\('a.h5'\)\['depth'\]\[:\]\)",
    "a.npy.gz": r"a compressed file \(.gz\), .*: gunzip 'a.npy.gz'",
}


@pytest.mark.parametrize("name", OTHER_DEPTH)
def test_depth_that_no_reader_knows_is_refused_with_what_is_read_and_a_conversion(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    read = r"expected a PNG, TIFF or PGM of 16 bits \(millimetres\), a TIFF of floats or a .npy array"
    with pytest.raises(ValueError, match=rf"{name}: {read} .*, got depth as {OTHER_DEPTH[name]}"):
        read_depth(tmp_path / name)


@pytest.mark.parametrize("suffix", [*NOT_READ_DEPTH, ".npy.gz"])
def test_a_folder_of_depth_that_is_not_read_says_so(raw, tmp_path, suffix):
    folder = write_rgbd(raw, tmp_path / "room")
    for file in folder.glob("*.depth.png"):
        file.rename(file.with_suffix(suffix))
    with pytest.raises(ValueError, match=rf"frame-000000.depth{suffix}: .*, got depth as .*, which is not read"):
        read_scene(folder)


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (5, 7, 1), (1, 1, 5, 7)])
def test_axes_of_size_one_of_depth_arrays_are_dropped(tmp_path, shape):
    depth = np.linspace(0.5, 3, 35).astype(np.float32)
    np.save(tmp_path / "a.npy", depth.reshape(shape))
    assert np.array_equal(read_depth(tmp_path / "a.npy"), depth.reshape(5, 7))


def test_depth_of_other_values_is_refused(tmp_path):
    file = tmp_path / "a.npy"

    def refuse(message, units=None):
        with pytest.raises(ValueError, match=message):
            read_stored_depth(file, units).scale(1.0)

    np.save(file, np.array([[-5.0, 900]]))
    refuse("a.npy: depth must be 0 .no reading. or more, got -5")
    np.save(file, np.array([[0.5, 2.0]]))
    refuse(r"a.npy: the largest depth is 2.0, which at 1000 units a metre is nearer than 0.05 m; correct", 1000)
    np.save(file, np.array([[np.nan, np.inf, 2.5]], np.float32))
    assert read_depth(file).tolist() == [[0, 0, 2.5]]
    for wrong in (np.zeros((2, 3, 4), np.uint16), np.zeros((2, 3), np.uint8), np.zeros((2, 3), complex)):
        np.save(file, wrong)
        refuse(r"a.npy: expected an array \(h, w\) of float metres or uint16 millimetres, got")
    np.save(file, np.array([[{}]]), allow_pickle=True)
    refuse(
        r"got one of Python objects, which could run code when it is read; save it as numbers, such as depth\.astype"
    )
    np.save(file, np.zeros((2, 3), [("depth", "f4"), ("rest", "O")]), allow_pickle=True)
    refuse("a.npy: expected a .npy array of depth, got one of Python objects")
    for save in (np.savez, np.savez_compressed):
        with file.open("wb") as opened:
            save(opened, depth=np.ones((2, 3), np.float32))
        refuse(
            r"a.npy: .*, got a zip archive, .*: np.save\('a.npy', np.load\('a.npy'\)\['depth'\]\), with the name of"
        )
    for content, told in (
        (b"no array", "a text; check whether the right file has another name"),
        (b"", "an empty file; copy it again, or leave it out"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file; "),
        (b"<!DOCTYPE html>", "an HTML page; download the file itself"),
        (bytes(range(128, 228)), "bytes that no known format begins with"),
    ):
        file.write_bytes(content)
        refuse(f"a.npy: expected a .npy array of depth, got {told}")
    # Headers that promise a terabyte, or break off.
    np.save(file, np.zeros((2, 3), np.uint16))
    head, rest = file.read_bytes().split(b"(2, 3), }          ", 1)
    for shape in (b"(1000000, 1000000)}", b"(10000,            "):
        file.write_bytes(head + shape + rest)
        refuse("a.npy: expected a .npy array of depth, got one that is truncated or damaged; copy it again")
    for shape in ((20, 30), (7, 5)):
        np.save(file, np.ones(shape))
        content = file.read_bytes()
        for length in (7, 60, 128, len(content) - 8):
            file.write_bytes(content[:length])
            refuse("a.npy: expected a .npy array of depth, got one that is truncated or damaged; copy it again")
    np.save(file, np.zeros((0, 5)))
    refuse("a.npy: expected a picture of 1 to .* got 5 x 0 .*; leave it out")
    with pytest.raises(FileNotFoundError, match="b.npy: the depth map does not exist; copy it again"):
        read_depth(tmp_path / "b.npy")


def test_pgm_pictures_that_are_wrong_are_refused(tmp_path):
    file = tmp_path / "a.pgm"
    for content, message in (
        (b"P2\n2 2\n65535\n1 2 3 4", r"expected a binary PGM picture \(P5\), got b'P2"),
        (b"P5\n2 x\n", "expected a binary PGM picture"),
        (b"P5\n2 2\n255\n" + bytes(4), "expected a 16-bit PGM .millimetres., got a largest value of 255; save depth"),
        (b"P5\n900000 900000\n65535\n", "expected a picture of 1 to"),
        (b"P5\n20 30\n65535\n" + bytes(50), "the depth map is truncated: expected 1200 bytes of readings, got 50"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"a.pgm: {message}"):
            read_depth(file)


def test_two_depth_maps_of_a_frame_are_refused(raw, tmp_path):
    folder = write_rgbd(raw, tmp_path / "room")
    save_pgm(folder / "frame-000001.depth.pgm", raw.depth_mm[1])
    with pytest.raises(
        ValueError, match="frame-000001 has two depth maps, .*depth.pgm and .*depth.png; leave one of the two"
    ):
        read_scene(folder)


def test_depth_of_no_reading_at_all():
    assert scale_depth(np.full((2, 3), 65535, np.uint16), "here").max() == 0
    # Of floats it is a reading like any other.
    assert scale_depth(np.array([[65535.0, 1000]]), "here").tolist() == [[np.float32(65.535), 1]]


@pytest.mark.parametrize("far", [65.535, 60.0, 499.0])
def test_a_few_far_readings_of_float_metres_leave_them_metres(far):
    depth = np.full((6, 9), 2.5, np.float32)
    depth[0, 3:7] = far
    assert np.array_equal(scale_depth(depth, "here"), depth)
    assert np.array_equal(scale_depth(1000 * depth, "here"), 1000 * depth / np.float32(1000))


@pytest.mark.parametrize("shape", [(6, 9), (8, 4)])
def test_readings_beyond_any_room_are_told_with_their_file_and_pixel(shape):
    metres = np.full(shape, 2.5)
    metres[1, 3] = metres[2, 0] = 1000
    message = "here: expected readings up to 500 m, got 1000 m in row 1, column 3, and 2 of them; write 0 where the se"
    for depth in (
        StoredDepth(metres, "here"),
        StoredDepth(10 * metres, "here", 10.0),
        StoredDepth((10 * metres).astype(np.uint16), "here", 10.0),
    ):
        with pytest.raises(ValueError, match=message):
            depth.scale(1.0)
    # All of them: another unit, which is told of the whole scan.
    assert StoredDepth(np.full(shape, 1000.0), "here", 1.0).scale(1.0).max() == 1000


def save_floats(folder, depth_mm: np.ndarray, factor: float) -> list:
    """The depth maps of an RGB-D folder as float arrays, millimetres times a factor."""
    files = []
    for index, depth in enumerate(depth_mm):
        (folder / f"frame-{index:06d}.depth.png").unlink(missing_ok=True)
        files.append(folder / f"frame-{index:06d}.depth.npy")
        np.save(files[-1], (depth * factor).astype(np.float32))
    return files


@pytest.mark.parametrize(("factor", "other", "unit"), [(0.001, 1.0, "metres"), (1.0, 0.001, "millimetres")])
def test_float_depth_of_a_scan_has_the_unit_of_most_of_its_frames(raw, tmp_path, factor, other, unit):
    folder = write_rgbd(raw, tmp_path / "room")
    wanted = read_scene(folder).depth_maps
    files = save_floats(folder, raw.depth_mm, factor)
    assert np.allclose(read_scene(folder).depth_maps, wanted)
    # A window in each frame.
    for file, depth in zip(files, raw.depth_mm, strict=True):
        np.save(file, np.where(np.arange(depth.shape[1]) < 4, 60, depth / 1000) * 1000 * factor)
    assert np.allclose(read_scene(folder, look_at_world=False).depth_maps[:, :, 4:], wanted[:, :, 4:])
    assert np.allclose(read_scene(folder, look_at_world=False).depth_maps[:, :, :4], 60)
    # One frame in the other unit.
    save_floats(folder, raw.depth_mm, factor)
    np.save(files[1], raw.depth_mm[1] * other)
    told = f"frame-000001.depth.npy: expected depth in {unit}, as in most frames of the scan, got nearest readings of"
    with pytest.raises(ValueError, match=told):
        read_scene(folder, max_excluded=0)
    with pytest.warns(UserWarning, match=told):
        assert np.allclose(read_scene(folder, max_excluded=0.5).depth_maps, np.delete(wanted, 1, axis=0))


def test_a_frame_without_readings_and_a_scan_of_two_units_are_told_apart():
    near, far, none = (StoredDepth(np.full((2, 3), value), str(value)) for value in (2.0, 1500.0, 0.0))
    assert find_float_units([near, none, none]) == 1 and find_float_units([none, far]) == 1000
    assert find_float_units([]) == find_float_units([none]) == 1
    with pytest.raises(
        ValueError, match="^2.0: expected float depth of all frames .* readings of about 2 .* of 1500 in 1500.0"
    ):
        find_float_units([far, near, none])


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_metres_stay_metres_where_most_of_a_frame_is_far_away(share):
    """A window, or 65.535 as the mark of no reading: the nearest readings tell the unit."""
    room = np.random.default_rng(3).uniform(0.6, 4.0, (4, 20, 30))
    for far in (60.0, 65.535):
        values = np.where(np.random.default_rng(4).random(room.shape) < share, far, room)
        depths = [StoredDepth(depth, str(number)) for number, depth in enumerate(values)]
        assert find_float_units(depths) == 1
        assert np.allclose(depths[0].scale(1.0), values[0])
    millimetres = [StoredDepth(1000 * depth, str(number)) for number, depth in enumerate(room)]
    assert find_float_units(millimetres) == 1000 and np.allclose(millimetres[1].scale(1000.0), room[1])


# ---- pictures of other kinds, and more than memory holds


def write_png_header(file, width, height):
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_pictures_beyond_the_limits_are_refused_before_memory_is_taken(tmp_path):
    file = tmp_path / "a.png"
    for width, height, message in (
        (30_000, 30_000, "a.png: expected a (readable picture, got Image size|picture of 1 to)"),
        (1, 60_000, "a.png: expected a picture at most"),
        (200, 300, "a.png: the picture cannot be read .*damaged"),
    ):
        write_png_header(file, width, height)
        with pytest.raises(ValueError, match=message):
            decode_color(file, file)
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(file)
    with pytest.raises(ValueError, match="a.png: expected a colour picture of 8 bits, got mode 'I;16', such as depth"):
        decode_color(file, file)
    file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(ValueError, match="a.png: .*got a HEIC picture; convert it to JPEG or PNG first") as caught:
        decode_color(file, file)
    assert "damaged" not in str(caught.value)


def test_pipes_and_folders_are_no_files_of_a_scan(raw, tmp_path):
    """In place of any file that a reader opens; none is waited for."""
    folder = write_rgbd(raw, tmp_path / "room")
    for name, what in (
        ("frame-000001.color.jpg", "expected a regular file"),
        ("frame-000001.depth.png", "expected a regular file"),
        ("frame-000001.pose.txt", "got a pipe, socket or device"),
        ("camera-intrinsics.txt", "got a pipe, socket or device"),
        ("boxes.json", "got a pipe, socket or device"),
        ("axis_align.txt", "got a pipe, socket or device"),
    ):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=what):
            read_scene(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(ValueError, match="folder"):
            read_scene(folder)
        (folder / name).rmdir()
        (folder / name).write_bytes(content)
    assert read_scene(folder).num_views == 3
    os.mkfifo(tmp_path / "walk.mp4")
    with pytest.raises(ValueError, match="walk.mp4: expected a video, got a pipe, socket or device"):
        read_scene(tmp_path / "walk.mp4")


def test_text_files_are_bounded(tmp_path):
    file = tmp_path / "pose.txt"
    file.write_text("1 " * 100_000)
    with pytest.raises(ValueError, match="pose.txt: expected a 4x4 matrix .a camera., of at most .* kB, got .* kB"):
        read_matrix(file, (4, 4), "a camera")


def test_views_are_bounded():
    with pytest.raises(ValueError, match="here: 900 views take more than 17 GB together; read fewer views .num"):
        check_memory(1 << 40, 900, "here")
    assert sample_uniform(5, 10**9, unique=True).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="num_views must be at most 1000000, got 1000000000; lower it"):
        sample_uniform(5, 10**9)
    for wrong in (2.5, True):
        with pytest.raises(ValueError, match="num_views must be a whole number, got"):
            sample_uniform(5, wrong)
    for count in range(1, 9):
        for wanted in range(count, 30):
            assert np.array_equal(np.unique(sample_uniform(count, wanted)), sample_uniform(count, wanted, unique=True))


# ---- pickles


def make_pickle(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


DTYPE = b"cnumpy\ndtype\n"
PLAIN = DTYPE + b"X\x02\x00\x00\x00f8\x89\x88\x87R"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
# Version 3, little endian, no parent type, then names and fields: two numbers of which one is told to be an object.
HIDDEN = (
    b"(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00a\x85}X\x01\x00\x00\x00aX\x02\x00\x00\x00O8K\x00\x86sK\x08K\x01K\x3ftb"
)
FAULTS = {
    "a type with fields": (make_pickle(PLAIN, HIDDEN), "an array of a type with fields"),
    "a type of raw bytes": (make_pickle(DTYPE, b"X\x03\x00\x00\x00V16\x89\x88\x87R"), "an array of type 'V16'"),
    "objects": (make_pickle(DTYPE, b"X\x02\x00\x00\x00O8\x89\x88\x87R"), "an array of type 'O8'"),
    "a list for a type": (make_pickle(DTYPE, b"]\x89\x88\x87R"), r"an array of type \[\]"),
    "an array of a billion": (make_pickle(b"cnumpy\nndarray\nJ\x00\xca\x9a\x3b\x85R"), "it calls numpy.ndarray"),
    "a billion bytes": (make_pickle(b"cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R"), "a bytearray that is made"),
    "another shape": (make_pickle(ARRAY, b"(K\x01K\x09\x85", PLAIN, b"\x89C\x08abcdefghtb"), "cannot reshape array"),
    "no bytes": (make_pickle(ARRAY, b"(K\x01K\x01\x85", PLAIN, b"\x89]tb"), "an array of objects"),
    "no state": (make_pickle(ARRAY, b"K\x05b"), "an array without shape"),
    "another order": (make_pickle(PLAIN, b"(K\x03X\x01\x00\x00\x00?NNNK\x00K\x00K\x00tb"), "an array whose order"),
    "a text": (make_pickle(b"c_codecs\nencode\nX\x01\0\0\0bX\x03\0\0\0hex\x86R"), "it has bytes in another form"),
    "a class": (pickle.dumps(os.getcwd), "it asks for .*, which is neither an array nor a builtin"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_pickles_cannot_say_what_an_array_is_made_of(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pkl: the pickle is refused .*{message}.*; expected infos, made of numpy"):
        load_plain_pickle(tmp_path / "a.pkl", "infos")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_pickles_come_back(tmp_path, protocol):
    values = {
        "float": np.arange(6.0).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "view": np.arange(24, dtype=">i2").reshape(2, 3, 4).transpose(2, 0, 1),
        "text": np.array(["chair", "bed"]),
        "truth": np.array([True, False]),
        "number": np.float32(2.5),
        "empty": np.zeros((0, 9)),
        "bytes": bytearray(b"abc"),
        "set": {1, 2},
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
    loaded = load_plain_pickle(tmp_path / "a.pkl", "infos")
    for name, value in values.items():
        found = loaded[name] if name in ("bytes", "set") else np.asarray(loaded[name])
        assert np.array_equal(found, value) and getattr(found, "shape", ()) == getattr(value, "shape", ()), name


# ---- scenes of other units and cameras

CAMERAS = {
    "transposed": (lambda k: k.T, r"a pinhole camera .*, which looks transposed; transpose matrices"),
    "skew": (
        lambda k: k + np.eye(3, k=1) * [[0, 3, 0]] * [[1], [0], [0]],
        "a pinhole camera fx 0 cx",
    ),
    "last row": (lambda k: k * [[1], [1], [7]], "a pinhole camera fx 0 cx"),
    "half size": (lambda k: k * [[0.5], [0.5], [1]], ".*looks made for pictures 0.5.* times as large; scale"),
    "an endless focal length": (
        lambda k: k * [[1e9, 1, 1]] * 1,
        ".* of the 24 x 32 depth map, got focal",
    ),
}


@pytest.mark.parametrize("fault", CAMERAS)
def test_cameras_of_another_picture_are_refused(raw, tmp_path, fault):
    folder = write_rgbd(raw, tmp_path / "room")
    change, message = CAMERAS[fault]
    np.savetxt(folder / "camera-intrinsics.txt", change(raw.depth_intrinsics))
    with pytest.raises(ValueError, match=f"^intrinsics of scene 'room': expected {message}"):
        read_scene(folder)


def test_poses_in_millimetres_are_refused(raw, tmp_path):
    folder = write_rgbd(raw, tmp_path / "room")
    for file in folder.glob("*.pose.txt"):
        matrix = np.loadtxt(file)
        matrix[:3, 3] *= 1000
        np.savetxt(file, matrix)
    with pytest.raises(ValueError, match="expected translations in metres, got .* in frame-00000., .*, which looks"):
        read_scene(folder)


def test_bounds_of_a_bev_picture_are_numbers(raw, tmp_path):
    folder = write_rgbd(raw, tmp_path / "room")
    Image.fromarray(np.full((4, 4, 4), 255, np.uint8)).save(folder / "bev.png")
    for bounds, message in (
        ("[NaN, 0, 1, 1]", "^bev_bounds of scene 'room': expected xmin < xmax"),
        ('["a", 0, 1, 1]', "got ValueError"),
        ("5", "got T"),
    ):
        (folder / "bev.json").write_text(f'{{"bounds": {bounds}}}')
        with pytest.raises(ValueError, match=message):
            read_scene(folder)
