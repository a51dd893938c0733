"""Checkpoints are found on disk or on the Hub, and nothing that lies in one is run."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from ross3d import eval as door
from ross3d.data.annotations import Annotation
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import ask
from ross3d.tools.checkpoints import files
from ross3d.tools.make_tiny import make_tiny_processor
from ross3d.training import checkpoint
from ross3d.training.arguments import RunArguments
from ross3d.training.build import build_model, build_processor
from ross3d.training.checkpoint import check_lengths, find_checkpoint, is_hub_id, load_processor
from ross3d.training.loading import load_model


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail(f"the Hub was asked: {arguments}")

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    monkeypatch.setattr(files, "snapshot_download", refuse)


@pytest.mark.parametrize("name", ["./nope", "nope", "/no/where", "~/no-such-folder", "a/b/c", "tests/nope", "a b/c"])
def test_a_path_is_never_asked_of_the_hub(name, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    message = (
        r"--model: expected a checkpoint's folder or a Hub id such as user/name, got .*: no such folder \(the path"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_checkpoint(name)
    with pytest.raises(FileNotFoundError, match="such as user/model, found no such folder; correct the path"):
        files.find_folder(name, ["*.json"])
    with pytest.raises(FileNotFoundError, match="init_from: expected a checkpoint's folder or a Hub id"):
        build_processor(RunArguments(init_from=name))


def test_the_part_of_a_path_that_exists_is_named(no_hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"the path exists as far as {tmp_path}\); correct it"):
        find_checkpoint(tmp_path / "outputs" / "model")


def test_what_is_no_checkpoint_is_refused(no_hub, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(
        NotADirectoryError, match=r"expected a checkpoint's folder, got the file .*config.json; give the"
    ):
        find_checkpoint(tmp_path / "config.json")
    with pytest.raises(
        ValueError, match=r"--model: expected a checkpoint of ross3d, got model_type 'llava' in .*config"
    ):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(
        ValueError, match=r"config.json: expected the config of a checkpoint, but the file is not valid JSON"
    ):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"got .*, which has no config.json; give a folder that train.py"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="--model: expected a checkpoint's folder or a Hub id, got nothing; name one"):
        find_checkpoint(" ")


def test_a_hub_id_is_fetched_without_code_and_its_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("user/name") and not is_hub_id("user/name/more")
    asked = {}

    def fetch(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return get_checkpoint()

    monkeypatch.setattr(checkpoint, "snapshot_download", fetch)
    assert find_checkpoint("user/name") == get_checkpoint()
    assert asked["name"] == "user/name" and not {"*", "*.py", "*.bin", "*.pt"} & set(asked["patterns"])

    def refuse(name, allow_patterns):
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found for url.", response=response)

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)
    with pytest.raises(
        FileNotFoundError, match="got user/name: no such folder, and the Hub answered: .*; correct it"
    ) as e:
        find_checkpoint("user/name")
    assert "\n" not in str(e.value)


PLANTED = "from pathlib import Path\nPath({!r}).write_text('it ran')\nclass Ross3DProcessor: pass\n"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A checkpoint with code of its own in every place from which a library takes code; the file that it writes."""
    mark = tmp_path / "mark"
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "checkpoint"))
    for name in ("processing_ross3d", "modeling_ross3d", "configuration_ross3d", "tokenizer_own"):
        (folder / f"{name}.py").write_text(PLANTED.format(str(mark)))
    (folder / "teacher" / "modeling.py").write_text(PLANTED.format(str(mark)))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenizer_own.Ross3DProcessor", "tokenizer_own.Ross3DProcessor"]}
    file.write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("the library asked on the terminal"))
    return folder, mark


def test_code_in_a_checkpoint_is_not_run(planted):
    folder, mark = planted
    processor = load_processor(folder)
    assert type(processor).__module__ == "ross3d.processing_ross3d"
    model, processor, has_teacher = ask.load_model(str(folder), "cpu")
    assert has_teacher and type(model).__module__ == "ross3d.modeling_ross3d"
    run = RunArguments(init_from=str(folder))
    assert type(build_model(run, build_processor(run))).__module__ == "ross3d.modeling_ross3d"
    words = ["--model", str(folder), "--task", "reconstruction", "--data", str(get_rooms()), "--output", "unused"]
    door.load_model(door.parse_arguments(words), door.get_tasks("reconstruction"), torch.device("cpu"))
    assert not mark.exists()


def test_a_tokenizer_of_another_class_is_refused_and_not_run(planted):
    folder, mark = planted
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Ross3DProcessor"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="its tokenizer needs its own Python code, which is not run"):
        load_processor(folder)
    assert not mark.exists()


class Attack:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_pickled_weights_are_not_run(planted):
    folder, mark = planted
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
        ask.load_model(str(folder), "cpu")
    assert not mark.exists()


def test_a_broken_tokenizer_is_named(tmp_path):
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "checkpoint"))
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(
        ValueError,
        match=rf"{folder}/tokenizer.json: expected the settings of .* not valid JSON .*; download the whole",
    ):
        load_processor(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{folder}: expected the processor of a checkpoint .*; download them again"):
        load_processor(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", "[]", "expected the settings of a checkpoint's processor, got a list"),
        ("processor_config.json", None, "expected this file in the checkpoint's folder, got none; download the whole"),
        ("tokenizer.json", None, "expected this file in the checkpoint's folder, got none; download the whole"),
        (
            "chat_template.jinja",
            "{{",
            r"expected a chat template in Jinja, got a syntax error \(.*; download the whole",
        ),
        (
            "generation_config.json",
            "{",
            "expected the settings of a checkpoint's model, but the file is not valid JSON",
        ),
        ("generation_config.json", "[]", "expected the settings of a checkpoint's model, got a list"),
        (
            "model.safetensors",
            None,
            "expected the weights of a checkpoint in this file or in shards listed in model.safetensors",
        ),
    ],
)
def test_a_broken_file_of_a_checkpoint_is_named(tmp_path, name, text, message):
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "checkpoint"))
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{folder}/{name}: {message}"):
        ask.load_model(str(folder), "cpu")


@pytest.mark.parametrize(("settings", "got"), [(None, "no such file"), ("{}", "none in it")])
def test_a_tokenizer_without_its_settings_is_named_when_it_is_loaded(tmp_path, settings, got):
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "checkpoint"))
    file = folder / "tokenizer_config.json"
    file.unlink()
    if settings is not None:
        file.write_text(settings)
    message = rf"{file}: expected the tokenizer's settings with a pad_token, got {got}; download the whole"
    with pytest.raises(ValueError, match=message):
        load_processor(folder)


def test_an_index_without_shards_is_named(tmp_path):
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "checkpoint"))
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(
        ValueError, match=r"index.json: expected a weight_map with the shard of every weight, got \{\}"
    ):
        load_model(folder)


def test_portrait_pictures_are_read_where_the_mode_is_overridden(tmp_path, capsys):
    """A published checkpoint cuts views so that none may be higher than wide; the option reads them as they are."""
    folder = Path(shutil.copytree(get_checkpoint(), tmp_path / "published"))
    settings = json.loads((folder / "processor_config.json").read_text()) | {"geometry_mode": "published"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    portrait = Image.fromarray(np.full((90, 50, 3), 120, np.uint8))
    with pytest.raises(ValueError, match="--geometry-mode valid_depth"):
        load_processor(folder)(images=[portrait], return_tensors="pt")
    _, processor, _ = ask.load_model(str(folder), "cpu", "valid_depth")
    assert processor(images=[portrait] * 2, return_tensors="pt")["pixel_values"].shape == (1, 2, 3, 64, 64)
    words = ["--model", str(folder), "--task", "rooms", "--data", str(get_rooms()), "--output", "unused"]
    arguments = door.parse_arguments([*words, "--geometry-mode", "valid_depth"])
    _, processor = door.load_model(arguments, [], torch.device("cpu"))
    assert processor.geometry_mode == "valid_depth"
    assert door.describe_settings(arguments, processor, {}, {})["geometry_mode"] == "valid_depth"


def test_questions_that_fit_into_no_row_are_named_before_the_first_is_asked():
    processor = make_tiny_processor()
    common = ("s", "rooms", "color")
    right = [Annotation("a", *common, "What color is it?", "red")]
    check_lengths(right, processor, "val.jsonl")
    wrong = [*right, Annotation("b", *common, "x y " * 2000, "red")]
    with pytest.raises(
        ValueError, match=r"val.jsonl: expected questions that fit .* 2048 positions .* in question 'b'"
    ):
        check_lengths(wrong, processor, "val.jsonl")
    processor.max_position_embeddings = None
    check_lengths(wrong, processor, "val.jsonl")
