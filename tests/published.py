"""Small checkpoints as the published code of Ross3D and of 3DRS saves them, made of random weights."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import make_config, make_teacher
from ross3d.tools.checkpoints.keys import to_published


MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<ground>", "<coord>")
HEADS = ("ground_head_", "model.mm_inv_projector.", "model.mm_pixel_decoder.", "model.mask_token")
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 3, "image_size": 20, "patch_size": 4, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
CONFIG = {
    "architectures": ["Ross3DQwenForCausalLM"], "model_type": "ross3d_qwen", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 300, "tokenizer_model_max_length": 400, "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
    "use_sliding_window": False, "sliding_window": 128, "mm_vision_tower": "tower", "mm_pixel_decoder": "vae",
    "mm_projector_type": "mlp2x_gelu", "voxel_size": 0.2, "min_xyz_range": [-9, -8, -4], "max_xyz_range": [9, 8, 4],
    "ground_head_temperature": 0.1, "view_mask_ratio": 0.4, "view_mask_prob": 0.3, "decode_image_size": 12,
    "image_embed_len": 9, "mm_hidden_size": 24, "mm_inv_hidden_size": 12, "use_cache": False, "torch_dtype": None,
}  # fmt: skip


# Weights that 3DRS adds, width 32 of the states: its projection, and three layers that nothing uses.
SHAPES_3DRS = {
    "model.proj_3d.0.weight": (40, 32), "model.proj_3d.0.bias": (40,),
    "model.proj_3d.2.weight": (28, 40), "model.proj_3d.2.bias": (28,),
    "model.corres_linear.weight": (32, 32), "model.linear_dc.weight": (8, 32), "model.geometric_linear.weight": (5, 6),
}  # fmt: skip
CONFIG_3DRS = {
    "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "ground_head_type": "infonce",
    "object_feature_type": "patch14-pe", "world_position_embedding_type": "avg-discrete-sin3d",
    "mm_newline_position": "grid", "mm_patch_merge_type": "spatial_unpad", "mm_vision_tower_lr": 2e-6,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
}  # fmt: skip
ONLY_ROSS3D = (
    "mm_pixel_decoder", "view_mask_ratio", "view_mask_prob", "decode_image_size", "image_embed_len",
    "mm_inv_hidden_size", "ground_head_temperature",
)  # fmt: skip


@dataclass
class Published:
    """A checkpoint on disk and the tensors it was made of, by published name."""

    folder: Path
    tensors: dict[str, torch.Tensor]

    @property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    def change_config(self, **changes) -> None:
        """Overwrite keys of its config.json; None removes them."""
        config = {key: value for key, value in (self.config | changes).items() if value is not None}
        (self.folder / "config.json").write_text(json.dumps(config))


def make_base_tokenizer(marks: Sequence[str] = MARKS, num_words: int = 256) -> PreTrainedTokenizerFast:
    """A token a byte, words up to `num_words` tokens, then the marks, as in Qwen2; `<ground>` and `<coord>` are
    ordinary tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"word{number}" for number in range(num_words - len(alphabet))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks if mark in MARKS[:4]])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks if mark in MARKS[4:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=MARKS[0], eos_token=MARKS[2], clean_up_tokenization_spaces=False
    )


def make_tensors(vocab_size: int, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """All weights of a small model and its VAE, by published name; the tower's last layer is gone, as published."""
    torch.manual_seed(seed)
    config = make_config(
        denoiser={"condition": "pooled", "hidden_size": 32, "num_attention_heads": 16, "num_pool_heads": 16},
    )
    config.text_config.vocab_size = vocab_size
    model = Ross3DForConditionalGeneration(config).to(dtype).state_dict()
    tensors = {to_published(name): tensor for name, tensor in model.items()}
    teacher = make_teacher(seed).to(dtype).state_dict()
    return tensors | {to_published(f"teacher.{name}"): tensor for name, tensor in teacher.items()}


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], kind: str, num_shards: int) -> None:
    """Write one file, or shards with an index, as safetensors or as `torch.save` does."""
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    save = save_file if kind == "safetensors" else torch.save
    if num_shards == 1:
        save(tensors, folder / f"{stem}.{suffix}")
        return
    where = {}
    for shard in range(num_shards):
        names = list(tensors)[shard::num_shards]
        file = f"{stem}-{shard + 1:05}-of-{num_shards:05}.{suffix}"
        save({name: tensors[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_published(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    kind: str = "safetensors",
    num_shards: int = 1,
    extra_rows: tuple[int, int] = (0, 0),
    marks: Sequence[str] = MARKS,
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> Published:
    """Write a checkpoint.

    Args:
        kind (`str`): `"safetensors"` or `"bin"`.
        extra_rows: rows of input and of output embeddings behind the tokens.
        marks: those that the tokenizer knows.
        leave_out: beginnings of keys that are not written.
    """
    folder.mkdir(parents=True)
    tokenizer = make_base_tokenizer(marks)
    tokenizer.save_pretrained(folder)
    tensors = make_tensors(len(tokenizer), dtype, seed)
    for name, rows in zip(("model.embed_tokens.weight", "lm_head.weight"), extra_rows, strict=True):
        tensors[name] = torch.cat([tensors[name], torch.rand(rows, tensors[name].shape[1]).to(dtype)])
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.startswith(tuple(leave_out))}
    save_tensors(folder, tensors, kind, num_shards)
    teacher = {key: value for key, value in make_teacher().config.items() if not key.startswith("_")}
    tokens = {f"{name}_token_ids": [tokenizer.convert_tokens_to_ids(f"<{name}>")] for name in ("ground", "coord")
              if f"<{name}>" in marks}  # fmt: skip
    for file, value in {
        "config.json": CONFIG | tokens,
        "tower/config.json": VISION,
        "vae/config.json": teacher,
    }.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(value))
    return Published(folder, tensors)


def write_published_3drs(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    kind: str = "safetensors",
    num_shards: int = 1,
    extra_rows: tuple[int, int] = (0, 0),
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> Published:
    """Write a checkpoint of 3DRS: grounding head, projection and idle layers, without denoiser, VAE and mask token.

    Args:
        as of `write_published`.
    """
    without = [head for head in HEADS if head != "ground_head_"]
    source = write_published(folder, dtype, kind, num_shards, extra_rows, leave_out=without, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    added = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES_3DRS.items()}
    tensors = {
        name: tensor for name, tensor in {**source.tensors, **added}.items() if not name.startswith(tuple(leave_out))
    }
    save_tensors(folder, tensors, kind, num_shards)
    shutil.rmtree(folder / "vae")
    source.change_config(**CONFIG_3DRS, **dict.fromkeys(ONLY_ROSS3D))
    return Published(folder, tensors)


def list_shapes_of_3drs() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the release, OliverHuang1998/3DRS: LLaVA-Video-7B-Qwen2, a grounding head, and what 3DRS
    adds."""
    width, inner, keys = 3584, 18944, 512
    shapes = {"model.embed_tokens.weight": (151649, width), "lm_head.weight": (151649, width)}
    shapes |= {"model.norm.weight": (width,), "model.image_newline": (width,)}
    layer = {
        "self_attn.q_proj.weight": (width, width), "self_attn.q_proj.bias": (width,),
        "self_attn.k_proj.weight": (keys, width), "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, width), "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (width, width), "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width), "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    shapes |= {f"model.layers.{index}.{name}": shape for index in range(28) for name, shape in layer.items()}
    vision, hidden = 1152, 4304
    tower = "model.vision_tower.vision_tower.vision_model."
    shapes |= {
        f"{tower}embeddings.patch_embedding.weight": (vision, 3, 14, 14),
        f"{tower}embeddings.patch_embedding.bias": (vision,),
        f"{tower}embeddings.position_embedding.weight": (729, vision),
        f"{tower}post_layernorm.weight": (vision,), f"{tower}post_layernorm.bias": (vision,),
    }  # fmt: skip
    linear = {f"self_attn.{name}": (vision, vision) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linear |= {"mlp.fc1": (hidden, vision), "mlp.fc2": (vision, hidden)}
    for index in range(26):
        start = f"{tower}encoder.layers.{index}."
        for name, shape in linear.items():
            shapes |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{start}{name}.weight": (vision,), f"{start}{name}.bias": (vision,)}
    squares = [f"ground_head_{side}.{index}" for side in ("obj", "query") for index in (0, 3)]
    matrices = dict.fromkeys(squares, (width, width)) | {"model.mm_projector.2": (width, width)}
    matrices |= {"model.mm_projector.0": (width, vision)}
    matrices |= {"model.proj_3d.0": (2 * width, width), "model.proj_3d.2": (2048, 2 * width)}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for side in ("obj", "query"):
        shapes |= {f"ground_head_{side}.2.weight": (width,), f"ground_head_{side}.2.bias": (width,)}
    shapes |= {"ground_head_zero_target": (width,), "model.corres_linear.weight": (width, width)}
    return shapes | {"model.linear_dc.weight": (112, width), "model.geometric_linear.weight": (5, 224)}
