"""tools/push.py and the library's own push, against a stand-in for the Hub on the loopback address."""

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
from huggingface_hub import ModelCard
from transformers import AutoProcessor

from ross3d import eval as evaluation
from ross3d import train
from ross3d.eval import get_fingerprint
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.report.card import get_section, list_scores, read_origin
from ross3d.tests.loopback_hub import FIRST_COMMIT, TOKEN, USER, serve_hub
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import push
from ross3d.training.arguments import read_run_arguments
from ross3d.training.callbacks import is_complete
from ross3d.training.card import find_origin


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
    few = ["--limit", "1", "--num_samples", "1", "--num_inference_steps", "2", "--max_new_tokens", "3"]
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
    assert len(found) == 4 and all(torch.equal(logits, wanted) for logits in found.values())


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
        assert result.metric_value == value and result.dataset_split == "val" and result.dataset_args["limit"] == 1
    wanted = {(task, place) for task, scores in metrics["scores"].items() for place, _ in list_scores(scores)}
    others = {place for _, place in wanted if "psnr" in place and place[-1] not in ("one_sample", "mean_of_samples")}
    assert len(found) == len(wanted) - len(others) > 20 and len(others) == 3 * 4
    assert {result.metric_type for (task, _), result in found.items() if task == "reconstruction"} == {"psnr"}
    results = get_section(card.text, "Results")
    assert len(re.findall(r"^\| .* \| -?\d+\.\d{4} \|", results, flags=re.MULTILINE)) == len(wanted)
    assert f"commit {metrics['commit']}" in results and "limit 1" in results
    assert re.search(r"types: count: exact_match \| \d\.\d{4} \| \[\d", results), "no interval beside a score"
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
    assert "synthetic rooms" in licenses and "VAE (`teacher/`)" in licenses and "weights (checkpoint)" in licenses


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
    assert not hub.requests and "licence of weights (sharded): as their authors state" in capsys.readouterr().out
    push.main([str(sharded), "--to", REPOSITORY])
    files = {path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert files == {name: data for name, data in get_files(hub).items() if name != ".gitattributes"}


def test_a_push_that_was_cut_off_changes_nothing_and_is_taken_up(hub, sharded):
    repository, puts = REPOSITORY, []

    def refuse(method: str, path: str) -> bool:
        puts.extend([path] if method == "PUT" else [])
        return len(puts) > 2 and method == "PUT"

    hub.refuse = refuse
    with pytest.raises(OSError, match="(?s)expected to upload all files .*; it is as it was: push again"):
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
