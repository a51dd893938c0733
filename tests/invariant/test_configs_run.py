"""Every run of configs/ goes through a few steps with the tiny checkpoint, started as its file says."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ross3d.tests.invariant.test_train_anywhere import LONGEST, check_tools, launch, run
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools.make_tiny import DISTILLATION
from ross3d.training.callbacks import is_complete


ROOT = Path(__file__).resolve().parents[2]
RUNS = sorted(path.stem for path in (ROOT / "configs").glob("ross3d_*.yaml"))


def get_launcher(text: str) -> str:
    """The launcher that the head of a run's file names."""
    return re.search(r"--config_file configs/accelerate/(\w+)\.yaml", text)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_three_steps_of_a_run(tmp_path, name):
    file = ROOT / "configs" / f"{name}.yaml"
    launcher, settings = get_launcher(file.read_text()), yaml.safe_load(file.read_text())
    check_tools(launcher)
    processes = 1 if settings["num_processes"] == 1 else 2
    output, data = tmp_path / "out", {"root": get_rooms()}
    shutil.copytree(get_rooms() / "val", tmp_path / "scans")
    if "unlabelled_root" in settings["data"]:
        data["unlabelled_root"] = tmp_path / "scans"
    distils = (settings.get("model") or {}).get("distillation_config") is not None
    checkpoint = get_checkpoint("3drs" if distils else "ross3d")
    changes = {"init_from": checkpoint, "num_processes": processes}
    if distils:
        # The sizes of the tiny head, and its own encoder in every step.
        changes |= {f"model.distillation_config.{key}": value for key, value in DISTILLATION.items()}
        changes |= {"geometry_encoder": checkpoint / "geometry_encoder", "data.geometry_features": "null"}
    changes |= {f"data.{key}": value for key, value in data.items()}
    changes |= {
        f"trainer.{key}": value
        for key, value in {
            "output_dir": output,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "save_steps": 2,
            "dataloader_num_workers": 0,
            "use_cpu": "true",
            # What 8-bit optimizers need runs on GPUs alone.
            "optim": "adamw_torch",
        }.items()
    }
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    run(["-m", *launch(launcher, processes), str(ROOT / "train.py"), str(file), *words], timeout=LONGEST)
    assert is_complete(output)
    found, before = load_file(output / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert found.keys() == before.keys()
    moved = {key for key, value in found.items() if not value.float().equal(before[key].to(value.dtype).float())}
    trains_tower = "learning_rate" in settings.get("parts", {}).get("model.vision_tower", {})
    assert moved and any(key.startswith("model.vision_tower") for key in moved) == trains_tower
    if "lora" in settings:
        assert any("q_proj" in key for key in moved), "what stands beside the language model is merged into it"
