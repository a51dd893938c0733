"""Prepared scenes: the same rows without the pictures, made anew when anything they were made of changes."""

import shutil
from pathlib import Path

import pytest
import torch

from ross3d.data.annotations import group_by_scene, load_annotations
from ross3d.data.dataset import SceneRows
from ross3d.data.prepared import PreparedScenes
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.scenes.questions import make_proposals
from ross3d.tests.posed_views import make_test_processor, make_views
from ross3d.tests.tiny import get_rooms
from ross3d.tools.make_tiny import make_tiny_processor


class CountingReader:
    """Reads scene folders and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, path: Path):
        self.count += 1
        return read_rgbd_folder(path)


@pytest.fixture
def rooms(tmp_path) -> Path:
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    return tmp_path / "rooms"


def make_rows(rooms: Path, prepared: PreparedScenes | None, **changes) -> SceneRows:
    annotations = group_by_scene(load_annotations(rooms / "annotations" / "train.jsonl"))
    settings = {"epochs": 2, "questions_per_row": 3, "seed": 4} | changes
    paths = sorted((rooms / "train").iterdir())[:4]
    return SceneRows(
        paths, annotations, make_tiny_processor(), read_rgbd_folder, make_proposals, prepared=prepared, **settings
    )


def check_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor.nan_to_num(7.0), second[key].nan_to_num(7.0)), key


@pytest.mark.parametrize("changes", [{}, {"reconstruct": False}, {"visit": "questions"}])
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
    """With and without depth, boxes, words and picture from above; several scenes at once."""
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
    with pytest.raises(ValueError, match="depth_maps of scene 0: expected None beside a fitted scene"):
        processor(images=fitted, depth_maps=views["depth_maps"])
    assert processor(images=fitted, proposal_boxes=boxes)["proposal_patches"].any()


def test_a_changed_scene_is_prepared_anew(rooms, tmp_path):
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


def test_broken_files_are_refused(rooms, tmp_path):
    path = sorted((rooms / "train").iterdir())[0]
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_rgbd_folder)
    store.read(path)
    file = tmp_path / "prepared" / f"{path.name}.prepared"
    whole = file.read_bytes()
    state = torch.load(file, weights_only=True)
    state["tensors"]["pictures"][0, 0, 0, 0] += 1
    torch.save(state, file)
    for change in (lambda: None, lambda: file.write_bytes(whole[: len(whole) // 2])):
        change()
        with pytest.raises(ValueError, match=f"{path.name}.prepared: expected tensors that were kept whole, got a"):
            store.read(path)
    torch.save([1], file)
    with pytest.raises(ValueError, match="expected tensors that were kept whole"):
        store.read(path)
    file.unlink()
    assert store.read(path)[0].scene_id == path.name


def test_training_goes_on_where_there_is_no_room(rooms, tmp_path, monkeypatch):
    """A full disk costs the preparation, not the run, and leaves nothing behind."""
    path = sorted((rooms / "train").iterdir())[0]

    def fail(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    store = PreparedScenes(tmp_path / "prepared", make_tiny_processor(), read_rgbd_folder)
    with pytest.warns(UserWarning, match="the prepared scene could not be kept .no space left"):
        assert store.read(path)[0].scene_id == path.name
    assert not list((tmp_path / "prepared").iterdir())
