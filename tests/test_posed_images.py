"""The public ScanNet export: equal to the room it was written from, with and without EmbodiedScan's infos."""

import collections
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources.posed_images import JPEG_RINGING, load_embodiedscan_infos, read_bev_view, read_posed_images
from ross3d.tests.raw_scannet import DEPTH_SIZE, write_raw_scan
from ross3d.tests.scan_folders import decode_colors, get_depth_metres, make_info, write_infos, write_posed_images


@pytest.fixture
def raw(tmp_path):
    return write_raw_scan(tmp_path, num_frames=7, lost=(3,))


@pytest.fixture
def folder(raw):
    return write_posed_images(raw)


def test_an_export_is_the_room_it_was_written_from(raw, folder):
    with pytest.warns(UserWarning, match=r"left out 1 of 7 frames \(tracking was lost: 1, such as scene .*, 00030"):
        scene = read_posed_images(folder)
    kept = [0, 1, 2, 4, 5, 6]
    assert scene.scene_id == "scene0000_00" and scene.view_names == [f"{10 * index:05d}" for index in kept]
    assert np.array_equal(scene.images, decode_colors(raw)[kept])
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw)[kept])
    assert np.abs(scene.cam2world - raw.cam2world[kept]).max() < 1e-5
    assert np.abs(scene.intrinsics - raw.depth_intrinsics).max() < 1e-6
    assert scene.boxes is None and scene.bev_image is None


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_infos_give_order_alignment_and_intrinsics(raw, folder, tmp_path, protocol):
    others = [{"sample_idx": "3rscan/abc"}, {"sample_idx": "matterport3d/xyz"}]
    infos = load_embodiedscan_infos(
        write_infos(tmp_path / "infos.pkl", [others[0], make_info(raw, (5, 0, 2)), others[1]], protocol)
    )
    assert infos.keys() == {"scene0000_00"}
    (folder / "depth_intrinsic.txt").unlink()
    (raw.folder / "scene0000_00.txt").unlink()
    scene = read_posed_images(folder, infos=infos)
    assert scene.view_names == ["00050", "00000", "00020"]
    assert np.abs(scene.cam2world - raw.cam2world[[5, 0, 2]]).max() < 1e-5
    assert np.array_equal(scene.intrinsics, raw.depth_intrinsics)
    assert read_posed_images(folder, infos=infos, num_views=2).view_names == ["00050", "00020"]
    with pytest.raises(ValueError, match="infos has 0 scans but not 'scene0000_00'; load the info file of its split"):
        read_posed_images(folder, infos={})


class Command:
    def __reduce__(self):
        return os.system, ("exit 3",)


def test_pickles_that_hold_more_than_arrays_are_refused(tmp_path):
    path = tmp_path / "infos.pkl"
    with pytest.raises(FileNotFoundError, match="infos.pkl does not exist; expected EmbodiedScan's embodied"):
        load_embodiedscan_infos(path)
    assert load_embodiedscan_infos(write_infos(path, [])) == {}
    hostile = {
        f"{os.system.__module__}.system": Command(),
        "collections.Counter": collections.Counter("ab"),
        "builtins.eval": eval,
        "pathlib": path,
        "numpy.load": np.load,
    }
    for name, value in hostile.items():
        with pytest.raises(ValueError, match=rf"infos.pkl: the pickle is refused \(it asks for {name}.*neither an"):
            load_embodiedscan_infos(write_infos(path, [value]))
    hidden = np.empty(1, dtype=object)
    hidden[0] = Command()
    attributes = b"\x80\x04\x8c\x05numpy\x8c\x0ftypes.os.system\x93."
    renamed = b"cnumpy.core.multiarray\nfromfile\n."
    for content, reason in (
        (pickle.dumps(hidden), "has an array of type 'O8'"),
        (attributes, "asks"),
        (renamed, "asks"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"infos.pkl: the pickle is refused .it {reason}"):
            load_embodiedscan_infos(path)


def test_damaged_infos_are_named(raw, tmp_path):
    """Cut anywhere, or with bytes that make the unpickler itself stumble."""
    path = write_infos(tmp_path / "infos.pkl", [make_info(raw, (0,))])
    content = path.read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="infos.pkl: the pickle is refused"):
            load_embodiedscan_infos(path)
    path.write_bytes(content.replace(b"scannet/posed", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8posed"))
    with pytest.raises(ValueError, match="infos.pkl: the pickle is refused .'utf-8' codec can't decode"):
        load_embodiedscan_infos(path)


def test_infos_without_their_keys_are_refused(raw, tmp_path):
    entry = make_info(raw, (0,))
    del entry["depth_cam2img"]
    with pytest.raises(ValueError, match=r"infos.pkl: expected data_list with sample_idx.*got KeyError\('depth"):
        load_embodiedscan_infos(write_infos(tmp_path / "infos.pkl", [entry]))


def test_boxes_come_by_scene(raw, folder, tmp_path):
    infos = {"scene0000_00": load_embodiedscan_infos(write_infos(tmp_path / "i.pkl", [make_info(raw, (0, 1))]))}
    infos = infos["scene0000_00"]
    (tmp_path / "scannet_val_pred_box.json").write_text('{"scannet/scene0000_00": [[0, 0, 1, 1, 1, 2]]}')
    scene = read_posed_images(folder, infos=infos, boxes=tmp_path / "scannet_val_pred_box.json")
    assert scene.boxes.tolist() == [[0, 0, 1, 1, 1, 2]] and scene.box_labels == [{}]
    (tmp_path / "scannet_val_pred_box.json").write_text('{"scannet/scene0001_00": []}')
    with pytest.warns(UserWarning, match="pred_box.json has no boxes of scene 'scene0000_00'; it is read without"):
        assert read_posed_images(folder, infos=infos, boxes=tmp_path / "scannet_val_pred_box.json").boxes is None


def test_exports_that_are_wrong_are_refused(raw, folder):
    for name in ("00000", "00010"):
        (folder / f"{name}.png").unlink()
    message = r"2 of 6 frames cannot be used, .*\(depth map is missing: 2, such as .*00000.png: the depth map does"
    with pytest.raises(ValueError, match=message):
        read_posed_images(folder)
    with pytest.warns(UserWarning, match=r"left out 3 of 7 frames \(tracking was lost: 1, .*; depth map is missing"):
        scene = read_posed_images(folder, max_excluded=0.5)
    assert list(scene.exclusions.values()) == ["tracking was lost", "depth map is missing", "depth map is missing"]
    empty = folder.parent / "scene0002_00"
    empty.mkdir()
    (empty / "depth_intrinsic.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1")
    with pytest.raises(ValueError, match="scene0002_00 holds zero frames; expected 00000.jpg, 00000.png"):
        read_posed_images(empty, axis_align_matrix=np.eye(4))


def test_published_bev_pictures(raw, folder):
    """A red square of 300 pixels in the middle of a 640 x 480 picture; JPEG leaves traces around it."""
    picture = np.zeros((480, 640, 3), dtype=np.uint8)
    picture[90:390, 170:470] = (200, 30, 30)
    file = raw.folder / "view_0.jpg"
    Image.fromarray(picture).save(file, quality=60)
    traces = np.asarray(Image.open(file))[:, :170].max()
    assert 0 < traces
    image, valid = read_bev_view(file, DEPTH_SIZE)
    assert image.shape == (432, 432, 3) and valid.shape == (432, 432)
    # Scale 0.9, and 72 of 576 columns are cut off on the left: the square lies at rows 81-351, columns 81-351.
    assert valid[83:349, 83:349].all()
    # Traces are within the blocks of 16 pixels that the square cuts: rows 80-400 of the file, columns 160-480.
    for axis in (0, 1):
        rows = np.flatnonzero(valid.any(axis=axis))
        assert 70 <= rows.min() <= 83 and 349 <= rows.max() <= 361
    assert not image[~valid].any() and image[valid].max(axis=-1).min() > JPEG_RINGING
    with pytest.warns(UserWarning):
        scene = read_posed_images(folder)
        whole = read_posed_images(folder, crop_bev=False)
    assert np.array_equal(scene.bev_image, image) and np.array_equal(scene.bev_valid, valid)
    assert whole.bev_image.shape == (432, 576, 3) and np.array_equal(whole.bev_image[:, 72:504], image)
    with pytest.raises(ValueError, match="view_0.jpg: depth maps of 24x32 pixels are higher than wide, so the"):
        read_bev_view(file, DEPTH_SIZE[::-1])
