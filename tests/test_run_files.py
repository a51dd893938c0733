"""Run files: every value is of its type and range, and a run that diverges or whose data changed is stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments

from ross3d import train
from ross3d.data.arguments import DataArguments
from ross3d.modeling_ross3d import LOSS_NAMES
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.train import build_training_arguments
from ross3d.training.arguments import RunArguments, read_run_arguments
from ross3d.training.build import SIZES, check_same_data, get_data_fingerprint
from ross3d.training.callbacks import (
    COMPLETE_MARK,
    MarkComplete,
    check_finite_losses,
    has_finite_weights,
    is_complete,
)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("init_from: folder\ndata: {epochs: 3}\ntrainer: {output_dir: out, learning_rate: 1.0e-3}\n")
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.limit -1", "data.limit: expected a whole number of at least 1, got -1; correct the number"),
        ("--data.epochs 0", "data.epochs: expected a whole number of at least 1, got 0"),
        ("--data.num_views many", "data.num_views: expected a whole number from 1 to 10,000, got 'many'"),
        ("--data.num_views 2.5", "data.num_views: expected a whole number from 1 to 10,000, got 2.5"),
        ("--data.blind maybe", "data.blind: expected true or false, got 'maybe'; correct the value"),
        ("--data.labelled_share .nan", "data.labelled_share: expected a finite number, got nan"),
        ("--data.root 5", "data.root: expected a non-blank string, got 5"),
        ("--data [1]", r"data: expected a table of `key: value`, got a list: \[1\]"),
        ("--parts hello", "parts: expected a table of `key: value`, got a text: 'hello'"),
        ("--parts.lm_head.freeze 3", "parts.lm_head.freeze: expected true or false, got 3"),
        (
            "--parts.lm_head.learning_rate -1",
            "parts.lm_head.learning_rate: expected a finite number of at least 0",
        ),
        ("--seed abc", "seed: expected a whole number of at least 0 and below 4,294,967,296, got 'abc'"),
        ("--seed -1", "seed: expected a whole number of at least 0 and below 4,294,967,296, got -1"),
        ("--num_processes 0", "num_processes: expected a whole number of at least 1, got 0"),
        ("--lora.rank 0", "lora.rank: expected a whole number of at least 1, got 0"),
        ("--lora.dropout 1.0", "lora.dropout: expected a finite number of at least 0 and below 1, got 1.0"),
        ("--lora.modules lm_head", "lora.modules: expected a list of strings, got 'lm_head'"),
        ("--lora.target_modules (", r"lora.target_modules: expected a regular expression, got '\(': missing"),
        ("--vision_warmup.steps 10", "vision_warmup.steps: expected a whole number of at least 20, got 10"),
        ("--new_weights.embedding_std 0", "new_weights.embedding_std: expected a finite number above 0, got 0"),
        ("--trainer.learning_rate .nan", "trainer.learning_rate: expected a finite number of at least 0, got nan"),
        ("--trainer.learning_rate .inf", "trainer.learning_rate: expected a finite number of at least 0, got inf"),
        ("--trainer.adam_beta1 1", "trainer.adam_beta1: expected a finite number of at least 0 and below 1, got 1"),
        ("--trainer.bf16 maybe", "trainer.bf16: expected true or false, got 'maybe'"),
        ("--trainer.max_steps 0", "trainer.max_steps: expected a whole number of at least 1, got 0"),
        (
            "--per_device_train_batch_size 0",
            "trainer.per_device_train_batch_size: expected a whole number of at least 1",
        ),
        ("--trainer 7", "trainer: expected a table of `key: value`, got a number: 7"),
        ("--processor.label_rul published", "processor: expected a known key, got `label_rul`; did you mean"),
        ("--seed [1", r"--seed: expected a value, but the file is not valid YAML .*line 1 column 3"),
    ],
)
def test_values_of_the_wrong_type_or_range_are_refused_with_file_and_key(config_file, words, message):
    given = words.split(" ", 1)
    with pytest.raises(ValueError, match=rf"run.yaml with --.*: {message}"):
        read_run_arguments(config_file, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model: expected the sizes of a new model .* or init_from, a checkpoint to start from, got neither; set"),
        ("model:\ndata:\ntrainer:\n", "model: expected the sizes of a new model"),
        ("- data: 1\n", r"run: expected a table of `key: value`, got a list: \[{'data': 1}\]"),
        ("data: {root: a\n", r"expected the settings of a run, but the file is not valid YAML .* line 2 column 1"),
        ("seed: 0\nseed: 1\n", "the key 'seed' occurs twice in a section, line 2 column 1"),
        (b"seed: caf\xe9", ":1: expected the settings of a run, got bytes that are not UTF-8"),
    ],
)
def test_files_that_are_no_run_are_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"run.yaml.*{message}"):
        read_run_arguments(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match="absent.yaml does not exist; expected the settings of a run"):
        read_run_arguments(tmp_path / "absent.yaml")


def test_settings_that_the_trainer_would_refuse_or_obey_in_silence(tmp_path):
    with pytest.raises(ValueError, match="trainer.output_dir: expected the folder of the run, got none; set"):
        build_training_arguments({}, 0)
    settings = {"output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="trainer: expected settings of .*Arguments, got: .*foo is not a valid"):
        build_training_arguments(settings | {"lr_scheduler_type": "foo"}, 0)
    with pytest.raises(
        ValueError, match="label_smoothing_factor: expected 0.0 or nothing, got 0.1; label smoothing would ignore the"
    ):
        build_training_arguments(settings | {"label_smoothing_factor": 0.1}, 0)
    assert build_training_arguments(settings | {"label_smoothing_factor": 0}, 0).label_smoothing_factor == 0


def test_questions_or_scenes_that_changed_since_a_run_began_are_refused(tmp_path):
    """Other rows would be read, in another number of steps."""
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    data = DataArguments(root=str(rooms))
    file = tmp_path / "run_data.json"
    told = get_data_fingerprint(data)
    check_same_data(told, file)
    file.write_text(json.dumps(told))
    check_same_data(get_data_fingerprint(data), file)
    lines = (rooms / "annotations" / "train.jsonl").read_text()
    (rooms / "annotations" / "train.jsonl").write_text(lines.replace("red", "blue", 1))
    with pytest.raises(ValueError, match=r"data: .* run in .*, but annotations/train.jsonl changed"):
        check_same_data(get_data_fingerprint(data), file)
    (rooms / "annotations" / "train.jsonl").write_text(lines)
    (rooms / "train" / ".hidden").mkdir()
    first = sorted((rooms / "train").iterdir())[1]
    (first / ".boxes.json.17.0123abcd.partial").write_text("[")
    (first / "boxes.json").touch()
    check_same_data(get_data_fingerprint(data), file)
    boxes = (first / "boxes.json").read_text()
    (first / "boxes.json").write_text(json.dumps(json.loads(boxes)[1:]))
    with pytest.raises(ValueError, match="but file sizes of the scenes changed; restore them, choose"):
        check_same_data(get_data_fingerprint(data), file)
    # Of a run of earlier code nothing is known of them.
    file.write_text(json.dumps({name: value for name, value in told.items() if name != SIZES}))
    check_same_data(get_data_fingerprint(data), file)
    file.write_text(json.dumps(told))
    (first / "boxes.json").write_text(boxes)
    shutil.rmtree(first)
    with pytest.raises(ValueError, match="but file sizes of the scenes, names of the scenes in train chan"):
        check_same_data(get_data_fingerprint(data), file)


def test_scans_without_questions_that_changed_are_noticed(tmp_path):
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    data = DataArguments(root=str(get_rooms()), unlabelled_root=str(rooms / "val"), unlabelled_share=0.3)
    file = tmp_path / "run_data.json"
    file.write_text(json.dumps(get_data_fingerprint(data)))
    (sorted((rooms / "val").iterdir())[1] / "proposals.json").write_text("[]")
    with pytest.raises(ValueError, match="but file sizes of the scenes changed"):
        check_same_data(get_data_fingerprint(data), file)


def test_checkpoints_of_something_else_are_not_removed(tmp_path):
    """A run removes torn and old checkpoints of its folder; those of another program have no settings beside them."""
    for name in ("checkpoint-7", "checkpoint-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    trainer = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    run = RunArguments(init_from=str(get_checkpoint()), data=DataArguments(root=str(get_rooms())), trainer=trainer)
    message = r"trainer.output_dir: expected a new folder or the folder of an earlier run, got .* checkpoints but"
    with pytest.raises(ValueError, match=message):
        train.main(run)
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2


def test_a_run_that_diverges_stops_and_keeps_its_last_finite_checkpoint(tmp_path):
    """At a rate of 1e20 weights are finite after the first step, and the losses behind them are not."""
    data = DataArguments(root=str(get_rooms()), limit=2, num_views=2, epochs=8)
    trainer = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "max_steps": 8}
    trainer |= {"per_device_train_batch_size": 1, "learning_rate": 1e20, "logging_steps": 1, "save_steps": 1}
    run = RunArguments(init_from=str(get_checkpoint()), data=data, trainer=trainer | {"save_total_limit": 1})
    with pytest.raises(ValueError, match=r"step \d: expected finite (losses|weights), got NaN or infinity .* lower"):
        train.main(run)
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    weights = load_file(kept / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert not (tmp_path / "run" / "complete.json").exists()


def test_losses_and_weights_that_are_not_finite_are_named(tmp_path):
    losses = dict(zip(LOSS_NAMES, (1.0, float("nan"), 0.0, float("inf")), strict=True))
    message = f"step 7: expected finite losses, got NaN or infinity in {LOSS_NAMES[1]}, {LOSS_NAMES[3]}; the run has"
    with pytest.raises(ValueError, match=message):
        check_finite_losses(losses, 7)
    check_finite_losses(dict.fromkeys(LOSS_NAMES, 0.0), 7)
    model = torch.nn.Linear(3, 2)
    assert has_finite_weights(model, 1)
    model.bias.data[1] = torch.nan
    assert not has_finite_weights(model, 1)
    state, folder = TrainerState(global_step=4), tmp_path / "checkpoint-4"
    folder.mkdir()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="step 4: expected finite weights, got NaN or infinity in some trained"):
        MarkComplete().on_save(arguments, state, None, model=model)
    assert not folder.exists()


def test_a_mark_that_is_broken_is_named(tmp_path):
    (tmp_path / COMPLETE_MARK).write_text('{"model.safetensors": ')
    with pytest.raises(
        ValueError, match=r"complete.json: expected the file sizes .* not valid JSON .*; remove the file"
    ):
        is_complete(tmp_path)
