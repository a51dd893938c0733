"""Settings, rows, collation, checkpoints: what stands between a YAML file and the first optimizer step."""

import copy
import json
import shutil
import threading
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerState, TrainingArguments

from ross3d import train
from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDistillationConfig
from ross3d.data.annotations import group_by_scene, load_annotations, save_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.atomic import hold_folder
from ross3d.data.collator import propose_masked_views, widen_grounding_labels
from ross3d.data.dataset import SceneRows, get_row_seed
from ross3d.data.prepared import SceneReader
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.proposals import propose_boxes
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.geometry_ross3d import unpack_patches
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.scenes.build import build_scenes
from ross3d.tests.fabricate import (
    DISTILLATION,
    PAD_TOKEN,
    PATCH_GRID,
    RaggedRows,
    make_collator,
    make_config,
    make_model,
    make_row,
)
from ross3d.tests.published import write_published
from ross3d.tests.scan_folders import enlarge_pictures
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools.make_tiny import make_tiny_processor
from ross3d.train import build_training_arguments, check_processes
from ross3d.training import callbacks
from ross3d.training.arguments import (
    SECTION_CLASSES,
    NewWeightsArguments,
    PartArguments,
    RunArguments,
    check_same_run,
    describe_run,
    read_command_line,
    read_run_arguments,
)
from ross3d.training.build import (
    build_collator,
    build_model,
    build_processor,
    build_rows,
    choose_optimizer,
    freeze_parts,
    group_parameters,
    list_scenes,
    list_unlabelled,
    restore_dtypes,
    save_by_own_class,
    scale_new_weights,
    widen_weights,
)
from ross3d.training.callbacks import COMPLETE_MARK, find_checkpoint, is_complete
from ross3d.training.optimizer import MuonAdamW
from ross3d.training.trainer import count_losses, open_view_gate
from ross3d.training.vision_warmup import check_labels


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "init_from: folder\ndata: {epochs: 3}\nparts: {lm_head: {freeze: true}}\n"
        "trainer: {output_dir: out, learning_rate: 1.0e-3}\n"
    )
    return path


# ---- settings


def test_command_line_goes_over_the_file(config_file):
    run = read_run_arguments(config_file, ["--seed", "7", "--learning_rate", "2.0e-3", "--teacher", "folder"])
    assert (run.data.epochs, run.seed, run.teacher) == (3, 7, "folder")
    assert run.trainer == {"output_dir": "out", "learning_rate": 2.0e-3}
    assert run.parts == {"lm_head": PartArguments(freeze=True)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.epocs", "3"], "data: expected a known key, got `epocs`; did you mean `epochs`"),
        (["--trainer.lr_schedule", "x"], "trainer: expected a known key, got `lr_schedule`; did you mean"),
        (["--seed"], "command line: expected pairs `--key value`.*give every key a value"),
        (["seed", "3"], "command line: expected an option such as --data.limit, got 'seed'; options begin with `--`"),
        (["--sed", "3"], "command line: expected a known key, got `sed`; did you mean `seed`"),
        (["--geometry_encodr", "x"], "command line: expected a known key, got `geometry_encodr`; did you mean"),
        (
            ["--trainer.learning_rate", "1e-5"],
            "expected a number, got the string '1e-5'; write it as 1.0e-5, not 1e-5",
        ),
    ],
)
def test_settings_that_are_refused(config_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        read_run_arguments(config_file, overrides)


def test_a_key_without_its_section_means_one_thing():
    others = [f.name for name, cls in SECTION_CLASSES.items() if name != "trainer" for f in fields(cls)]
    alone = set(others) - {f.name for cls in (RunArguments, TrainingArguments) for f in fields(cls)}
    assert all(others.count(name) == 1 for name in alone) and len(alone) > 30


def test_checkpoints_between_reports_are_refused(tmp_path):
    settings = {"output_dir": str(tmp_path), "logging_steps": 10, "save_strategy": "steps", "save_steps": 25}
    with pytest.raises(ValueError, match=r"trainer.save_steps: expected a multiple of logging_steps 10, got 25"):
        build_training_arguments(settings, 0)
    assert build_training_arguments(settings | {"save_steps": 30}, 0).save_steps == 30


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_train_epochs": 3}, "trainer.num_train_epochs: expected 1 or nothing, got 3; set data.epochs"),
        ({"seed": 5}, "trainer.seed: expected 0 or nothing, got 5; set --seed"),
        ({"average_tokens_across_devices": False}, "expected True or nothing, got False; losses are averaged"),
        ({"resume_from_checkpoint": "x"}, "expected None or nothing, got 'x'; restarting a run"),
        (
            {"label_smoothing_factor": 0.1},
            "trainer.label_smoothing_factor: expected 0.0 or nothing, got 0.1; label smoothing",
        ),
        (
            {"eval_strategy": "steps"},
            "trainer.eval_strategy: expected 'no' or nothing, got 'steps'; training does not",
        ),
        (
            {"load_best_model_at_end": True},
            "trainer.load_best_model_at_end: expected False or nothing, got True; training",
        ),
        ({"save_only_model": True}, "expected False or nothing, got True; an interrupted run could not resume"),
        ({"ignore_data_skip": True}, "expected False or nothing, got True; a resumed run would read its first"),
        ({"hub_token": "hf_x"}, "trainer.hub_token: expected none, because all settings are written to run.yaml and"),
    ],
)
def test_what_is_set_elsewhere_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        build_training_arguments({"output_dir": str(tmp_path)} | given, 0)
    same = {"num_train_epochs": 1, "seed": 0, "average_tokens_across_devices": True}
    assert build_training_arguments({"output_dir": str(tmp_path)} | same, 0).num_train_epochs == 1


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    assert build_training_arguments({"output_dir": str(tmp_path)}, 0).n_gpu <= 1
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"train.py: expected one GPU per process, got 2, .* `accelerate launch"):
        build_training_arguments({"output_dir": str(tmp_path)}, 0)


def test_a_run_goes_on_with_as_many_processes_as_began_it(tmp_path):
    """Rows of a step, and with them the order of rows, depend on how many there are."""
    training = build_training_arguments({"output_dir": str(tmp_path), "per_device_train_batch_size": 3}, 0)
    run = RunArguments()
    check_processes(run, training)
    assert run.num_processes == 1 and "num_processes: 1" in describe_run(run)
    message = r"num_processes: expected 8 processes for 3 rows per step, got 1; start that many with `accelerate la"
    with pytest.raises(ValueError, match=message):
        check_processes(RunArguments(num_processes=8), training)
    (tmp_path / "run.yaml").write_text(describe_run(RunArguments(num_processes=2)))
    with pytest.raises(ValueError, match="expected num_processes=2, as when this run began, got 1; choose an"):
        check_same_run(run, tmp_path / "run.yaml")


def test_the_optimizer_is_the_one_that_was_asked_for(tmp_path):
    model, settings = make_model(), {"output_dir": str(tmp_path), "adam_beta2": 0.5, "adam_epsilon": 1.0e-6}
    muon = {"model.language_model.layers": PartArguments(optimizer="muon", learning_rate=0.02)}
    cls, given = choose_optimizer(model, {}, build_training_arguments(settings, 0))
    assert cls is torch.optim.AdamW and given["betas"] == (0.9, 0.5) and given["eps"] == 1.0e-6
    cls, given = choose_optimizer(model, muon, build_training_arguments(settings, 0))
    optimizer = cls(**given)
    assert cls is MuonAdamW and {g["betas"] for g in optimizer.param_groups if not g["muon"]} == {(0.9, 0.5)}
    adafactor = build_training_arguments(settings | {"optim": "adafactor"}, 0)
    assert choose_optimizer(model, {}, adafactor)[0].__name__ == "Adafactor"
    with pytest.raises(
        ValueError, match="trainer.optim: expected adamw_torch because some parts have optimizer: muon, got"
    ):
        choose_optimizer(model, muon, adafactor)


def test_settings_of_a_run_change_those_of_its_checkpoint(tmp_path):
    """Nothing that is written in a config is left out because a checkpoint brings its own."""
    saved = build_processor(RunArguments(init_from=str(get_checkpoint())))
    changed = {"label_rule": "published", "image_processor": {"size": {"height": 48, "width": 48}}}
    ours = build_processor(RunArguments(init_from=str(get_checkpoint()), processor=changed))
    assert (saved.label_rule, ours.label_rule) == ("answer_only", "published")
    assert ours.view_size == 48 != saved.view_size and ours.geometry_mode == saved.geometry_mode
    assert ours.tokenizer.get_vocab() == saved.tokenizer.get_vocab()
    for name in ("nowhere", "/no/where", str(get_rooms())):
        with pytest.raises(FileNotFoundError, match="init_from: expected a checkpoint's folder or a Hub id"):
            build_processor(RunArguments(init_from=name))
    published = write_published(tmp_path / "published")
    with pytest.raises(ValueError, match="init_from: expected a checkpoint of ross3d, got model_type 'ross3d_qwen'"):
        build_processor(RunArguments(init_from=str(published.folder)))
    wanted = RunArguments(init_from=str(get_checkpoint()), new_weights=NewWeightsArguments())
    with pytest.raises(ValueError, match="new_weights: expected none with init_from, got NewWeights"):
        build_processor(wanted)


def test_proposals_are_the_objects_or_what_a_detector_would_find(tmp_path):
    processor = make_tiny_processor()
    for name, same in (("ground_truth", True), ("jittered", False)):
        data = DataArguments(root=str(get_rooms()), limit=2, questions_per_row=40, proposals=name)
        rows = build_rows(RunArguments(data=data), processor, 1, make_config())
        row = rows[0]
        scene = read_rgbd_folder(rows.scenes[rows.plan_epoch(0)[0].scene])
        found = row["proposal_boxes"].numpy()
        assert (found.shape == scene.boxes.shape and (found == scene.boxes).all()) == same
        # Each target stands for its own object.
        targets = {annotation.question: annotation.object_ids for annotation in rows.annotations[scene.scene_id]}
        assert any(targets.values()) and row["grounding_labels"][:, :-1].any()


@pytest.mark.parametrize("prepared", [False, True])
def test_proposals_of_a_run_come_from_the_source_that_it_names(tmp_path, prepared):
    folder = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    changes = {"root": str(folder), "limit": 1, "prepared": str(tmp_path / "prepared") if prepared else None}

    def make_boxes(source: str) -> np.ndarray:
        data = DataArguments(proposals=source, **changes)
        rows = build_rows(RunArguments(data=data), make_tiny_processor(), 1, make_config())
        return rows[0]["proposal_boxes"].numpy()

    scene = read_rgbd_folder(folder / "train" / "train-000000")
    for _ in range(2 if prepared else 1):
        from_depth = propose_boxes(scene).boxes
        assert np.array_equal(make_boxes("depth")[: len(from_depth)], from_depth)
    message = (
        r"data.root .*: expected detected boxes in proposals.json of 1 scenes, got none in 1, first train-000000;"
    )
    with pytest.raises(ValueError, match=f"{message}.* choose --data.proposals depth or ground_truth"):
        make_boxes("given")
    (scene.path / "proposals.json").write_text(json.dumps(from_depth[:3].tolist()))
    assert np.array_equal(make_boxes("given")[:3], from_depth[:3])


def test_rows_are_of_pictures_as_they_are_to_be_decoded(tmp_path):
    """With prepared scenes and without; what is kept of one mode is not taken for the other."""
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    for folder in (tmp_path / "rooms" / "train").iterdir():
        enlarge_pictures(folder, 2)
    processor = make_tiny_processor()
    pixels = {}
    for decode in ("exact", "reduced"):
        for prepared in (None, str(tmp_path / "prepared")):
            data = DataArguments(root=str(tmp_path / "rooms"), limit=1, decode=decode, prepared=prepared)
            rows = build_rows(RunArguments(data=data), processor, 1, make_config())
            pixels[decode, prepared is None] = rows[0]["pixel_values"]
    for decode, reading in (("exact", {}), ("reduced", {"reduce_to": processor.view_size})):
        scene = read_rgbd_folder(tmp_path / "rooms" / "train" / "train-000000", **reading)
        assert scene.images.shape[1] == processor.view_size * (1 if reading else 2)
        wanted = processor(images=scene.images, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels[decode, True], wanted) and torch.equal(pixels[decode, False], wanted)
    assert not torch.equal(pixels["exact", True], pixels["reduced", True])
    with pytest.raises(ValueError, match=r"data.decode: expected one of \('exact', 'reduced'\), got 'fast'"):
        DataArguments(decode="fast")


@pytest.mark.parametrize("gone", [[4], [1, 7]])
def test_annotations_of_unknown_scenes_are_refused_before_the_model_is_built(tmp_path, monkeypatch, gone):
    """With how many questions are about how many scenes; nothing is left behind that would hold the data as it was."""
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    trainer = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none"}
    arguments = RunArguments(
        init_from=str(get_checkpoint()), data=DataArguments(root=str(rooms), limit=2), trainer=trainer
    )
    assert len(build_rows(arguments, make_tiny_processor(), 1, make_model().config)) == 2
    for number in gone:
        shutil.rmtree(rooms / "train" / f"train-{number:06d}")
    monkeypatch.setattr(train, "build_model", lambda *given: pytest.fail("the model was built first"))
    names = {f"train-{number:06d}" for number in gone}
    asked = [row for row in load_annotations(rooms / "annotations" / "train.jsonl") if row.scene_id in names]
    message = (
        rf"train.jsonl: expected every scene_id to be a folder in .*train, got {len(asked)} questions, first"
        rf" '{asked[0].id}', about {len(gone)} scenes that are not, such as \['{min(names)}'"
    )
    with pytest.raises(ValueError, match=message):
        train.main(arguments)
    assert not (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("point", [(150.0, -20.0, 40.0), (3.0, -77.0, 1.0)])
def test_a_place_far_outside_of_its_scene_names_file_and_question(tmp_path, point, kept):
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    file = rooms / "annotations" / "train.jsonl"
    questions = load_annotations(file)
    wrong = next(question for question in questions if question.query_coords is not None)
    wrong.query_coords = point
    save_annotations([wrong], file)
    data = DataArguments(root=str(rooms), prepared=str(tmp_path / "kept") if kept else None)
    rows = build_rows(RunArguments(data=data), make_tiny_processor(), 1, make_config())
    order = [rows.scenes[row.scene].name for row in rows.plan_epoch(0)]
    message = (
        rf"train.jsonl: query_coords of question '{wrong.id}': expected a point in metres, at most 50 m from"
        rf" the observed part of scene '{wrong.scene_id}'"
    )
    with pytest.raises(ValueError, match=message):
        rows[order.index(wrong.scene_id)]
    wrong.query_coords = (1.0, 1.0, 0.5)
    save_annotations([wrong], file)
    rows = build_rows(RunArguments(data=data), make_tiny_processor(), 1, make_config())
    assert "query_coords" in rows[order.index(wrong.scene_id)]


def test_scans_without_questions_are_checked(tmp_path):
    """They need a model that rebuilds or distils, and names of their own."""
    rooms, config = get_rooms(), make_model().config
    data = {"root": str(rooms), "unlabelled_root": str(tmp_path / "scans"), "unlabelled_share": 0.25}

    def build(config=config, **changes):
        return build_rows(RunArguments(data=DataArguments(**data | changes)), make_tiny_processor(), 1, config)

    with pytest.raises(FileNotFoundError, match="data.unlabelled_root: expected scan folders in .*, found none"):
        build()
    shutil.copytree(rooms / "val", tmp_path / "scans")
    rows = build()
    assert rows.rows_per_epoch == 13 and rows.num_scenes == 10
    silent = [rows[i] for i in range(13) if rows.plan_epoch(0)[i].scene >= 10]
    assert len(silent) == 3 and all("shift_labels" not in row and "bev_pixel_values" in row for row in silent)
    # Distillation learns from them as well, unless its tasks leave such rows out.
    distilled = Ross3DConfig.from_pretrained(get_checkpoint("3drs"))
    assert list_unlabelled(DataArguments(**data), distilled) == rows.scenes[10:]
    distilled.distillation_config.tasks = ["grounding"]
    with pytest.raises(ValueError, match="or distillation_config with the task text, because rows without text train"):
        list_unlabelled(DataArguments(**data), distilled)
    shutil.copytree(rooms / "train" / "train-000003", tmp_path / "scans" / "train-000003")
    with pytest.raises(
        ValueError, match=r"data.unlabelled_root: expected scans .*\['train-000003'\] and 1 in both; leave"
    ):
        build()
    message = "data.labelled_share, data.unlabelled_root: expected a model that is not blind and has denoiser_config"
    for changes in ({"blind": True}, {"labelled_share": 0.5, "unlabelled_root": None, "unlabelled_share": 0.0}):
        wrong = config if "blind" in changes else make_model(denoiser_config=None).config
        with pytest.raises(ValueError, match=message):
            build(wrong, **changes)
    grounds = make_config(denoiser_config=None, distillation_config=DISTILLATION | {"tasks": ["grounding"]})
    with pytest.raises(ValueError, match="or distillation_config with the task text, because rows without text"):
        build(grounds)


def test_scans_without_questions_train_3drs(tmp_path):
    """Half of the scenes keep their text; all of them, and the scan that nobody asked about, are distilled."""
    shutil.copytree(get_rooms() / "val" / "val-000000", tmp_path / "scans" / "val-000000")
    data = {"root": str(get_rooms()), "limit": 4, "labelled_share": 0.5, "unlabelled_root": str(tmp_path / "scans"),
            "unlabelled_share": 0.2}  # fmt: skip
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "use_cpu": True, "logging_steps": 1}
    settings |= {"report_to": "none", "per_device_train_batch_size": 5, "save_strategy": "no", "disable_tqdm": True}
    run = RunArguments(init_from=str(get_checkpoint("3drs")), data=DataArguments(**data, epochs=2), trainer=settings)
    processor = build_processor(run)
    model = build_model(run, processor).train()
    rows = build_rows(run, processor, 5, model.config)
    assert [sum("labels" in rows[5 * epoch + i] for i in range(5)) for epoch in (0, 1)] == [2, 2]
    counts = count_losses(build_collator(processor, model.config)([rows[i] for i in range(5)]), model.config)
    assert counts[-1] == 5 and counts[0] + counts[3] == 2
    train.main(run)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert 0 < history[1]["distill_loss"] < history[0]["distill_loss"]


@pytest.mark.parametrize("sources", [(), ("data.geometry_features",), ("geometry_encoder", "data.geometry_features")])
def test_a_blind_run_does_not_distil(tmp_path, sources):
    """There is nothing to predict in a grey picture; as the error says, the checkpoint is trained on words."""
    settings = {
        "init_from": str(get_checkpoint("3drs")),
        "data": {"root": str(get_rooms()), "limit": 2, "blind": True},
        "trainer": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "report_to": "none"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = [word for name in sources for word in (f"--{name}", str(get_checkpoint("3drs") / "geometry_encoder"))]
    with pytest.raises(ValueError, match="data.blind: expected a model without distillation_config, .*; add") as found:
        train.main(read_run_arguments(tmp_path / "run.yaml", words))
    remedy = str(found.value).rstrip(".").partition("; add ")[2].split()
    assert len(remedy) == 2 * (1 + len(sources))
    train.main(read_run_arguments(tmp_path / "run.yaml", words + remedy))
    assert not any("distill" in name for name in load_file(tmp_path / "run" / "model.safetensors"))


def test_no_scenes_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"data.root: expected scene folders in .*train, found none; make them"
    ):
        list_scenes(DataArguments(root=str(tmp_path)))
    (tmp_path / "train" / "room-1").mkdir(parents=True)
    assert [path.name for path in list_scenes(DataArguments(root=str(tmp_path)))] == ["room-1"]


def test_a_command_without_a_file_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit, match="train.py CONFIG.yaml"):
        read_command_line([], "accelerate launch train.py CONFIG.yaml")
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as end:
            read_command_line([word], "accelerate launch train.py CONFIG.yaml")
        told = capsys.readouterr().out
        assert end.value.code == 0 and told.startswith("accelerate launch train.py CONFIG.yaml")
        assert "--data.limit  maximum number of scenes.\n" in told and "--debug" in told


def test_no_is_a_strategy(config_file):
    """YAML reads a bare `no` as false."""
    assert read_run_arguments(config_file, ["--save_strategy", "no"]).trainer["save_strategy"] == "no"
    assert read_run_arguments(config_file, ["--bf16", "no"]).trainer["bf16"] is False


# ---- parts


def test_parts_freeze_and_learn_at_their_own_rate(tmp_path):
    model = make_model()
    parts = {"model.vision_tower": PartArguments(freeze=True), "lm_head": PartArguments(learning_rate=0.5)}
    freeze_parts(model, parts)
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
    groups = group_parameters(
        model, parts, build_training_arguments({"output_dir": str(tmp_path), "weight_decay": 0.1}, 0)
    )
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rates[id(model.lm_head.weight)] == (0.5, 0.1)
    assert rates[id(model.model.image_newline)][1] == 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(rates) == len(trained) == sum(len(group["params"]) for group in groups)


def test_muon_takes_the_matrices_of_its_part_and_resumes(tmp_path):
    """Vectors of the part stay with AdamW at the trainer's rate; a loaded state goes on to the same bits."""
    training = build_training_arguments({"output_dir": str(tmp_path), "learning_rate": 1.0e-3}, 0)
    parts = {
        "model": PartArguments(learning_rate=0.3),
        "model.language_model.layers": PartArguments(optimizer="muon", learning_rate=0.02),
    }

    def take_steps(model, optimizer, numbers):
        for number in numbers:
            for place, p in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(1000 * number + place)
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    def start(weights):
        model = make_model()
        model.load_state_dict(weights)
        return model, MuonAdamW(group_parameters(model, parts, training), lr=1.0e-3)

    weights = {name: value.clone() for name, value in make_model().state_dict().items()}
    model, optimizer = start(weights)
    of = {id(p): (group["muon"], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(of) == len(trained)
    for name, p in trained.items():
        matrix = name.startswith("model.language_model.layers") and p.dim() == 2
        vector = name.startswith("model.language_model.layers") and p.dim() == 1
        rate = 0.02 if matrix else 1.0e-3 if vector or not name.startswith("model.") else 0.3
        assert of[id(p)] == (matrix, rate), name
    take_steps(model, optimizer, [0])
    # Muon's first step on a square matrix is orthogonal: all singular values are about the same.
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    moved = torch.linalg.svdvals((model.state_dict()[name] - weights[name]) / 0.02)
    assert 0.5 < moved.min() and moved.max() < 1.5
    take_steps(model, optimizer, [1])
    halfway = {key: value.clone() for key, value in model.state_dict().items()}
    again, other = start(halfway)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in ((model, optimizer), (again, other)):
        take_steps(*each, [2, 3])
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with pytest.raises(ValueError, match="closure: expected None, got a function; Muon and AdamW use one gradient"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, r"optimizer: expected one of \('adamw', 'muon'\), got 'adam'\."),
        (
            {"optimizer": "muon"},
            "optimizer: expected a learning_rate with optimizer: muon, got none; AdamW's rate is too small",
        ),
    ],
)
def test_optimizers_of_parts_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PartArguments(**settings)
    assert PartArguments(optimizer="muon", learning_rate=0.02).learning_rate == 0.02


@pytest.mark.parametrize(("norm", "scaled"), [("none", "linear_2.weight"), ("layer_norm", "norm.weight")])
def test_new_weights_are_scaled(norm, scaled):
    model, plain = make_model(projector_norm=norm), make_model(projector_norm=norm)
    scale_new_weights(model, NewWeightsArguments(embedding_std=0.7, residual_scale=0.25, visual_scale=3.0))
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.7)
    found, before = model.state_dict(), plain.state_dict()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    for name in changed - {"lm_head.weight", "model.language_model.embed_tokens.weight"}:
        factor = 3.0 if name == f"model.multi_modal_projector.{scaled}" else 0.25
        assert torch.allclose(found[name], factor * before[name]), name
    kinds = {name.split(".")[-2] for name in changed - {"lm_head.weight"}}
    assert kinds == {"embed_tokens", "o_proj", "down_proj", scaled.split(".")[0]}


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(
        ValueError, match=r"parts: expected the prefix of a parameter name such as .*got `model.visiontower`"
    ):
        freeze_parts(make_model(), {"model.visiontower": PartArguments(freeze=True)})


# ---- collation


def test_rows_keep_their_values_under_padding():
    rows = [RaggedRows(8)[i] for i in range(8)]
    batch = make_collator()(rows)
    assert batch["proposal_patches"].dtype == torch.uint8
    batch["proposal_patches"] = unpack_patches(batch["proposal_patches"], PATCH_GRID, PATCH_GRID)
    for place, row in enumerate(rows):
        for key, tensor in row.items():
            if key in ("grounding_labels", "row_seed"):
                continue
            kept = batch[key][(place, *(slice(size) for size in tensor.shape))]
            assert torch.equal(kept.nan_to_num(7.0), tensor.nan_to_num(7.0)), key
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert (batch["input_ids"][0, lengths[0] :] == PAD_TOKEN).all()
    assert not batch["patch_valid"][1].any() and torch.isnan(batch["query_coords"][1]).all()


def test_no_target_stays_the_last_column():
    labels = torch.tensor([[0, 1, 0], [0, 0, 1]])
    assert widen_grounding_labels(labels, 4).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_rows_of_two_processors_are_refused():
    rows = [make_row(1, 2, 1, ["text"]), make_row(2, 3, 1, ["text"])]
    rows[1]["pixel_values"] = torch.zeros(3, 3, 24, 24)
    message = (
        r"rows: expected pixel_values of shape \(..., 3, 20, 20\) in every row of a batch, .* in row 1; prepare all"
    )
    with pytest.raises(ValueError, match=message):
        make_collator()(rows)
    rows = [make_row(1, 2, 1, ["text"]) | {"pixels": torch.zeros(1)}]
    with pytest.raises(ValueError, match=r"rows: expected the processor's keys .*also got \['pixels'\]; remove"):
        make_collator()(rows)


@pytest.mark.parametrize(("views", "ratio", "hidden"), [(8, 0.25, 2), (6, 0.25, 2), (32, 0.25, 8), (3, 0.0, 0)])
def test_hidden_views_are_counted_as_published(views, ratio, hidden):
    chosen = propose_masked_views(torch.ones(views, dtype=torch.bool), ratio, row_seed=3)
    assert int(chosen.sum()) == hidden == views - int(views * (1 - ratio))
    assert torch.equal(chosen, propose_masked_views(torch.ones(views, dtype=torch.bool), ratio, row_seed=3))


def test_views_without_depth_are_never_hidden():
    may_hide = torch.tensor([True, False, True, True, False])
    for seed in range(20):
        assert not (propose_masked_views(may_hide, 0.5, seed) & ~may_hide).any()
    batch = make_collator(ratio=0.9)([make_row(1, 3, 1, ["text"], depth=False), make_row(2, 3, 1, ["text"])])
    assert not batch["bool_masked_views"][0].any() and batch["bool_masked_views"][1].any()


@pytest.mark.parametrize(("changes", "hides"), [({}, True), ({"denoiser_config": None}, False)])
def test_a_model_that_rebuilds_nothing_sees_every_view(changes, hides):
    config = make_config(**changes)
    processor = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=PAD_TOKEN))
    batch = build_collator(processor, config)([make_row(1, 4, 1, ["text"]), make_row(2, 5, 2, ["text"])])
    assert bool(batch["bool_masked_views"].any()) == hides


def test_latents_come_with_every_row_or_with_none():
    rows = [make_row(seed, 2, 1, ["text"]) for seed in (1, 2)]
    rows[1]["view_latents"] = torch.ones(2, 4, 2, 2)
    with pytest.raises(
        ValueError,
        match="rows: expected view_latents in all rows of a batch with pixel_values or in none, got none in row",
    ):
        make_collator()(rows)
    rows[0]["view_latents"] = torch.zeros(2, 4, 2, 2)
    assert torch.equal(make_collator()(rows)["view_latents"], torch.stack([row["view_latents"] for row in rows]))


def test_the_gate_opens_in_steps_divisible_by_the_period():
    opened = []
    for step in range(9):
        batch = {"bool_masked_views": torch.ones(2, 3, dtype=torch.bool)}
        open_view_gate(batch, step, period=4)
        opened.append(bool(batch["bool_masked_views"].any()))
    assert [step for step, is_open in enumerate(opened) if is_open] == [0, 4, 8]


@pytest.mark.parametrize("on_grounding_rows", [True, False])
def test_the_trainer_counts_what_the_model_counts(on_grounding_rows):
    model = make_model(reconstruct_on_grounding_rows=on_grounding_rows).train()
    batch = make_collator()([RaggedRows(8)[i] for i in range(8)])
    counts = count_losses(batch, model.config)
    assert torch.equal(model(**batch).loss_counts, counts)
    assert (counts > 0).all()


def test_counting_stays_on_the_device_of_the_batch():
    """On a GPU the batches have been moved before they are counted; `meta` stands for it here."""
    config = make_model().config
    for batch in (make_collator()([RaggedRows(8)[i] for i in range(8)]), make_collator()([make_row(1, 2, 0, [])])):
        moved = {name: tensor.to("meta") for name, tensor in batch.items()}
        assert count_losses(moved, config).device.type == "meta"


# ---- rows


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    build_scenes(folder, num_train=5, num_val=1, num_views=4, seed=3, workers=1)
    return folder


make_jittered = partial(ProposalMaker("--data.proposals").make_set, source="jittered")


def make_rows(rooms, seed=11, **changes) -> SceneRows:
    annotations = group_by_scene(load_annotations(rooms / "annotations" / "train.jsonl"))
    data = DataArguments(**{"epochs": 2, "questions_per_row": 6} | changes)
    paths, reader = sorted((rooms / "train").iterdir()), SceneReader(read_rgbd_folder)
    return SceneRows(data, paths, annotations, make_tiny_processor(), reader, make_jittered, seed=seed)


def test_rows_follow_from_seed_epoch_and_scene(rooms):
    rows, again = make_rows(rooms), make_rows(rooms)
    assert len(rows) == 10
    for index in (0, 7):
        first, second = rows[index], again[index]
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key].nan_to_num(7.0), second[key].nan_to_num(7.0)) for key in first)
    seeds = [int(rows[i]["row_seed"]) for i in range(10)]
    assert len(set(seeds)) == 10
    assert seeds[0] != int(make_rows(rooms, seed=12)[0]["row_seed"])


def test_every_epoch_visits_every_scene_in_its_own_order():
    scenes = [Path(str(i)) for i in range(50)]
    rows = SceneRows(DataArguments(epochs=2), scenes, {}, None, SceneReader(None), None, seed=1)
    first, second = ([row.scene for row in rows.plan_epoch(epoch)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second


def test_row_seeds_fit_a_generator():
    seeds = [get_row_seed(0, epoch, f"scene-{i}") for epoch in range(3) for i in range(100)]
    assert len(set(seeds)) == 300 and all(0 <= seed < 2**60 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_blind_rows_hold_words_only(rooms):
    row = make_rows(rooms, blind=True)[0]
    assert row["pixel_values"].shape[0] == 1 and row["pixel_values"].unique().numel() == 1
    assert not {"patch_coords", "proposal_boxes", "bev_pixel_values", "grounding_labels"} & row.keys()
    if "query_coords" in row:
        assert not row["query_coords"].nan_to_num().any()


def test_scenes_without_questions_are_rows_too(rooms):
    rows = make_rows(rooms)
    rows.annotations = {}
    row = rows[0]
    assert set(row["segment_ids"].tolist()) == {0}
    assert "shift_labels" not in row and "bev_pixel_values" in row


def test_scenes_without_boxes_are_rows_too(rooms, tmp_path):
    """Questions in words are asked as ever; one that is answered by boxes is refused by its name."""
    shutil.copytree(rooms, tmp_path / "rooms")
    for file in (tmp_path / "rooms" / "train").glob("*/boxes.json"):
        file.unlink()
    rows = make_rows(tmp_path / "rooms", questions_per_row=100)
    grounding = next(q for questions in rows.annotations.values() for q in questions if q.object_ids is not None)
    with pytest.raises(ValueError, match=r"object_ids of question '.*': expected the boxes of scene '.*', got none"):
        [rows[index] for index in range(5)]
    rows.annotations = {name: [q for q in asked if q.object_ids is None] for name, asked in rows.annotations.items()}
    batch = make_collator()([rows[0] | {"row_seed": torch.tensor(1)}, rows[1]])
    assert grounding.id and "proposal_boxes" not in batch and batch["loss_weights"].sum() > 2


def test_patches_that_nothing_names_are_refused(rooms):
    path = sorted((rooms / "train").iterdir())[0]
    scene = read_rgbd_folder(path)
    check_labels(path, scene)
    no_color = [{"category": "bed"}] * len(scene.boxes)
    for change in ({"box_labels": None}, {"box_labels": no_color}, {"depth_maps": None}):
        wrong = replace(scene, **change)
        with pytest.raises(ValueError, match="vision_warmup: expected depth, and boxes with category and color, in"):
            check_labels(path, wrong)


# ---- checkpoints


def make_checkpoint(folder: Path, step: int, complete: bool) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.ones(2, 3)}, checkpoint / "model.safetensors")
    TrainerState(global_step=step).save_to_json(str(checkpoint / "trainer_state.json"))
    if complete:
        callbacks.mark_complete(checkpoint)
    return checkpoint


def test_a_torn_checkpoint_is_never_resumed_from(tmp_path):
    whole = make_checkpoint(tmp_path, 20, complete=True)
    unmarked = make_checkpoint(tmp_path, 100, complete=False)
    shortened = make_checkpoint(tmp_path, 40, complete=True)
    (shortened / "model.safetensors").write_bytes(b"1234")
    assert is_complete(whole) and not is_complete(unmarked) and not is_complete(shortened)
    copied = shutil.copytree(unmarked, tmp_path / "checkpoint-100-backup")
    with pytest.warns(
        UserWarning, match=r"checkpoint-40/model.safetensors: .* got 4; copy it again; checkpoint-40 was renamed to"
    ):
        assert find_checkpoint(tmp_path) == whole
    # What was never whole goes, what somebody has changed or copied stays.
    assert not unmarked.exists() and not shortened.exists() and copied.exists()
    assert (tmp_path / "checkpoint-40-damaged-1" / "model.safetensors").read_bytes() == b"1234"
    assert find_checkpoint(tmp_path) == whole
    assert find_checkpoint(tmp_path / "nothing") is None


def test_the_first_process_says_where_a_run_begins(tmp_path, monkeypatch):
    """A process that sees another folder neither decides nor removes anything; what it is told has to be there."""
    told = []
    monkeypatch.setattr(callbacks, "broadcast_object_list", lambda found: told or found)
    whole = make_checkpoint(tmp_path / "first", 20, complete=True)
    assert callbacks.find_start(tmp_path / "first", 0) == (False, whole)
    told.append((False, whole))
    own = make_checkpoint(tmp_path / "second", 30, complete=False)
    assert callbacks.find_start(tmp_path / "second", 1) == (False, whole) and own.exists()
    monkeypatch.setattr(callbacks.check_shared, "__defaults__", (0.3,))
    (whole / COMPLETE_MARK).unlink()
    with pytest.raises(FileNotFoundError, match=r"trainer.output_dir: expected a folder that all machines share, but"):
        callbacks.find_start(tmp_path / "second", 1)
    callbacks.check_shared(whole / COMPLETE_MARK, 0)
    told[:] = [(True, None)]
    assert callbacks.find_start(tmp_path / "second", 1) == (True, None)


def test_one_run_at_a_time_works_in_a_folder(tmp_path, monkeypatch):
    run = RunArguments(trainer={"output_dir": str(tmp_path), "use_cpu": True})
    monkeypatch.setattr(train, "LOCK_PATIENCE", 0.5)
    message = "^trainer.output_dir: another process is writing to .*; wait for it, or choose another folder"
    with hold_folder(tmp_path), pytest.raises(BlockingIOError, match=message):
        train.main(run)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="^trainer.output_dir: expected a folder to write into, got .*file.*; choose"):
        train.main(RunArguments(trainer={"output_dir": str(tmp_path / "file"), "use_cpu": True}))
    # Somebody who lets go in time is waited for.
    holding = hold_folder(tmp_path)
    holding.__enter__()
    threading.Timer(0.3, holding.__exit__, (None, None, None)).start()
    with hold_folder(tmp_path, patience=30.0):
        assert (tmp_path / ".lock").exists()


# ---- precision of what is trained


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_trained_weights_are_widened_and_saved_as_they_came(autocast, dtype, monkeypatch):
    """Steps that half precision would round away are taken; the checkpoint keeps its precision."""
    model = make_model().to(dtype)
    freeze_parts(model, {"model.vision_tower": PartArguments(freeze=True)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dtypes = widen_weights(model, autocast)
    for name, parameter in model.named_parameters():
        frozen = autocast and name.startswith("model.vision_tower")
        assert parameter.dtype == (dtype if frozen else torch.float32), name
        assert (name in dtypes) != frozen
    weight = model.lm_head.weight
    # Too small for half precision, in which it is the next number.
    with torch.no_grad():
        for _ in range(64):
            weight += weight.abs() * 2.0**-13
    after = restore_dtypes(model, dtypes)
    assert after.keys() == before.keys() and all(value.dtype == dtype for value in after.values())
    assert (after["lm_head.weight"] != before["lm_head.weight"]).all()
    assert torch.equal(after["model.image_newline"], before["model.image_newline"])
    for name, keeps_copies in (("DEEPSPEED", True), ("FSDP", autocast)):
        with monkeypatch.context() as context:
            context.setenv(f"ACCELERATE_USE_{name}", "true")
            assert bool(widen_weights(model, autocast)) != keeps_copies


def test_a_checkpoint_in_half_precision_is_trained_and_stays_in_it(tmp_path):
    """With `trainer.bf16` and without, frozen tower beside trained layers; small steps are not lost."""
    half = tmp_path / "half"
    model = Ross3DForConditionalGeneration.from_pretrained(get_checkpoint(), dtype=torch.bfloat16)
    model.save_pretrained(half)
    build_processor(RunArguments(init_from=str(get_checkpoint()))).save_pretrained(half)
    shutil.copytree(get_checkpoint() / "teacher", half / "teacher")
    start = load_file(half / "model.safetensors")
    for bf16 in (True, False):
        settings = {"output_dir": str(tmp_path / str(bf16)), "max_steps": 3, "use_cpu": True, "bf16": bf16}
        settings |= {"learning_rate": 1.0e-3, "lr_scheduler_type": "constant", "disable_tqdm": True, "save_steps": 2}
        run = RunArguments(
            init_from=str(half),
            data=DataArguments(root=str(get_rooms()), limit=6, questions_per_row=2),
            parts={"model.vision_tower": PartArguments(freeze=True)},
            trainer=settings | {"logging_steps": 2, "report_to": "none", "per_device_train_batch_size": 2},
        )
        train.main(run)
        found = load_file(tmp_path / str(bf16) / "model.safetensors")
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in start.items()}
        moved = {name for name, value in found.items() if not torch.equal(value, start[name])}
        assert not any(name.startswith("model.vision_tower") for name in moved)
        assert {"lm_head.weight", "model.language_model.norm.weight"} <= moved
        on_the_way = load_file(tmp_path / str(bf16) / "checkpoint-2" / "model.safetensors")
        assert on_the_way["lm_head.weight"].dtype == torch.float32
        again = Ross3DForConditionalGeneration.from_pretrained(tmp_path / str(bf16))
        assert again.lm_head.weight.dtype == torch.bfloat16


def test_a_model_cut_by_fsdp_is_saved_with_its_own_code(tmp_path):
    """FSDP changes the class of what it wraps, here as `fully_shard` does it."""
    model = make_model()
    own = type(model)
    save_by_own_class(model)
    model.__class__ = type("FSDPModel", (FSDPModule, own), {})
    model.save_pretrained(tmp_path)
    assert isinstance(model, FSDPModule) and (tmp_path / "modeling_ross3d.py").is_file()
    assert not list(tmp_path.glob("_fsdp*"))
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == auto_map["AutoModelForImageTextToText"] == f"modeling_ross3d.{own.__name__}"


# ---- the runs in configs/


def read_config(name: str, *more: str) -> RunArguments:
    return read_run_arguments(ROOT / "configs" / f"{name}.yaml", ["--trainer.use_cpu", "true", *more])


def test_the_published_recipe():
    """What the paper says: 256 rows a step, AdamW at 1e-5 with a cosine behind 3 % of warm-up, one pass, no decay."""
    run = read_config("ross3d_7b")
    training = build_training_arguments(run.trainer, run.seed)
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * run.num_processes
    assert rows == 256 and -(-223_128 // rows) == 872
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_steps) == (1.0e-5, "cosine", 0.03)
    assert (training.weight_decay, run.data.epochs, training.bf16) == (0.0, 1, True)
    assert training.optim == "adamw_torch_fused" and training.activation_checkpointing
    assert (run.data.visit, run.data.questions_per_row, run.data.proposals) == ("questions", 1, "ground_truth")
    assert run.parts == {"model.vision_tower": PartArguments(freeze=True)} and not run.model


def test_the_published_recipe_of_3drs():
    """16 rows a step, the tower trained at 2e-6 and all else at 1e-5; otherwise the training of Ross3D."""
    run, ross3d = read_config("ross3d_7b_3drs"), read_config("ross3d_7b")
    training = build_training_arguments(run.trainer, run.seed)
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * run.num_processes
    assert rows == 16 and -(-223_128 // rows) == 13_946
    assert run.parts == {"model.vision_tower": PartArguments(learning_rate=2.0e-6)}
    assert training.learning_rate == 1.0e-5
    changed = {key for key in ross3d.trainer if run.trainer[key] != ross3d.trainer[key]}
    assert changed == {"output_dir", "gradient_accumulation_steps", "save_steps"}
    assert run.trainer.keys() == ross3d.trainer.keys()
    assert replace(run.data, geometry_features=None) == ross3d.data and run.init_from == ross3d.init_from
    published = Ross3DDistillationConfig(**run.model["distillation_config"])
    assert published.to_dict() == Ross3DDistillationConfig().to_dict()
    assert (run.model["denoiser_config"], run.model["proposal_pooling"]) == (None, "mean")
    assert (run.processor["view_fit"], run.processor["object_token_threshold"]) == ("squash", 0.125)


@pytest.mark.parametrize("name", ["ross3d_7b_80gb", "ross3d_7b_lora", "ross3d_7b_half_text", "ross3d_7b_more_scans"])
def test_other_runs_differ_from_it_where_they_say(name):
    run, published = read_config(name), read_config("ross3d_7b")
    training = build_training_arguments(run.trainer, run.seed)
    questions = training.gradient_accumulation_steps * run.num_processes * run.data.questions_per_row
    assert questions == 256 and run.parts == published.parts and run.init_from == published.init_from
    assert run.trainer["output_dir"] == f"outputs/{name}"
    assert (run.lora is not None) == ("lora" in name)
    same = {key for key, value in run.trainer.items() if published.trainer.get(key) == value}
    assert published.trainer.keys() - same <= {"output_dir", "gradient_accumulation_steps", "learning_rate"}


def test_any_checkpoint_is_fine_tuned(tmp_path):
    """`configs/fine_tune.yaml` describes no model: model, processor and VAE are those of the checkpoint."""
    folders = ["--init_from", str(get_checkpoint()), "--data.root", str(get_rooms())]
    run = read_config("fine_tune", *folders, "--trainer.output_dir", str(tmp_path), "--trainer.max_steps", "3")
    assert not (run.model or run.processor or run.teacher or run.parts)
    train.main(run)
    before, after = (load_file(folder / "model.safetensors") for folder in (get_checkpoint(), tmp_path))
    assert before.keys() == after.keys()
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"language_model", "vision_tower"} <= moved
    old, new = (json.loads((folder / "processor_config.json").read_text()) for folder in (get_checkpoint(), tmp_path))
    assert old == new and (tmp_path / "teacher" / "config.json").is_file()


def test_launch_files_name_what_there_is():
    """FSDP2 wraps classes by name, which nothing would find if it were wrong."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "accelerate").iterdir()}
    assert files.keys() == {"single", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "zero3_offload"}
    wrapped = files["fsdp2"]["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert set(wrapped) <= {type(module).__name__ for module in make_model().modules()}
    assert all(file["mixed_precision"] == "no" for file in files.values()), "trainer.bf16 says it"
    # By default accelerate hands several machines to pdsh, which wants a file of hosts.
    launchers = [
        file["deepspeed_config"]["deepspeed_multinode_launcher"]
        for file in files.values()
        if "deepspeed_config" in file
    ]
    assert launchers == ["standard"] * 3
