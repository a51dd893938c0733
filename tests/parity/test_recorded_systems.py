"""Recorded tensors of the related systems (`systems/` of a set): every tensor is read or compared."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DVGGTConfig
from ross3d.distillation_ross3d import (
    compute_distillation_errors,
    pool_features,
)
from ross3d.geometry_ross3d import assign_tokens, pack_patches
from ross3d.grounding_ross3d import get_proposal_features
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.objectives_ross3d import Ross3DPredictionHead
from ross3d.tests.parity.golden import get_deviation, get_goldens_folder
from ross3d.vggt_ross3d import Ross3DVGGT, convert_published_weights, make_published_weights
from ross3d.views_ross3d import ViewPlaces


pytestmark = pytest.mark.parity

FOLDER = get_goldens_folder() / "systems"
TOLERANCE = 1e-5
WEIGHTS = "state_dict."


def list_files(kind: str) -> list:
    """The recordings of a kind, or a skipped entry."""
    files = [path for path in sorted(FOLDER.glob("*.json")) if path.stem.startswith(kind)]
    return files or [pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded {kind} in {FOLDER}"))]


class Recording:
    """A JSON file and the tensors of the safetensors file with its name; notes which tensors were used."""

    def __init__(self, file: Path):
        self.facts = json.loads(file.read_text())
        self.tensors = load_file(file.with_suffix(".safetensors"))
        self.used: set[str] = set()
        self.deviations: dict[str, float] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return self.tensors[name]

    def list_names(self, prefix: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(prefix)]

    def get_weights(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix(WEIGHTS): self[name] for name in self.list_names(WEIGHTS)}

    def compare(self, name: str, ours: torch.Tensor) -> None:
        wanted = self[name]
        assert ours.shape == wanted.shape, f"{name}: recorded {tuple(wanted.shape)}, ours {tuple(ours.shape)}"
        self.deviations[name] = get_deviation(ours, wanted)
        assert self.deviations[name] <= TOLERANCE, f"{name}: deviation {self.deviations[name]:.2g}"

    def close(self) -> None:
        """Fails if a tensor was neither read nor compared."""
        assert self.used == set(self.tensors), f"not compared: {sorted(set(self.tensors) - self.used)}"


# VGGT


def make_vggt(facts: dict, weights: dict[str, torch.Tensor]) -> Ross3DVGGT:
    config = facts["config"]
    model = Ross3DVGGT(
        Ross3DVGGTConfig(
            image_size=config["img_size"],
            patch_size=config["patch_size"],
            hidden_size=config["embed_dim"],
            vision_num_hidden_layers=config["vit_depth"],
            vision_num_attention_heads=config["vit_num_heads"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            num_register_tokens=config["num_register_tokens"],
            mlp_ratio=int(config["mlp_ratio"]),
            rope_theta=config["rope_freq"],
            camera_num_hidden_layers=config["cam_trunk_depth"],
            camera_num_attention_heads=config["cam_heads"],
            dense_layers=config["dpt_layers"],
            neck_hidden_sizes=config["dpt_out_channels"],
            fusion_hidden_size=config["dpt_features"],
        )
    )
    model.load_state_dict(convert_published_weights(weights))
    return model.eval()


def compare_vggt(recording: Recording, prefix: str, model: Ross3DVGGT, pictures: torch.Tensor) -> None:
    """All recorded tensors whose names begin with `prefix`."""
    depth = model.config.num_hidden_layers
    with torch.no_grad():
        output = model(pictures, layers=range(depth))
        patches = model.aggregator.embed_patches(pictures.flatten(0, 1))
    ours = {
        "patch_tokens": patches,
        "layer_last": output.features[-1],
        "extrinsic": output.world2cam[..., :3, :],
        "intrinsic": output.intrinsics,
        "depth": output.depth_maps[..., None],
        "depth_conf": output.depth_confidence,
        "world_points": output.world_coords,
        "world_points_conf": output.world_confidence,
    }
    ours |= {f"layer{layer}": features for layer, features in enumerate(output.features)}
    ours |= {f"pose_enc_iter{step}": encoding for step, encoding in enumerate(output.camera_encodings)}
    for name in recording.list_names(prefix):
        short = name.removeprefix(prefix)
        if short in ours:
            recording.compare(name, ours[short])


@pytest.mark.parametrize("file", list_files("vggt"))
def test_vggt(file, record_property):
    recording = Recording(file)
    weights, facts = recording.get_weights(), recording.facts
    model = make_vggt(facts, weights)
    back = make_published_weights(model.state_dict())
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    for case in range(len(facts["cases"])):
        compare_vggt(recording, f"case{case}.", model, recording[f"case{case}.images_u8"].float() / 255)
    pictures = recording["case0.images_u8"].float() / 255
    if "negfov_bias" in facts:
        # Raw encodings are fed back: with negative fields of view activated ones would differ.
        name = "camera_head.pose_branch.fc2.bias"
        changed = weights | {name: torch.cat([weights[name][:7], torch.tensor(facts["negfov_bias"])])}
        with torch.no_grad():
            encodings = make_vggt(facts, changed)(pictures).camera_encodings
        for step, encoding in enumerate(encodings):
            recording.compare(f"case0.pose_enc_negfov_iter{step}", encoding)
    if "small" in facts:
        # Small activations show the epsilons of the norms.
        rule = facts["small"]
        changed = {
            name: value * rule["scale"]
            if any(re.search(pattern, name.removeprefix("aggregator.")) for pattern in rule["params_regex"])
            and not name.startswith(("depth_head.", "point_head."))
            else value
            for name, value in weights.items()
        }
        compare_vggt(recording, "small.", make_vggt(facts, changed), recording[f"{rule['images']}.images_u8"] / 255)
    recording.close()
    record_property("compared", len(recording.deviations))
    record_property("worst", max(recording.deviations.values()))


# 3DRS


# Share of a token's points inside a box from which on the token sees it (3DRS).
TOKEN_SHARE = 0.125


def make_states_model(width: int) -> Ross3DForConditionalGeneration:
    """A model of one narrow layer with the published views, whose proposals are means of its output states."""
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Ross3DConfig(
        vision_config={**sizes, "image_size": 384, "patch_size": 14},
        text_config={**sizes, "num_key_value_heads": 1, "vocab_size": 8},
        image_token_id=1,
        ground_token_id=2,
        coord_token_id=3,
        proposal_pooling="states",
    )
    return Ross3DForConditionalGeneration(config).eval()


@pytest.mark.parametrize("file", list_files("rs3d"))
def test_distillation(file, record_property):
    recording = Recording(file)
    facts, weights = recording.facts, recording.get_weights()
    views, grid, row = facts["frames"], facts["grid"], facts["row_tokens"]
    first, width = facts["img_start"], facts["hidden_size"]
    names = {f"model.proj_3d.{place}.{kind}": f"linear_{place // 2 + 1}.{kind}"
             for place in (0, 2) for kind in ("weight", "bias")}  # fmt: skip
    head = Ross3DPredictionHead(width, len(weights["model.proj_3d.0.bias"]), facts["teacher_dim"])
    head.load_state_dict({names[name]: value for name, value in weights.items()})
    for case in facts["cases"]:
        length = case["L"]
        hidden = recording["hidden_states"].clone().requires_grad_()
        visual = hidden[0, first : first + facts["img_len"]]
        states = visual.unflatten(0, (views, grid, row))[:, :, :grid]
        features = recording[f"feature_3d_L{length}"].float().unflatten(1, case["grid"])
        loss = compute_distillation_errors(head(states), pool_features(features, (grid, grid))).mean()
        head.zero_grad()
        loss.backward()
        recording.compare(f"loss_L{length}", loss)
        recording.compare(f"grad_hidden_frame0_L{length}", hidden.grad[0, first : first + grid * row])
        recording.compare(f"grad_proj0_weight_L{length}", head.linear_1.weight.grad)
    cells = recording["object.world_grid42_x8_int"].float() / 8
    side = 27 * grid // cells.shape[1]
    # Pixels that no patch covers, along the right and lower edges, lie inside of the first box and do not count.
    boxes, size = recording["object.boxes"], 384
    world = boxes[:1, :3].expand(views, size, size, 3).clone()
    world[:, : 27 * grid, : 27 * grid] = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)
    model = make_states_model(width)
    placeholders = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    placeholders[:, first : first + facts["img_len"]] = True
    places = ViewPlaces(torch.ones(1, views, dtype=torch.bool), placeholders)
    visual_states = places.gather(hidden.detach(), model.model.views.layout)
    tokens = pack_patches(assign_tokens(world, boxes, 14, TOKEN_SHARE))[None]
    features, _ = get_proposal_features(model, None, boxes[None], None, None, visual_states, tokens)
    recording.compare("object.features", features[0])
    recording.close()
    record_property("compared", len(recording.deviations))
    record_property("worst", max(recording.deviations.values()))
