"""Kept latents: the losses that the teacher gives, without the teacher; refused when they are not of the pictures."""

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ross3d.data.arguments import DataArguments
from ross3d.data.latents import SceneLatents
from ross3d.tests.scan_folders import enlarge_pictures
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.training import geometry_features
from ross3d.training import latents as door
from ross3d.training.arguments import RunArguments
from ross3d.training.build import build_collator, build_model, build_processor, build_rows


@pytest.fixture
def arguments(tmp_path) -> RunArguments:
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    folder = str(tmp_path / "latents")
    data = DataArguments(root=str(tmp_path / "rooms"), limit=3, questions_per_row=2, latents=folder)
    return RunArguments(seed=3, init_from=str(get_checkpoint()), data=data)


def get_losses(arguments: RunArguments, *, teacher: bool) -> list[float]:
    """View and bird's-eye losses of a batch of all rows."""
    processor = build_processor(arguments)
    model = build_model(arguments, processor).train()
    if not teacher:
        model._teacher = ()
    rows = build_rows(arguments, processor, 1, model.config)
    batch = build_collator(processor, model.config)([rows[index] for index in range(len(rows))])
    assert ("view_latents" in batch) != teacher and batch["bool_masked_views"].any()
    outputs = model(**batch)
    return [outputs.view_loss.item(), outputs.bev_loss.item()]


def test_losses_are_those_of_the_teacher(arguments, monkeypatch):
    door.main(arguments)
    assert len(list(Path(arguments.data.latents).iterdir())) == 3
    plain = replace(arguments, data=replace(arguments.data, latents=None))
    wanted = get_losses(plain, teacher=True)
    assert min(wanted) > 0 and get_losses(arguments, teacher=False) == pytest.approx(wanted, rel=1e-5)
    # Once kept, nothing is encoded again.
    monkeypatch.setattr(SceneLatents, "write", lambda *_: pytest.fail("encoded again"))
    door.main(arguments)


def test_a_scene_without_a_bev_picture_has_views_alone(arguments):
    scene = Path(arguments.data.root) / "train" / "train-000001"
    (scene / "bev.png").unlink()
    (scene / "bev.json").unlink()
    door.main(arguments)
    rows = build_rows(arguments, build_processor(arguments), 1, door.build_config(arguments, None))
    keys = {path.name: rows.stores[0].read(path).tensors.keys() for path in rows.scenes}
    assert keys["train-000001"] == {"view_latents"} and keys["train-000000"] == {"view_latents", "bev_latents"}


def test_latents_are_of_pictures_as_they_are_decoded(arguments):
    """Made with the run's own way of decoding, and refused in a run with another."""
    for folder in (Path(arguments.data.root) / "train").iterdir():
        enlarge_pictures(folder, 2)
    reduced = replace(arguments, data=replace(arguments.data, decode="reduced"))
    door.main(reduced)
    plain = replace(reduced, data=replace(reduced.data, latents=None))
    assert get_losses(reduced, teacher=False) == pytest.approx(get_losses(plain, teacher=True), rel=1e-5)
    rows = build_rows(arguments, build_processor(arguments), 1, door.build_config(arguments, None))
    with pytest.raises(ValueError, match="got latents of other files or settings"):
        rows[0]


def test_missing_and_foreign_latents_are_refused(arguments, tmp_path):
    processor = build_processor(arguments)
    config = door.build_config(arguments, processor)
    with pytest.raises(ValueError, match=r"data.latents: expected the teacher's latents of 3 scenes .* got none of 3"):
        build_rows(arguments, processor, 1, config)
    door.main(arguments)
    rows = build_rows(arguments, processor, 1, config)
    written = [rows.stores[0].read(path).tensors["view_latents"] for path in rows.scenes]
    assert rows[0]["view_latents"].shape[0] == 6
    assert sum(torch.equal(rows[0]["view_latents"], latents) for latents in written) == 1
    changed = Path(arguments.data.root) / "train" / "train-000000" / "boxes.json"
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(ValueError, match="got latents of other files or settings"):
        [rows[index] for index in range(3)]
    teacher = tmp_path / "teacher"
    shutil.copytree(get_checkpoint() / "teacher", teacher)
    config_file = teacher / "config.json"
    config_file.write_text(config_file.read_text() + "\n")
    other = build_rows(replace(arguments, teacher=str(teacher)), processor, 1, config)
    with pytest.raises(ValueError, match="got latents of other files or settings"):
        other[1]
    shutil.rmtree(arguments.data.latents)
    with pytest.raises(ValueError, match=r"data.latents: expected the teacher's latents of .* got none; make them"):
        rows[0]


def test_pictures_that_the_model_would_turn_back_wrongly_are_refused(arguments):
    processor = build_processor(arguments)
    config = door.build_config(arguments, processor)
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"expected do_rescale, do_normalize and image_mean \[0.5, 0.5, 0.5\] as in"):
        build_rows(arguments, processor, 1, config)


def test_runs_without_a_teacher_or_a_folder_are_refused(arguments, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(get_checkpoint(), bare, ignore=shutil.ignore_patterns("teacher"))
    lost = replace(arguments, init_from=str(bare))
    with pytest.raises(ValueError, match="data.latents: expected a folder for latents, and a teacher, got"):
        door.main(lost)
    with pytest.raises(ValueError, match="data.latents: expected a teacher and a model"):
        build_rows(lost, door.build_processor(lost), 1, door.build_config(lost, None))
    with pytest.raises(ValueError, match="expected a folder for latents, and a teacher, got None"):
        door.main(replace(arguments, data=replace(arguments.data, latents=None)))


def test_latents_are_kept_as_they_are(tmp_path):
    scene = sorted((get_rooms() / "train").iterdir())[0]
    kept = SceneLatents(tmp_path / "kept", {"teacher": "a"})
    assert not kept.has(scene)
    latents = {"view_latents": torch.randn(3, 8, 2, 2)}
    kept.write(scene, kept.get_identity(scene), latents)
    assert kept.has(scene) and torch.equal(kept.read(scene).tensors["view_latents"], latents["view_latents"])
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=f"{file.name} is damaged; it is made again"):
        assert not kept.has(scene)
    with pytest.raises(ValueError, match="expected tensors as they were written"):
        kept.read(scene)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "program", "key"),
    [("ross3d", door, "latents"), ("3drs", geometry_features, "geometry_features")],
)
def test_ten_kills_change_no_files(system, program, key, tmp_path):
    """SIGKILL at drawn changes of files; a further start makes what is missing, and the files are those of one run."""
    data = {"root": str(get_rooms()), key: str(tmp_path / "whole")}
    checkpoint = str(get_checkpoint(system))
    program.main(RunArguments(seed=3, init_from=checkpoint, data=DataArguments(**data)))
    file, drawn = tmp_path / "run.yaml", random.Random(0)
    settings = {"seed": 3, "init_from": checkpoint, "data": data | {key: str(tmp_path / "killed")}}
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "ross3d.tests.invariant.kill_inside", program.__file__, str(file)]
    for kills in range(11):
        # A scene takes at least two changes: a new file, and its name.
        given = {"KILL_AT": f"killed:{drawn.randint(1, 3)}"} if kills < 10 else {}
        run = subprocess.run(command, env=os.environ | given, capture_output=True, start_new_session=True)
        assert run.returncode == (-signal.SIGKILL if given else 0), run.stderr.decode()[-2000:]
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == files and len(files) == 10
