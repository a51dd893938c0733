"""Published weight names and ours: one table, used in both directions.

`*` matches a layer number or the rest of a name. Names that begin with `teacher.` are in the diffusers folder
`teacher/` of our checkpoint, not among its weights.
"""

import re
from collections.abc import Iterable
from math import isqrt

import torch
from torch.nn import functional as F


TOWER_PREFIX, TEACHER_PREFIX = "model.vision_tower.vision_tower.", "model.mm_pixel_decoder.pixel_decoder."
DISTILLATION_PREFIX = "model.proj_3d."
KEY_TABLE: tuple[tuple[str, str], ...] = (
    ("model.mask_token", "model.mask_token"),
    ("model.image_newline", "model.image_newline"),
    ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
    ("model.layers.*", "model.language_model.layers.*"),
    ("model.norm.weight", "model.language_model.norm.weight"),
    ("lm_head.weight", "lm_head.weight"),
    (f"{TOWER_PREFIX}vision_model.*", "model.vision_tower.*"),
    ("model.mm_projector.0.*", "model.multi_modal_projector.linear_1.*"),
    ("model.mm_projector.2.*", "model.multi_modal_projector.linear_2.*"),
    (f"{TEACHER_PREFIX}*", "teacher.*"),
    ("model.mm_inv_projector.net.pos_embed_view", "reconstruction_head.view_embedding.position_embedding"),
    ("model.mm_inv_projector.net.pos_embed_bev", "reconstruction_head.bev_embedding.position_embedding"),
    ("model.mm_inv_projector.net.x_embedder_view.proj.*", "reconstruction_head.view_embedding.proj.*"),
    ("model.mm_inv_projector.net.x_embedder_bev.proj.*", "reconstruction_head.bev_embedding.proj.*"),
    ("model.mm_inv_projector.net.z_embedder_view.cls_token", "reconstruction_head.view_pooler.queries"),
    ("model.mm_inv_projector.net.z_embedder_view.proj.1.*", "reconstruction_head.view_pooler.state_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_view.k.*", "reconstruction_head.view_pooler.k_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_view.v.*", "reconstruction_head.view_pooler.v_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_view.linear.*", "reconstruction_head.view_pooler.out_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_bev.cls_token", "reconstruction_head.bev_pooler.queries"),
    ("model.mm_inv_projector.net.z_embedder_bev.proj.1.*", "reconstruction_head.bev_pooler.state_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_bev.k.*", "reconstruction_head.bev_pooler.k_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_bev.v.*", "reconstruction_head.bev_pooler.v_proj.*"),
    ("model.mm_inv_projector.net.z_embedder_bev.linear.*", "reconstruction_head.bev_pooler.out_proj.*"),
    ("model.mm_inv_projector.net.t_embedder.mlp.0.*", "reconstruction_head.denoiser.timestep_embedding.linear_1.*"),
    ("model.mm_inv_projector.net.t_embedder.mlp.2.*", "reconstruction_head.denoiser.timestep_embedding.linear_2.*"),
    ("model.mm_inv_projector.net.blocks.*.attn.qkv.*", "reconstruction_head.denoiser.blocks.*.attention.qkv_proj.*"),
    ("model.mm_inv_projector.net.blocks.*.attn.proj.*", "reconstruction_head.denoiser.blocks.*.attention.out_proj.*"),
    ("model.mm_inv_projector.net.blocks.*.mlp.*", "reconstruction_head.denoiser.blocks.*.mlp.*"),
    (
        "model.mm_inv_projector.net.blocks.*.adaLN_modulation.1.*",
        "reconstruction_head.denoiser.blocks.*.modulation.*",
    ),
    (
        "model.mm_inv_projector.net.final_layer.adaLN_modulation.1.*",
        "reconstruction_head.denoiser.final_layer.modulation.*",
    ),
    ("model.mm_inv_projector.net.final_layer.linear.*", "reconstruction_head.denoiser.final_layer.linear.*"),
    (f"{DISTILLATION_PREFIX}0.*", "distillation_head.linear_1.*"),
    (f"{DISTILLATION_PREFIX}2.*", "distillation_head.linear_2.*"),
    ("ground_head_zero_target", "grounding_head.no_target"),
    ("ground_head_obj.0.*", "grounding_head.proposal_mlp.linear_1.*"),
    ("ground_head_obj.2.*", "grounding_head.proposal_mlp.norm.*"),
    ("ground_head_obj.3.*", "grounding_head.proposal_mlp.linear_2.*"),
    ("ground_head_query.0.*", "grounding_head.query_mlp.linear_1.*"),
    ("ground_head_query.2.*", "grounding_head.query_mlp.norm.*"),
    ("ground_head_query.3.*", "grounding_head.query_mlp.linear_2.*"),
)

# Layers in the weights of 3DRS through which nothing passes.
IDLE_3DRS_KEYS = ("model.corres_linear.weight", "model.linear_dc.weight", "model.geometric_linear.weight")
# Published keys without a counterpart in ours, and why nothing is lost without them.
DROPPED_KEYS: tuple[tuple[str, str], ...] = (
    *((name, "never used by the code of 3DRS; saved for the conversion back") for name in IDLE_3DRS_KEYS),
    ("model.layers.*.self_attn.rotary_emb.inv_freq", "computed from rope_theta"),
    ("model.rotary_emb.inv_freq", "computed from rope_theta"),
    (f"{TOWER_PREFIX}vision_model.embeddings.position_ids", "0, 1, 2, ..."),
    (f"{TOWER_PREFIX}vision_model.head.*", "the tower's pooling head is not used"),
    (f"{TOWER_PREFIX}text_model.*", "SigLIP's text encoder is not used"),
    (f"{TOWER_PREFIX}logit_*", "SigLIP's text encoder is not used"),
)
VISION_LAYER = f"{TOWER_PREFIX}vision_model.encoder.layers."


def is_3drs(names: Iterable[str]) -> bool:
    """Whether published keys are those of 3DRS: with its projection of states, or its idle layers."""
    return any(name.startswith((DISTILLATION_PREFIX, *IDLE_3DRS_KEYS)) for name in names)


def explain_dropped(name: str, num_vision_layers: int) -> str | None:
    """The reason why a published key has no counterpart in ours, or None when it should have one.

    Args:
        name (`str`): a published key.
        num_vision_layers (`int`): layers of the tower that run; the published code deletes the layers after them.
    """
    if name.startswith(VISION_LAYER) and int(name.removeprefix(VISION_LAYER).split(".")[0]) >= num_vision_layers:
        return "the tower's last layer is not used"
    return next((reason for pattern, reason in DROPPED_KEYS if rename(name, pattern, pattern) is not None), None)


def rename(name: str, source: str, target: str) -> str | None:
    """A `name` that matches pattern `source`, rewritten by pattern `target`; None if it does not match."""
    pattern = "(.+)".join(re.escape(part) for part in source.split("*"))
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    parts = iter(found.groups())
    return "".join(next(parts) if piece == "*" else piece for piece in re.split(r"(\*)", target))


def to_ours(name: str) -> str | None:
    """Our name for a published key, or None when the table has none."""
    return next((new for source, target in KEY_TABLE if (new := rename(name, source, target)) is not None), None)


def to_published(name: str) -> str | None:
    """The published name for one of our keys, or None when the release has no such weight."""
    return next((new for source, target in KEY_TABLE if (new := rename(name, target, source)) is not None), None)


# The denoiser of the 2D model Ross has one branch, ours has two. Its names are the published ones without the branch.
INVERSE_PROJECTOR = "model.mm_inv_projector.net."


def get_short_name(name: str) -> str:
    """The name of a denoiser's weight without the prefix that it has in files."""
    return name.rpartition("mm_inv_projector.")[2].removeprefix("net.")


def adapt_denoiser_file(
    state_dict: dict[str, torch.Tensor], view_grid_size: int, bev_grid_size: int
) -> dict[str, torch.Tensor]:
    """Weights of a 2D-pretrained denoiser file (`mm_inv_projector.bin`) under our names, for both branches.

    Its position table is resized bilinearly to the grids of the views and of the bird's-eye picture; its picture
    embedding and condition embedding are copied to both branches. A condition embedding of another form has no
    counterpart in ours and is left out, as in the release; load the result with `strict=False`. Names that already
    have a branch are used unchanged.

    Args:
        state_dict: published names, with or without the leading `model.mm_inv_projector.`.
        view_grid_size, bev_grid_size (`int`): tokens along a side of a view and of the bird's-eye picture.

    Raises:
        ValueError: for a position table that is not of a square grid.
    """
    adapted = {}
    for name, tensor in state_dict.items():
        short = get_short_name(name)
        stem, _, rest = short.partition(".")
        if short == "pos_embed":
            for branch, grid_size in (("view", view_grid_size), ("bev", bev_grid_size)):
                key = to_ours(f"{INVERSE_PROJECTOR}pos_embed_{branch}")
                adapted[key] = resize_position_table(tensor, grid_size, name)
        else:
            branches = ("_view", "_bev") if stem in ("x_embedder", "z_embedder") else ("",)
            names = (f"{stem}{branch}.{rest}" if rest else short for branch in branches)
            keys = (to_ours(f"{INVERSE_PROJECTOR}{branch_name}") for branch_name in names)
            adapted |= {key: tensor for key in keys if key is not None}
    return adapted


def resize_position_table(table: torch.Tensor, grid_size: int, name: str) -> torch.Tensor:
    """A position table (1, g * g, C) -> (1, grid_size * grid_size, C), bilinear, corners not aligned."""
    side = isqrt(table.shape[1]) if table.dim() == 3 else 0
    if table.dim() != 3 or len(table) != 1 or side**2 != table.shape[1]:
        raise ValueError(
            f"{name}: expected a position table (1, g * g, channels), got {tuple(table.shape)}; check that it is the"
            " right file."
        )
    grid = table.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)
