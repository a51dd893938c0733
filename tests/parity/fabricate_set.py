"""A recorded set of other sizes, made by `slow_reference.py`, in the format of the published recordings.

It shows that no test knows a size by heart, and it is there where the published recordings are not.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ross3d.tests.parity import slow_reference as slow


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_start|>assistant\n"
INSTRUCTION = (
    "The video captures 3D spatial information of a scene. Please focus on the spatial relationships in the video and"
    " answer the following questions."
)
SLOT, IGNORED = -200, -100
PACKED = "[int8; value = int8 / 32]"
QUESTIONS = {
    "qa": (" Which of the two lamps is higher? Answer simply.", "the left one"),
    "cap": (" Given an object located at <coord> , describe it.", "A low table."),
    "ground": ("Identify the object according to the following description.\nThe small box", "<ground>"),
}


@dataclass
class Sizes:
    """What a fabricated set differs in."""

    name: str
    seed: int
    views: int
    mask_ratio: float
    hidden: int
    heads: int
    kv_heads: int
    layers: int
    inter: int
    vision: int
    vision_heads: int
    vision_layers: int
    image: int
    patch: int
    denoiser: int
    denoiser_heads: int
    diffusion_steps: int
    depth: int
    bev_grid: int
    decode: int
    objects: int
    steps: int
    extra_tokens: int
    stride: int
    rgb: tuple[int, int]
    depth_map: tuple[int, int]

    @property
    def patches(self) -> int:
        return self.image // self.patch

    @property
    def grid(self) -> int:
        return (self.patches + 1) // 2


class Recorder:
    """Collects the cases and writes the folder."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.cases: dict[str, dict] = {}
        self.files: dict[str, dict[str, torch.Tensor]] = {}

    def add(self, case: str, name: str, tensor: torch.Tensor, desc: str = "") -> torch.Tensor:
        """Record a tensor; a packed one is stored in bytes. Returns what a reader will see."""
        tensor = tensor.detach().contiguous()
        stored = (tensor * 32).round().to(torch.int8) if PACKED in desc else tensor.clone()
        record = self.cases.setdefault(case, {"file": f"{case}.safetensors", "scalars": {}, "tensors": {}})
        kind = str(stored.dtype).removeprefix("torch.")
        record["tensors"][name] = {"shape": list(stored.shape), "dtype": kind, "desc": desc}
        self.files.setdefault(case, {})[name] = stored
        return tensor

    def thin(self, case: str, name: str, tensor: torch.Tensor, axis: int, step: int) -> None:
        """Record every `step`-th entry along an axis."""
        index = torch.arange(0, tensor.shape[axis], step)
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(step, "th")
        self.add(case, name, tensor.index_select(axis, index), f"every {step}{suffix} entry")

    def note(self, case: str, **scalars) -> None:
        self.cases.setdefault(case, {"file": f"{case}.safetensors", "scalars": {}, "tensors": {}})
        self.cases[case]["scalars"] |= scalars

    def write(self, folder: Path, config: dict, weights: dict[str, torch.Tensor], tokenizer) -> None:
        folder.mkdir(parents=True)
        for case, tensors in self.files.items():
            save_file(tensors, folder / f"{case}.safetensors")
        save_file({name: tensor.detach().clone() for name, tensor in weights.items()}, folder / "weights.safetensors")
        tokenizer.save_pretrained(folder / "toy_tokenizer")
        (folder / "index.json").write_text(json.dumps({"set": self.sizes.name, "config": config, "cases": self.cases}))


def make_tokenizer(extra_tokens: int) -> PreTrainedTokenizerFast:
    """One token a byte, some that never occur, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"unused{number}" for number in range(extra_tokens)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<ground>", "<coord>")
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )


def make_language_config(sizes: Sizes, vocab: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inter,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
    )


def make_vae_config() -> dict:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [4, 8, 8, 8],
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.125,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def get_affine_shapes(name: str, rows: int, *columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def get_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes under the published names, language model and teacher aside."""
    affine = get_affine_shapes
    width, vision, dim, channels = sizes.hidden, sizes.vision, sizes.denoiser, 4 * 8
    shapes = dict.fromkeys(("ground_head_zero_target", "model.mask_token", "model.image_newline"), (width,))
    shapes |= affine("model.mm_projector.0", width, vision) | affine("model.mm_projector.2", width, width)
    for side in ("ground_head_obj", "ground_head_query"):
        shapes |= affine(f"{side}.0", width, width) | affine(f"{side}.3", width, width) | affine(f"{side}.2", width)
    root = "model.vision_tower.vision_tower.vision_model."
    shapes |= affine(f"{root}embeddings.patch_embedding", vision, 3, sizes.patch, sizes.patch)
    shapes[f"{root}embeddings.position_embedding.weight"] = (sizes.patches**2, vision)
    shapes |= affine(f"{root}post_layernorm", vision)
    for layer in range(sizes.vision_layers):
        name = f"{root}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{name}self_attn.{part}", vision, vision)
        shapes |= affine(f"{name}layer_norm1", vision) | affine(f"{name}layer_norm2", vision)
        shapes |= affine(f"{name}mlp.fc1", 2 * vision, vision) | affine(f"{name}mlp.fc2", vision, 2 * vision)
    for branch, count in (("view", sizes.grid**2), ("bev", sizes.bev_grid**2)):
        embed = f"{slow.HEAD}z_embedder_{branch}."
        shapes[f"{slow.HEAD}pos_embed_{branch}"] = (1, count, dim)
        shapes |= affine(f"{slow.HEAD}x_embedder_{branch}.proj", dim, channels, 1, 1)
        shapes[f"{embed}cls_token"] = (1, count, dim)
        shapes |= affine(f"{embed}proj.1", dim, width)
        shapes |= {f"{embed}{part}.weight": (dim, dim) for part in ("k", "v", "linear")}
    shapes |= affine(f"{slow.HEAD}t_embedder.mlp.0", dim, 20) | affine(f"{slow.HEAD}t_embedder.mlp.2", dim, dim)
    for block in range(sizes.depth):
        name = f"{slow.HEAD}blocks.{block}."
        shapes |= affine(f"{name}attn.qkv", 3 * dim, dim) | affine(f"{name}attn.proj", dim, dim)
        shapes |= affine(f"{name}mlp.fc1", 3 * dim, dim) | affine(f"{name}mlp.fc2", dim, 3 * dim)
        shapes |= affine(f"{name}adaLN_modulation.1", 6 * dim, dim)
    name = f"{slow.HEAD}final_layer."
    return shapes | affine(f"{name}linear", channels, dim) | affine(f"{name}adaLN_modulation.1", 2 * dim, dim)


def make_weights(sizes: Sizes, language: torch.nn.Module, vae: torch.nn.Module) -> slow.Weights:
    """Random weights under the published names."""
    shapes = get_shapes(sizes)
    shapes |= {name: tuple(p.shape) for name, p in language.named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        scale = 1.0 if "embed_tokens" in name else 1.2 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        weights[name] = torch.randn(shape) * scale
        if "norm" in name and name.endswith("weight") or name.endswith(".2.weight") and "ground_head" in name:
            weights[name] = 1 + 0.2 * torch.randn(shape)
        if "pos_embed" in name or "cls_token" in name:
            weights[name] = 0.5 * torch.randn(shape)
    for name, parameter in vae.state_dict().items():
        weights[f"model.mm_pixel_decoder.pixel_decoder.{name}"] = parameter.clone()
    return weights


class Fabrication:
    """One set in the making."""

    def __init__(self, sizes: Sizes):
        torch.manual_seed(sizes.seed)
        self.sizes, self.out = sizes, Recorder(sizes)
        self.tokenizer = make_tokenizer(sizes.extra_tokens)
        self.special = dict(self.tokenizer.get_added_vocab())
        self.language_config = make_language_config(sizes, len(self.tokenizer))
        self.language = Qwen2ForCausalLM(self.language_config).eval()
        self.vae = AutoencoderKL(**make_vae_config()).eval().requires_grad_(False)
        self.weights = make_weights(sizes, self.language, self.vae)
        frozen = ("model.vision_tower", "model.mm_pixel_decoder")
        self.trained = [name for name in self.weights if not name.startswith(frozen)]
        self.voxel, self.low, self.high = 0.125, [-8, -8, -2], [8, 8, 4]
        self.betas, self.products = slow.get_schedule(sizes.diffusion_steps)

    def noise(self, *shape: int) -> torch.Tensor:
        """Normal numbers that a byte holds exactly."""
        return (torch.randn(shape) * 32).round().clamp(-127, 127) / 32

    def encode(self, text: str) -> list[int]:
        return [SLOT if t == self.special["<image>"] else t for t in self.tokenizer.encode(text)]

    # Inputs

    def make_scene(self) -> None:
        sizes, factor = self.sizes, 4
        small = sizes.image // factor
        self.images_small = torch.randint(0, 256, (sizes.views, small, small, 3), dtype=torch.uint8)
        self.bev_small = torch.randint(1, 256, (2 * sizes.bev_grid, 2 * sizes.bev_grid, 3), dtype=torch.uint8)
        self.bev_small[: sizes.bev_grid] = 0
        margin = 0.0
        while margin < 5e-4:
            slope = torch.rand(sizes.views, 1, 1, 3) * 6 - 3
            ramp = torch.stack(torch.meshgrid(*[torch.linspace(-0.5, 0.5, small)] * 2, indexing="ij"), dim=-1)
            ramp = torch.cat([ramp, ramp.sum(dim=-1, keepdim=True)], dim=-1)
            world = (
                slope * ramp + torch.rand(sizes.views, 1, 1, 3) * 3 + 0.1 * torch.randn(sizes.views, small, small, 3)
            )
            self.world_small = world.half()
            self.world = self.world_small.float().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            self.coords = slow.average_cells(self.world, sizes.patch)
            steps = (self.coords - torch.tensor(self.low)) / self.voxel
            margin = (steps - steps.floor() - 0.5).abs().min().item()
        boxes = torch.cat([torch.rand(sizes.objects, 3) * 3, torch.rand(sizes.objects, 3) * 3 + 0.5], dim=1)
        self.boxes = (boxes * 64).round() / 64
        self.boxes[-1, :3] = 7.0
        self.point = self.boxes[0, :3].clone()
        self.pixels = ((self.images_small.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).repeat_interleave(factor, 2)
        self.pixels = self.pixels.repeat_interleave(factor, 3).contiguous()
        self.bev = (self.bev_small.permute(2, 0, 1)[None] / 255).repeat_interleave(8, 2).repeat_interleave(8, 3)
        add = self.out.add
        add("inputs", "images_small", self.images_small, "nearest x4")
        add("inputs", "bev_small", self.bev_small, "nearest x8")
        add("inputs", "world_coords_small", self.world_small, "nearest x4")
        add("inputs", "objects", self.boxes)
        add("inputs", "box_input", self.point)
        self.out.note(
            "inputs", image_upsample=factor, world_coords_upsample=factor, bev_upsample=8, voxel_rounding_margin=margin
        )

    def get_labels(self, ids: list[int], answer_from: int) -> list[int]:
        """The published rule: the assistant's turn, and structure marks everywhere."""
        marks = {self.encode("\n")[0], self.special["<|im_start|>"], self.special["<|im_end|>"]}
        return [token if place >= answer_from or token in marks else IGNORED for place, token in enumerate(ids)]

    def make_row(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Training ids and labels, the views one slot."""
        prompt = self.encode(f"{SYSTEM}<image>\n{INSTRUCTION}\n{question}<|im_end|>\n")
        ids = prompt + self.encode(f"{ASSISTANT}{answer}<|im_end|>\n")
        return ids, self.get_labels(ids, len(prompt))

    def make_texts(self) -> None:
        self.rows, self.prompts = {}, {}
        for task, (question, answer) in QUESTIONS.items():
            ids, labels = self.make_row(question, answer)
            self.rows[task] = (ids, labels)
            self.prompts[task] = self.encode(f"{SYSTEM}<image>\n{question}<|im_end|>\n{ASSISTANT}")
            for name, values in {"train_ids": ids, "train_labels": labels, "eval_ids": self.prompts[task]}.items():
                self.out.add("inputs", f"{task}_{name}", torch.tensor([values]))
            user = f"<image>\n{INSTRUCTION}\n{question}"
            raw = f"<image>{question}"
            texts = {"train_user_text": user, "answer_text": answer, "raw_user_text": raw}
            self.out.note("inputs", **{f"{task}_{name}": text for name, text in texts.items()})
        ids = self.prompts["ground"] + self.encode("<ground><|im_end|>\n")
        self.out.add("inputs", "ground_eval_ref_ids", torch.tensor([ids]))
        labels = [token if token == self.special["<ground>"] else IGNORED for token in ids]
        self.out.add("inputs", "ground_eval_ref_labels", torch.tensor([labels]))

    # Vision and geometry

    def record_geometry(self) -> None:
        sizes, out = self.sizes, self.out
        voxels = slow.get_voxels(self.coords, self.low, self.high, self.voxel)
        self.positions = slow.get_sinusoid(voxels, sizes.hidden).flatten(1, 2)
        out.add("coord_pe", "avg", self.coords)
        out.add("coord_pe", "discrete", voxels)
        points = torch.randn(1, 9, 3) * 6
        ties = torch.arange(-20, 20).view(1, -1, 1).expand(1, 40, 3) * self.voxel / 2
        for name, values in {"points": points, "ties": ties.contiguous()}.items():
            out.add("coord_pe", name, values)
            out.add("coord_pe", f"{name}_discrete", slow.get_voxels(values, self.low, self.high, self.voxel))
        places = torch.randint(0, 200, (1, 7, 3)).float()
        out.add("coord_pe", "pe_input", places)
        widths = [sizes.hidden, 40, 41]
        for width in widths:
            chosen = [0, 2, 5] if width == 41 else list(range(7))
            desc = "PE of pe_input[:, [0,2,5]]" if width == 41 else "PE of pe_input"
            out.add("coord_pe", f"pe_{width}", slow.get_sinusoid(places[:, chosen], width), desc)
        out.thin("coord_pe", "pe_frames", self.positions, 1, 3)
        for kind, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
            out.add("coord_pe", f"avg_{kind}", self.coords.to(dtype).float())
            out.add("coord_pe", f"discrete_{kind}", voxels)
            out.add("coord_pe", f"points_discrete_{kind}", points.to(dtype).float())
        out.note("coord_pe", voxel_size=self.voxel, min_xyz=self.low, max_xyz=self.high, sizes=widths)

        self.patches = slow.assign(self.world, self.boxes, sizes.patch)
        centres = slow.get_voxels(self.boxes[:, :3], self.low, self.high, self.voxel)
        self.centre_embedding = slow.get_sinusoid(centres, sizes.hidden)
        pooled = slow.pool_objects(self.projected, self.patches)
        out.add("objects", "object_patch", self.patches)
        out.add("objects", "center_discrete", centres)
        out.add("objects", "center_pe", self.centre_embedding)
        out.add("objects", "pooled", pooled)
        out.add("objects", "object_features", pooled + self.centre_embedding)
        counts = self.patches.flatten(1).sum(dim=1).tolist()
        out.note("objects", patches_per_object=counts, threshold_pixels=int(sizes.patch**2 * 0.5))

    def run_vision(self, weights: slow.Weights) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected patches (V, p * p, D) and pooled tokens (V, g * g, D); the frozen tower runs once."""
        projected = slow.project(weights, self.tower)
        return projected, slow.pool(projected, self.sizes.grid)

    def record_vision(self) -> None:
        out, sizes = self.out, self.sizes
        tower = slow.run_tower(self.weights, self.pixels, sizes.patch, sizes.vision_layers, sizes.vision_heads, 1e-6)
        self.tower = tower
        self.projected, self.pooled = self.run_vision(self.weights)
        out.add("vision", "pixel_values_crop", self.pixels[:, :, 10:17, 12:20], "images[:, :, 10:17, 12:20]")
        out.add("vision", "tower", tower[:1])
        out.thin("vision", "tower_last", tower[-1:], 1, 7)
        out.thin("vision", "projector", self.projected[:1], 1, 2)
        out.thin("vision", "pooled", self.pooled[[0, -1]], 1, sizes.stride)
        sums = {}
        for name, tensor in {"tower": tower, "projector": self.projected, "pooled": self.pooled}.items():
            sums[name] = tensor.double().sum().item()
            sums[f"{name}_abs"] = tensor.double().abs().sum().item()
        out.note("vision", frames=[0, sizes.views - 1], all_frames_sum=sums, pooled_stride=sizes.stride)

    # Language model

    def embed(self, weights: slow.Weights, ids: list[int], hidden: list[int], coord: bool = False) -> torch.Tensor:
        _, pooled = self.run_vision(weights)
        mark = (self.special["<coord>"], self.point_embedding) if coord else None
        return slow.embed_row(weights, ids, SLOT, pooled, self.positions, hidden, mark)

    def locate(self, ids: list[int]) -> dict:
        """Where the views of a row stand."""
        grid, first = self.sizes.grid, ids.index(SLOT)
        view = grid * (grid + 1)
        boi = [first + view * number for number in range(self.sizes.views)]
        newlines = [first + grid + (grid + 1) * number for number in range(grid * self.sizes.views)]
        return {"boi": boi, "eoi": [start + view - 2 for start in boi], "newlines": newlines, "view": view}

    def expand_labels(self, task: str) -> torch.Tensor:
        ids, labels = self.rows[task]
        view = self.sizes.grid * (self.sizes.grid + 1) * self.sizes.views
        out = []
        for token, label in zip(ids, labels, strict=True):
            out += [IGNORED] * view if token == SLOT else [label]
        return torch.tensor([out])

    def choose_hidden(self, numbers: torch.Tensor) -> list[int]:
        keep = int(self.sizes.views * (1 - self.sizes.mask_ratio))
        order = sorted(range(self.sizes.views), key=lambda view: float(numbers[view]))
        return sorted(order[keep:])

    def record_embeddings(self) -> None:
        out, sizes = self.out, self.sizes
        self.point_embedding = slow.get_sinusoid(
            slow.get_voxels(self.point, self.low, self.high, self.voxel), sizes.hidden
        )
        ids = self.rows["qa"][0]
        where = self.locate(ids)
        plain, labels = self.embed(self.weights, ids, []), self.expand_labels("qa")
        rows = torch.arange(0, plain.shape[1], sizes.stride)
        out.add("embed_plain", "rows", rows)
        out.add("embed_plain", "inputs_embeds", plain[:, rows])
        out.add("embed_plain", "labels", labels)
        out.add("embed_plain", "attention_mask", torch.ones_like(labels, dtype=torch.uint8))
        spans = {"boi": where["boi"], "eoi": where["eoi"]}
        newlines = where["newlines"]
        out.note(
            "embed_plain", **spans, seq_len=plain.shape[1], newline_first=newlines[:5], newline_last=newlines[-1],
            n_newline=len(newlines), mask=[0.0] * sizes.views,
        )  # fmt: skip
        numbers = torch.rand(sizes.views)
        hidden = self.choose_hidden(numbers)
        mask = [float(view in hidden) for view in range(sizes.views)]
        masked = self.embed(self.weights, ids, hidden)
        first, last = where["boi"][0], where["eoi"][-1] + 2
        order = numbers.argsort()
        out.add("embed_masked", "noise", numbers)
        out.add("embed_masked", "ids_shuffle", order)
        out.add("embed_masked", "ids_restore", order.argsort())
        out.add("embed_masked", "mask", torch.tensor(mask))
        out.add("embed_masked", "image_span", masked[:, first : last : sizes.stride], "stride in scalars")
        out.note(
            "embed_masked", **spans, mask_ratio=sizes.mask_ratio, len_keep=sizes.views - len(hidden),
            len_mask=len(hidden), frames=sizes.views, image_span_stride=sizes.stride, span=[first, last], mask=mask,
        )  # fmt: skip
        ids = self.rows["cap"][0]
        coord = self.embed(self.weights, ids, [], coord=True)
        first, length = ids.index(SLOT), where["view"] * sizes.views
        text = torch.cat([coord[:, :first], coord[:, first + length :]], dim=1)
        out.add("embed_coord", "text_embeds", text)
        out.add("embed_coord", "labels", self.expand_labels("cap"))
        out.add("embed_coord", "coord_pe", self.point_embedding[None])
        place = [token for token in ids if token != SLOT].index(self.special["<coord>"])
        out.note("embed_coord", text_rows=[0, first, first + length, coord.shape[1]], coord_rows_in_text=[place])

    def record_language(self) -> None:
        out = self.out
        outputs = slow.run_language(self.weights, self.language, self.embed(self.weights, self.rows["qa"][0], []))
        labels = self.expand_labels("qa")[0]
        rows = torch.arange(1, len(labels), 11)
        out.add("llm", "rows", rows)
        out.add("llm", "logits", outputs.logits[0, rows])
        out.add("llm", "final_hidden_rows", outputs.hidden_states[-1][0, rows])
        out.add("llm", "layer1_hidden_rows", outputs.hidden_states[1][0, rows][::3], "layer 0 at rows[::3]")
        loss = slow.compute_text_loss(outputs.logits[0], labels).item()
        logits = outputs.logits.double()
        out.note(
            "llm", loss=loss, lm_loss=loss, vm_loss=None, bev_loss=None, n_supervised=int((labels[1:] >= 0).sum()),
            logits_double_sum=logits.sum().item(), logits_abs_mean=logits.abs().mean().item(), seq_len=len(labels),
        )  # fmt: skip
        for case, task, count in (("generate", "qa", 5), ("generate_coord", "cap", 4)):
            ids, scores = list(self.prompts[task]), []
            for _ in range(count):
                embeds = self.embed(self.weights, ids, [], coord=task == "cap")
                scores.append(slow.run_language(self.weights, self.language, embeds).logits[0, -1])
                ids.append(int(scores[-1].argmax()))
            tokens = ids[-count:]
            top = torch.stack(scores).topk(2).values
            out.add(case, "tokens", torch.tensor([tokens]))
            out.add(case, "scores", torch.stack(scores))
            out.note(
                case, prompt=f"inputs:{task}_eval_ids", min_top2_gap=(top[:, 0] - top[:, 1]).min().item(),
                max_new_tokens=count, eos_disabled=True, tokens=tokens,
            )  # fmt: skip

    # Training steps

    def get_trained_weights(self) -> slow.Weights:
        return {
            name: tensor.clone().requires_grad_() if name in self.trained else tensor
            for name, tensor in self.weights.items()
        }

    def record_gradients(self, case: str, prefix: str, weights: slow.Weights, loss: torch.Tensor, full: list[str]):
        loss.backward()
        gradients = {name: weights[name].grad for name in self.trained}
        norms = {name: g.double().norm().item() for name, g in gradients.items() if g is not None}
        unused = [name for name in self.trained if name not in norms]
        self.out.note(case, **{f"{prefix}grad_norms": norms, f"{prefix}no_grad_params": unused})
        for name in full:
            self.out.add(case, f"{prefix}grad.{name}", gradients[name])
        return gradients

    def record_grounding(self) -> None:
        out, sizes, ids = self.out, self.sizes, self.rows["ground"][0]
        targets = {"single": [1], "multi": [0, sizes.objects - 2], "zero": []}
        for kind, marked in targets.items():
            weights = self.get_trained_weights()
            states, scores, parts = self.score(weights, ids)
            loss = slow.compute_grounding_loss(scores, marked, 0.1)
            full = ["model.image_newline", "ground_head_zero_target", "model.mm_projector.0.bias"]
            self.record_gradients("grounding", f"{kind}.", weights, loss, full)
            out.add("grounding", f"scores_{kind}", scores)
            out.note("grounding", **{
                f"loss_{kind}": loss.item(), f"box_labels_{kind}": [marked], f"vm_loss_{kind}": None,
                f"bev_loss_{kind}": None, f"box_labels_{kind}_after_call": [marked or [-1]],
            })  # fmt: skip
        place = self.locate(ids)["view"] * sizes.views - 1 + ids.index(self.special["<ground>"])
        for name, tensor in parts.items():
            out.add("grounding", name, tensor)
        with torch.no_grad():
            ids = self.prompts["ground"] + self.encode("<ground><|im_end|>\n")
            out.add("grounding", "scores_eval", self.score(self.weights, ids)[1])
        out.note("grounding", temperature=0.1, ground_position=place, seq_len=states.shape[1], loss_eval=0.0)

    def score(self, weights: slow.Weights, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """Output states, scores (K + 1,) and the parts that lead to them."""
        projected, _ = self.run_vision(weights)
        states = slow.run_language(weights, self.language, self.embed(weights, ids, [])).hidden_states[-1]
        place = self.locate(ids)["view"] * self.sizes.views - 1 + ids.index(self.special["<ground>"])
        features = slow.pool_objects(projected, self.patches) + self.centre_embedding
        candidates = torch.cat([features, weights["ground_head_zero_target"][None]])
        known = slow.run_grounding_mlp(weights, "ground_head_obj", candidates)
        query = slow.run_grounding_mlp(weights, "ground_head_query", states[0, place][None])
        parts = {"ground_hidden": states[0, place][None], "obj_feat": known, "query_feat": query,
                 "object_features": candidates}  # fmt: skip
        return states, known @ query[0], parts

    def get_context(self, weights: slow.Weights, hidden: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text loss, normalised states (n, g * g, D) of the kept views, all output states."""
        ids, grid = self.rows["qa"][0], self.sizes.grid
        outputs = slow.run_language(weights, self.language, self.embed(weights, ids, hidden))
        states = outputs.hidden_states[-1]
        kept = []
        for view, start in enumerate(self.locate(ids)["boi"]):
            rows = [states[0, start + row * (grid + 1) : start + row * (grid + 1) + grid] for row in range(grid)]
            if view not in hidden:
                kept.append(slow.norm(torch.cat(rows), 1e-5))
        loss = slow.compute_text_loss(outputs.logits[0], self.expand_labels("qa")[0])
        return loss, torch.stack(kept), states

    def encode_pictures(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(pictures.contiguous()).latent_dist
        return posterior.mean, posterior.logvar

    def get_target(self, mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor, grid: int) -> torch.Tensor:
        latents = (mean + (0.5 * logvar).exp() * noise - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return slow.fold(slow.resize(latents, 2 * grid) if latents.shape[-1] != 2 * grid else latents)

    def get_errors(self, weights, branch: str, target, noise, timesteps, context) -> dict[str, torch.Tensor]:
        condition = slow.pool_condition(weights, branch, context.flatten(0, 1), self.sizes.denoiser_heads)
        noisy = slow.add_noise(target, noise, timesteps, self.products)
        guess = slow.denoise(weights, branch, noisy, timesteps, condition, self.sizes.depth, self.sizes.denoiser_heads)
        return {"condition": condition, "guess": guess, "errors": (noise - guess).square()}

    def record_reconstruction(self) -> None:
        out, sizes = self.out, self.sizes
        numbers = torch.rand(sizes.views)
        hidden = self.choose_hidden(numbers)
        mask = [float(view in hidden) for view in range(sizes.views)]
        weights = self.get_trained_weights()
        lm_loss, context, states = self.get_context(weights, hidden)
        # Masked views.
        pictures = slow.resize(self.pixels[hidden].clamp(-1, 1), sizes.decode)
        mean, logvar = self.encode_pictures(pictures)
        repeat = sizes.views // len(hidden)
        draw = self.noise(*mean.shape)
        target = self.get_target(mean, logvar, draw, sizes.grid)
        timesteps = torch.randint(0, self.sizes.diffusion_steps, (len(hidden) * repeat,))
        noise = self.noise(len(timesteps), *target.shape[1:])
        view = self.get_errors(weights, "view", target.repeat(repeat, 1, 1, 1), noise, timesteps, context)
        vm_loss = view["errors"].mean()
        out.add("recon_view", "mask_noise", numbers)
        out.add("recon_view", "mask", torch.tensor(mask))
        out.thin("recon_view", "final_hidden", states, 1, sizes.stride)
        grid = context.transpose(1, 2).unflatten(2, (sizes.grid, sizes.grid))
        out.thin("recon_view", "context", grid, 1, 3)
        out.add("recon_view", "vae_input_crop", pictures[:, :, 5:14, 20:31], "crop [5:14,20:31]")
        out.thin("recon_view", "posterior_mean", mean, 1, 2)
        out.thin("recon_view", "posterior_logvar", logvar, 1, 2)
        out.add("recon_view", "posterior_noise", draw, PACKED)
        out.add("recon_view", "z_q", target)
        out.add("recon_view", "t", timesteps)
        out.add("recon_view", "noise", noise, PACKED)
        out.add("recon_view", "pooled_condition", view["condition"])
        out.add("recon_view", "denoiser_out", view["guess"][:, :: sizes.stride], "channel stride in scalars")
        out.thin("recon_view", "loss_elements", view["errors"], 1, 5)
        where = self.locate(self.rows["qa"][0])
        out.note(
            "recon_view", vm_loss=vm_loss.item(), mask=mask, repeat_factor=repeat, decode_image_size=sizes.decode,
            image_embed_len=sizes.grid**2, scaling_factor=self.vae.config.scaling_factor,
            shift_factor=self.vae.config.shift_factor, num_timesteps=self.sizes.diffusion_steps, boi=where["boi"],
            eoi=where["eoi"], newline_ids=where["newlines"], vae_input_shape=list(pictures.shape),
            pool_input_shape=[1, 2, 3], denoiser_out_channel_stride=sizes.stride,
            loss_elements_sum=view["errors"].double().sum().item(),
        )  # fmt: skip
        # The bird's-eye picture.
        cells = (slow.resize(self.bev, sizes.bev_grid).mean(dim=1, keepdim=True) > 0).float()
        bev, bev_loss, mean, logvar = self.get_bev_loss(weights, context, cells)
        out.thin("recon_bev", "posterior_mean", mean, 1, 2)
        out.thin("recon_bev", "posterior_logvar", logvar, 1, 2)
        for name in ("posterior_noise", "noise"):
            out.add("recon_bev", name, bev[name], PACKED)
        out.add("recon_bev", "z_q", bev["target"])
        out.add("recon_bev", "t", bev["t"])
        out.add("recon_bev", "pooled_condition", bev["condition"][:, :: sizes.stride], "query stride in scalars")
        out.add("recon_bev", "denoiser_out", bev["guess"][:, :: sizes.stride], "channel stride in scalars")
        out.thin("recon_bev", "loss_elements", bev["errors"], 1, 4)
        out.add("recon_bev", "loss_mask", cells.to(torch.uint8))
        out.note(
            "recon_bev", bev_loss=bev_loss.item(), mask=mask, denoiser_out_channel_stride=sizes.stride,
            pooled_condition_query_stride=sizes.stride, loss_elements_sum=bev["errors"].double().sum().item(),
            loss_mask_cells=int(cells.sum()),
        )  # fmt: skip
        self.record_step("train_step", weights, lm_loss, vm_loss, bev_loss, global_step=8)

        weights = self.get_trained_weights()
        lm_loss, context, _ = self.get_context(weights, [])
        bev, bev_loss, *_ = self.get_bev_loss(weights, context, cells)
        for name in ("posterior_noise", "noise"):
            out.add("train_step_unmasked", name, bev[name], PACKED)
        out.add("train_step_unmasked", "t", bev["t"])
        out.thin("train_step_unmasked", "pooled_condition", bev["condition"], 1, 4)
        out.thin("train_step_unmasked", "denoiser_out", bev["guess"], 1, 3)
        self.record_step("train_step_unmasked", weights, lm_loss, torch.zeros(()), bev_loss, global_step=7)
        shape = [sizes.views, sizes.hidden, sizes.grid, sizes.grid]
        out.note("train_step_unmasked", mask=[0.0] * sizes.views, context_frames=shape)

    def get_bev_loss(self, weights, context, cells: torch.Tensor):
        """The parts of a bird's-eye step with new draws, its loss, and the teacher's posterior."""
        mean, logvar = self.encode_pictures(2 * self.bev - 1)
        draw = self.noise(*mean.shape)
        target = self.get_target(mean, logvar, draw, self.sizes.bev_grid)
        timesteps, noise = torch.randint(0, self.sizes.diffusion_steps, (1,)), self.noise(*target.shape)
        parts = self.get_errors(weights, "bev", target, noise, timesteps, context)
        parts |= {"posterior_noise": draw, "noise": noise, "t": timesteps, "target": target}
        counted = cells.expand_as(parts["errors"])
        return parts, (parts["errors"] * counted).sum() / counted.sum(), mean, logvar

    def record_step(self, case: str, weights, lm_loss, vm_loss, bev_loss, global_step: int) -> None:
        loss = lm_loss + vm_loss + bev_loss
        head = slow.HEAD
        full = ["model.image_newline", f"{head}t_embedder.mlp.2.bias", f"{head}z_embedder_bev.k.weight"]
        gradients = self.record_gradients(case, "", weights, loss, full)
        if case == "train_step":
            ids = [self.special["<|im_start|>"], 32, 64]
            rows = gradients["model.embed_tokens.weight"][ids]
            self.out.add(case, "grad_rows.embed_tokens", rows, "gradient rows [im_start, 32, 64] of embed_tokens")
            self.out.note(case, frozen_prefixes=["model.vision_tower", "model.mm_pixel_decoder"])
        self.out.note(
            case, loss=loss.item(), lm_loss=lm_loss.item(), vm_loss=vm_loss.item(), bev_loss=bev_loss.item(),
            global_step=global_step,
        )  # fmt: skip

    # Sampling, teacher, files

    def record_sampling(self) -> None:
        out, sizes, weights = self.out, self.sizes, self.weights
        context = out.add("sampling", "context", self.noise(3, sizes.hidden, sizes.grid, sizes.grid), PACKED)
        states = context.flatten(2).transpose(1, 2).flatten(0, 1)
        for name, table in {"betas": self.betas, "alphas_cumprod": self.products}.items():
            out.add("sampling", f"sched_{name}", table[::23].clone(), f"{name}[::23]")
            out.note("sampling", **{f"{name}_last": table[-4:].tolist()})
        out.note("sampling", clip_denoised=True, temperature=1.0, view_mid_steps=sizes.steps // 2)
        for branch, sections, temperature in (("view", [sizes.steps], 1.0), ("bev", [2, 1, 2], 0.6)):
            grid, steps = sizes.grid if branch == "view" else sizes.bev_grid, sum(sections)
            start = out.add("sampling", f"{branch}_x_T", self.noise(2, 32, grid, grid), PACKED)
            noises = out.add("sampling", f"{branch}_step_noise", self.noise(steps, 2, 32, grid, grid), PACKED)
            kept = slow.list_kept_timesteps(sizes.diffusion_steps, sections)
            runs = []
            for dtype in (torch.float32, torch.float64):
                cast = {name: tensor.to(dtype) for name, tensor in weights.items() if name.startswith(slow.HEAD)}
                condition = slow.pool_condition(cast, branch, states.to(dtype), sizes.denoiser_heads)

                def predict(x, t, cast=cast, condition=condition, branch=branch):
                    return slow.denoise(cast, branch, x.to(condition), t, condition, sizes.depth, sizes.denoiser_heads)

                runs.append(slow.sample(predict, start, noises, kept, self.products, temperature))
            (samples, cleans, betas), (exact, _, _) = runs
            out.add("sampling", f"{branch}_sample", samples[-1])
            out.add("sampling", f"{branch}_first_sample", samples[0][:, :5])
            out.add("sampling", f"{branch}_first_xstart", cleans[0][:, :5])
            if branch == "view":
                out.add("sampling", "view_mid_sample", samples[sizes.steps // 2 - 1])
            for stage, place in (("first", 0), ("final", -1)):
                errors = (samples[place] - exact[place]).abs().flatten()
                floor = {"max_abs": errors.max().item(), "p999": errors.quantile(0.999).item()}
                out.note("sampling", **{f"{branch}_{stage}_float32_vs_float64": floor})
            out.note("sampling", **{
                f"{branch}_respacing": ",".join(map(str, sections)), f"{branch}_timestep_map": kept,
                f"{branch}_betas": betas.tolist(), f"{branch}_temperature": temperature,
            })  # fmt: skip
        x = out.add("sampling", "direct_x", self.noise(3, 32, sizes.grid, sizes.grid), PACKED)
        timesteps = out.add("sampling", "direct_t", torch.tensor([0, 250, 499]))
        frequencies, embedding = slow.embed_timesteps(weights, timesteps)
        condition = slow.pool_condition(weights, "view", states, sizes.denoiser_heads)
        out.add("sampling", "direct_t_freq", frequencies)
        out.add("sampling", "direct_t_emb", embedding)
        out.thin(
            "sampling",
            "direct_out",
            slow.denoise(weights, "view", x, timesteps, condition, sizes.depth, sizes.denoiser_heads),
            1,
            3,
        )

    def record_teacher(self) -> None:
        out = self.out
        z = out.add("vae", "z", self.noise(1, 8, 3, 3), PACKED)
        out.add("vae", "decoded", self.vae.decode(z).sample)
        x = out.add("vae", "x", torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8))
        mean, logvar = self.encode_pictures(x / 127.5 - 1)
        out.add("vae", "mean", mean)
        out.add("vae", "logvar", logvar)
        out.note("vae", latent_dim_property=32)
        head, dim, side = slow.HEAD, self.sizes.denoiser, 7
        old = {
            "pos_embed": torch.randn(1, side**2, dim),
            "x_embedder.proj.weight": torch.randn(dim, 32, 1, 1),
            "x_embedder.proj.bias": torch.randn(dim),
            "z_embedder.weight": torch.randn(dim, self.sizes.hidden),
            "blocks.0.attn.proj.bias": torch.randn(dim),
        }
        for name, tensor in old.items():
            out.add("inv_adapter", f"old.{head}{name}", tensor)
        changed = ["net.blocks.0.attn.proj.bias"]
        table = old["pos_embed"].transpose(1, 2).reshape(1, dim, side, side)
        for branch, grid in (("view", self.sizes.grid), ("bev", self.sizes.bev_grid)):
            resized = slow.resize(table, grid).flatten(2).transpose(1, 2)
            out.thin("inv_adapter", f"new.net.pos_embed_{branch}", resized, 1, 3)
            changed += [f"net.pos_embed_{branch}"] + [f"net.x_embedder_{branch}.proj.{p}" for p in ("weight", "bias")]
        out.note("inv_adapter", old_side=side, changed=changed)

    def record_files(self) -> None:
        """Unprojection, preprocessing and training rows."""
        out, size = self.out, self.sizes.image
        poses, align = torch.stack([make_pose() for _ in range(3)]), make_pose()
        composed = (align @ poses).float()
        depth = torch.randint(400, 4000, (3, 9, 12), dtype=torch.int32)
        depth[0, :2] = 0
        intrinsic = make_intrinsic(12, 9)
        out.add("unproject", "depth", depth)
        for name, tensor in {"intrinsic": intrinsic, "poses": poses, "axis_align": align}.items():
            out.add("unproject", name, tensor)
        out.add("unproject", "composed_poses", composed)
        out.add("unproject", "world_coords", slow.unproject(depth, intrinsic, composed))

        rgb_height, rgb_width = self.sizes.rgb
        height, width = self.sizes.depth_map
        rgb = torch.randint(0, 256, (3, rgb_height // 4, rgb_width // 4, 3), dtype=torch.uint8)
        small = torch.randint(400, 4000, (3, height // 5, width // 5), dtype=torch.int32)
        bev = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8)
        boxes = torch.rand(4, 6) + 0.5
        out.add("preprocess", "rgb_small", rgb, "source frame = nearest x4")
        out.add("preprocess", "depth_small", small, "source depth = nearest x5")
        out.add("preprocess", "bev_src_small", bev, "source picture = nearest x6")
        intrinsic = make_intrinsic(width, height)
        given = {"poses": poses, "axis_align": align, "intrinsic": intrinsic, "objects": boxes}
        for name, tensor in given.items():
            out.add("preprocess", name, tensor)
        frames = np.stack([
            stretch_and_crop(np.repeat(np.repeat(view, 4, 0), 4, 1), int(width * size / height), size)
            for view in rgb.numpy()
        ])  # fmt: skip
        pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        out.add("preprocess", "frame_crop", torch.from_numpy(frames[:, 11:30, 20:35].copy()), "frames[:,11:30,20:35]")
        out.add("preprocess", "frame_corner", torch.from_numpy(frames[:, :9, :9].copy()))
        out.add("preprocess", "frame_corner_br", torch.from_numpy(frames[:, -9:, -9:].copy()))
        out.add("preprocess", "pixel_values_crop", pixels[:, :, 11:30, 20:35], "pixel_values[:,:,11:30,20:35]")
        depth = small.repeat_interleave(5, 1).repeat_interleave(5, 2)
        everything = slow.unproject(depth, intrinsic, composed)
        new_width = int(width * size / height)
        left = (new_width - size) // 2
        rows = torch.tensor([i * height // size for i in range(size)])
        columns = torch.tensor([i * width // new_width for i in range(left, left + size)])
        world = everything[:, rows][:, :, columns]
        out.add("preprocess", "world_coords_stride12", world[:, ::12, ::12], "world_coords[:, ::12, ::12]")
        out.add("preprocess", "world_coords_crop", world[0:1, 5:9, 20:31], "world_coords[0:1,5:9,20:31]")
        out.add("preprocess", "nearest_rows", rows.int())
        out.add("preprocess", "nearest_cols", columns.int())
        edges = [edge for axis in everything.flatten(0, 2).T for edge in (axis.min(), axis.max())]
        out.add("preprocess", "boundry", torch.stack(edges))
        bev_size = 16 * self.sizes.bev_grid
        bev_width = int(width * bev_size / height)
        picture = stretch_and_crop(np.repeat(np.repeat(bev.numpy(), 6, 0), 6, 1), bev_width, bev_size)
        chw = torch.from_numpy(picture.copy()).permute(2, 0, 1).contiguous()
        out.add("preprocess", "bev_stride8", chw[:, ::8, ::8], "[:, ::8, ::8]")
        out.add("preprocess", "bev_crop", chw[:, 12:20, 3:40], "[:,12:20,3:40]")
        plain = np.asarray(Image.fromarray(rgb[0].numpy()).resize((size, size), Image.Resampling.BICUBIC))
        stretched = (torch.from_numpy(plain.copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5
        out.add("preprocess", "processor_small_out_stride8", stretched[:, ::8, ::8], "[0,:, ::8, ::8]")
        processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": [size, size], "resample": 3,
                     "resample_name": "BICUBIC", "rescale_factor": 1 / 255,
                     "crop_size": {"height": size, "width": size}}  # fmt: skip
        shapes = {"images": [3, 3, size, size], "world_coords": [3, size, size, 3], "video_size": 3, "boundry": [6],
                  "objects": [4, 6], "bev_image": [1, 3, bev_size, bev_size]}  # fmt: skip
        out.note("preprocess", **{
            "frame_sha256": [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames],
            "frame_mean": [float(frame.mean()) for frame in frames],
            "frame_sampled_indices": [number * 10 // 3 for number in range(4)],
            "total_frames": 11,
            "resize_then_crop": {"new_width": new_width, "new_height": size, "left": left, "top": 0},
            "pixel_values_sum": pixels.double().sum().item(),
            "pixel_values_vs_(x/255-0.5)/0.5_max_abs": 0.0,
            "world_coords_dtype": "torch.float32",
            "world_coords_double_sum": world.double().sum().item(),
            "bev_sha256_chw_uint8": hashlib.sha256(chw.numpy().tobytes()).hexdigest(),
            "bev_resize_then_crop": {
                "new_width": bev_width, "new_height": bev_size, "left": (bev_width - bev_size) // 2
            },
            "video_size": 3, "keys": shapes, "image_processor": processor, "single_image_equals_list": True,
        })  # fmt: skip
        self.record_samples(shapes)

    def record_samples(self, shapes: dict) -> None:
        """Training rows of three kinds."""
        out = self.out
        asked = {
            "0_scanQA": ("<image> Is there a lamp? Answer simply.", "yes", {}, None),
            "1_scan2cap": (
                "<image> Describe what is at <coord> , in detail.", "A lamp.",
                {"box_input": [0.5, 1.25, 0, 1, 1, 1]}, None,
            ),
            "2_scanrefer": ("<image>Identify the object.\nThe lamp", "<ground>", {}, "2"),
            "3_multi3drefer": ("<image>Identify the objects.\nBoth lamps", "<ground>", {}, [0, 3]),
            "4_multi3drefer": ("<image>Identify the objects.\nA horse", "<ground>", {}, []),
        }  # fmt: skip
        for name, (human, answer, extra, target) in asked.items():
            ids, labels = self.make_row(human.replace("<image>", ""), answer)
            out.add("dataset_samples", f"{name}.input_ids", torch.tensor([ids]))
            out.add("dataset_samples", f"{name}.labels", torch.tensor([labels]))
            turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
            metadata = {} if target is None else {"object_id": target}
            asking = f"{SYSTEM}<image>\n{INSTRUCTION}\n{human.replace('<image>', '')}<|im_end|>\n"
            marked = None if target is None else [[int(target)] if isinstance(target, str) else target]
            points = [extra["box_input"][:3]] if extra else []
            out.note("dataset_samples", **{name: {
                "raw": {"conversations": turns, "metadata": metadata, **extra}, "box_labels": marked,
                "use_object_proposals": target is not None, "image_sizes": [3], "images": [shapes["images"]],
                "video_dict": {
                    "box_input": [1, 3] if points else [0], "bev_image": shapes["bev_image"],
                    "world_coords": [1, *shapes["world_coords"]], "objects": [1, *shapes["objects"]],
                },
                "box_input": points, "decoded": f"{asking}{ASSISTANT}{answer}<|im_end|>\n",
            }})  # fmt: skip
            if name.startswith("0"):
                first = {"first_len": len(ids), "second_len": len(ids) + 7}
                out.note("dataset_samples", second_read_of_sample_0=first, task_lengths=[[0, 5]])

    def get_config(self) -> dict:
        sizes, language = self.sizes, self.language_config
        return {
            "weights_file": "weights.safetensors",
            "special_ids": self.special,
            "reference_config": {
                "vocab_size": language.vocab_size, "hidden_size": sizes.hidden, "intermediate_size": sizes.inter,
                "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
                "num_key_value_heads": sizes.kv_heads, "hidden_act": "silu", "rms_norm_eps": language.rms_norm_eps,
                "rope_theta": 1000000.0, "max_position_embeddings": 64, "tokenizer_model_max_length": 32768,
                "tie_word_embeddings": False, "mm_projector_type": "mlp2x_gelu",
                "world_position_embedding_type": "avg-discrete-sin3d", "voxel_size": self.voxel,
                "min_xyz_range": self.low, "max_xyz_range": self.high, "ground_head_temperature": 0.1,
                "ground_loss_scale": 1, "view_mask_ratio": sizes.mask_ratio, "view_mask_prob": 0.25,
                "decode_image_size": sizes.decode,
            },
            "vae_config": make_vae_config(),
            "siglip_config": {
                "hidden_size": sizes.vision, "intermediate_size": 2 * sizes.vision,
                "num_layers_kept": sizes.vision_layers, "num_attention_heads": sizes.vision_heads,
                "image_size": sizes.image, "patch_size": sizes.patch, "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
            "denoiser": {
                "x_channel": 32, "z_channel": sizes.hidden, "embed_dim": sizes.denoiser, "depth": sizes.depth,
                "num_heads": sizes.denoiser_heads, "mlp_ratio": 3.0,
                "n_patches_view": sizes.grid**2, "n_patches_bev": sizes.bev_grid**2,
                "attn_pool_heads": sizes.denoiser_heads, "noise_schedule": "cosine",
                "diffusion_steps": sizes.diffusion_steps, "learn_sigma": False,
                "predict": "epsilon",
            },
        }  # fmt: skip


def make_pose() -> torch.Tensor:
    """A random rigid matrix (4, 4), float64."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation * torch.linalg.det(rotation)
    pose[:3, 3] = torch.randn(3, dtype=torch.float64)
    return pose


def make_intrinsic(width: int, height: int) -> torch.Tensor:
    intrinsic = torch.eye(4, dtype=torch.float64)
    intrinsic[0, 0], intrinsic[1, 1] = 0.9 * width, 0.91 * width
    intrinsic[0, 2], intrinsic[1, 2] = (width - 1) / 2, (height - 1) / 2
    return intrinsic


def stretch_and_crop(picture: np.ndarray, width: int, size: int) -> np.ndarray:
    """Bicubic resize to `width` x `size`, then the middle square."""
    resized = np.asarray(Image.fromarray(picture).resize((width, size), Image.Resampling.BICUBIC))
    left = (width - size) // 2
    return np.ascontiguousarray(resized[:, left : left + size])


def fabricate_set(folder: Path, sizes: Sizes) -> Path:
    """Write a set of these sizes into `folder`/name."""
    made = Fabrication(sizes)
    made.make_scene()
    made.make_texts()
    with torch.no_grad():
        made.record_vision()
        made.record_geometry()
        made.record_embeddings()
        made.record_language()
    made.record_grounding()
    made.record_reconstruction()
    with torch.no_grad():
        made.record_sampling()
        made.record_teacher()
    made.record_files()
    made.out.write(folder / sizes.name, made.get_config(), made.weights, made.tokenizer)
    return folder / sizes.name
