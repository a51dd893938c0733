"""Damaged checkpoints: what their files tell is refused by name, and a run goes on from the one before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerState

from ross3d import train
from ross3d.data.arguments import DataArguments
from ross3d.tests.fabricate import make_model
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.training.arguments import RunArguments
from ross3d.training.callbacks import COMPLETE_MARK, find_checkpoint, is_complete, mark_complete
from ross3d.training.damage import CHECKSUMS, check_checkpoint_files, check_weight_names


def make_checkpoint(folder: Path, step: int, width: int = 3) -> Path:
    """A checkpoint of the files that the Trainer writes, of a model of one layer, with its mark."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(4, width)).sum().backward()
    optimizer.step()
    save_file(dict(model.named_parameters()), checkpoint / "model.safetensors")
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
    torch.save({"last_epoch": step, "_last_lr": [0.5, 0.25]}, checkpoint / "scheduler.pt")
    torch.save({"cpu": torch.random.get_rng_state()}, checkpoint / "rng_state.pth")
    state = TrainerState(global_step=step, max_steps=40, log_history=[{"loss": 1.5, "step": step}])
    state.save_to_json(str(checkpoint / "trainer_state.json"))
    (checkpoint / "config.json").write_text(json.dumps({"width": width}))
    mark_complete(checkpoint)
    return checkpoint


def flip(file: Path, place: int) -> None:
    """One bit of a file's byte number `place`."""
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(bytes(content))


def flip_inside(words: bytes) -> Callable[[Path], None]:
    return lambda file: flip(file, file.read_bytes().index(words) + 1)


def change_state(**values) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        mark_complete(file.parent)

    return change


def change_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def rewrite(file: Path) -> None:
        weights = load_file(file)
        save_file(weights | {"bias": change(weights["bias"])}, file)
        mark_complete(file.parent)

    return rewrite


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


MARK = "expected the file sizes of a finished folder"
DAMAGES = [
    ("model.safetensors", cut, r"expected a file of \d+ bytes, got \d+"),
    ("optimizer.pt", cut, r"expected a file of \d+ bytes, got \d+"),
    ("rng_state.pth", lambda file: file.unlink(), r"expected a file of \d+ bytes, got no such file"),
    ("model.safetensors", flip_inside(b"shape"), "expected weights in the safetensors format, got a damaged file"),
    ("model.safetensors", change_weight(lambda bias: bias * torch.nan), "expected finite .* got others in bias"),
    ("model.safetensors", change_weight(lambda bias: bias.int()), "expected finite floating-point weights, got"),
    ("optimizer.pt", flip_inside(b"exp_avg_sq"), "a file written by torch.save, got changed bytes in .*data.pkl"),
    ("optimizer.pt", flip_inside(b"PK\x05\x06"), "expected a file written by torch.save, got a damaged file"),
    ("scheduler.pt", flip_inside(b"last_epoch"), "a file written by torch.save, got changed bytes in .*data.pkl"),
    ("rng_state.pth", lambda file: flip(file, 2000), "expected a file written by torch.save, got changed bytes"),
    ("rng_state.pth", lambda file: file.write_bytes(bytes(file.stat().st_size)), "torch.save, got a damaged"),
    ("trainer_state.json", flip_inside(b'{'), r"expected the saved object, but the file is not valid JSON"),
    ("trainer_state.json", flip_inside(b"log_history"), "expected the Trainer's state .*, got no log_history"),
    ("trainer_state.json", flip_inside(b"best_metric"), "expected the Trainer's state after step 20, got the unknown"),
    ("trainer_state.json", change_state(global_step=21), "expected the Trainer's state after step 20, got global_st"),
    ("trainer_state.json", change_state(epoch="two"), "trainer_state.json: epoch: expected a finite number, got"),
    ("trainer_state.json", change_state(log_history=[1]), r"expected log_history as a list of records, got \[1\]"),
    ("config.json", lambda file: file.write_text('{"width"  3}'), "but the file is not valid JSON"),
    (COMPLETE_MARK, lambda file: file.write_text("{}"), f"{MARK}, got none; write or copy it again"),
    (COMPLETE_MARK, lambda file: file.write_text("{"), f"{MARK}, but the file is not valid JSON"),
    (COMPLETE_MARK, lambda file: file.write_text('{"config.json": true}'), f"{MARK}, got True for config.json"),
]  # fmt: skip


def make_id(value) -> str | None:
    """The beginning of a text; functions get pytest's own id."""
    return value[:40] if isinstance(value, str) else None


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES, ids=make_id)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_goes_on(tmp_path, name, damage, message):
    before, last = make_checkpoint(tmp_path, 9, width=4), make_checkpoint(tmp_path, 20)
    assert find_checkpoint(tmp_path) == last
    damage(last / name)
    said = f"checkpoint-20/{name}: .*{message}" if "trainer_state.json: " not in message else message
    with pytest.warns(UserWarning, match=rf"{said}.*; checkpoint-20 was renamed to checkpoint-20-damaged-1; the run"):
        assert find_checkpoint(tmp_path) == before
    assert (tmp_path / "checkpoint-20-damaged-1").is_dir() and not last.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_flipped_bit_of_a_record_is_passed_over(tmp_path, name):
    """Every 13th byte: what is accepted loads to the same values, since it lies between the records."""
    file = make_checkpoint(tmp_path, 5) / name
    content = file.read_bytes()
    wanted, refused = repr(torch.load(file)), 0
    for place in range(0, len(content), 13):
        flip(file, place)
        try:
            check_checkpoint_files(file.parent, 5)
        except ValueError as error:
            assert str(error).startswith(str(file)), error
            refused += 1
        else:
            assert repr(torch.load(file)) == wanted, place
        file.write_bytes(content)
    assert refused > 20


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json"])
def test_a_flipped_bit_that_leaves_a_file_readable_is_noticed(tmp_path, name):
    """Another weight, another setting: every byte counts, since the format has no check sum."""
    folder = make_checkpoint(tmp_path, 5)
    check_checkpoint_files(folder, 5)
    file = folder / name
    content = bytearray(file.read_bytes())
    place = {"model.safetensors": len(content) - 1, "config.json": content.find(b"3")}.get(name, content.find(b"1.5"))
    content[place] ^= 0x01
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{name}: expected the checksum in checksums.json, got a different one"):
        check_checkpoint_files(folder, 5)
    # Of a checkpoint of earlier code nothing more is known than sizes.
    (folder / CHECKSUMS).unlink()
    sizes = json.loads((folder / COMPLETE_MARK).read_text())
    (folder / COMPLETE_MARK).write_text(json.dumps({key: sizes[key] for key in sizes if key != CHECKSUMS}))
    check_checkpoint_files(folder, 5)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "a/../../secret.json"])
def test_a_mark_names_files_of_its_own_folder(tmp_path, name):
    (tmp_path / "secret.json").write_text("{}")
    folder = make_checkpoint(tmp_path, 5)
    for file, told in ((COMPLETE_MARK, 2), (CHECKSUMS, "0" * 64)):
        listed = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(listed | {name: told}))
        sizes = json.loads((folder / COMPLETE_MARK).read_text())
        if file == CHECKSUMS:
            sizes[CHECKSUMS] = (folder / file).stat().st_size
            (folder / COMPLETE_MARK).write_text(json.dumps(sizes))
        with pytest.raises(ValueError, match=f"{file}: expected a file inside .*checkpoint-5, got '.*', which leads"):
            check_checkpoint_files(folder, 5)
        (folder / file).write_text(json.dumps(listed))


def test_a_finished_folder_whose_mark_lists_nothing_is_refused(tmp_path):
    (tmp_path / COMPLETE_MARK).write_text("{}")
    with pytest.raises(ValueError, match=f"{MARK}, got none; remove the file, and the folder counts as unfinished"):
        is_complete(tmp_path)


def test_a_checkpoint_with_weights_of_other_names_is_refused(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "checkpoint-3")
    check_weight_names(tmp_path / "checkpoint-3", model)
    file = tmp_path / "checkpoint-3" / "model.safetensors"
    weights = load_file(file)
    weights["model.mask_tokem"] = weights.pop("model.mask_token")
    save_file(weights, file)
    message = r"expected the weights of this run's model .* names: model.mask_tokem, model.mask_token; .* Remove check"
    with pytest.raises(ValueError, match=message):
        check_weight_names(tmp_path / "checkpoint-3", model)
    # FSDP keeps its weights in a folder of another format.
    file.unlink()
    check_weight_names(tmp_path / "checkpoint-3", model)


def test_a_run_goes_on_from_before_the_damage_and_ends_the_same(tmp_path):
    data = DataArguments(root=str(get_rooms()), limit=2, num_views=2, epochs=2)
    trainer = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "max_steps": 3}
    trainer |= {"per_device_train_batch_size": 1, "logging_steps": 1, "save_steps": 1, "disable_tqdm": True}

    def run() -> dict[str, torch.Tensor]:
        # Settings are changed by a run, which writes down how many processes it has.
        train.main(RunArguments(init_from=str(get_checkpoint()), data=data, trainer=dict(trainer)))
        return load_file(tmp_path / "run" / "model.safetensors")

    whole = run()
    (tmp_path / "run" / COMPLETE_MARK).unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    for step, name in ((3, "optimizer.pt"), (2, "model.safetensors")):
        file = tmp_path / "run" / f"checkpoint-{step}" / name
        flip(file, file.stat().st_size // 2 if step == 3 else 20)
    with pytest.warns(UserWarning, match=r"checkpoint-[23] was renamed to") as said:
        found = run()
    aside = [text for text in (str(warning.message) for warning in said) if "was renamed to" in text]
    assert [text.partition(":")[0].rpartition("/")[2] for text in aside] == ["optimizer.pt", "model.safetensors"]
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    (tmp_path / "run" / COMPLETE_MARK).unlink()
    (tmp_path / "run" / "checkpoint-3" / "config.json").write_text("{")
    change = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    weights = load_file(change)
    save_file({f"{name}s": weight for name, weight in weights.items()}, change)
    mark_complete(change.parent)
    with (
        pytest.warns(UserWarning, match="checkpoint-3 was renamed to"),
        pytest.raises(ValueError, match="missing or unknown names.* Remove checkpoint-2, and the run resumes"),
    ):
        run()
