"""Prepared scenes: the same rows without the pictures, made again when anything they were made of changes."""

import errno
import json
import os
import resource
import shutil
import subprocess
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ross3d.data.annotations import group_by_scene, load_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.atomic import replace_file
from ross3d.data.consistency import ConsistencyWarning
from ross3d.data.dataset import SceneRows
from ross3d.data.latents import SceneLatents
from ross3d.data.prepared import PreparedScenes, SceneReader
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.sources import read_scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.data.tensor_cache import DamagedError, describe_source, load_cache, make_cache, write_cache
from ross3d.tests.limited_memory import call_within
from ross3d.tests.posed_views import make_test_processor, make_views
from ross3d.tests.scan_folders import enlarge_pictures
from ross3d.tests.tiny import get_rooms
from ross3d.tools.make_tiny import make_tiny_processor


class CountingReader:
    """Reads scene folders and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, path: Path, **reading):
        self.count += 1
        return read_rgbd_folder(path, **reading)


@pytest.fixture
def rooms(tmp_path) -> Path:
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    return tmp_path / "rooms"


make_jittered = partial(ProposalMaker("--data.proposals").make_set, source="jittered")


def make_rows(rooms: Path, prepared: PreparedScenes | None, **changes) -> SceneRows:
    annotations = group_by_scene(load_annotations(rooms / "annotations" / "train.jsonl"))
    data = DataArguments(**{"epochs": 2, "questions_per_row": 3} | changes)
    paths, reader = sorted((rooms / "train").iterdir())[:4], prepared or SceneReader(read_rgbd_folder)
    return SceneRows(data, paths, annotations, make_tiny_processor(), reader, make_jittered, seed=4)


def check_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor.nan_to_num(7.0), second[key].nan_to_num(7.0)), key


@pytest.mark.parametrize("changes", [{}, {"visit": "questions"}])
def test_rows_of_prepared_scenes_are_the_same(rooms, tmp_path, changes):
    """Bit for bit, in the first epoch and in the second, which reads no pictures."""
    reader = CountingReader()
    plain = make_rows(rooms, None, **changes)
    rows = make_rows(rooms, PreparedScenes(tmp_path / "prepared", make_tiny_processor(), reader), **changes)
    for index in range(len(plain)):
        check_same(rows[index], plain[index])
    assert reader.count == 4
    assert len(list((tmp_path / "prepared").iterdir())) == 4


@pytest.mark.parametrize("mode", ["published", "valid_depth"])
def test_a_fitted_scene_stands_for_its_views(mode):
    """With and without depth, boxes, words and bird's-eye picture; several scenes at once."""
    processor = make_test_processor(geometry_mode=mode)
    views = make_views()
    picture = torch.randint(0, 255, (30, 30, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    boxes = views.pop("proposal_boxes")
    above = {"bev_image": picture, "bev_valid": picture[..., 0] > 99, "bev_bounds": [-1.0, -1.0, 1.0, 1.0]}
    fitted = processor.fit_scene(**views, **above)
    words = {"text": ["How many chairs are there?", "the lamp"], "proposal_boxes": boxes}
    check_same(dict(processor(images=fitted, **words)), dict(processor(**views, **above, **words)))
    pictures = {"images": views["images"]}
    check_same(dict(processor(images=processor.fit_scene(**pictures))), dict(processor(**pictures)))
    both = processor(images=[fitted, fitted], proposal_boxes=[boxes, boxes[:2]])
    assert both["pixel_values"].shape[0] == 2 and both["proposal_mask"].sum() == len(boxes) + 2


def test_fitted_scenes_of_another_processor_are_refused():
    views = make_views()
    boxes = views.pop("proposal_boxes")
    fitted = make_test_processor(geometry_mode="published").fit_scene(**views)
    other = make_test_processor(geometry_mode="valid_depth")
    with pytest.raises(ValueError, match="images of scene 0: expected a scene fitted by a processor .*valid_depth"):
        other(images=fitted)
    processor = make_test_processor(geometry_mode="published")
    with pytest.raises(ValueError, match="depth_maps of scene 0: expected None with a fitted scene"):
        processor(images=fitted, depth_maps=views["depth_maps"])
    assert processor(images=fitted, proposal_boxes=boxes)["proposal_patches"].any()


def test_a_changed_scene_is_prepared_again(rooms, tmp_path):
    """Another picture, another processor: what was prepared before is not used."""
    reader, path = CountingReader(), sorted((rooms / "train").iterdir())[0]
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), reader)
    _, first = store.read(path)
    first = first.pictures.clone()
    picture = sorted(path.glob("*.color.*"))
    shutil.copyfile(picture[1], picture[0])
    _, second = store.read(path)
    assert reader.count == 2 and not torch.equal(first[0], second.pictures[0])
    assert torch.equal(second.pictures[0], second.pictures[1])
    processor = make_tiny_processor()
    processor.geometry_mode = "published"
    PreparedScenes(tmp_path / "prepared", processor, reader).read(path)
    assert reader.count == 3
    store.read(path)
    assert reader.count == 4


def shift_poses(folder: Path) -> None:
    """Every frame gets the pose of another, by no rule."""
    files = sorted(folder.glob("*.pose.txt"))
    poses = [file.read_text() for file in files]
    for file, place in zip(files, [2, 0, 4, 5, 1, 3], strict=True):
        file.write_text(poses[place])


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_said_of_a_scene_is_said_again_in_one_line(rooms, tmp_path, count):
    """By later runs that read no views, until the scene's files change; nothing is said of the others."""
    paths = sorted((rooms / "train").iterdir())[:4]
    for path in paths[1 : 1 + count]:
        shift_poses(path)
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_scene)
    with pytest.warns(ConsistencyWarning) as said:
        for path in paths:
            store.read(path)
    first = f"scene '{paths[1].name}': the views do not agree with each other: "
    assert len(said) == count and str(said[0].message).startswith(first)
    assert len(list((tmp_path / "prepared").glob("*.warnings.json"))) == count
    with pytest.warns(UserWarning) as again:
        rows = make_rows(rooms, PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_scene))
        for index in range(4):
            rows[index]
    (warning,) = again
    number = "a scene" if count == 1 else "2 of 4 scenes"
    assert str(warning.message).startswith(f"data.prepared: preparing {number} gave warnings")
    assert str(said[0].message) in str(warning.message)
    for path in paths[1 : 1 + count]:
        (path / "boxes.json").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_rows(rooms, PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_scene))


def test_a_damaged_file_of_warnings_stops_nothing(rooms, tmp_path):
    path = sorted((rooms / "train").iterdir())[0]
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_scene)
    store.read(path)
    (prepared,) = (tmp_path / "prepared").iterdir()
    prepared.with_suffix(".warnings.json").write_text('{"identity": ')
    assert store.read_warnings(path) == []


def test_a_scene_read_otherwise_is_prepared_again(rooms, tmp_path):
    """Pictures decoded smaller are others, in what is kept as well."""
    processor, reader, path = make_tiny_processor(), CountingReader(), sorted((rooms / "train").iterdir())[0]
    enlarge_pictures(path, 3)
    exact = PreparedScenes(tmp_path / "prepared", processor, reader)
    reduced = PreparedScenes(tmp_path / "prepared", processor, reader, {"reduce_to": processor.view_size})
    _, first = exact.read(path)
    first = first.pictures.clone()
    scene, second = reduced.read(path)
    assert reader.count == 2 and scene.num_views == 6
    difference = (first.int() - second.pictures.int()).abs()
    assert 0 < difference.max() and difference.float().mean() < 3
    wanted = processor.fit_scene(reader(path, reduce_to=processor.view_size).images)
    assert torch.equal(second.pictures, wanted.pictures)
    reduced.read(path)
    assert reader.count == 3
    exact.read(path)
    assert reader.count == 4


def test_broken_files_are_made_again(rooms, tmp_path):
    """With a warning; whoever must not read others' files in their place is told (`load_cache`)."""
    path = sorted((rooms / "train").iterdir())[0]
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_rgbd_folder)
    store.read(path)
    (file,) = (tmp_path / "prepared").glob(f"{path.name}-*.prepared")
    whole = file.read_bytes()
    state = torch.load(file, weights_only=True)
    state["tensors"]["pictures"][0, 0, 0, 0] += 1
    torch.save(state, file)
    for change in (lambda: None, lambda: file.write_bytes(whole[: len(whole) // 2])):
        change()
        with pytest.raises(ValueError, match=f"{file.name}: expected tensors as they were written, got a"):
            load_cache(file, state["identity"])
        check_made_again(store, path, file)
    labels = state | {"about": state["about"] | {"box_labels": None}}
    for content in ([1], {"identity": 0}, labels, state | {"tensors": {"pictures": 3}}):
        torch.save(content, file)
        check_made_again(store, path, file)
    file.unlink()
    assert store.read(path)[0].scene_id == path.name


def check_made_again(store: PreparedScenes, path: Path, file: Path) -> None:
    with pytest.warns(UserWarning, match=f"{file.name} is damaged; it is made again"):
        scene, _ = store.read(path)
    assert np.array_equal(scene.images, store.read(path)[0].images) and scene.scene_id == path.name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.read(path)


def test_what_killed_runs_left_is_removed(rooms, tmp_path):
    """By whoever starts next, in folders of prepared scenes and of latents; what a living process writes stays."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = tmp_path / "prepared"
    folder.mkdir()
    gone = folder / f".scene.v1-00.prepared.{dead.pid}.0a1b2c3d.partial"
    alive = folder / f".scene.v1-00.prepared.{os.getpid()}.0a1b2c3d.partial"
    others = [folder / ".partial", folder / ".x.partial", folder / "scene-00.prepared"]
    for make in (
        lambda: PreparedScenes(folder, make_tiny_processor(), read_rgbd_folder),
        lambda: SceneLatents(folder, {}),
    ):
        for file in (gone, alive, *others):
            file.write_bytes(b"half")
        make()
        assert set(folder.iterdir()) == {alive, *others}


def write_with_little_room(file: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    write_cache(file, make_cache({}, {}, {"a": torch.zeros(100_000)}))


def test_a_full_disk_is_called_so(tmp_path):
    """torch tells of one by the place in the file at which it stopped."""
    with pytest.raises(OSError, match="scene.latents: there is no space left to write it: the disk is full"):
        call_within(4096, write_with_little_room, tmp_path / "scene.latents")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="a.json: there is no space left to write it: the disk is full or a quota"):
        with replace_file(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="another fault"):
        with replace_file(tmp_path / "a.json"):
            raise ValueError("another fault")


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_passes(rooms, tmp_path, seed):
    path = sorted((rooms / "train").iterdir())[1]
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_rgbd_folder)
    right, _ = store.read(path)
    (file,) = (tmp_path / "prepared").iterdir()
    whole, rng = file.read_bytes(), np.random.default_rng(seed)
    identity = torch.load(file, weights_only=True)["identity"]
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            kept = load_cache(file, identity)
        except DamagedError as error:
            assert file.name in str(error)
        else:
            # None: what it says that it was made of has changed, so it is made again.
            scene, _ = (right, None) if kept is None else store.build(kept, path)
            assert scene.box_labels == right.box_labels and np.array_equal(scene.images, right.images)


def test_scenes_of_one_name_are_kept_apart(rooms, tmp_path):
    """A scene of two splits, as preparation links it."""
    path = sorted((rooms / "train").iterdir())[0]
    shutil.copytree(path, tmp_path / "other" / path.name)
    read = []
    store = PreparedScenes(
        tmp_path / "prepared", make_tiny_processor(), lambda path: read.append(path) or read_rgbd_folder(path)
    )
    for _ in range(3):
        store.read(path)
        store.read(tmp_path / "other" / path.name)
    assert len(read) == 2


@pytest.mark.parametrize("layout", ["posed_images", "nerfstudio", "scannet"])
def test_files_beside_the_folder_count_too(tmp_path, layout):
    """What a reader takes from elsewhere, or through a link, is part of what was prepared."""
    path, changed = write_scan_with_files_elsewhere(tmp_path, layout)
    before = describe_source(path)
    assert describe_source(path) == before
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert describe_source(path) != before


def write_scan_with_files_elsewhere(folder: Path, layout: str) -> tuple[Path, Path]:
    """A folder of a layout, and a file that is read with it and does not lie in it."""
    if layout == "posed_images":
        path, other = folder / "posed_images" / "scene0001_00", folder / "scans" / "scene0001_00" / "scene0001_00.txt"
        (path / "00000.jpg").parent.mkdir(parents=True)
        (path / "00000.jpg").write_bytes(b"picture")
    elif layout == "scannet":
        path, other = folder / "scans" / "scene0001_00", folder / "scannetv2-labels.combined.tsv"
        path.mkdir(parents=True)
        (path / "scene0001_00.sens").write_bytes(b"recording")
    else:
        path, other = folder / "capture", folder / "elsewhere" / "0.png"
        path.mkdir()
        (path / "images").symlink_to(folder / "elsewhere")
        frames = [{"file_path": "images/0.png", "transform_matrix": np.eye(4).tolist()}]
        (path / "transforms.json").write_text(json.dumps({"frames": frames}))
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"beside")
    return path, other


def test_training_goes_on_where_there_is_no_room(rooms, tmp_path, monkeypatch):
    """A full disk costs the preparation, not the run, and leaves nothing behind."""
    path = sorted((rooms / "train").iterdir())[0]

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_rgbd_folder)
    with pytest.warns(UserWarning, match="the prepared scene could not be saved .no space left"):
        assert store.read(path)[0].scene_id == path.name
    assert not list((tmp_path / "prepared").iterdir())
