"""Kept features: the losses that the encoder gives, without the encoder; refused when they are not of the views."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.testing import assert_close

from ross3d.data import geometry_features
from ross3d.data.arguments import DataArguments
from ross3d.data.geometry_features import SceneFeatures, compress, find_difference, read_npz, restore
from ross3d.data.sources import read_scene
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.training import checkpoint
from ross3d.training import geometry_features as door
from ross3d.training.arguments import RunArguments, check_same_run, describe_run
from ross3d.training.build import (
    build_collator,
    build_config,
    build_features,
    build_model,
    build_processor,
    build_rows,
    find_encoder_folder,
)
from ross3d.vggt_ross3d import Ross3DVGGT, make_published_weights


@pytest.fixture
def arguments(tmp_path) -> RunArguments:
    """A run from the tiny checkpoint of 3DRS, in full precision, that keeps whole numbers."""
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    data = DataArguments(
        root=str(tmp_path / "rooms"), limit=3, questions_per_row=2, geometry_features=str(tmp_path / "features"),
        geometry_storage="float32",
    )  # fmt: skip
    model = {"distillation_config": {"encoder_dtype": "float32"}}
    return RunArguments(seed=3, init_from=str(get_checkpoint("3drs")), model=model, data=data)


def without_files(arguments: RunArguments) -> RunArguments:
    return replace(arguments, data=replace(arguments.data, geometry_features=None))


def get_rows(arguments: RunArguments):
    processor = build_processor(arguments)
    return build_rows(arguments, processor, 1, build_config(arguments, processor))


def get_loss(arguments: RunArguments) -> float:
    """The distillation loss of a batch of all rows."""
    processor = build_processor(arguments)
    model = build_model(arguments, processor).train()
    rows = build_rows(arguments, processor, 1, model.config)
    batch = build_collator(processor, model.config)([rows[index] for index in range(len(rows))])
    uses_files = arguments.data.geometry_features is not None
    assert ("geometry_features" in batch) == uses_files and ("geometry_pixel_values" in batch) != uses_files
    assert bool(model._geometry_encoder) != uses_files
    output = model(**batch)
    assert output.loss_counts[-1] == 3
    return output.distill_loss.item()


@pytest.mark.parametrize("fit", ["squash", "center_crop"])
def test_losses_are_those_of_the_encoder(arguments, fit, monkeypatch):
    arguments = replace(arguments, processor={"view_fit": fit})
    door.main(arguments)
    files = sorted(Path(arguments.data.geometry_features).iterdir())
    assert [file.name for file in files] == [f"train-{number:06d}.features" for number in range(3)]
    wanted = get_loss(without_files(arguments))
    assert get_loss(arguments) == wanted > 0
    # A prepared cache gives the same rows, and what is kept is not made again.
    prepared = replace(arguments.data, prepared=str(files[0].parent.parent / "prepared"))
    for data in (prepared, replace(prepared, geometry_features=None)):
        assert get_loss(replace(arguments, data=data)) == get_loss(replace(arguments, data=data)) == wanted
    monkeypatch.setattr(SceneFeatures, "write", lambda *_: pytest.fail("encoded again"))
    door.main(arguments)


@pytest.mark.parametrize(("storage", "share", "error"), [("bfloat16", 0.5, 4e-3), ("int8", 0.25, 1e-2)])
def test_smaller_files_give_nearly_the_same(arguments, storage, share, error):
    door.main(arguments)
    wanted = get_loss(arguments)
    files = list(Path(arguments.data.geometry_features).iterdir())
    size = sum(file.stat().st_size for file in files)
    small = replace(arguments, data=replace(arguments.data, geometry_storage=storage,
                                            geometry_features=arguments.data.geometry_features + storage))  # fmt: skip
    door.main(small)
    assert abs(get_loss(small) - wanted) < error * wanted
    smaller = sum(file.stat().st_size for file in Path(small.data.geometry_features).iterdir())
    # Names, checksum and scales take a little more.
    assert smaller < (share + 0.25) * size
    # Files are read whichever way they are stored.
    mixed = replace(arguments, data=replace(small.data, geometry_storage="float32"))
    assert get_loss(mixed) == get_loss(small)


@pytest.mark.parametrize("shape", [(2, 1, 3, 2, 8), (5, 2, 1, 4, 6)])
def test_features_are_restored(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 50
    features[0, 0, 0, 0] = 0.0
    assert torch.equal(restore(compress(features, "float32")), features)
    assert torch.equal(restore(compress(features, "bfloat16")), features.bfloat16())
    error = (restore(compress(features, "int8")) - features).abs()
    assert bool((error <= features.abs().amax(dim=-1, keepdim=True) / 127 * 0.51).all())


def test_two_processes_share_the_scenes(arguments, tmp_path):
    """Started by a launcher they make the files of one process, and a further start makes what is missing."""
    door.main(arguments)
    wanted = {file.name: file.read_bytes() for file in Path(arguments.data.geometry_features).iterdir()}
    again = str(tmp_path / "again")
    settings = {
        "seed": 3, "init_from": arguments.init_from, "model": arguments.model,
        "data": {"root": arguments.data.root, "limit": 3, "questions_per_row": 2, "geometry_storage": "float32",
                 "geometry_features": again},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, door.__name__, str(file)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    made = {file.name: file.read_bytes() for file in Path(again).iterdir()}
    assert made == wanted


def test_shares_do_not_depend_on_what_another_process_has_written(arguments, monkeypatch):
    """Otherwise scenes would be in no share: the second process starts when the first has written a file."""
    door.main(arguments)
    folder = Path(arguments.data.geometry_features)
    files = sorted(folder.iterdir())
    files[1].unlink()
    state = SimpleNamespace(process_index=1, num_processes=2, is_main_process=False, device=torch.device("cpu"),
                            wait_for_everyone=lambda: None)  # fmt: skip
    monkeypatch.setattr(door, "PartialState", lambda: state)
    door.main(arguments)
    assert sorted(folder.iterdir()) == files


def test_reduced_pictures_are_not_smaller_than_those_of_the_encoder(arguments, monkeypatch):
    model = {"distillation_config": {"encoder_dtype": "float32", "encoder_image_size": 128}}
    run = replace(arguments, model=model, data=replace(arguments.data, decode="reduced"))
    read = []
    monkeypatch.setattr(
        door, "read_scene", lambda path, **reading: read.append(reading) or read_scene(path, **reading)
    )
    door.main(run)
    assert {reading["reduce_to"] for reading in read} == {128}
    assert get_rows(without_files(run)).reader.reading["reduce_to"] == 128
    assert get_loss(run) == get_loss(without_files(run))


def test_a_published_encoder_is_the_file_that_is_read(arguments, tmp_path):
    """Given as a file or as a folder, and whatever else is in the folder."""
    encoder = Ross3DVGGT.from_pretrained(get_checkpoint("3drs") / "geometry_encoder", heads=[])
    weights = {name: tensor.contiguous() for name, tensor in make_published_weights(encoder.state_dict()).items()}
    names = ["one/model.safetensors", "two/model.safetensors"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        save_file(weights, tmp_path / name)
    torch.save(weights, tmp_path / "two" / "model.pt")
    runs = [replace(arguments, geometry_encoder=str(tmp_path / name)) for name in (names[0], "one", "two")]
    processor = build_processor(arguments)
    stores = [build_features(run, processor, build_config(run, processor)) for run in runs]
    assert len({store.settings["encoder"] for store in stores}) == 1
    weights["aggregator.camera_token"] += 1
    save_file(weights, tmp_path / names[1])
    store = build_features(runs[2], processor, build_config(runs[2], processor))
    assert store.settings["encoder"] != stores[0].settings["encoder"]


def test_features_that_are_not_finite_are_not_kept(arguments):
    rows_of = SceneFeatures(Path(arguments.data.geometry_features), {"encoder_layers": [-1], "storage": "bfloat16"})
    features = torch.ones(2, 1, 3, 4, 6)
    features[1, 0, 2, 1, 3] = torch.inf
    with pytest.raises(ValueError, match="train-000001: expected finite features of the geometry encoder, got some"):
        rows_of.write(Path("train-000001"), {}, ["a", "b"], features)
    assert not list(rows_of.folder.glob("*"))


@pytest.mark.parametrize(("files", "fetched"), [(("model.safetensors", "model.pt"), 1), (("model.pt",), 2)])
def test_one_kind_of_weights_is_fetched_from_the_hub(tmp_path, monkeypatch, files, fetched):
    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns)
        for file in files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return tmp_path

    monkeypatch.setattr(checkpoint, "snapshot_download", fetch)
    assert find_encoder_folder("user/vggt") == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [files[0]] and len(asked) == fetched


def test_damaged_encoders_and_blind_runs_are_refused(arguments, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(get_checkpoint("3drs") / "geometry_encoder", folder)
    named = replace(without_files(arguments), geometry_encoder=str(folder))
    processor = build_processor(named)
    build_model(named, processor)
    encoder = Ross3DVGGT.from_pretrained(folder)
    encoder.aggregator.camera_token.data[0, 1] = torch.nan
    encoder.save_pretrained(folder)
    with pytest.raises(
        ValueError, match="geometry_encoder: .*encoder: expected finite weights, got NaN or infinity in"
    ):
        build_model(named, processor)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9000])
    with pytest.raises(ValueError, match="geometry_encoder: .*model.safetensors: expected weights in the safetensors"):
        build_model(named, processor)
    blind = replace(arguments, data=replace(arguments.data, blind=True))
    with pytest.raises(ValueError, match="data.blind: expected a model without distillation_config"):
        build_model(blind, processor)


def test_missing_and_foreign_features_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match=r"data.geometry_features: expected features of 3 scenes .* got none of 3"):
        get_rows(arguments)
    door.main(arguments)
    rows = get_rows(arguments)
    assert rows[0]["geometry_features"].shape == (6, 1, 4, 4, 32)
    folder = Path(arguments.data.geometry_features)
    # Another precision, another size, another fit, other layers, other views.
    for changes, message in (
        ({"model": {"distillation_config": {"encoder_dtype": "bfloat16"}}}, "encoder_dtype 'bfloat16', .* 'float32'"),
        ({"model": {"distillation_config": {"encoder_image_size": 32, "encoder_dtype": "float32"}}},
         "encoder_image_size 32, as in this run, got 64"),
        ({"processor": {"view_fit": "center_crop"}}, "processor.view_fit 'center_crop', as in this run, got 'squash'"),
        ({"model": {"distillation_config": {"encoder_layers": [0], "encoder_dtype": "float32"}}},
         r"encoder_layers \[0\], as in this run, got \[1\]"),
        ({"data": replace(arguments.data, num_views=4)}, "reading.num_views 4, as in this run, got 32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            get_rows(replace(arguments, **changes))[0]
        with pytest.raises(ValueError, match=message):
            door.main(replace(arguments, **changes))
    # Another encoder.
    encoder = Ross3DVGGT.from_pretrained(get_checkpoint("3drs") / "geometry_encoder")
    encoder.aggregator.camera_token.data += 1
    encoder.save_pretrained(tmp_path / "other")
    other = replace(arguments, geometry_encoder=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="made with encoder '[0-9a-f]{16}', as in this run, got '[0-9a-f]{16}' in"):
        get_rows(other)[0]
    # Other files of the scene, and those of another scene.
    scenes = Path(arguments.data.root) / "train"
    picture = sorted((scenes / "train-000001").rglob("*.color.png"))[2]
    shutil.copy(sorted((scenes / "train-000002").rglob("*.color.png"))[0], picture)
    with pytest.raises(ValueError, match=rf"file .*{picture.name} '\d+ bytes', as in this run, got '\d+ bytes'"):
        rows.stores[0].read(scenes / "train-000001")
    picture.unlink()
    with pytest.raises(ValueError, match=rf"file .*{picture.name} 'no such file', as in this run"):
        rows.stores[0].read(scenes / "train-000001")
    os.replace(folder / "train-000002.features", folder / "train-000000.features")
    with pytest.raises(ValueError, match="made with scene 'train-000000', as in this run, got 'train-000002'"):
        rows.stores[0].read(scenes / "train-000000")
    with pytest.raises(ValueError, match=r"expected features of .*train-000002 in .*, got no such file"):
        rows.stores[0].read(scenes / "train-000002")


def test_damaged_files_are_refused_and_made_again(arguments):
    door.main(arguments)
    rows, scene = get_rows(arguments), Path(arguments.data.root) / "train" / "train-000001"
    file = rows.stores[0].get_file(scene)
    wanted = file.read_bytes()
    for damaged in (wanted[:-300], wanted[:600] + bytes([wanted[600] ^ 1]) + wanted[601:], b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="expected tensors as they were written, got a damaged file|"
                           "expected the description of the features as it was written, got another"):  # fmt: skip
            rows.stores[0].read(scene)
        door.main(arguments)
        assert file.read_bytes() == wanted
    # A copy of scenes and features elsewhere is read there.
    moved = Path(arguments.data.root).parent / "moved"
    shutil.copytree(arguments.data.root, moved)
    shutil.copytree(rows.stores[0].folder, moved / "features")
    data = replace(arguments.data, root=str(moved), geometry_features=str(moved / "features"))
    assert torch.equal(get_rows(replace(arguments, data=data))[0]["geometry_features"], rows[0]["geometry_features"])


def test_features_alone_need_no_encoder(arguments, tmp_path):
    """Whoever has the files need not have the encoder; which one made them is then not compared."""
    bare = tmp_path / "bare"
    shutil.copytree(get_checkpoint("3drs"), bare, ignore=shutil.ignore_patterns("geometry_encoder"))
    door.main(arguments)
    lone = replace(arguments, init_from=str(bare))
    assert get_loss(lone) == get_loss(arguments)
    with pytest.raises(ValueError, match="expected an encoder or its features for model.distillation_config, got"):
        build_model(without_files(lone), build_processor(lone))
    with pytest.raises(ValueError, match="data.geometry_features: expected a folder for features, and a geometry enc"):
        door.main(lone)
    off = replace(without_files(lone), model={"distillation_config": None})
    assert not hasattr(build_model(off, build_processor(off)), "distillation_head")
    for changes, name in (({"geometry_encoder": str(bare)}, "geometry_encoder"), ({}, "data.geometry_features")):
        given = replace(arguments, init_from=str(get_checkpoint()), model={}, **changes)
        with pytest.raises(ValueError, match=f"{name}: expected a model with distillation_config, which learns"):
            get_rows(given)


def test_features_of_other_numbers_of_views_are_refused(arguments):
    """The last net: settings and files are those of the run, the number of views is not."""
    door.main(arguments)
    rows, scene = get_rows(arguments), Path(arguments.data.root) / "train" / "train-000001"
    store = rows.stores[0]
    kept = store.load(scene)
    store.write(scene, kept["identity"], kept["about"]["views"][:5], kept["tensors"]["features"][:5])
    with pytest.raises(ValueError, match="expected geometry_features of 6 views, as this run reads of the scene"):
        [rows[index] for index in range(3)]


def test_files_of_a_scene_are_described_in_one_order(tmp_path, monkeypatch):
    """Where a layout has files beside the scene, the order of whole paths depends on where the data is."""
    for name in ("b/room/picture", "a/scans", "c/more"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    for order in ([0, 1, 2], [2, 1, 0]):
        files = [tmp_path / ("b/room/picture", "a/scans", "c/more")[place] for place in order]
        monkeypatch.setattr(geometry_features, "list_files", lambda _, files=files: files)
        described = geometry_features.describe_files(tmp_path / "b" / "room")
        assert described == [["../../a/scans", 7], ["../../c/more", 6], ["picture", 14]]


def test_features_of_other_views_are_refused(arguments, tmp_path):
    """Frames in another order, with names and sizes of all files as they were; also from a prepared cache."""
    door.main(arguments)
    prepared = replace(arguments, data=replace(arguments.data, prepared=str(tmp_path / "prepared")))
    for run in (arguments, prepared, prepared):
        rows = get_rows(run)
        path, store = rows.scenes[1], rows.stores[0]
        kept = store.load(path)
        names = kept["about"]["views"]
        store.write(path, kept["identity"], [names[1], names[0], *names[2:]], kept["tensors"]["features"])
        with pytest.raises(
            ValueError, match=f"expected the view '{names[0]}', which this run reads of .*'{names[1]}' in"
        ):
            [rows[index] for index in range(3)]
        store.write(path, kept["identity"], names, kept["tensors"]["features"])
        assert [rows[index]["geometry_features"].shape[0] for index in range(3)] == [6, 6, 6]


def test_a_run_goes_on_with_the_same_kind_of_target(arguments, tmp_path):
    """The folder of features may move; a run with the encoder does not go on with files, nor the other way around."""
    file = tmp_path / "run.yaml"
    moved = replace(arguments, data=replace(arguments.data, geometry_features="elsewhere"))
    for before, now in ((arguments, without_files(arguments)), (without_files(arguments), moved)):
        file.write_text(describe_run(before))
        check_same_run(replace(before), file)
        with pytest.raises(ValueError, match="expected data.geometry_features=.*, as when this run began, got"):
            check_same_run(now, file)
    file.write_text(describe_run(arguments))
    check_same_run(moved, file)


def test_files_without_views_do_not_count(arguments):
    """Boxes, bird's-eye pictures and alignments may be made later."""
    door.main(arguments)
    scene = Path(arguments.data.root) / "train" / "train-000001"
    for name in ("bev.png", "bev.json", "boxes.json"):
        (scene / name).write_bytes((scene / name).read_bytes() + b"\n")
    assert get_rows(arguments).stores[0].read(scene).views


def test_a_folder_of_features_that_is_a_file(arguments, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="data.geometry_features: expected a folder to write into, got"):
        door.main(replace(arguments, data=replace(arguments.data, geometry_features=str(tmp_path / "file"))))


def test_differences_are_named():
    assert find_difference({"a": 1, "b": None}, {"a": 1, "b": None}) is None
    # What only the file knows is not compared, except inside a section.
    assert find_difference({"a": 1, "b": 2}, {"a": 1}) is None
    assert find_difference({"a": {"b": 1}}, {"a": {}}) == ("a.b", 1, None)
    assert find_difference({"a": {"b": [1], "c": 2}}, {"a": {"b": [1], "c": 3}}) == ("a.c", 2, 3)
    assert find_difference({}, {"a": 1}) == ("a", None, 1)


def write_npz(folder: Path, scene: Path, views: int, patches: int, start: int = 5, size: int = 2048) -> torch.Tensor:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((1, views, start + patches, size)).astype(np.float32)
    file = folder / scene.name / "vggt.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, feature=features, ps_idx=start)
    return torch.from_numpy(features[0, :, start:])


def test_files_of_3drs_are_read(tmp_path):
    """Their frames are an even choice of the folder's JPEG files, which must be the run's."""
    scene = tmp_path / "scene0000_00"
    scene.mkdir()
    for number in range(0, 90, 10):
        (scene / f"{number:05d}.jpg").touch()
    wanted = write_npz(tmp_path / "npz", scene, 4, 6, size=8)
    file = tmp_path / "npz" / "scene0000_00" / "vggt.npz"
    views = ["00000", "00020", "00050", "00080"]
    assert torch.equal(read_npz(file, scene, views, (2, 3)), wanted.unflatten(1, (2, 3)))
    with pytest.raises(ValueError, match="where the run reads 4, first difference '00020' against '00030'"):
        read_npz(file, scene, ["00000", "00030", "00050", "00080"], (2, 3))
    with pytest.raises(ValueError, match="where the run reads 3, first difference '00080' against None"):
        read_npz(file, scene, views[:3], (2, 3))
    with pytest.raises(ValueError, match="with 2 x 2 patches a view, as this run's pictures have, got 6 patches"):
        read_npz(file, scene, views, (2, 2))
    write_npz(tmp_path / "npz", scene, 4, 6, start=3, size=8)
    with pytest.raises(ValueError, match=r"of shape \(1, V, 5 \+ patches, C\), got \(1, 4, 9, 8\) with ps_idx 3"):
        read_npz(file, scene, views, (2, 3))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="as 3DRS stores them, got a damaged or other file"):
        read_npz(file, scene, views, (2, 3))


def test_features_of_3drs_train_a_model(arguments, tmp_path, monkeypatch):
    """From posed images as 3DRS reads them to a loss, without an encoder."""
    layout = tmp_path / "posed" / "train"
    for scene in sorted((Path(arguments.data.root) / "train").iterdir())[:3]:
        shutil.copytree(scene, layout / scene.name)
    shutil.copytree(Path(arguments.data.root) / "annotations", layout.parent / "annotations")
    bare = tmp_path / "bare"
    shutil.copytree(get_checkpoint("3drs"), bare, ignore=shutil.ignore_patterns("geometry_encoder"))
    data = replace(arguments.data, root=str(layout.parent))
    model = {"distillation_config": {"encoder_image_size": 56, "feature_size": 2048}}
    run = replace(arguments, init_from=str(bare), model=model, data=data, allow_missing_weights=True)
    small = replace(arguments, init_from=str(bare), data=data)
    with pytest.raises(ValueError, match="--npz: expected a model that predicts the last layer of VGGT-1B"):
        door.main(small, tmp_path)
    with pytest.raises(FileNotFoundError, match="--npz: expected a folder with SCENE/vggt.npz, got"):
        door.main(run, tmp_path / "none")
    # The rooms' pictures stand in a folder of their own, where 3DRS's stand beside the poses.
    monkeypatch.setattr("ross3d.data.geometry_features.list_npz_views", lambda path, _: read_scene(path).view_names)
    features = {scene.name: write_npz(tmp_path / "npz", scene, 6, 16) for scene in layout.iterdir()}
    door.main(run, tmp_path / "npz")
    file = layout.parent / "annotations" / "train.jsonl"
    known = [line for line in file.read_text().splitlines() if any(name in line for name in features)]
    file.write_text("\n".join(known) + "\n")
    found = get_rows(run)
    row = found[0]["geometry_features"]
    assert any(torch.allclose(row[:, 0], tensor.unflatten(1, (4, 4))) for tensor in features.values())
    assert_close(row.shape, torch.Size([6, 1, 4, 4, 2048]))


def test_words_of_the_command_line(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(door, "main", lambda arguments, npz: seen.append((arguments, npz)))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"init_from": str(get_checkpoint("3drs"))}))
    door.start([str(file), "--npz", "npz", "--data.limit", "2"])
    door.start([str(file), "--npz=npz", "--data.limit", "2"])
    assert all(arguments.data.limit == 2 and folder == Path("npz") for arguments, folder in seen)
    for words in (["--npz"], ["--npz=", "--data.limit", "2"]):
        with pytest.raises(ValueError, match="--npz: expected the folder of 3DRS's files after it, got nothing"):
            door.start([str(file), *words])
