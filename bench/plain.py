"""A training step of one question and the reading of a scene, against plain models of the library.

    python bench/plain.py [--views 32] [--rounds 5] [--profile]

The library's LLaVA-OneVision (the same SigLIP tower) and Qwen2.5-VL (a tower of the same width and depth), each with
the same language model, as many views and as many positions, in turn with ours. The step is forward and backward of
text with the tower at rest; reading is one forward pass that fills a cache. Ours also places every token in 3D.
`--profile` prints where ours and LLaVA-OneVision spend their time instead.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import profile
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from ross3d.bench.answer import TEXT
from ross3d.bench.harness import IMAGE, VOCAB_SIZE, compare, describe_run, print_line, time_rounds
from ross3d.bench.train_step import ANSWER_LENGTH, Steps


# Patches of 14 pixels, merged two by two: 210 positions a view, as ours has.
QWEN_GRID, QWEN_PATCH = (1, 28, 30), 14
# Tokens of a view of LLaVA-OneVision's videos, which close with one newline.
LLAVA_TOKENS = 14 * 14
ROWS_OF_PROFILE = 25


def make_llava(config: PreTrainedConfig) -> PreTrainedModel:
    """With our tower and language model."""
    torch.manual_seed(0)
    plain = LlavaOnevisionConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_index=VOCAB_SIZE - 1,
        video_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaOnevisionForConditionalGeneration(plain)
    model.model.vision_tower.requires_grad_(False)
    return model


def make_qwen(config: PreTrainedConfig) -> PreTrainedModel:
    """With our language model and a tower of the same width and depth; its merger is trained, as our projector is."""
    torch.manual_seed(0)
    vision, text = config.vision_config, config.text_config
    plain = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "patch_size": QWEN_PATCH,
            "out_hidden_size": text.hidden_size,
            "fullatt_block_indexes": [0],
        },
        text_config=text.to_dict() | {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
        image_token_id=IMAGE,
    )
    model = Qwen2_5_VLForConditionalGeneration(plain)
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    return model


class Models:
    """Ours and the plain ones, with rows of the same length for each."""

    def __init__(self, num_views: int):
        steps = Steps(num_views, 1, text_only=True)
        row = steps.build_row(steps.questions)
        self.ours, self.scene = steps.model, steps.scene
        self.scene.pop("row_seed")
        self.llava, self.qwen = make_llava(self.ours.config), make_qwen(self.ours.config)
        ids = row["input_ids"]
        plain = {"attention_mask": torch.ones_like(ids), "labels": row["labels"]}
        # Words make up for the ends of our views' rows.
        is_video = torch.arange(ids.shape[1]) < num_views * LLAVA_TOKENS + 1
        video_ids = torch.where(is_video, IMAGE, ids.clamp(max=IMAGE - 1))
        # A word between views, by which the library tells them apart.
        words = [row["labels"].new_zeros(1, 1), torch.full((1, QWEN_GRID[1] * QWEN_GRID[2] // 4), IMAGE)]
        text = ids[ids != IMAGE][None]
        qwen_ids = torch.cat([*words * num_views, text], dim=1)
        nothing = torch.full((1, qwen_ids.shape[1] - text.shape[1]), -100)
        qwen_labels = torch.cat([nothing, row["labels"][ids != IMAGE][None]], dim=1)
        patches = torch.randn(num_views * QWEN_GRID[1] * QWEN_GRID[2], 3 * 2 * QWEN_PATCH**2)
        self.rows = {
            "ours": row,
            "llava": plain | {"input_ids": video_ids, "pixel_values_videos": row["pixel_values"]},
            "qwen": {
                "input_ids": qwen_ids, "attention_mask": torch.ones_like(qwen_ids), "labels": qwen_labels,
                "pixel_values": patches, "image_grid_thw": torch.tensor([QWEN_GRID] * num_views),
                "mm_token_type_ids": (qwen_ids == IMAGE).long(),
            },
        }  # fmt: skip

    def step(self, name: str) -> float:
        model = getattr(self, name).train()
        model.zero_grad()
        loss = model(**self.rows[name]).loss
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def read(self, name: str) -> Any:
        model = getattr(self, name).eval()
        if name == "ours":
            return model.encode_scene(**self.scene)
        row = {key: tensor for key, tensor in self.rows[name].items() if key != "labels"}
        return model(**row, use_cache=True, logits_to_keep=1).past_key_values

    def list_ways(self) -> dict[str, Callable[[], Any]]:
        """Each kind of work for each model, by the names of both."""
        ways = {}
        for name in self.rows:
            ways[f"step_{name}"] = lambda name=name: self.step(name)
            ways[f"read_{name}"] = lambda name=name: self.read(name)
        return ways


def run(num_views: int, rounds: int) -> dict[str, Any]:
    ways = Models(num_views).list_ways()
    time_rounds(ways, 1)
    seconds, _ = time_rounds(ways, rounds)
    ratios = {
        f"{work}_over_{plain}": compare(seconds, f"{work}_ours", f"{work}_{plain}")
        for work in ("step", "read")
        for plain in ("llava", "qwen")
    }
    return {
        "bench": "plain", **describe_run(), "views": num_views, "text_config": TEXT,
        "answer_length": ANSWER_LENGTH, "rounds": rounds, **ratios,
        "seconds": {name: round(min(times), 2) for name, times in seconds.items()},
    }  # fmt: skip


def print_profile(num_views: int) -> None:
    ways = Models(num_views).list_ways()
    for name in ("step_ours", "step_llava", "read_ours", "read_llava"):
        ways[name]()
        with profile() as measured:
            ways[name]()
        table = measured.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS_OF_PROFILE)
        print(f"{name}\n{table}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    parser.add_argument("--profile", action="store_true", help="print the most expensive operations instead")
    options = parser.parse_args()
    if options.profile:
        print_profile(options.views)
    else:
        print_line(run(options.views, options.rounds))


if __name__ == "__main__":
    main()
