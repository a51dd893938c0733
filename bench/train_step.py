"""A training step on one scene with many questions, against a step a question.

    python bench/train_step.py [--views 32] [--questions 8 16] [--rounds 3] [--text-only]
    python bench/train_step.py --memory [--questions 1 16]

Forward and backward of text, masked views and the bird's-eye picture (a small VAE included), one row with Q questions
in turn with Q rows of one question, the same views masked in all. The losses have to be equal. `--text-only` leaves
the reconstruction out; `--memory` prints the peak of a process a number of questions instead.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
from diffusers import AutoencoderKL

from ross3d.bench.answer import TEXT
from ross3d.bench.harness import (
    compare,
    describe_run,
    get_peak_gb,
    make_config,
    make_model,
    make_questions,
    make_scene,
    print_line,
    time_rounds,
)


DENOISER = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_pool_heads": 4,
    "intermediate_size": 512, "condition": "pooled", "latent_channels": 4, "scaling_factor": 1.0, "shift_factor": 0.0,
}  # fmt: skip
ANSWER_LENGTH = 8


def make_teacher() -> AutoencoderKL:
    """Eight pixels to a latent, as the released VAE, with few channels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


class Steps:
    """One packed row and the rows it replaces."""

    def __init__(self, num_views: int, num_questions: int, text_only: bool):
        generator = torch.Generator().manual_seed(0)
        self.model = make_model(make_config(TEXT, None if text_only else DENOISER)).train()
        self.model.model.vision_tower.requires_grad_(False)
        self.scene = make_scene(self.model.config, num_views, generator)
        if not text_only:
            self.model.attach_teacher(make_teacher())
            self.scene["bool_masked_views"] = (torch.arange(num_views) % 4 == 3)[None]
            self.scene["bev_pixel_values"] = torch.rand(1, 3, 432, 432, generator=generator)
            self.scene["bev_valid"] = torch.ones(1, 432, 432, dtype=torch.bool)
        self.scene["row_seed"] = torch.tensor([7])
        self.questions = make_questions(num_questions, (12, 24), generator)

    def build_row(self, questions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The scene with these questions behind it; the last `ANSWER_LENGTH` tokens of each are its answer."""
        prefix = self.scene["input_ids"][0]
        ids, segments = [prefix], [torch.zeros_like(prefix)]
        labels, targets = [torch.full_like(prefix, -100)], [torch.full_like(prefix, -100)]
        weights = [torch.zeros(len(prefix))]
        for number, question in enumerate(questions, start=1):
            answer, shifted = torch.full_like(question, -100), torch.full_like(question, -100)
            answer[-ANSWER_LENGTH:] = question[-ANSWER_LENGTH:]
            shifted[-ANSWER_LENGTH - 1 : -1] = question[-ANSWER_LENGTH:]
            ids.append(question)
            segments.append(torch.full_like(question, number))
            labels.append(answer)
            targets.append(shifted)
            weights.append((shifted != -100) / ANSWER_LENGTH)
        rows = {
            "input_ids": ids, "segment_ids": segments, "labels": labels, "shift_labels": targets,
            "loss_weights": weights,
        }  # fmt: skip
        row = {name: torch.cat(parts)[None] for name, parts in rows.items()}
        return self.scene | row | {"attention_mask": torch.ones_like(row["input_ids"])}

    def run_step(self, rows: list[dict[str, torch.Tensor]]) -> float:
        """Mean loss over rows, and its gradients."""
        self.model.zero_grad()
        total = 0.0
        for row in rows:
            loss = self.model(**row).loss / len(rows)
            loss.backward()
            total += loss.item()
        return total

    def step_separately(self) -> float:
        return self.run_step([self.build_row([question]) for question in self.questions])

    def step_packed(self) -> float:
        return self.run_step([self.build_row(self.questions)])


def run(num_views: int, num_questions: int, rounds: int, text_only: bool) -> dict[str, Any]:
    steps = Steps(num_views, num_questions, text_only)
    ways = {"separate": steps.step_separately, "packed": steps.step_packed}
    seconds, losses = time_rounds(ways, rounds, repeats={"packed": 3})
    if abs(losses["separate"] - losses["packed"]) > 1e-4 * abs(losses["packed"]):
        raise RuntimeError(f"bench/train_step.py: expected equal losses, got {losses}.")
    prefix, own = steps.scene["input_ids"].shape[1], sum(map(len, steps.questions))
    return {
        "bench": "train_step", **describe_run(), "views": num_views, "prefix": prefix, "questions": num_questions,
        "text_config": TEXT, "text_only": text_only, "rounds": rounds, "losses": losses,
        "separate_over_packed": compare(seconds, "separate", "packed"),
        # Were every position as dear as any other.
        "token_bound": round((num_questions * prefix + own) / (prefix + own), 2),
        "packed_seconds": round(min(seconds["packed"]), 2),
    }  # fmt: skip


def measure_memory(num_views: int, questions: list[int], text_only: bool) -> dict[str, Any]:
    """Peak memory of a packed step for each number of questions, in a process of its own."""
    peaks = {}
    for count in questions:
        command = [sys.executable, __file__, "--peak", "--views", str(num_views), "--questions", str(count)]
        command += ["--text-only"] * text_only
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = json.loads(done.stdout)["peak_gb"]
    first = peaks[questions[0]]
    return {
        "bench": "train_step", **describe_run(), "views": num_views, "text_config": TEXT, "text_only": text_only,
        "peak_gb": peaks, "over_first": {count: round(peak / first, 3) for count, peak in peaks.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--questions", type=int, nargs="+", default=[8, 16], help="number of questions")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--text-only", action="store_true", help="without the reconstruction losses")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--peak", action="store_true", help="one packed step, and the peak of this process")
    options = parser.parse_args()
    if options.peak:
        Steps(options.views, options.questions[0], options.text_only).step_packed()
        print_line({"peak_gb": round(get_peak_gb(), 3)})
    elif options.memory:
        print_line(measure_memory(options.views, options.questions, options.text_only))
    else:
        for count in options.questions:
            print_line(run(options.views, count, options.rounds, options.text_only))


if __name__ == "__main__":
    main()
