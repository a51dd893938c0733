"""Killed at any moment and started again, train.py and eval.py end with the files they would have written anyway."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from ross3d.data.annotations import load_annotations
from ross3d.scenes.build import build_scenes
from ross3d.tasks.records import RecordStore
from ross3d.tools.make_tiny import make_tiny_geometry_encoder
from ross3d.training.callbacks import COMPLETE_MARK, is_complete
from ross3d.training.damage import CHECKSUMS
from ross3d.training.teacher import build_teacher


ROOT = Path(__file__).resolve().parents[2]
NUM_SCENES, NUM_STEPS, STEPS_PER_EPOCH, SAVE_STEPS = 10, 10, 5, 2
# Every process starts in a folder of its own with this name in it, so that no file can hold a path that differs.
OUTPUT, RECORDS = Path("run"), Path("records.jsonl")


@dataclass(frozen=True)
class Kill:
    """When a process is killed.

    `delay` seconds after the `start`, or after it wrote its `settings`, trained `step` number `place`, began to write
    the first `checkpoint` from step `place` on, or began to write the `final` files. Or inside a `write`: at change
    number `count` of the files of the checkpoint of step `place`, of the final files where `place` is 0.
    """

    after: str
    place: int = 0
    delay: float = 0.0
    count: int = 0


def write_inputs(folder: Path, num_train: int, num_val: int) -> None:
    """Rooms of three views, a teacher and a geometry encoder, for `make_settings`."""
    build_scenes(folder / "rooms", num_train=num_train, num_val=num_val, num_views=3, workers=1)
    build_teacher(widths=(8, 8, 8)).save_pretrained(folder / "teacher")
    make_tiny_geometry_encoder().save_pretrained(folder / "geometry_encoder")


def make_settings(folder: Path, name: str = "tiny") -> dict:
    """A file of configs/, cut down to seconds: two epochs, two workers, a checkpoint every two steps.

    `tiny` distils as well, so that all five losses are trained; `tiny_3drs` has no reconstruction.
    """
    settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    settings["geometry_encoder"] = str(folder / "geometry_encoder")
    model = settings["model"]
    model["vision_config"] |= {"hidden_size": 32, "intermediate_size": 64}
    model["text_config"] |= {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    model["distillation_config"] = {
        "head_hidden_size": 40, "feature_size": 32, "encoder_image_size": 64, "encoder_dtype": "float32",
        "student_layer": 1,
    }  # fmt: skip
    if "denoiser_config" in model:
        settings["teacher"] = str(folder / "teacher")
        model["view_mask_period"] = 2
        model["denoiser_config"] |= {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "scaling_factor": 1.0,
            "shift_factor": 0.0,
        }  # fmt: skip
    settings["data"] |= {"root": str(folder / "rooms"), "epochs": 2, "questions_per_row": 3}
    settings["vision_warmup"] |= {"scenes": 4, "steps": 20, "views_per_step": 4}
    settings["trainer"] |= {
        "output_dir": str(OUTPUT), "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "logging_steps": SAVE_STEPS, "save_steps": SAVE_STEPS, "dataloader_num_workers": 2, "disable_tqdm": True,
    }  # fmt: skip
    return settings


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors
        )


def finish(process: subprocess.Popen, folder: Path) -> None:
    process.wait(timeout=300)
    assert process.returncode == 0, (folder / "errors.txt").read_text()[-3000:]


def kill(process: subprocess.Popen, is_time: Callable[[], bool], delay: float) -> None:
    """SIGKILL to the process and its workers, `delay` seconds after `is_time()`."""
    while not is_time():
        assert process.poll() is None, "the process ended before its moment"
        time.sleep(0.001)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it was killed"


def get_moment(chosen: Kill, folder: Path) -> Callable[[], bool]:
    """Whether the time has come, as seen from the files of a run in `folder`."""
    seen = len(read_records(folder))

    def list_trained() -> list[int]:
        return [record["step"] for record in read_records(folder)[seen:]]

    def is_writing_checkpoint() -> bool:
        # A torn folder of the same name was removed before the step was trained.
        saved = {step + 1 for step in list_trained() if step + 1 >= chosen.place}
        return any((folder / OUTPUT / f"checkpoint-{step}").exists() for step in saved)

    moments = {
        "start": lambda: True,
        "settings": (folder / OUTPUT / "run.yaml").exists,
        "step": lambda: max(list_trained(), default=-1) >= chosen.place,
        "checkpoint": is_writing_checkpoint,
        "final": (folder / OUTPUT / ".final.partial").exists,
    }
    return moments[chosen.after]


def read_records(folder: Path) -> list[dict]:
    file = folder / RECORDS
    # What follows the last line break is being written.
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file; of folders the name alone, and of copies of our code, which may be edited meanwhile.

    The commit in the files of an evaluation is made equal for the same reason.
    """
    hashes = {}
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".py":
            data = b""
        elif path.name in (COMPLETE_MARK, CHECKSUMS):
            data = b"".join(line for line in data.splitlines() if b".py" not in line)
        elif path.name in ("metrics.json", "report.html"):
            data = re.sub(rb"\b[0-9a-f]{40}\b(\+changes)?", b"COMMIT", data)
        hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


@dataclass
class Runs:
    """Runs of one command, each in its own folder under `folder`; `whole` was never killed."""

    folder: Path

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def get_command(self, *more: str) -> list[str]:
        script = [sys.executable, "-m", "ross3d.tests.invariant.record_train"]
        return [*script, str(RECORDS), str(self.folder / "run.yaml"), *more]

    def train(self, name: str, kills: list[Kill]) -> Iterator[Path]:
        """Start, kill, start again, ... and let the last one end; the run's folder after each kill and at the end."""
        folder = self.folder / name
        for chosen in kills:
            folder.mkdir(exist_ok=True)
            if chosen.after == "write":
                target = f"checkpoint-{chosen.place}" if chosen.place else ".final.partial"
                process = start(self.get_command(), folder, KILL_AT=f"{target}:{chosen.count}")
                assert process.wait(timeout=300) == -signal.SIGKILL, (folder / "errors.txt").read_text()[-3000:]
            else:
                moment = get_moment(chosen, folder)
                kill(start(self.get_command(), folder), moment, chosen.delay)
            yield folder
        finish(start(self.get_command(), folder), folder)
        yield folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("resume"))
    write_inputs(runs.folder, NUM_SCENES, num_val=5)
    (runs.folder / "run.yaml").write_text(yaml.safe_dump(make_settings(runs.folder)))
    list(runs.train("whole", []))
    return runs


def check_same_as_whole(runs: Runs, folder: Path) -> None:
    """Files by sha256, and what every step was fed."""
    whole, killed = hash_files(runs.whole / OUTPUT), hash_files(folder / OUTPUT)
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []
    wanted = {(record["step"], *record["rows"]): record for record in read_records(runs.whole)}
    found = read_records(folder)
    assert {(record["step"], *record["rows"]) for record in found} == wanted.keys()
    assert all(record == wanted[record["step"], *record["rows"]] for record in found)


def test_the_run_is_worth_killing(runs):
    """Two epochs of different rows, masked views, noise, every named loss, and nothing left over at the end."""
    records = read_records(runs.whole)
    assert [record["step"] for record in records] == [step for step in range(NUM_STEPS) for _ in range(2)]
    assert len({record["rows"][0] for record in records}) == 2 * NUM_SCENES
    assert {bool(record["hidden"]) for record in records} == {True, False}
    assert len({record["noise"] for record in records}) == len({record["inputs"] for record in records}) == 20
    names = {path.name for path in (runs.whole / OUTPUT).iterdir()}
    assert f"checkpoint-{NUM_STEPS}" in names and not any(name.endswith(".partial") for name in names)
    assert {"model.safetensors", "config.json", "tokenizer.json", "teacher", "run.yaml", COMPLETE_MARK} <= names
    assert len([name for name in names if name.startswith("checkpoint")]) == 1
    history = json.loads((runs.whole / OUTPUT / "trainer_state.json").read_text())["log_history"]
    assert [record["step"] for record in history] == list(range(SAVE_STEPS, NUM_STEPS + 1, SAVE_STEPS))
    assert {"lm_loss", "view_loss", "bev_loss", "grounding_loss", "distill_loss"} <= set().union(*history)


def count_torn(folder: Path) -> int:
    return sum(not is_complete(checkpoint) for checkpoint in (folder / OUTPUT).glob("checkpoint-*"))


def test_kills_inside_a_write_and_in_the_second_epoch_change_nothing(runs):
    """The first leaves a torn checkpoint behind, the second lets the run go on from within the second epoch."""
    kills = [Kill("write", place=4, count=9), Kill("step", place=STEPS_PER_EPOCH + 2)]
    torn, first_steps, seen = [], [], 0
    for folder in runs.train("killed_twice", kills):
        records = read_records(folder)
        first_steps.append(records[seen]["step"])
        seen = len(records)
        torn.append(count_torn(folder))
    check_same_as_whole(runs, folder)
    assert torn[0] == 1 and torn[-1] == 0
    assert first_steps[:2] == [0, SAVE_STEPS] and first_steps[2] > STEPS_PER_EPOCH
    assert seen > 2 * NUM_STEPS, "nothing was trained twice: the kills came too late"


def test_a_finished_run_is_left_alone(runs):
    def get_times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (runs.whole / OUTPUT).rglob("*")}

    before = get_times()
    finish(start(runs.get_command(), runs.whole), runs.whole)
    assert get_times() == before and len(read_records(runs.whole)) == 2 * NUM_STEPS


def draw_kills(seed: int) -> list[list[Kill]]:
    """Ten kills at random moments, over two runs: four at any time, two as writing begins, four inside writes."""
    drawn = random.Random(seed)
    second_epoch = range(STEPS_PER_EPOCH, NUM_STEPS - 2)
    # A checkpoint takes more than 20 changes of files, the final files more than 40.
    first = [
        Kill("start", delay=drawn.uniform(0.0, 1.0)),
        Kill("settings", delay=drawn.uniform(0.0, 0.1)),
        Kill("write", SAVE_STEPS, count=drawn.randint(1, 20)),
        Kill("step", drawn.choice(second_epoch), drawn.uniform(0.0, 0.05)),
        Kill("checkpoint", drawn.choice((6, 8)), drawn.uniform(0.0, 0.03)),
        Kill("final", delay=drawn.uniform(0.0, 0.02)),
    ]
    second = [
        Kill("write", 2 * SAVE_STEPS, count=drawn.randint(1, 20)),
        Kill("step", drawn.choice(second_epoch), drawn.uniform(0.0, 0.05)),
        Kill("write", NUM_STEPS, count=drawn.randint(1, 20)),
        Kill("write", count=drawn.randint(1, 40)),
    ]
    return [first, second]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(runs):
    torn = num_kills = 0
    for number, kills in enumerate([*draw_kills(seed=0), *draw_kills(seed=1)]):
        for folder in runs.train(f"killed_{number}", kills):
            torn += count_torn(folder)
        check_same_as_whole(runs, folder)
        num_kills += len(kills)
    assert num_kills == 20 and torn >= 6, "six kills were to fall inside the writing of a checkpoint"


@pytest.mark.slow
def test_kills_of_a_run_of_3drs_change_nothing(tmp_path):
    """At the steps that a seed draws and inside two writes; its encoder is read again at every start."""
    write_inputs(tmp_path, NUM_SCENES, num_val=1)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(make_settings(tmp_path, "tiny_3drs")))
    own, drawn = Runs(tmp_path), random.Random(2)
    list(own.train("whole", []))
    steps = [drawn.randrange(NUM_STEPS // 2), drawn.randrange(NUM_STEPS // 2, NUM_STEPS - 2)]
    kills = [Kill("step", steps[0]), Kill("write", 4, count=drawn.randint(1, 20)), Kill("step", steps[1]),
             Kill("write", count=drawn.randint(1, 40))]  # fmt: skip
    *_, folder = own.train("killed", kills)
    check_same_as_whole(own, folder)
    history = json.loads((folder / OUTPUT / "trainer_state.json").read_text())["log_history"]
    assert all(record["distill_loss"] > 0 and "view_loss" not in record for record in history)


# ---- evaluation


def get_eval_command(runs: Runs) -> list[str]:
    given = ["--model", runs.whole / OUTPUT, "--data", runs.folder / "rooms", "--output", OUTPUT]
    few = ["--task", "rooms,reconstruction", "--num_samples", "1", "--num_inference_steps", "2"]
    return [str(part) for part in [sys.executable, ROOT / "eval.py", *given, *few, "--max_new_tokens", "3"]]


def test_half_written_files_of_killed_evaluations_are_removed_at_the_end(tmp_path):
    store = RecordStore(tmp_path, ["predictions.jsonl"])
    store.append_scene([{"task": "rooms", "scene_id": "a", "id": "a-0"}])
    torn = tmp_path / "pictures" / "a" / ".bev_truth.png.4711.0123abcd.partial"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half a pict")
    store.write_final("predictions.jsonl", store.get_records("rooms", []))
    store.remove_parts()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["pictures", "a", "predictions.jsonl"]


def has_new_file(folder: Path, before: set[Path]) -> bool:
    return not set(folder.glob("*")) <= before


def check_same_answers(runs: Runs, whole: Path, killed: Path) -> None:
    wanted, found = hash_files(whole / OUTPUT), hash_files(killed / OUTPUT)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if name != "timing.json" and found[name] != wanted[name]] == []
    asked = [annotation.id for annotation in load_annotations(runs.folder / "rooms" / "annotations" / "val.jsonl")]
    answered = [json.loads(line)["id"] for line in (killed / OUTPUT / "predictions.jsonl").read_text().splitlines()]
    assert answered == asked and len(set(answered)) == len(answered) > 0


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_answers(runs):
    """Ten kills of an evaluation are in tests/test_eval.py; here the model is one that train.py wrote."""
    whole, killed, drawn = runs.folder / "eval_whole", runs.folder / "eval_killed", random.Random(1)
    finish(start(get_eval_command(runs), whole), whole)
    for _ in range(3):
        parts = killed / OUTPUT / "parts"
        before = set(parts.glob("*"))
        process = start(get_eval_command(runs), killed)
        kill(process, partial(has_new_file, parts, before), drawn.uniform(0.0, 0.03))
    finish(start(get_eval_command(runs), killed), killed)
    check_same_answers(runs, whole, killed)
