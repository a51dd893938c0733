"""The training of the small VGGT: steps, resuming, its folder, and the shipped weights."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import torch

from ross3d.configuration_ross3d import Ross3DVGGTConfig
from ross3d.tests.laws.house import ROOT
from ross3d.training import small_vggt
from ross3d.training.small_vggt import (
    CHECKPOINT,
    NUM_VIEWS,
    Settings,
    Training,
    build_encoder,
    draw_views,
    evaluate,
    format_failures,
    format_figures,
    get_rate_share,
    main,
    make_views,
    train_encoder,
)
from ross3d.vggt_ross3d import Ross3DVGGT


SHIPPED = ROOT / "scenes" / "geometry_encoder"
SETTINGS = Settings(steps=4, views_per_step=8, rooms=2)


def make_micro_config() -> Ross3DVGGTConfig:
    return Ross3DVGGTConfig(
        image_size=64, patch_size=8, hidden_size=16, vision_num_hidden_layers=1, vision_num_attention_heads=2,
        num_hidden_layers=2, num_attention_heads=2, num_register_tokens=1, camera_num_hidden_layers=1,
        camera_num_attention_heads=2, camera_num_iterations=2, dense_layers=[0, 0, 1, 1],
        neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8, initializer_range=0.1,
    )  # fmt: skip


def test_a_step_draws_its_own_rooms_and_nothing_else(monkeypatch):
    """Views depend on seed and step alone; no room is in two steps; the views are those of the walk, in any order."""
    drawn = []
    monkeypatch.setattr(
        small_vggt, "make_room", lambda *room, made=small_vggt.make_room: drawn.append(room) or made(*room)
    )
    settings = dataclasses.replace(SETTINGS, steps=20)
    steps = [draw_views(settings, step) for step in range(20)]
    assert len(drawn) == len(set(drawn)) and {split for _, split, _ in drawn} == {"train"}
    # Two views of a room at first, at last four or eight.
    assert {views.images.shape[:2] for views in steps[:4]} == {(4, 2)}
    assert {views.images.shape[:2] for views in steps[14:]} == {(2, 4), (1, 8)}
    assert len({views.images.shape[2:4] for views in steps}) == 3
    again = draw_views(settings, 3)
    for name in ("images", "depth_maps", "intrinsics", "cam2world"):
        np.testing.assert_array_equal(getattr(again, name), getattr(steps[3], name))
    other = draw_views(dataclasses.replace(settings, seed=1), 3)
    assert other.images.shape != again.images.shape or (other.images != again.images).any()


def test_views_are_those_of_the_rooms():
    whole = make_views(5, "val", [2, 4], (48, 64))
    assert whole.images.shape == (2, NUM_VIEWS, 48, 64, 3) and whole.depth_maps.shape == (2, NUM_VIEWS, 48, 64)
    chosen = make_views(5, "val", [4], (48, 64), chosen=[np.array([6, 1, 3])])
    np.testing.assert_array_equal(chosen.images[0], whole.images[1][[6, 1, 3]])
    np.testing.assert_array_equal(chosen.cam2world[0], whole.cam2world[1][[6, 1, 3]])
    pictures, targets = chosen.get_pictures(), chosen.get_targets()
    assert pictures.shape == (1, 3, 3, 48, 64) and 0 <= pictures.min() and pictures.max() <= 1
    np.testing.assert_array_equal(pictures[0, 1, :, 5, 7] * 255, chosen.images[0, 1, 5, 7])
    assert targets.encodings.shape == (1, 3, 9) and targets.valid.all()


@pytest.mark.parametrize("num_views", [2, 3])
def test_a_new_encoder_starts_with_one_camera_and_looks_at_what_is_alike(num_views):
    model = build_encoder(make_micro_config(), seed=2)
    pictures = torch.rand(1, num_views, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    first, _ = model(pictures).camera_encodings
    torch.testing.assert_close(first, torch.tensor(small_vggt.FIRST_CAMERA).repeat(1, num_views, 1))
    for block in model.aggregator.global_blocks:
        query, key, value = block.attn.qkv.weight.chunk(3)
        assert torch.equal(query, key) and not torch.equal(query, value)
    assert torch.equal(
        build_encoder(make_micro_config(), seed=2).aggregator.camera_token, model.aggregator.camera_token
    )


def test_some_steps_lower_every_loss(monkeypatch):
    views = draw_views(Settings(views_per_step=8), 1)
    monkeypatch.setattr(small_vggt, "draw_views", lambda *_: views)
    settings = Settings(steps=60, views_per_step=8, learning_rate=1e-2, camera_learning_rate=1e-2)
    training = Training(settings, make_micro_config())
    losses = list(training.run())
    assert len(losses) == training.step == 60
    for name in ("matching", "patch", "camera", "depth", "point"):
        values = [step[name] for step in losses if name in step]
        assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3]), (name, values)


def test_the_learning_rate_rises_and_falls():
    shares = [get_rate_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.2) and shares[4] == shares[5] == 1
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[5:]))
    assert shares[-1] == pytest.approx(small_vggt.LAST_RATE_SHARE, abs=1e-3)
    assert get_rate_share(0, 1) == 1


@pytest.mark.parametrize("stops", [[3], [1, 2, 2]])
def test_an_interrupted_training_ends_bit_equal(tmp_path, monkeypatch, stops):
    """Interrupted at these steps, also twice at one, it ends with the files of a training that was not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_encoder(whole, SETTINGS, make_micro_config())
    for stop in stops:

        def interrupt(settings, step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return draw_views(settings, step)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(small_vggt, "draw_views", interrupt)
            train_encoder(parts, SETTINGS, make_micro_config(), save_every=2)
    assert (parts / CHECKPOINT).is_file() == (stops[-1] > 1)
    assert train_encoder(parts, SETTINGS, make_micro_config(), save_every=2)
    files = {"README.md", "config.json", "model.safetensors", "training.json"}
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()} == files
    for name in files:
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert not train_encoder(parts, SETTINGS, make_micro_config())
    card = (parts / "README.md").read_text()
    assert hashlib.sha256((parts / "model.safetensors").read_bytes()).hexdigest() in card
    assert "--steps 4 --views-per-step 8 --rooms 2 --output DIR" in card
    figures = json.loads((parts / "training.json").read_text())["figures"]
    model = Ross3DVGGT.from_pretrained(parts)
    assert model.dtype == torch.float32
    scores = evaluate(model, SETTINGS.seed, SETTINGS.rooms, (48, 64))
    assert figures["64 x 48"]["absrel"]["model"][0] == pytest.approx(scores["absrel"].mean(), abs=1e-4)
    assert f"{scores['absrel_baseline'].mean():.3f}" in card


def test_the_card_says_what_was_not_learned():
    def make_row(low: float, high: float) -> dict[str, list[float]]:
        return {"model": [0.5, 0.4, 0.6], "baseline": [0.5, 0.4, 0.6], "difference": [0.0, low, high]}

    good = {"auc30": make_row(0.1, 0.2), "auc10": make_row(0.1, 0.2), "absrel": make_row(-0.2, -0.1)}
    assert format_failures({"64 x 64": good, "64 x 48": good}) == ""
    bad = good | {"auc10": make_row(-0.1, 0.2), "absrel": make_row(-0.1, 0.1)}
    told = format_failures({"64 x 64": good, "64 x 48": bad})
    assert "no better than the baseline: cameras, AUC at 10 degrees; depth, AbsRel" in told and "30" not in told
    table = format_figures({"64 x 48": bad}).splitlines()
    cells = "0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] | 0.000 [-0.100, 0.200] |"
    assert table[3] == f"| 64 x 48 | cameras, AUC at 10 degrees | {cells}"


def test_folders_that_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"a cat")
    with pytest.raises(
        FileExistsError, match=r"--output: expected a new or empty folder.*\['cat.jpg'\] and no training"
    ):
        main(["--output", str(tmp_path / "photos")])
    assert {path.name for path in (tmp_path / "photos").iterdir()} == {"cat.jpg"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output: expected a folder to write into, got .*this is a file"):
        main(["--output", str(tmp_path / "file")])
    folder = tmp_path / "out"
    assert train_encoder(folder, Settings(steps=1, views_per_step=8, rooms=1, seed=3), make_micro_config())
    with pytest.raises(ValueError, match=r"holds a training with other settings.*: --steps 1 --rooms 1 --seed 3\.$"):
        main(["--output", str(folder), "--views-per-step", "8"])
    main(["--output", str(folder), "--views-per-step", "8", "--steps", "1", "--rooms", "1", "--seed", "3"])
    assert "already complete\n| pictures | metric" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--output", str(folder), "--views-per-step", "4"])
    assert "--views-per-step: expected a whole number from 8 to 1,024, got '4'" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "other sizes", "no tensors"])
def test_a_state_that_cannot_be_read_is_named(tmp_path, damage):
    training = Training(SETTINGS, make_micro_config())
    training.run_step()
    file = tmp_path / CHECKPOINT
    training.save(file)
    again = Training(SETTINGS, make_micro_config())
    again.load(file)
    assert again.step == 1
    for name in ("model", "readers"):
        ours, wanted = getattr(again, name).state_dict(), getattr(training, name).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in wanted.items())
    config = make_micro_config()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "no tensors":
        torch.save({"step": 3}, file)
    else:
        config.camera_num_hidden_layers = 2
    with pytest.raises(
        ValueError, match=r"training.pt: expected the state of this training, got .*; delete it to train"
    ):
        Training(SETTINGS, config).load(file)


def test_the_shipped_encoder_knows_rooms():
    """It loads as it is, and knows depth and cameras of rooms of a seed that no figure or training used."""
    weights = SHIPPED / "model.safetensors"
    assert weights.stat().st_size < 3e6
    assert f"sha256 `{hashlib.sha256(weights.read_bytes()).hexdigest()}`" in (SHIPPED / "README.md").read_text()
    model = Ross3DVGGT.from_pretrained(SHIPPED)
    assert model.dtype == torch.float32 and model.config.heads == ["camera", "depth", "point"]
    for size in ((64, 64), (48, 64)):
        scores = {name: values.mean() for name, values in evaluate(model, 7, 3, size).items()}
        assert scores["absrel"] < 0.6 * scores["absrel_baseline"]
        assert scores["auc30"] > 0.25 > scores["auc30_baseline"]
    views = make_views(7, "val", [9], (64, 64))
    with torch.no_grad():
        output = model(views.get_pictures(), layers=[-1])
    assert output.features[0].shape == (1, NUM_VIEWS, 5 + 64, 2 * model.config.hidden_size)
    # Points and depth say the same of the first view.
    first = output.world_coords[0, 0, ..., 2], output.depth_maps[0, 0]
    assert (first[0] / first[1] - 1).abs().median() < 0.15
