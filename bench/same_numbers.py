"""Whether two checkouts compute the same numbers, to the last bit.

    python bench/same_numbers.py OLD NEW [--steps 20]

Each checkout is run in processes of its own, one thread each, and writes hashes: weights and log of a training run of
`configs/tiny.yaml` and of a second one with the published objectives, the files of a run that was killed and resumed,
and, for a tiny checkpoint and the trained one, losses, gradients, greedy answers (with views and about an encoded
scene), grounding scores and reconstructed pictures. What differs is printed, and the exit status is 1.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


# Overrides of configs/tiny.yaml, for each of two runs.
SMALL = {
    "vision_warmup.scenes": "8",
    "vision_warmup.steps": "20",
    "vision_warmup.views_per_step": "8",
    "trainer.per_device_train_batch_size": "2",
    "trainer.gradient_accumulation_steps": "2",
    "trainer.logging_steps": "5",
    "trainer.save_steps": "10",
    "data.epochs": "12",
}
PUBLISHED = {
    "model.denoiser_config.condition": "pooled",
    "model.denoiser_config.prediction_type": "epsilon",
    "model.denoiser_config.bev_loss_mask": "rgb_positive",
    "model.reconstruct_on_grounding_rows": "false",
    "processor.label_rule": "published",
    "data.questions_per_row": "1",
}
# Files of a run that hold no times and no paths.
WEIGHTS = "*.safetensors"


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def hash_tensor(tensor: torch.Tensor) -> str:
    return hash_bytes(
        f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    )


def get_command(rooms: Path, output: Path, steps: int, changes: dict[str, str]) -> list[str]:
    root = Path(os.environ["CHECKOUT"])
    settings = SMALL | changes | {
        "data.root": str(rooms),
        "trainer.output_dir": str(output),
        "trainer.max_steps": str(steps),
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return [sys.executable, str(root / "train.py"), str(root / "configs/tiny.yaml"), *words]


def read_run(output: Path) -> dict[str, str]:
    """Hashes of a finished run's weights, and what it logged."""
    found = {}
    for file in sorted(output.rglob(WEIGHTS)):
        if "teacher" not in file.parts:
            found[str(file.relative_to(output))] = hash_bytes(file.read_bytes())
    states = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name[11:]))
    for entry in json.loads(states[-1].read_text())["log_history"]:
        losses = {key: value for key, value in entry.items() if "loss" in key or key == "grad_norm"}
        found[f"log of step {entry['step']}"] = json.dumps(losses, sort_keys=True)
    return found


def record_runs(work: Path, steps: int) -> dict[str, str]:
    """Train, and train again with a kill behind the first checkpoint."""
    root, rooms, found = Path(os.environ["CHECKOUT"]), work / "rooms", {}
    build = [sys.executable, "-m", "ross3d.scenes.build", "--output", str(rooms), "--train", "8", "--val", "2"]
    subprocess.run(build, check=True, cwd=root, stdout=subprocess.DEVNULL)
    for name, changes in (("ours", {}), ("published", PUBLISHED)):
        output = work / name
        subprocess.run(get_command(rooms, output, steps, changes), check=True, cwd=root, stdout=subprocess.DEVNULL)
        found |= {f"run {name}: {key}": value for key, value in read_run(output).items()}
    output = work / "resumed"
    command = get_command(rooms, output, steps, {})
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (output / "checkpoint-10" / "complete.json").exists():
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, cwd=root, stdout=subprocess.DEVNULL)
    return found | {f"run resumed: {key}": value for key, value in read_run(output).items()}


def make_scene(num_views: int, seed: int) -> dict:
    """A scene of noise: pictures, depth, cameras around a point, and boxes."""
    draw = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    for view, angle in enumerate(np.linspace(0, 2 * np.pi, num_views, endpoint=False)):
        # Cameras look along the horizon: x to the right, y down, z ahead.
        poses[view, :3, :3] = np.array(
            [[np.sin(angle), 0, np.cos(angle)], [-np.cos(angle), 0, np.sin(angle)], [0, -1, 0]]
        )
        poses[view, :3, 3] = [0.1 * view, 0.2, 1.5]
    return {
        "images": [draw.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(num_views)],
        "depth_maps": [draw.uniform(1, 3, (60, 80)).astype(np.float32) for _ in range(num_views)],
        "intrinsics": np.array([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]]),
        "cam2world": poses,
        "proposal_boxes": np.concatenate([draw.uniform(-2, 2, (5, 3)), draw.uniform(0.2, 1, (5, 3))], axis=1),
    }


def record_model(path: Path) -> dict[str, str]:
    """Losses, gradients, answers, scores and pictures of a checkpoint."""
    from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
    from ross3d.processing_ross3d import Ross3DProcessor

    torch.set_num_threads(1)
    processor = Ross3DProcessor.from_pretrained(path)
    model = Ross3DForConditionalGeneration.from_pretrained(path).eval()
    model.attach_teacher(str(path / "teacher"))
    size, found = processor.bev_size, {}
    for num_views, seed in ((4, 1), (6, 2)):
        scene, draw = make_scene(num_views, seed), np.random.default_rng(seed)
        batch = processor(
            **scene,
            text=["How many chairs are there?", "Find the table.", "What is beside the lamp?"],
            answers=["two", "<ground>", "a shelf"],
            target_objects=[None, [1], None],
            bev_image=draw.integers(0, 256, (size, size, 3), dtype=np.uint8),
            bev_valid=draw.random((size, size)) > 0.2,
            bev_bounds=[-3.0, -3.0, 3.0, 3.0],
        )
        hidden = torch.zeros(1, num_views, dtype=torch.bool)
        hidden[0, 1] = True
        batch |= {"bool_masked_views": hidden, "row_seed": torch.tensor([seed])}
        for mode in (True, False):
            model.train(mode).zero_grad()
            outputs = model(**batch)
            outputs.loss.backward()
            key = f"{path.name}, {num_views} views, {'train' if mode else 'eval'}"
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor):
                    found[f"{key}: {name}"] = hash_tensor(value)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    found[f"{key}: gradient of {name}"] = hash_tensor(parameter.grad)
        model.eval()
        key = f"{path.name}, {num_views} views"
        asked = processor(**scene, text="How many chairs are there?")
        found[f"{key}: answer"] = hash_tensor(model.generate(**asked, max_new_tokens=8, do_sample=False))
        encoded = model.encode_scene(**processor(**scene))
        questions = processor(text=["How many chairs are there?", "What is beside the lamp?"])
        words = model.generate(scene=encoded, **questions, max_new_tokens=8, do_sample=False)
        found[f"{key}: answers about the scene"] = hash_tensor(words)
        question = processor(text=["the table", "a red lamp by the door"])
        found[f"{key}: scores about the scene"] = hash_tensor(model.ground(scene=encoded, **question))
        found[f"{key}: scores"] = hash_tensor(model.ground(**processor(**scene, text=["the table", "a red lamp"])))
        views, bev = model.reconstruct(
            **processor(**scene), masked_views=[0, 2], bev_bounds=torch.tensor([[-3.0, -3.0, 3.0, 3.0]]),
            num_inference_steps=4, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        found[f"{key}: pictures"] = hash_tensor(torch.cat([views[0].flatten(), bev[0].flatten()]))
    return found


def record(work: Path, steps: int) -> dict[str, str]:
    from ross3d.tools.make_tiny import make_tiny_checkpoint

    tiny = make_tiny_checkpoint(work / "tiny")
    found = {"tiny: weights": hash_bytes((tiny / "model.safetensors").read_bytes())}
    return found | record_runs(work, steps) | record_model(tiny) | record_model(work / "ours")


def run_in(checkout: Path, steps: int, work: Path) -> dict[str, str]:
    """What this program records when `ross3d` is the given checkout."""
    link = work / "ross3d"
    link.symlink_to(checkout.resolve(), target_is_directory=True)
    environment = {**os.environ, "PYTHONPATH": str(work), "CHECKOUT": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--record", str(work), "--steps", str(steps)]
    subprocess.run(command, check=True, cwd=work, env=environment)
    return json.loads((work / "record.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, help="two folders of the repository: OLD NEW")
    parser.add_argument("--steps", type=int, default=20, help="of each training run, more than 10")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        found = record(arguments.record, arguments.steps)
        (arguments.record / "record.json").write_text(json.dumps(found, indent=1))
        return 0
    if len(arguments.checkouts) != 2:
        parser.error("expected two checkouts, OLD and NEW")
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        pair = zip(arguments.checkouts, map(Path, (old, new)), strict=True)
        before, after = (run_in(checkout, arguments.steps, work) for checkout, work in pair)
    differing = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    for name in sorted(differing):
        print(f"{name}: {before.get(name)} -> {after.get(name)}")
    print(f"{len(before.keys() & after.keys()) - len(set(differing) & before.keys() & after.keys())} equal,", end=" ")
    print(f"{len(differing)} different")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
