"""Sections of a run file that libraries read: every refusal names the key in the file, before anything is trained."""

import json
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from ross3d.command_line import run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.arguments import DataArguments
from ross3d.data.text_files import read_json
from ross3d.tests.tiny import get_checkpoint
from ross3d.training.arguments import check_same_run, read_command_line, read_run_arguments
from ross3d.training.build import (
    build_config,
    build_processor,
    check_fit,
    check_teacher,
    find_teacher,
    list_split,
)
from ross3d.training.callbacks import is_complete
from ross3d.training.checkpoint import load_processor


TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"
NEW = "--new_weights null --vision_warmup null"


def read(words: str):
    return read_run_arguments(TINY, words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "vision_config.hidden_size abc",
            "vision_config.hidden_size: expected a whole number of at least 1, got 'abc'",
        ),
        ("vision_config.num_attention_heads 3", "vision_config.num_attention_heads: expected a divisor of hidden_siz"),
        ("text_config.num_attention_heads 3", ".*expected a number of heads that divides hidden_size 12"),
        ("text_config.num_key_value_heads 3", "text_config.num_key_value_heads: expected a divisor of num_attention_"),
        ("text_config.hidden_act x", r"text_config.hidden_act: expected an activation of \['gelu'.*got 'x'"),
        ("text_config null", "text_config: expected a table of .*got nothing; write them, or leave the sec"),
        ("text_config [1]", r"text_config: expected a table of .*got a list: \[1\]"),
        ("text_config.model_type foo", "text_config: expected valid values that fit each other"),
        ("view_mask_period -1", "view_mask_period: expected a number >= 1, got -1"),
        ("view_mask_ratio .nan", "view_mask_ratio: expected a fraction in .*got nan"),
        ("view_mask_ratio 0", "view_mask_ratio: expected float, got int .*; write 0.0; correct it"),
        ("view_objective x", "view_objective: expected one of .*'vanilla'.*got x; correct it"),
        ("bev_loss_weight x", r"bev_loss_weight: expected one of the types \(float, int\), got 'x'; correct it"),
        ("denoiser_config.condition foo", "denoiser_config.condition: expected one of .*got foo"),
    ],
)
def test_wrong_values_of_the_model_are_named_by_their_key(words, message):
    with pytest.raises(ValueError, match=rf"tiny.yaml with --.*: (wrong setting in the run file: )?model\.{message}"):
        read(f"--model.{words}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("processor.image_processor.foo 1", "image_processor: expected a known key, got `foo`"),
        ("processor.image_processor [1]", "image_processor: expected a table"),
        ("processor.image_processor.size 64", "image_processor.size: expected {height: S, width: S}, got 64"),
        ("processor.image_processor.image_std [1,1,0]", "image_processor.image_std: expected three numbers, each a"),
        ("trainer.report_to foo", r"trainer.report_to: expected one of \['none'.*got 'foo'"),
        ("trainer.lr_scheduler_kwargs [1]", r"trainer.lr_scheduler_kwargs: expected a table.*got \[1\]; correct it"),
        ("trainer.optim foo", r"trainer.optim: expected one of the values \[.*, got 'foo'; correct it"),
        ("trainer.lr_scheduler_type foo", r"trainer.lr_scheduler_type: expected one of the values \["),
        ("trainer.save_strategy foo", r"trainer.save_strategy: expected one of the values \["),
    ],
)
def test_wrong_values_of_processor_and_trainer_are_named_by_their_key(words, message):
    with pytest.raises(ValueError, match=message):
        read(f"--{words}")


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("ross3d.training.arguments.get_available_reporting_integrations", list)
    with pytest.raises(ValueError, match="trainer.report_to: expected an installed tracker, got 'wandb'"):
        read("--trainer.report_to wandb")


def test_a_checkpoint_with_a_run_file_of_another_model_names_every_way_out():
    words = f"--init_from {get_checkpoint()}"
    with pytest.raises(ValueError, match="expected none with init_from.* add --model null --processor null --teac"):
        build_processor(read(words))
    run = read(f"{words} {NEW}")
    with pytest.raises(ValueError, match="init_from: expected settings that fit the checkpoint .*--model null"):
        build_config(run, None)
    run = read(f"{words} {NEW} --model null --model.text_config.intermediate_size 5")
    with pytest.raises(ValueError, match="intermediate_size: .* in the checkpoint's weights, got 5"):
        build_config(run, None)
    plain = read(f"{words} {NEW} --model null")
    assert build_config(plain, None).to_dict() == Ross3DConfig.from_pretrained(get_checkpoint()).to_dict()


def test_processor_and_model_have_to_fit():
    processor, config = load_processor(get_checkpoint()), Ross3DConfig.from_pretrained(get_checkpoint())
    check_fit(processor, config)
    settings = processor.to_dict()
    for name, value in (("patch_size", -1), ("bev_size", float("nan")), ("max_position_embeddings", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1 on, got"):
            setattr(processor, name, value)
    with pytest.raises(ValueError, match="object_patch_threshold: expected a share above 0, at most 1, got nan"):
        processor.object_patch_threshold = float("nan")
    assert processor.to_dict() == settings
    config.proposal_pooling = "mean"
    with pytest.raises(ValueError, match="object_token_threshold: expected a share of the points of a visual token"):
        check_fit(processor, config)
    processor.object_token_threshold = 0.125
    check_fit(processor, config)
    processor.max_position_embeddings = 10**6
    with pytest.raises(ValueError, match="max_position_embeddings: expected at most the .* positions of model.text"):
        check_fit(processor, config)
    processor.patch_size += 1
    with pytest.raises(ValueError, match="processor.patch_size: expected .*, as in model.vision_config, got"):
        check_fit(processor, config)
    with pytest.raises(ValueError, match="settings of the run file: processor.bev_size: expected a whole number"):
        build_processor(read(f"--init_from {get_checkpoint()} {NEW} --processor null --processor.bev_size -1"))


def test_teachers_that_are_none_are_refused_without_asking_a_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher: expected .*got nothere: no such folder"):
        find_teacher(read("--teacher nothere"))
    with pytest.raises(
        FileNotFoundError, match="teacher: expected the folder of a VAE, got .*, which has no config.json"
    ):
        find_teacher(read(f"--teacher {tmp_path}"))
    (tmp_path / "config.json").write_text('{"_class_name": "Other", "latent_channels": 3}')
    with pytest.raises(ValueError, match="teacher: expected a VAE saved by diffusers .*got 'Other'"):
        find_teacher(read(f"--teacher {tmp_path}"))
    with pytest.raises(ValueError, match="teacher: expected a VAE with latent_channels .*got 3"):
        check_teacher(tmp_path, Ross3DConfig.from_pretrained(get_checkpoint()))


def test_command_lines_take_prefixes_with_dots_equal_signs_and_help(capsys):
    run = read("--parts.model.vision_tower.freeze true --data.root=a=b --parts.reconstruction_head null")
    assert run.parts["model.vision_tower"].freeze and run.data.root == "a=b"
    assert run.parts["model.vision_tower"].learning_rate == 3.0e-4 and "reconstruction_head" not in run.parts
    with pytest.raises(SystemExit) as ended:
        read_command_line([str(TINY), "--help"], "usage")
    assert ended.value.code == 0 and "--data.root" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "train" / "room").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"data.split: expected one of the splits of .*\['train'\], got 'nosplit'"
    ):
        list_split(DataArguments(root=str(tmp_path), split="nosplit"))


def test_files_of_a_run_that_are_empty_or_of_another_kind_say_so(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(ValueError, match="expected the settings of the run in this folder, got an empty file"):
        check_same_run(read("--seed 1"), tmp_path / "run.yaml")
    (tmp_path / "complete.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="got a list; remove the file, and the folder counts as unfinished"):
        is_complete(tmp_path)
    with pytest.raises(ValueError, match="got a list; check that it is the intended file"):
        read_json(tmp_path / "complete.json", kind=dict)


def test_an_error_beneath_an_open_progress_bar_begins_a_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def fail():
        for _ in tqdm(range(3)):
            raise ValueError("broken")

    with pytest.raises(SystemExit):
        run_program(fail)
    assert "\ntrain.py: error: broken\n" in capsys.readouterr().err
