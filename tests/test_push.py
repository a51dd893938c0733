"""tools/push.py and the library's own push, against a stand-in for the Hub on the loopback address."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers.utils.hub
import yaml
from diffusers import AutoencoderKL
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, TrainerState

from ross3d import eval as evaluation
from ross3d import train
from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDistillationConfig
from ross3d.data.annotations import Annotation, save_annotations
from ross3d.eval import get_fingerprint
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.report.card import INGREDIENTS, Origin, get_section, list_scores, make_card, read_origin
from ross3d.scenes.build import parse_size
from ross3d.tests.fabricate import DISTILLATION
from ross3d.tests.loopback_hub import FIRST_COMMIT, TOKEN, USER, Repository, serve_hub
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import push
from ross3d.training.arguments import read_run_arguments
from ross3d.training.callbacks import is_complete
from ross3d.training.card import TEACHERS, find_origin, make_run_card


ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = f"{USER}/rooms-model"
QUESTION = "How many chairs are there?"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in that this process takes for the Hub, with a token and a cache of its own."""
    with serve_hub() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What a run of one step leaves that began with the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("push")
    settings = {
        "init_from": str(get_checkpoint()),
        "data": {"root": str(get_rooms()), "limit": 2, "questions_per_row": 3},
        "trainer": {"output_dir": str(folder / "trained"), "logging_steps": 1, "save_strategy": "no", "use_cpu": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    train.main(read_run_arguments(folder / "config.yaml"))
    return folder / "trained"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    """What eval.py wrote about it: a benchmark, and the pictures."""
    folder = tmp_path_factory.mktemp("push") / "evaluated"
    given = ["--model", trained, "--task", "rooms,reconstruction", "--data", get_rooms(), "--output", folder]
    few = ["--limit", "2", "--num_samples", "1", "--num_inference_steps", "2", "--max_new_tokens", "3"]
    evaluation.main(evaluation.parse_arguments([*map(str, given), *few, "--report", "false"]))
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A checkpoint that somebody saved by hand: several files of weights, no page."""
    folder = tmp_path_factory.mktemp("push") / "sharded"
    shutil.copytree(get_checkpoint(), folder)
    (folder / "model.safetensors").unlink()
    Ross3DForConditionalGeneration.from_pretrained(get_checkpoint()).save_pretrained(folder, max_shard_size="700KB")
    assert len(list(folder.glob("model-*.safetensors"))) == 3
    return folder


def get_files(hub, repo_id: str = REPOSITORY) -> dict[str, bytes]:
    return hub.repositories[repo_id].files


def count(hub, what: str) -> int:
    return sum(request.startswith(what) for request in hub.requests)


def test_another_machine_loads_what_was_pushed(hub, trained, evaluated, tmp_path):
    """By its id: the same logits, the page's own block, a pipeline; and the same of the library's own push."""
    address = push.main([str(trained), "--to", REPOSITORY, "--run", str(evaluated)])
    assert address == f"{hub.url}/{REPOSITORY}/commit/{hub.repositories[REPOSITORY].main}"
    assert len(hub.repositories[REPOSITORY].commits) == 2 and count(hub, "PUT /large/") == 2
    model = Ross3DForConditionalGeneration.from_pretrained(trained)
    processor = AutoProcessor.from_pretrained(trained, trust_remote_code=True)
    library = f"{USER}/by-the-library"
    model.push_to_hub(library)
    processor.push_to_hub(library)
    shipped = {path.name for path in ROOT.glob("*_ross3d.py")}
    for name in (REPOSITORY, library):
        assert shipped < set(get_files(hub, name)) and b"auto_map" in get_files(hub, name)["config.json"]

    views = make_views()
    np.savez(tmp_path / "views.npz", **views)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-I", str(ROOT / "tests/hub_machine.py"), "views.npz", "logits.pt", QUESTION]
    command += [REPOSITORY, library]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        wanted = model(**processor(**views, text=QUESTION)).logits
    assert len(found) == 2 and all(torch.equal(logits, wanted) for logits in found.values())


def test_the_page_says_what_is_known(hub, trained, evaluated):
    push.main([str(trained), "--to", REPOSITORY, "--run", str(evaluated)])
    page = get_files(hub)["README.md"].decode()
    card = ModelCard(page)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert card.data.datasets == ["rooms"] and card.data.base_model is None and card.data.license == "other"
    metrics = json.loads((evaluated / "metrics.json").read_text())
    found = {(result.dataset_type, result.metric_name): result for result in card.data.eval_results}
    assert card.data.model_name == "rooms-model" and len(found) == len(card.data.eval_results)
    for (task, name), result in found.items():
        value = metrics["scores"][task]
        for key in name.split(": "):
            value = value[key]
        assert result.metric_value == value and result.dataset_split == "val" and result.dataset_args["limit"] == 2
    wanted = {(task, place) for task, scores in metrics["scores"].items() for place, _ in list_scores(scores)}
    others = {place for _, place in wanted if "psnr" in place and place[-1] not in ("one_sample", "mean_of_samples")}
    assert len(found) == len(wanted) - len(others) > 20 and len(others) == 3 * 4
    assert {result.metric_type for (task, _), result in found.items() if task == "reconstruction"} == {"psnr"}
    results = get_section(card.text, "Results")
    assert len(re.findall(r"^\| .* \| -?\d+\.\d{4} \|", results, flags=re.MULTILINE)) == len(wanted)
    assert f"commit {metrics['commit']}" in results and "limit 2" in results
    row = re.search(r"types: count: exact_match \| \d\.\d{4} \| \[\d.*?\] \| (\d+) \| (\d\.\d{4}) \|", results)
    assert row, "no interval, number of questions or baseline beside a score"
    assert int(row[1]) == metrics["scores"]["rooms"]["types"]["count"]["num_questions"]
    known = metrics["baselines"]["rooms"].values()
    assert float(row[2]) == round(max(b["types"]["count"]["exact_match"] for b in known), 4)
    exact = [
        row["num_questions"]
        for row in metrics["scores"]["rooms"]["types"].values()
        if "exact_match" == row["main_score"]
    ]
    assert re.search(rf"macro_exact_match \| .* \| {sum(exact)} \|", results)
    pictures = metrics["scores"]["reconstruction"]["view"]["num_pictures"]
    assert re.search(rf"view: psnr: one_sample \| .* \| {pictures} \|  \|", results)
    assert get_files(hub)["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    titles = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert titles == ["Use", "Training", "Results", "Limitations", "Licences"]


def test_the_page_of_a_run_tells_its_settings(trained):
    page = (trained / "README.md").read_text()
    training = get_section(page, "Training")
    settings = yaml.safe_load(training.split("```yaml\n")[1].split("```")[0])
    assert settings["init_from"] == get_checkpoint().name and settings["data"]["questions_per_row"] == 3
    assert "train.py" in training and "1 optimizer steps" in training and "lm_loss" in training
    assert "output_dir" not in settings["trainer"]
    for folder in (trained.parent, get_checkpoint().parent, ROOT):
        assert str(folder) not in page
    licenses = get_section(page, "Licences")
    assert (
        "synthetic rooms" in licenses
        and "VAE (`teacher/`)" in licenses
        and f"weights ({get_checkpoint().name})" in licenses
    )


def test_words_written_by_hand_stay(trained, evaluated, tmp_path):
    """The run stays whole, and what stands on the page is handed on, by a push and by a run that begins there."""
    folder = tmp_path / "own"
    shutil.copytree(trained, folder)
    page = (folder / "README.md").read_text()
    mine = "## Data\n\nOur office, 3rd floor.\n\n## Limitations"
    page = page.replace("## Limitations", mine).replace("license: other\n", "license: other\nco2_eq_emissions: 3\n")
    (folder / "README.md").write_text(page)
    assert is_complete(folder) and get_fingerprint(str(folder)) == get_fingerprint(str(trained))
    written = Path(push.main([str(folder), "--to", "me/own", "--run", str(evaluated), "--dry-run", f"{folder}.dry"]))
    card = ModelCard.load(written / "README.md")
    assert "Our office, 3rd floor." in get_section(card.text, "Data") and card.data.get("co2_eq_emissions") == 3
    assert card.text.index("## Data") < card.text.index("## Results") < card.text.index("## Limitations")
    again = push.make_page(written, "me/second", {}, with_teacher=True)
    assert 'path = "me/second"' in again.text and again.text.count("## Results") == 1
    assert find_origin(str(written)) == read_origin(card) and "rooms" in read_origin(card).datasets


def test_a_dry_run_writes_what_would_be_pushed(hub, sharded, tmp_path, capsys):
    written = Path(push.main([str(sharded), "--to", REPOSITORY, "--dry-run", str(tmp_path / "dry")]))
    assert not hub.requests and "licence of weights (sharded): as stated by their authors" in capsys.readouterr().out
    push.main([str(sharded), "--to", REPOSITORY])
    files = {path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert files == {name: data for name, data in get_files(hub).items() if name != ".gitattributes"}


def test_a_push_that_was_cut_off_changes_nothing_and_is_taken_up(hub, sharded):
    repository, puts = REPOSITORY, []

    def refuse(method: str, path: str) -> bool:
        puts.extend([path] if method == "PUT" else [])
        return len(puts) > 2 and method == "PUT"

    hub.refuse = refuse
    with pytest.raises(OSError, match="(?s)expected to upload all files .*; nothing was changed there: push again"):
        push.main([str(sharded), "--to", repository])
    assert hub.repositories[repository].main == FIRST_COMMIT and 0 < len(hub.stored) < 4
    before, hub.refuse = len(hub.stored), lambda method, path: path.endswith("/commit/main")
    hub.requests.clear()
    with pytest.raises(OSError, match="refused by the test"):
        push.main([str(sharded), "--to", repository])
    assert count(hub, "PUT") == 4 - before and hub.repositories[repository].main == FIRST_COMMIT
    hub.refuse = lambda method, path: False
    hub.requests.clear()
    push.main([str(sharded), "--to", repository])
    assert count(hub, "PUT") == 0 and "model.safetensors.index.json" in get_files(hub)


def test_a_second_push_leaves_nothing_of_the_first(hub, sharded, trained, capsys):
    """Old shards would be loaded in place of the new weights; what is not of a checkpoint stays."""
    push.main([str(sharded), "--to", REPOSITORY])
    kept = {"LICENSE": b"mine", "pictures/room.png": b"png", "notes.json": b"{}"}
    hub.repositories[REPOSITORY].commit({**get_files(hub), **kept})
    push.main([str(trained), "--to", REPOSITORY, "--without-teacher"])
    files = get_files(hub)
    assert "model.safetensors" in files and not [
        name for name in files if re.match("model-|model.*index|teacher", name)
    ]
    assert kept.items() <= files.items()
    page = files["README.md"].decode()
    assert re.search(r"VAE \(`teacher/`\).*; not in this repository", page)
    requests = count(hub, "POST /api/models")
    push.main([str(trained), "--to", REPOSITORY, "--without-teacher"])
    assert get_files(hub) == files and count(hub, "POST /api/models") == requests + 1, "a commit without changes"


def test_a_new_repository_can_be_private(hub, sharded):
    push.main([str(sharded), "--to", REPOSITORY, "--private"])
    push.main([str(sharded), "--to", f"{REPOSITORY}-open"])
    assert [hub.repositories[name].private for name in (REPOSITORY, f"{REPOSITORY}-open")] == [True, False]


# ---- what is refused


def link(folder: Path, target: Path, *left_out: str) -> Path:
    """A copy to be broken, without some files."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*left_out)))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


BROKEN = {
    "no config": (["config.json"], None, "expected a checkpoint's folder, found no config.json"),
    "other model": (
        [],
        lambda folder: change(folder / "config.json", model_type="qwen2"),
        "expected a checkpoint of ross3d, got model_type 'qwen2'; convert it with",
    ),
    "no processor": (
        ["processor_config.json"],
        None,
        "found no processor_config.json, auto_map in processor_config",
    ),
    "no model by name": (
        [],
        lambda folder: change(folder / "config.json", auto_map={}),
        "found no auto_map in config.json; save model and processor again with save_pretrained",
    ),
    "no processor by name": (
        [],
        lambda folder: change(folder / "processor_config.json", auto_map={}),
        "found no auto_map in processor_config.json",
    ),
    "no code": (
        ["modeling_ross3d.py"],
        None,
        "by auto_map in config.json and.*found no modeling_ross3d.py; save model",
    ),
    "no code of the processor": (
        ["processing_ross3d.py"],
        None,
        "processor_config.json, found no processing_ross3d.py",
    ),
    "no code that other code needs": (
        ["geometry_ross3d.py"],
        None,
        "processor_config.json, found no geometry_ross3d.py",
    ),
    "no weights": (
        ["model.safetensors"],
        None,
        "expected either model.safetensors or .*, found neither; save the model",
    ),
    "two sets of weights": (
        [],
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "found model.safetensors and model.safetensors.index.json; save the model again into an empty folder",
    ),
    "a weight is missing": (
        [],
        lambda folder: change_weights(folder, lambda tensors: tensors.pop("model.mask_token")),
        r"weights of its config.json, got 1 that are missing and 0 .*\['model.mask_token'\]; save model and config",
    ),
    "a weight of another size": (
        [],
        lambda folder: change_weights(folder, lambda t: t.update({"model.mask_token": t["model.mask_token"][:7]})),
        "got 0 that are missing and 1 that are unknown or of another size",
    ),
    "a run that goes on": (
        [],
        lambda folder: (folder / "run.yaml").write_text("seed: 0"),
        "expected a finished run, got one without a whole complete.json; start train.py again",
    ),
    "a broken page": (
        [],
        lambda folder: (folder / "README.md").write_text("---\nlicense: [\n---\nwords"),
        "README.md: expected a model card with YAML metadata between two lines `---`.*correct it",
    ),
    "a page with another head": (
        [],
        lambda folder: (folder / "README.md").write_text("---\n- license\n---\nwords"),
        "README.md: expected a model card with YAML metadata between two lines",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_folders_that_nobody_could_load_are_refused(hub, tmp_path, case):
    left_out, edit, message = BROKEN[case]
    folder = link(get_checkpoint(), tmp_path / "folder", *left_out)
    if edit is not None:
        edit(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        push.main([str(folder), "--to", REPOSITORY])
    assert not hub.requests


@pytest.mark.parametrize(
    "name", ["vocab.json", "planted_ross3d.py", "published/a.txt", "teacher/id", "README.md", "published"]
)
@pytest.mark.parametrize("kind", ["away", "broken"])
def test_nothing_outside_the_folder_goes_up(hub, tmp_path, name, kind):
    """Not by links to a file or folder elsewhere; a link within the folder is its own file."""
    secret = tmp_path / "secret"
    (secret / "ssh").mkdir(parents=True)
    (secret / "id_rsa").write_text("my key")
    folder = tmp_path / "folder"
    shutil.copytree(get_checkpoint(), folder)
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(secret if name == "published" else secret / ("id_rsa" if kind == "away" else "absent"))
    with pytest.raises(
        ValueError, match=f"{name}: expected a file of .*, got a link that leads out of it, to .*secret"
    ):
        push.main([str(folder), "--to", REPOSITORY, "--dry-run", str(tmp_path / "dry")])
    assert not hub.requests and not (tmp_path / "dry").exists()
    place.unlink()
    (folder / "added_tokens.json").symlink_to("config.json")
    (folder / "notes").symlink_to(secret)
    push.main([str(folder), "--to", REPOSITORY, "--dry-run", str(tmp_path / "dry")])
    assert (tmp_path / "dry" / "added_tokens.json").read_text() == (folder / "config.json").read_text()
    assert not any("my key" in file.read_text(errors="ignore") for file in (tmp_path / "dry").rglob("*.*"))


def test_a_run_copies_no_links_of_its_start(tmp_path):
    """Before it begins; what it would copy is pushed with it."""
    start = tmp_path / "start"
    shutil.copytree(get_checkpoint(), start)
    (start / "published").mkdir()
    (tmp_path / "id_rsa").write_text("my key")
    (start / "published" / "merges.txt").symlink_to(tmp_path / "id_rsa")
    settings = {
        "init_from": str(start),
        "data": {"root": str(get_rooms())},
        "trainer": {"output_dir": str(tmp_path / "run"), "use_cpu": True},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="merges.txt: expected a file of .*start, got a link that leads out of it"):
        train.main(read_run_arguments(tmp_path / "config.yaml"))
    assert not [file for file in (tmp_path / "run").rglob("*") if "my key" in file.read_text()]


def test_weights_that_stand_for_two_are_whole(tmp_path):
    folder = link(get_checkpoint(), tmp_path / "tied", "model.safetensors")
    config = Ross3DConfig.from_pretrained(folder, tie_word_embeddings=True)
    Ross3DForConditionalGeneration(config).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    push.check_checkpoint(folder)


def test_a_missing_shard_is_named(sharded, tmp_path):
    folder = link(sharded, tmp_path / "folder", "model-00002-of-00003.safetensors")
    with pytest.raises(FileNotFoundError, match="expected the shards in its list, but .'model-00002"):
        push.main([str(folder), "--to", REPOSITORY, "--dry-run", str(tmp_path / "dry")])


def test_scores_of_another_model_are_refused(hub, trained, evaluated, tmp_path):
    """Also after a change of the folder itself, and where two outputs have the same benchmark."""
    with pytest.raises(
        FileNotFoundError, match="expected the output of eval.py, found no .*metrics.json; give its --output"
    ):
        push.main([str(trained), "--to", REPOSITORY, "--run", str(tmp_path)])
    with pytest.raises(ValueError, match="expected each task in one output only, got .*'rooms'.* again in"):
        push.main([str(trained), "--to", REPOSITORY, "--run", str(evaluated), "--run", str(evaluated)])
    other = link(trained, tmp_path / "other")
    change_weights(other, lambda tensors: tensors["model.mask_token"].add_(1))
    with pytest.raises(
        ValueError, match=r"(?s)expected scores of .*other, got scores of another checkpoint \(.*trained"
    ):
        push.main([str(other), "--to", REPOSITORY, "--run", str(evaluated)])
    assert not hub.requests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected the metrics of an evaluation, got no scores, intervals, settings"),
        (
            '{"scores": 3, "intervals": {}, "settings": {}, "baselines": {}, "commit": ""}',
            "with an object as scores, got",
        ),
        (
            '{"scores": {"rooms": {}}, "intervals": {}, "settings": {}, "baselines": {}, "commit": ""}',
            "with the scores of each task and their settings, got none of .*model_sha256.*; evaluate again",
        ),
        ("{", "not valid JSON .*; evaluate again"),
    ],
)
def test_broken_metrics_are_named(tmp_path, text, message):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=rf"metrics.json: .*{message}"):
        push.read_metrics([tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", "expected USER/NAME, got 'model'; write the owner before"),
        ("me/a model", "me/a model"),
        ("me/a/b", "me/a/b"),
    ],
)
def test_names_that_the_hub_does_not_take_are_refused(sharded, name, message, capsys):
    with pytest.raises(SystemExit):
        push.main([str(sharded), "--to", name])
    assert message in capsys.readouterr().err


def test_a_token_is_needed_that_may_write(hub, sharded, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="expected a token with write access to somebody/model, got 403 from the Hub"):
        push.main([str(sharded), "--to", "somebody/model"])
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(
        ValueError, match=f"write access to {REPOSITORY}, got 401 from the Hub; create a token with the role"
    ):
        push.main([str(sharded), "--to", REPOSITORY])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ValueError, match="expected a token with write access to the Hub, found none; run `hf auth login`"
    ):
        push.main([str(sharded), "--to", REPOSITORY])
    assert not hub.repositories


def test_another_kind_of_model_is_not_written_over(hub, sharded):
    hub.repositories[REPOSITORY] = Repository()
    commit = hub.repositories[REPOSITORY].commit({"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(ValueError, match="but tester/rooms-model has model_type 'bert'; choose another name"):
        push.main([str(sharded), "--to", REPOSITORY])
    assert hub.repositories[REPOSITORY].main == commit and not hub.stored


def test_two_pushes_at_once_are_not_mixed(hub, sharded):
    def push_meanwhile(method: str, path: str) -> bool:
        if "/preupload/" in path:
            hub.repositories[REPOSITORY].commit({"model.safetensors": b"of somebody else"})
        return False

    hub.refuse = push_meanwhile
    with pytest.raises(ValueError, match="during the push, but it changed; push again"):
        push.main([str(sharded), "--to", REPOSITORY])
    assert list(get_files(hub)) == ["model.safetensors"]


def test_a_hub_that_cannot_be_reached_is_told(sharded, monkeypatch):
    with serve_hub() as hub:
        pass
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(OSError, match="(?s)expected to upload all files to tester/rooms-model, got .*refused"):
        push.main([str(sharded), "--to", REPOSITORY])


# ---- pages of runs


def make_page(root: Path, distils: bool = False, **settings) -> ModelCard:
    settings = {"data": {"root": str(root), "split": "train"}, "trainer": {"output_dir": "out"}, **settings}
    config = get_config()
    if distils:
        config.distillation_config = Ross3DDistillationConfig(**DISTILLATION)
    return make_run_card(settings, config, TrainerState(global_step=3))


def get_config() -> Ross3DConfig:
    return Ross3DConfig.from_pretrained(get_checkpoint())


def test_a_run_from_new_weights_on_own_rooms_is_as_free_as_the_code(monkeypatch):
    """Its VAE is known by its latents; that of FLUX.1-dev makes it another matter."""
    config = json.loads((ROOT / "scenes/teacher/config.json").read_text())
    assert TEACHERS[config["latent_channels"], config["scaling_factor"], config["shift_factor"]] == "rooms_teacher"
    model = get_config()
    denoiser = model.denoiser_config
    denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor = 4, 0.4656, -0.892
    monkeypatch.setitem(globals(), "get_config", lambda: model)
    card = make_page(get_rooms())
    assert card.data.license == "apache-2.0" and card.data.get("license_name") is None
    assert "trained from new weights on questions of rooms" in card.text and "3 optimizer steps.\n" in card.text
    denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor = 16, 0.3611, 0.1159
    card = make_page(get_rooms())
    assert card.data.license == "other" and INGREDIENTS["teacher"].describe() in get_section(card.text, "Licences")
    assert "no commercial use" in INGREDIENTS["teacher"].describe()


@pytest.mark.parametrize(
    ("name", "line", "license"),
    [
        ("facebook/VGGT-1B", "features of VGGT-1B (facebook/VGGT-1B): CC BY-NC 4.0; no commercial use", "other"),
        ("scenes/geometry_encoder", "features of the VGGT of our rooms (the ross3d project)", "apache-2.0"),
        ("/somewhere/encoder", "features of a geometry encoder (encoder): as stated by its authors", "other"),
        (None, "features of a geometry encoder (the encoder of the run): as stated by its authors", "other"),
    ],
)
def test_the_encoder_that_a_run_learned_from_is_named(monkeypatch, name, line, license):
    """Its terms count although its weights are not among the run's."""
    model = get_config()
    denoiser = model.denoiser_config
    denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor = 4, 0.4656, -0.892
    monkeypatch.setitem(globals(), "get_config", lambda: copy.deepcopy(model))
    card = make_page(get_rooms(), distils=True, geometry_encoder=name)
    assert line in get_section(card.text, "Licences") and card.data.license == license
    assert "/somewhere" not in str(card)
    assert "geometry encoder" not in get_section(make_page(get_rooms()).text, "Licences")


def test_a_run_hands_on_what_its_start_comes_from(tmp_path):
    origin = Origin("user/base", ["rooms"])
    origin.add([INGREDIENTS["base"], INGREDIENTS["code"]])
    (tmp_path / "start").mkdir()
    (tmp_path / "start/README.md").write_text(str(make_card("Words.", origin, {"Use": "Code."})))
    data = tmp_path / "data"
    row = Annotation("a", "scene0000_00", "scanqa", "what", "What is it?", "a chair", ["a chair"])
    save_annotations([row], data / "annotations/train.jsonl")
    card = make_page(data, init_from=str(tmp_path / "start"))
    assert card.data.base_model == "user/base" and card.data.datasets == ["rooms", "scanqa"]
    licenses = get_section(card.text, "Licences").splitlines()
    assert [line.split(" (")[0] for line in licenses[:3]] == [
        "- LLaVA-Video-7B-Qwen2",
        "- code",
        "- questions of ScanQA",
    ]
    assert "ScanNet, whose terms of use are non-commercial" in licenses[2] and card.data.license == "other"
    assert str(tmp_path) not in str(card)


def test_scans_without_questions_are_named_and_make_terms_of_their_own(monkeypatch):
    """Rooms of our own are free, what else trained reconstruction is not said to be."""
    model = get_config()
    denoiser = model.denoiser_config
    denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor = 4, 0.4656, -0.892
    monkeypatch.setitem(globals(), "get_config", lambda: model)
    data = {"root": str(get_rooms()), "split": "train"}
    half = make_page(get_rooms(), data=data | {"labelled_share": 0.5})
    assert half.data.license == "apache-2.0"
    assert "on questions of rooms (50 % of the samples; the others give only images)." in half.text
    scans = make_page(get_rooms(), data=data | {"unlabelled_root": "/somewhere/flats"})
    assert scans.data.license == "other" and "/somewhere" not in str(scans)
    assert "on questions of rooms and on scans without questions (`flats`)." in scans.text
    assert "scans without questions (flats): as stated by their owners" in get_section(scans.text, "Licences")


def test_the_command_on_the_page_makes_the_model_again():
    """As many processes, the commit, and how the rooms were made."""
    training = get_section(make_page(get_rooms(), num_processes=2).text, "Training")
    assert "`accelerate launch --num_processes 2 train.py CONFIG.yaml` of the ross3d project (commit " in training
    made = json.loads((get_rooms() / "manifest.json").read_text())["arguments"]
    annotations = (get_rooms() / "annotations" / "train.jsonl").read_text().splitlines()
    assert f"{made['num_train']} scenes with {len(annotations)} questions" in training
    words = re.search(r"`python -m ross3d.scenes.build (.*) --output DIR`", training)[1].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (int(given["--train"]), int(given["--views"])) == (made["num_train"], made["num_views"])
    assert parse_size(given["--image-size"]) == tuple(made["image_size"])
    assert "`accelerate launch train.py" in get_section(make_page(get_rooms()).text, "Training")


def test_no_page_and_no_teacher_tell_of_folders(trained, tmp_path, monkeypatch):
    assert "_name_or_path" not in json.loads((trained / "teacher" / "config.json").read_text())
    assert AutoencoderKL.from_pretrained(trained / "teacher").config.scaling_factor
    (tmp_path / "here").mkdir()
    (tmp_path / "mine" / "start").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    page = make_page(get_rooms(), init_from="../mine/start", teacher="scenes/teacher")
    assert "mine" not in str(page) and "trained from `start`" in page.text and "scenes/teacher" in page.text


def test_a_run_from_the_hub_names_its_base(tmp_path):
    card = make_page(tmp_path, init_from="user/base")
    assert card.data.base_model == "user/base" and card.data.datasets is None
    assert (
        "weights (user/base): as stated by their authors" in card.text and "on images without questions" in card.text
    )
