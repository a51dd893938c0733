"""Files of others, in processes of their own: nothing in them is run, and nothing outside of their folders is reached.

Each case is right where the hostile word is taken out; docs/SECURITY.md names these tests.
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ross3d import eval as evaluation
from ross3d import train
from ross3d.data.annotations import load_annotations
from ross3d.data.box_files import read_mask3d
from ross3d.data.prepare.__main__ import main as prepare
from ross3d.data.prepare.mask_files import read_mask_boxes
from ross3d.data.sources import read_scene
from ross3d.data.sources.posed_images import load_embodiedscan_infos
from ross3d.data.tensor_cache import load_cache
from ross3d.tests.fabricate import make_model
from ross3d.tests.given_scans import copy_given, prepare_given
from ross3d.tests.hostile import Home, watch
from ross3d.tests.published import write_published
from ross3d.tests.test_pictures import FAULTS
from ross3d.tests.test_prepare_safety import BROKEN_MASKS, VERTICES, make_public, prepare_public, write_arrays
from ross3d.tests.tiny import get_checkpoint, get_folder, get_rooms
from ross3d.tools import ask, compare, convert, push, view
from ross3d.training.arguments import DataArguments, RunArguments, read_run_arguments


PLANTED = "from pathlib import Path\nPath({!r}).write_text('it ran')\nclass Planted: pass\n"
PROGRAMS = ("ask", "eval", "train", "push", "convert")


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@cache
def get_converted() -> Path:
    """A checkpoint that can be converted back."""
    folder = Path(get_folder().name)
    source = write_published(folder / "published").folder
    return convert.main(["--from", str(source), "--to", str(folder / "converted")])


def copy_checkpoint(folder: Path, program: str = "") -> Path:
    """A checkpoint that a program works on."""
    source = get_converted() if program == "convert" else get_checkpoint()
    return Path(shutil.copytree(source, folder / "checkpoint"))


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_program(name: str, checkpoint: Path, folder: Path) -> Callable[[], object]:
    """A whole call of a program that reads a checkpoint, with files of `folder`."""
    rooms, out = str(get_rooms()), str(folder / "out")
    if name == "ask":
        scan = f"{rooms}/val/val-000000"
        words = [scan, "What is it?", "--model", str(checkpoint), "--views", "2", "--steps", "2", "--device", "cpu"]
        return lambda: ask.main([*words, "--output", f"{out}.html"])
    if name == "eval":
        words = ["--model", str(checkpoint), "--task", "rooms", "--data", rooms, "--output", out, "--limit", "1"]
        return lambda: evaluation.main(evaluation.parse_arguments([*words, "--num_views", "2"]))
    if name == "push":
        return lambda: push.main([str(checkpoint), "--to", "user/name", "--dry-run", out])
    if name == "convert":
        return lambda: convert.main(["--from", str(checkpoint), "--to", out, "--reverse"])
    trainer = {"output_dir": out, "use_cpu": True, "report_to": "none", "max_steps": 1, "disable_tqdm": True}
    data = DataArguments(root=rooms, limit=1, num_views=2)
    return lambda: train.main(RunArguments(init_from=str(checkpoint), data=data, trainer=trainer))


# ---- checkpoints


@pytest.mark.parametrize("program", PROGRAMS)
def test_code_in_a_checkpoint_is_not_run(home, tmp_path, program):
    """Python files of every name, and entries that ask for them, beside weights that load."""
    checkpoint, mark = copy_checkpoint(tmp_path, program), tmp_path / "mark"
    for name in ("processing_ross3d", "modeling_ross3d", "configuration_ross3d", "tokenizer_own", "setup"):
        (checkpoint / f"{name}.py").write_text(PLANTED.format(str(mark)))
    (checkpoint / "teacher" / "modeling.py").write_text(PLANTED.format(str(mark)))
    (checkpoint / "custom_generate").mkdir()
    (checkpoint / "custom_generate" / "generate.py").write_text(PLANTED.format(str(mark)))
    own = ["tokenizer_own.Planted", "tokenizer_own.Planted"]
    change_json(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": own})
    told = home.watch(make_program(program, checkpoint, tmp_path))
    assert not mark.exists() and told.error is None, told.error


@pytest.mark.parametrize("section", [None, "text_config"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("program", ["ask", "eval", "train"])
def test_no_code_of_the_hub_is_named_by_a_config(home, tmp_path, program, key, section):
    checkpoint = copy_checkpoint(tmp_path, program)
    config = json.loads((checkpoint / "config.json").read_text())
    changes = {key: "someone/kernels"} if section is None else {section: config[section] | {key: "someone/kernels"}}
    change_json(checkpoint / "config.json", **changes)
    told = home.watch(make_program(program, checkpoint, tmp_path))
    assert f"config.json: expected {key} from Transformers, such as sdpa, got 'someone/kernels'" in told.error


@pytest.mark.parametrize("program", ["ask", "eval", "train"])
def test_no_adapter_is_added(home, tmp_path, program):
    checkpoint = copy_checkpoint(tmp_path, program)
    shutil.copytree(checkpoint, home.folder / "base")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(home.folder / "base"), "target_modules": ["q_proj"]}
    (checkpoint / "adapter_config.json").write_text(json.dumps(adapter))
    told = home.watch(make_program(program, checkpoint, tmp_path))
    assert "adapter_config.json: expected a checkpoint without adapters" in told.error


class Attack:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["pytorch_model.bin", "teacher/diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_pickled_weights_run_nothing(home, tmp_path, program, place):
    checkpoint, mark = copy_checkpoint(tmp_path, program), tmp_path / "mark"
    for weights in (checkpoint / place).parent.glob("*.safetensors"):
        weights.unlink()
    (checkpoint / place).write_bytes(pickle.dumps(Attack(mark)))
    told = home.watch(make_program(program, checkpoint, tmp_path))
    # An upload leaves a teacher in another format alone, and questions need none.
    needs_it = place == "pytorch_model.bin" or program not in ("push", "eval")
    assert not mark.exists() and (told.error is not None) == needs_it, told.error


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_index_leads_to_no_weights_elsewhere(home, tmp_path, program):
    """Weights that fit, in another folder."""
    checkpoint = copy_checkpoint(tmp_path, program)
    shutil.move(checkpoint / "model.safetensors", home.folder / "model.safetensors")
    names = load_file(home.folder / "model.safetensors").keys()
    for name in ("../home/model.safetensors", str(home.folder / "model.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        told = home.watch(make_program(program, checkpoint, tmp_path))
        assert "model.safetensors.index.json, weight_map: expected a name of letters" in told.error, told.error


LINKED = [
    "README.md", "chat_template.jinja", "tokenizer.json", "vocab.json", "merges.txt", "model.safetensors",
    "generation_config.json", "published/merges.txt", "published", "teacher/config.json", "teacher",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("program", ["train", "push", "convert"])
def test_links_out_of_a_checkpoint_are_not_followed(home, tmp_path, program, name):
    """By programs that copy what they read: into a run, to the Hub, into another format."""
    checkpoint = copy_checkpoint(tmp_path, program)
    place, target = checkpoint / name, home.folder / Path(name).name
    if place.exists():
        shutil.move(place, target)
    elif name == "published":
        target.mkdir()
    else:
        home.write(target.name, home.SECRET)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target)
    told = home.watch(make_program(program, checkpoint, tmp_path))
    assert "got a link that leads out of it" in told.error, told.error


@pytest.mark.parametrize("name", ["..", ".", "config.json"])
def test_the_way_back_writes_nothing_beside(home, tmp_path, name):
    """`mm_vision_tower: ..` once made the conversion overwrite the neighbour's config."""
    checkpoint = copy_checkpoint(tmp_path, "convert")
    change_json(checkpoint / "published" / "config.json", mm_vision_tower=name)
    home.write("config.json", home.SECRET)
    target = home.folder / "there"
    told = watch(lambda: convert.main(["--from", str(checkpoint), "--to", str(target), "--reverse"]))
    assert "published/config.json: expected a" in told.error
    assert (home.folder / "config.json").read_text() == home.SECRET and not target.exists()


@pytest.mark.parametrize("key", ["mm_vision_tower", "mm_pixel_decoder"])
def test_a_published_config_names_no_folder_of_this_machine(home, tmp_path, key):
    source = write_published(tmp_path / "published")
    part = {"mm_vision_tower": "tower", "mm_pixel_decoder": "vae"}[key]
    shutil.move(source.folder / part, home.folder / part)
    for name in (str(home.folder / part), f"../home/{part}"):
        source.change_config(**{key: name})
        told = home.watch(lambda: convert.main(["--from", str(source.folder), "--to", str(tmp_path / "ours")]))
        assert f"{key} of" in told.error and "expected a folder next to this file" in told.error


# ---- masks and pickles, whose numbers are addresses


@pytest.mark.parametrize("case", BROKEN_MASKS)
def test_masks_write_nowhere(home, tmp_path, case):
    file = write_arrays(tmp_path / "scene0001_00.mask.npz", **BROKEN_MASKS[case])
    told = home.watch(read_mask_boxes, file, VERTICES, megabytes=256, seconds=60)
    assert "scene0001_00.mask.npz: expected a sparse matrix of masks" in told.error


@pytest.mark.parametrize("fault", FAULTS)
def test_pickles_of_infos_run_nothing(home, tmp_path, fault):
    file = tmp_path / "embodiedscan_infos_train.pkl"
    file.write_bytes(FAULTS[fault][0])
    told = home.watch(load_embodiedscan_infos, file, megabytes=256, seconds=60)
    assert "infos_train.pkl: the pickle is refused" in told.error


def test_pickles_in_caches_run_nothing(home, tmp_path):
    """Prepared scenes and latents, and saved scenes."""
    file, mark = tmp_path / "kept", tmp_path / "mark"
    kept = {"identity": {}, "about": Attack(mark), "tensors": {}, "checksum": 0}
    for write in (pickle.dump, torch.save):
        with file.open("wb") as opened:
            write(kept, opened)
        assert "expected tensors as they were written, got a damaged file" in home.watch(load_cache, file, {}).error
        told = home.watch(make_model().load_scene, file)
        assert f"{file}" in told.error and not mark.exists(), told.error


@pytest.mark.parametrize("call", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
def test_yaml_makes_no_objects(home, tmp_path, call):
    file, mark = tmp_path / "run.yaml", tmp_path / "mark"
    file.write_text(f"seed: !!python/{call} [{mark}]\n")
    told = home.watch(read_run_arguments, file, seconds=60)
    assert "run.yaml" in told.error and not mark.exists()


def test_a_pickle_that_calls_is_refused(home, tmp_path):
    file, mark = tmp_path / "embodiedscan_infos_train.pkl", tmp_path / "mark"
    file.write_bytes(pickle.dumps({"data_list": [Attack(mark)]}))
    assert "the pickle is refused" in home.watch(load_embodiedscan_infos, file, seconds=60).error
    assert not mark.exists()


# ---- names in annotations, records and scans


@pytest.mark.parametrize("video", ["scannet/..", "scannet/../..", "../home", "scannet/../../home"])
def test_a_record_removes_and_replaces_nothing(home, tmp_path, video):
    """`scannet/..` once removed the whole output folder, foreign files with it."""
    root = make_public(tmp_path, video=video)
    images = root / "scannet" / "posed_images" / "scene0001_00"
    shutil.copytree(images, root / "scannet", dirs_exist_ok=True)
    shutil.copytree(images, home.folder / "train", dirs_exist_ok=True)
    told = watch(prepare_public, root, home.folder)
    assert "scanqa_train_llava_style.json, record 0: expected a name of letters" in told.error
    assert (home.folder / "thesis.txt").read_text() == home.SECRET
    assert not [path for path in told.changed if path.endswith(("thesis.txt", "train"))], told.changed


def plant_room(home: Home) -> Path:
    """A room of somebody's own, whose pictures are one colour that no other room has."""
    room = Path(shutil.copytree(get_rooms() / "val" / "val-000000", home.folder / "room"))
    for file in room.glob("*.color.png"):
        Image.new("RGB", Image.open(file).size, (255, 0, 255)).save(file)
    return room


@pytest.mark.parametrize("name", ["../../../home/room", "{home}/room"])
@pytest.mark.parametrize("program", ["eval", "train"])
def test_scene_ids_lead_to_no_room_elsewhere(home, tmp_path, program, name):
    plant_room(home)
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "data" / "rooms"))
    for split in ("train", "val"):
        file = rooms / "annotations" / f"{split}.jsonl"
        first, *rest = file.read_text().splitlines()
        row = json.loads(first) | {"scene_id": name.format(home=home.folder)}
        file.write_text("\n".join([json.dumps(row), *rest]) + "\n")
    out = str(tmp_path / "out")
    words = ["--model", str(get_checkpoint()), "--task", "rooms", "--data", str(rooms), "--output", out]
    run = RunArguments(
        init_from=str(get_checkpoint()),
        data=DataArguments(root=str(rooms), limit=1, num_views=2),
        trainer={"output_dir": out, "use_cpu": True, "report_to": "none", "max_steps": 1},
    )
    calls = {"eval": lambda: evaluation.main(evaluation.parse_arguments(words)), "train": lambda: train.main(run)}
    told = home.watch(calls[program])
    assert "scene_id: expected a scene id, the name of a folder inside the data folder" in told.error


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("scannet", "../../home/room"), ("..", "home/room"), ("{home}", "room"), ("../home", "room"), ("x", "../..")],
)
def test_names_of_videos_lead_to_no_room_elsewhere(home, tmp_path, dataset, name):
    plant_room(home)
    data = tmp_path / "vsibench"
    data.mkdir()
    row = {
        "id": 1, "dataset": dataset.format(home=home.folder), "scene_name": name, "question": "How many?",
        "question_type": "object_counting", "options": None, "ground_truth": "4",
    }  # fmt: skip
    (data / "test.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--model", str(get_checkpoint()), "--task", "vsibench", "--data", str(data)]
    arguments = evaluation.parse_arguments([*words, "--output", str(tmp_path / "out"), "--num_views", "2"])
    told = home.watch(lambda: evaluation.main(arguments))
    assert "expected a file inside" in told.error or "expected a scene id" in told.error, told.error


@pytest.mark.parametrize("key", ["file_path", "depth_file_path"])
def test_a_transforms_file_shows_no_picture_elsewhere(home, tmp_path, key):
    secret = home.folder / "secret.png"
    Image.new("RGB", (64, 48), (255, 0, 255)).save(secret)
    folder = tmp_path / "scan"
    folder.mkdir()
    matrix = np.eye(4).tolist()
    frames = [{"file_path": f"{number}.png", "transform_matrix": matrix} for number in range(3)]
    for number in range(3):
        Image.new("RGB", (64, 48), (number, 9, 9)).save(folder / f"{number}.png")
    content = {"fl_x": 50, "fl_y": 50, "cx": 32, "cy": 24, "w": 64, "h": 48, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    assert read_scene(folder).num_views == 3
    for name in (str(secret), "../home/secret.png", "..\\home\\secret.png", "link.png"):
        frames[1] = {"file_path": "1.png", "transform_matrix": matrix, key: name}
        (folder / "link.png").unlink(missing_ok=True)
        (folder / "link.png").symlink_to(secret)
        (folder / "transforms.json").write_text(json.dumps(content))
        told = home.watch(read_scene, folder)
        assert "expected a file inside" in told.error and "add --allow-outside" in told.error, told.error


@pytest.mark.parametrize("name", ["../home/thesis.txt", "{home}/thesis.txt", "pred_mask/link.txt"])
def test_a_list_of_masks_reads_no_other_file(home, tmp_path, name):
    (tmp_path / "masks" / "pred_mask").mkdir(parents=True)
    (tmp_path / "masks" / "pred_mask" / "link.txt").symlink_to(home.folder / "thesis.txt")
    (tmp_path / "masks" / "room.txt").write_text(f"{name.format(home=home.folder)} 4 0.9\n")
    told = home.watch(read_mask3d, tmp_path / "masks" / "room.txt", VERTICES, seconds=60)
    assert "room.txt: expected a file inside" in told.error or "masks: expected a file inside" in told.error


SCAN_FILES = (".sens", ".txt", "_vh_clean_2.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json")


@pytest.mark.parametrize("suffix", SCAN_FILES)
def test_links_of_a_raw_scan_are_not_followed(home, tmp_path, suffix):
    """Neither by the reader nor by the preparation, which would keep a copy; the other scans are prepared."""
    given = copy_given(tmp_path / "given")
    scan = given / "raw" / "scans" / "scene0001_00"
    file = scan / f"scene0001_00{suffix}"
    shutil.move(file, home.folder / file.name)
    file.symlink_to(home.folder / file.name)
    told = home.watch(read_scene, scan)
    assert f"got '{file.name}', a link to" in told.error and "add --allow-outside" in told.error
    told = home.watch(prepare_given, given)
    assert "scans: 1 of 3 failed" in told.error and f"got '{file.name}', a link to" in told.error
    assert {path.name for path in (given / "out").glob("*/scene*")} == {"scene0002_00", "scene0003_00"}
    assert watch(prepare_given, given, "--allow-outside").error is None


@pytest.mark.parametrize("name", ["00010.jpg", "00000.png", "00020.txt", "depth_intrinsic.txt"])
def test_links_of_public_frames_are_not_followed(home, tmp_path, name):
    root = make_public(tmp_path)
    file = root / "scannet" / "posed_images" / "scene0001_00" / name
    shutil.move(file, home.folder / name)
    file.symlink_to(home.folder / name)
    told = home.watch(prepare_public, root, tmp_path / "out")
    assert f"got '{name}', a link to" in told.error and not list((tmp_path / "out").glob("*/scene*"))
    words = ["posed-images", "--root", root, "--output", tmp_path / "out", "--views", 2, "--bev-size", 24]
    words = [str(word) for word in [*words, "--num-workers", 1, "--allow-outside"]]
    assert watch(prepare, words).error is None


def test_a_link_to_another_mesh_is_drawn_by_nobody(home, tmp_path):
    given = copy_given(tmp_path / "given")
    prepare_given(given)
    scan = given / "raw" / "scans" / "scene0001_00"
    for name, source in (("scene0001_00_vh_clean_2.ply", "mesh"), ("view_0.png", "published")):
        if not (scan / name).exists():
            Image.new("RGB", (24, 24), (9, 9, 9)).save(scan / name)
        shutil.move(scan / name, home.folder / name)
        (scan / name).symlink_to(home.folder / name)
        words = ["bev", "--data", given / "out" / "train" / "scene0001_00", "--from", source, "--scans", given / "raw"]
        told = home.watch(prepare, [str(word) for word in [*words, "--bev-size", 25, "--num-workers", 1]])
        assert f"got '{name}', a link to" in told.error
        (scan / name).unlink()
        shutil.move(home.folder / name, scan / name)


@pytest.mark.parametrize("change", ["records", "scene", "path"])
def test_a_page_of_a_run_shows_nothing_elsewhere(home, tmp_path, change):
    """`view.py` of an evaluation that came from somebody else."""
    plant_room(home)
    rooms = shutil.copytree(get_rooms(), tmp_path / "rooms")
    run = tmp_path / "run"
    words = ["--model", str(get_checkpoint()), "--task", "rooms", "--data", str(rooms), "--output", str(run)]
    evaluation.main(evaluation.parse_arguments([*words, "--limit", "1", "--num_views", "2"]))
    records = (run / "predictions.jsonl").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    if change == "records":
        home.write("predictions.jsonl", records)
        metrics["records_files"]["rooms"] = "../home/predictions.jsonl"
    elif change == "scene":
        (run / "predictions.jsonl").write_text(records.replace('"val-000000"', '"../../home/room"'))
    else:
        metrics["settings"]["tasks"]["rooms"]["scene_path"] = "../home/room"
    (run / "metrics.json").write_text(json.dumps(metrics))
    told = home.watch(lambda: view.main([str(run), "--output", str(tmp_path / "page.html")]))
    expected = "expected a name of letters" if change == "records" else "expected a file inside"
    assert "metrics.json" in told.error and expected in told.error and not (tmp_path / "page.html").exists()
    if change == "records":
        told = home.watch(lambda: compare.main([str(run), str(run)]))
        assert "metrics.json" in told.error and expected in told.error


HOSTILE_TEXT = '<script>alert(1)</script>"><img src=x onerror=alert(1)></title></pre><!--'


def list_markup(page: str) -> set[tuple]:
    """Each kind of element with the names of its attributes."""
    found, parser = set(), HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.add((tag, *sorted(name for name, _ in attributes)))
    parser.feed(page)
    return found


def test_text_of_others_stays_text_on_a_page(tmp_path):
    run, page = tmp_path / "run", tmp_path / "page.html"
    words = ["--model", str(get_checkpoint()), "--task", "rooms", "--data", str(get_rooms()), "--output", str(run)]
    evaluation.main(evaluation.parse_arguments([*words, "--limit", "1", "--num_views", "2"]))
    view.main([str(run), "--output", str(page)])
    wanted = list_markup(page.read_text())
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for record in records:
        record |= {name: HOSTILE_TEXT for name in ("question", "response", "question_type")}
        record |= {"references": [HOSTILE_TEXT]} | ({"prediction": HOSTILE_TEXT} if record["prediction"] else {})
    (run / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["settings"]["model"] = metrics["commit"] = HOSTILE_TEXT
    metrics["command"] = [HOSTILE_TEXT]
    (run / "metrics.json").write_text(json.dumps(metrics))
    view.main([str(run), "--output", str(page)])
    assert list_markup(page.read_text()) <= wanted and "&lt;script&gt;" in page.read_text()


def test_a_scene_id_from_python_is_looked_at_too(home, tmp_path):
    row = json.loads((get_rooms() / "annotations" / "val.jsonl").read_text().splitlines()[0])
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row | {"id": str(n), "scene_id": f"{n * '../'}home"}) + "\n" for n in (1, 2)))
    told = home.watch(load_annotations, file, seconds=60)
    # Both rows, with their lines.
    assert f"{file}:1: scene_id" in told.error and f"{file}:2: scene_id" in told.error


ROOT = Path(__file__).resolve().parents[1]


def test_the_page_names_what_is_there():
    """docs/SECURITY.md: each function in its file, each test in this one, and none of these left out."""
    page = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`\s+(?:\(|in )([\w/]+\.py)", page)
    assert len(named) > 20
    for name, file in named:
        assert re.search(rf"^ *(def|class) {name}\b", (ROOT / file).read_text(), flags=re.MULTILINE), (name, file)
    own = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), flags=re.MULTILINE))
    tests = set(re.findall(r"`(test_\w+)`", page))
    assert tests <= own, tests - own
    of_these_tests = {"test_the_page_names_what_is_there", "test_the_watch_itself_sees_what_is_done"}
    more = {"test_a_pickle_that_calls_is_refused", "test_a_scene_id_from_python_is_looked_at_too"}
    assert own - tests == of_these_tests | more


def test_the_watch_itself_sees_what_is_done(home, tmp_path):
    """A test of these tests: reading, copying, removing and starting are each noticed."""
    secret = home.folder / "thesis.txt"
    (tmp_path / "link").symlink_to(secret)
    for done in (
        (tmp_path / "link").read_text,
        lambda: (home.folder / "new").write_text(""),
        lambda: shutil.rmtree(home.folder / "more"),
        lambda: os.system("true"),
        lambda: (tmp_path / "copy").write_text(home.SECRET),
    ):
        (home.folder / "more").mkdir(exist_ok=True)
        with pytest.raises(AssertionError, match="reached|started|copied"):
            home.watch(done, seconds=60)
        (home.folder / "new").unlink(missing_ok=True)
        (tmp_path / "copy").unlink(missing_ok=True)
    with pytest.raises(AssertionError, match="the process ended with code -9"):
        watch(lambda: os.kill(os.getpid(), 9), seconds=60)
    with pytest.raises(AssertionError, match=r"no end after 0.2 s"):
        watch(lambda: __import__("time").sleep(60), seconds=0.2)
    assert "MemoryError" in watch(lambda: np.ones(1 << 30), megabytes=64, seconds=60).error
    assert watch(lambda: save_file({}, tmp_path / "file"), seconds=60).error is None
