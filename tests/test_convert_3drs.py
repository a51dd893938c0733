"""Published checkpoints of 3DRS to ours and back: what they are recognised by, their tower, dead layers, refusals."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from ross3d import train
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.posed_views import make_views
from ross3d.tests.published import (
    HEADS,
    MARKS,
    SHAPES_3DRS,
    VISION,
    Published,
    list_shapes_of_3drs,
    save_tensors,
    write_published,
)
from ross3d.tests.published import write_published_3drs as write
from ross3d.tests.test_convert import EMBED, ROOT, check_same, make_siglip, read, run
from ross3d.tests.tiny import get_rooms
from ross3d.tools.checkpoints import files
from ross3d.tools.checkpoints.files import MadeTensor
from ross3d.tools.checkpoints.ingredients import VISION_TOWERS
from ross3d.tools.checkpoints.keys import IDLE_3DRS_KEYS, TOWER_PREFIX
from ross3d.tools.checkpoints.load import load_published
from ross3d.tools.checkpoints.plan import make_mask_token, plan_ours, plan_published
from ross3d.tools.checkpoints.published_config import get_distillation_settings, make_config
from ross3d.tools.make_tiny import make_tiny_geometry_encoder
from ross3d.training.arguments import read_run_arguments


SIGLIP = "siglip-so400m-patch14-384"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    return write(tmp_path_factory.mktemp("published") / "checkpoint")


@pytest.fixture(scope="module")
def ours(published, tmp_path_factory) -> Path:
    return run(published.folder, tmp_path_factory.mktemp("ours") / "checkpoint")


def get_records(folder: Path) -> list[dict]:
    return json.loads((folder / "conversion.json").read_text())["keys"]


# There and back


@pytest.mark.parametrize(
    ("kind", "num_shards", "dtype", "extra_rows"),
    [
        ("safetensors", 1, torch.float32, (0, 0)),
        ("safetensors", 3, torch.bfloat16, (7, 7)),
        ("bin", 2, torch.float16, (5, 0)),
    ],
)
def test_back_again_bit_for_bit(tmp_path, kind, num_shards, dtype, extra_rows):
    """Every tensor, the idle ones too, and the config."""
    source = write(tmp_path / "published", dtype, kind, num_shards, extra_rows, seed=num_shards)
    middle = run(source.folder, tmp_path / "ours", "--max-shard-size", "40KB")
    assert Ross3DForConditionalGeneration.from_pretrained(middle).dtype == dtype
    assert not IDLE_3DRS_KEYS & read(middle).keys()
    back = run(middle, tmp_path / "back", "--reverse")
    check_same(source.tensors, read(back))
    assert json.loads((back / "config.json").read_text()) == source.config
    check_same(read(middle), read(run(back, tmp_path / "again")))


def test_config_and_processor_are_those_of_3drs(published, ours):
    model = AutoModel.from_pretrained(ours, trust_remote_code=True)
    config, distillation = model.config, model.config.distillation_config
    assert config.denoiser_config is None and config.grounding and config.proposal_pooling == "mean"
    assert (distillation.head_hidden_size, distillation.feature_size) == (40, 28)
    assert (list(distillation.encoder_layers), distillation.student_layer) == ([-1], -1)
    assert (list(distillation.tasks), distillation.masked_views) == (["text", "grounding"], "exclude")
    assert (distillation.encoder_image_size, distillation.encoder_dtype) == (518, "autocast_bfloat16")
    assert (config.grounding_temperature, config.tie_word_embeddings) == (0.07, False)
    for layer, name in ((0, "linear_1"), (2, "linear_2")):
        for part in ("weight", "bias"):
            wanted = published.tensors[f"model.proj_3d.{layer}.{part}"]
            assert torch.equal(getattr(getattr(model.distillation_head, name), part), wanted)
    processor = AutoProcessor.from_pretrained(ours, trust_remote_code=True)
    assert (processor.geometry_mode, processor.view_fit, processor.label_rule) == ("published", "squash", "published")
    assert (processor.object_token_threshold, processor.object_patch_threshold) == (0.125, 0.5)
    assert processor.geometry_image_size is None and not processor.spatial_instruction


def test_a_converted_checkpoint_answers_chooses_and_distils(published, ours):
    """Its loss is that of the published projection; its scores need the language model's side of the proposals."""
    model = AutoModel.from_pretrained(ours, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(ours, trust_remote_code=True)
    inputs = processor(**make_views(), text="What stands here?")
    ids = model.generate(**inputs, max_new_tokens=3)
    assert ids.shape[1] > inputs["input_ids"].shape[1]
    scores = model.ground(**inputs)
    assert scores.shape == (1, 6) and torch.isfinite(scores).all()
    model.config.proposal_pooling = "vision"
    assert not torch.equal(model.ground(**inputs)[:, :-1], scores[:, :-1])
    features = torch.randn(1, 3, 1, 3, 3, 28, generator=torch.Generator().manual_seed(1))
    row = {key: value for key, value in inputs.items() if not key.startswith("proposal_")}
    loss = model(**row, geometry_features=features).distill_loss
    states = model.model(**row, return_dict=True).visual_states
    weights = [published.tensors[f"model.proj_3d.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    predicted = F.linear(F.gelu(F.linear(states, *weights[:2])), *weights[2:])
    wanted = 2 - 2 * F.cosine_similarity(predicted, features.flatten(2, 4), dim=-1).mean()
    torch.testing.assert_close(loss, wanted)


def test_what_the_release_says_of_ties_and_temperature(tmp_path):
    """A file that ties the embeddings is overruled, as in its own evaluation; a temperature is taken over."""
    source = write(tmp_path / "published")
    source.change_config(tie_word_embeddings=True, ground_head_temperature=0.2, vocab_size=999)
    model = Ross3DForConditionalGeneration.from_pretrained(run(source.folder, tmp_path / "ours"))
    assert model.config.grounding_temperature == 0.2 and not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, source.tensors["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    assert model.config.text_config.vocab_size == len(source.tensors[EMBED])


def test_the_report_names_the_idle_layers(ours, published, capsys):
    fates = {record["published"]: record["fate"] for record in get_records(ours)}
    assert fates.keys() == published.tensors.keys() | {"model.mask_token"}
    assert {name for name, fate in fates.items() if fate == "dropped"} == set(IDLE_3DRS_KEYS)
    assert {name for name, fate in fates.items() if fate == "generated"} == {"model.mask_token"}
    reasons = {record["reason"] for record in get_records(ours) if record["fate"] == "dropped"}
    assert reasons == {"never used by the code of 3DRS; saved for the conversion back"}
    assert "never used by the code of 3DRS" not in (ours / "config.json").read_text()


def test_without_what_was_saved_the_way_back_has_no_idle_layers(ours, published, tmp_path):
    shutil.copytree(ours, tmp_path / "own", ignore=shutil.ignore_patterns("published"))
    back = run(tmp_path / "own", tmp_path / "back", "--reverse")
    wanted = {name: tensor for name, tensor in published.tensors.items() if name not in IDLE_3DRS_KEYS}
    check_same(wanted, read(back))
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llava_qwen", ["LlavaQwenForCausalLM"])
    assert not [key for key in config if "ross" in key or "pixel" in key or "inv_proj" in key]
    dropped = {record["ours"]: record["reason"] for record in get_records(back) if record["fate"] == "dropped"}
    assert dropped == {"model.mask_token": "the published code of 3DRS masks no views"}
    check_same(read(ours), read(run(back, tmp_path / "again")))


def test_direct_loading_gives_the_converted_model(published, ours):
    direct, converted = load_published(published.folder), Ross3DForConditionalGeneration.from_pretrained(ours)
    check_same(converted.state_dict(), direct.state_dict())
    first, second = direct.config.to_dict(), converted.config.to_dict()
    assert {key for key in first if first[key] != second[key]} == {"_name_or_path"}


# The tower


def test_the_tower_is_never_that_of_a_folder_or_of_the_hub(tmp_path, monkeypatch):
    """Its config names a folder, which is there, in the checkpoint and where we stand, with other weights."""
    name = "data/models/siglip-tiny"
    monkeypatch.setitem(VISION_TOWERS, "siglip-tiny", {key: VISION[key] for key in VISION if key != "model_type"})
    monkeypatch.setattr(files, "snapshot_download", lambda *args, **more: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "published")
    source.change_config(mm_vision_tower=name)
    for place in (tmp_path, source.folder):
        make_siglip().save_pretrained(place / name)
    tower = Ross3DForConditionalGeneration.from_pretrained(run(source.folder, tmp_path / "ours")).model.vision_tower
    for key, tensor in tower.state_dict().items():
        assert torch.equal(tensor, source.tensors[f"{TOWER_PREFIX}vision_model.{key}"]), key


@pytest.mark.parametrize("options", [(), ("--vision-tower", "siglip")])
def test_a_checkpoint_without_tower_is_refused(tmp_path, options):
    source = write(tmp_path / "published", leave_out=(TOWER_PREFIX,))
    make_siglip().save_pretrained(source.folder / "tower")
    options = [tmp_path / word if word == "siglip" else word for word in options]
    make_siglip().save_pretrained(tmp_path / "siglip")
    message = r"published: expected the weights of the vision tower, model\.vision_tower\..*download its other files"
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours", *options)
    # The nearest that is right: Ross3D, which did not train its tower.
    other = write_published(tmp_path / "ross3d", leave_out=("model.vision_tower.",))
    run(other.folder, tmp_path / "ours", "--vision-tower", tmp_path / "siglip")


# Our own models


def change(ours: Path, folder: Path, **changes) -> Path:
    """A converted checkpoint with other values in its config.json, by section.key."""
    shutil.copytree(ours, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation_config": None}, "proposal_pooling: expected 'vision', the only value .*got 'mean'"),
        ({"proposal_pooling": "states"}, "proposal_pooling: expected 'vision', the only value .*got 'states'"),
        ({"distillation_config__student_layer": 1}, r"distillation_config.student_layer: expected -1, .*got 1"),
        ({"distillation_config__encoder_layers": [2]}, r"distillation_config.encoder_layers: expected \[-1\], .*got"),
    ],
)
def test_settings_that_no_published_code_has(ours, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(change(ours, tmp_path / "own", **changes), tmp_path / "back", "--reverse")


def test_a_projection_beside_published_proposals_is_left_out(ours, published, tmp_path):
    """Such a model answers as the code of Ross3D does, which has no projection and needs none."""
    back = run(change(ours, tmp_path / "own", proposal_pooling="vision"), tmp_path / "back", "--reverse")
    dropped = {record["ours"]: record["reason"] for record in get_records(back) if record["fate"] == "dropped"}
    assert dropped.keys() == {name for name in read(ours) if name.startswith("distillation_head.")}
    assert set(dropped.values()) == {"the published code of Ross3D distils nothing"}
    assert not [name for name in read(back) if name in SHAPES_3DRS]


def test_a_model_of_ross3d_that_became_one_of_3drs(tmp_path):
    """Its config is not that of Ross3D, and its denoiser stays behind."""
    source = run(write_published(tmp_path / "ross3d").folder, tmp_path / "ours")
    config = Ross3DForConditionalGeneration.from_pretrained(source).config.to_dict()
    sizes = {"head_hidden_size": 12, "feature_size": 20}
    own = change(source, tmp_path / "own", proposal_pooling="mean", distillation_config=sizes)
    width = config["text_config"]["hidden_size"]
    head = {"linear_1.weight": (12, width), "linear_1.bias": (12,)}
    head |= {"linear_2.weight": (20, 12), "linear_2.bias": (20,)}
    tensors = {f"distillation_head.{name}": torch.randn(shape) for name, shape in head.items()}
    save_file(read(source) | tensors, own / "model.safetensors")
    back = run(own, tmp_path / "back", "--reverse")
    settings = json.loads((back / "config.json").read_text())
    assert settings["model_type"] == "llava_qwen" and "mm_pixel_decoder" not in settings
    assert not [name for name in read(back) if name.startswith(HEADS) and not name.startswith("ground_head_")]
    again = Ross3DForConditionalGeneration.from_pretrained(run(back, tmp_path / "again"))
    assert again.config.denoiser_config is None and again.config.distillation_config.feature_size == 20
    assert torch.equal(again.distillation_head.linear_2.weight, tensors["distillation_head.linear_2.weight"])


def test_the_published_recipe_trains_a_started_checkpoint(tmp_path):
    """configs/ross3d_7b_3drs.yaml at the sizes of a small base model: three steps, then to the format of 3DRS."""
    base = write_published(tmp_path / "base", extra_rows=(9, 9), marks=MARKS[:4], leave_out=HEADS)
    base.change_config(model_type="llava", image_embed_len=None)
    start = run(base.folder, tmp_path / "start", "--init", "llava_video")
    encoder = make_tiny_geometry_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    changes = {
        "init_from": start, "geometry_encoder": tmp_path / "encoder", "data.root": get_rooms(), "num_processes": 1,
        "data.num_views": 3, "data.geometry_features": "null", "trainer.output_dir": tmp_path / "trained",
        "model.distillation_config.head_hidden_size": 24,
        "model.distillation_config.feature_size": 2 * encoder.config.hidden_size,
        "model.distillation_config.encoder_image_size": encoder.config.image_size,
        "trainer.max_steps": 3, "trainer.use_cpu": "true",
        "trainer.bf16": "false", "trainer.dataloader_num_workers": 0,
    }  # fmt: skip
    words = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    train.main(read_run_arguments(str(ROOT / "configs" / "ross3d_7b_3drs.yaml"), words))
    log = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"]
    assert all(entry["distill_loss"] > 0 for entry in log if "loss" in entry)
    before, after = read(start), read(tmp_path / "trained")
    assert not [name for name in after if name.startswith("reconstruction_head.")]
    moved = {name.split(".")[1] for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert {"vision_tower", "multi_modal_projector", "language_model", "image_newline"} <= moved
    back = run(tmp_path / "trained", tmp_path / "back", "--reverse")
    assert json.loads((back / "config.json").read_text())["model_type"] == "llava_qwen"
    again = run(back, tmp_path / "again")
    check_same(read(tmp_path / "trained"), read(again) | {"model.mask_token": after["model.mask_token"]})
    processor = AutoProcessor.from_pretrained(again, trust_remote_code=True)
    assert (processor.view_fit, processor.object_token_threshold) == ("squash", 0.125)


# Refusals


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (("model.proj_3d.2",), r"model\.proj_3d\.2\.weight: expected both layers of the projection of 3DRS.*none"),
        (("model.proj_3d.0.weight",), r"model\.proj_3d\.0\.weight: expected both layers of the projection of 3DRS"),
        (("model.proj_3d",), r"model\.proj_3d\.0\.weight: expected both layers .*download the other files"),
        (("model.proj_3d.0.bias",), r"model\.proj_3d\.0\.bias: expected it in the checkpoint, found 1 keys missing"),
        (("ground_head_query.3",), r"ground_head_query\.3\.\w+: expected it in the checkpoint, found 2 keys missing"),
    ],
)
def test_missing_keys(tmp_path, left, message):
    source = write(tmp_path / "published", leave_out=left)
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        load_published(source.folder)


def test_the_projection_is_not_left_out_on_request(published, tmp_path):
    """Without it the checkpoint would be read as one that crops its views and pools its proposals in another way."""
    for patterns in (["model.proj_3d.*"], ["model.proj_3d.*", *IDLE_3DRS_KEYS]):
        words = [word for pattern in patterns for word in ("--drop", pattern)]
        with pytest.raises(ValueError, match=r"expected both layers of the.*leave these keys out of --drop"):
            run(published.folder, tmp_path / "ours", *words)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.proj_3d.0.weight", (40, 31), r"head.linear_1.weight: expected shape \(40, 32\), got \(40, 31\)"),
        ("model.proj_3d.2.weight", (28, 39), r"head.linear_2.weight: expected shape \(28, 40\), got \(28, 39\)"),
        ("model.proj_3d.2.bias", (27,), r"distillation_head.linear_2.bias: expected shape \(28,\), got \(27,\)"),
        ("model.proj_3d.2.weight", (), r"model\.proj_3d\.2\.weight: expected both layers of the projection"),
    ],
)
def test_wrong_shapes(tmp_path, name, shape, message):
    source = write(tmp_path / "published")
    save_tensors(source.folder, source.tensors | {name: torch.ones(shape)}, "safetensors", 1)
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")


def test_keys_without_a_place(tmp_path):
    source = write(tmp_path / "published")
    more = {"model.proj_3d.4.weight": torch.ones(2, 2), "ground_head_score.0.weight": torch.ones(3)}
    save_tensors(source.folder, source.tensors | more, "safetensors", 1)
    with pytest.raises(ValueError, match=r"expected a key of the published model, got 2 without.*--drop PATTERN"):
        run(source.folder, tmp_path / "ours")
    words = ("--drop", "model.proj_3d.4.*", "--drop", "ground_head_score.*")
    back = run(run(source.folder, tmp_path / "ours", *words), tmp_path / "back", "--reverse")
    check_same(source.tensors, read(back))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground_head_type": "score"}, "ground_head_type: expected 'infonce', the only supported value, got 'score'"),
        ({"ground_head_type": "mlp"}, "ground_head_type: expected 'infonce', .*got 'mlp'; use a checkpoint"),
        ({"object_feature_type": "patch27"}, "object_feature_type: expected 'patch14-pe', .*got 'patch27'; use a"),
    ],
)
def test_other_heads_and_features_are_refused(tmp_path, changes, message):
    source = write(tmp_path / "published")
    source.change_config(**changes)
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")


def test_no_training_starts_from_it_as_from_a_base_model(published, tmp_path):
    with pytest.raises(ValueError, match="--init: expected a base model without the parts of Ross3D or 3DRS"):
        run(published.folder, tmp_path / "start", "--init", "llava_video")


# The release, at full size


def test_every_key_of_the_release_is_accounted_for():
    """785 keys: 782 are ours, three are idle; and the same 785 come back. Nothing is allocated."""
    shapes = list_shapes_of_3drs()
    assert len(shapes) == 785
    meta = {
        name: MadeTensor(shape, torch.bfloat16, lambda shape=shape: torch.empty(shape, device="meta"))
        for name, shape in shapes.items()
    }
    released = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "mm_vision_tower": f"data/models/{SIGLIP}", "ground_head_type": "infonce",
    }  # fmt: skip
    ids = {"image": 151646, "ground": 151647, "coord": 151648, "eos": 151645, "pad": 151643}
    config = make_config(released, 151649, ids, VISION_TOWERS[SIGLIP], None, True, get_distillation_settings(shapes))
    assert (config.distillation_config.head_hidden_size, config.distillation_config.feature_size) == (7168, 2048)
    plan = plan_ours(meta, config, None, make_mask_token(config, torch.bfloat16, 0))
    assert Counter(record.fate for record in plan.records) == {"mapped": 782, "dropped": 3, "generated": 1}
    with torch.device("meta"):
        model = Ross3DForConditionalGeneration(config)
    assert {name: tuple(tensor.shape) for name, tensor in plan.model.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    back = plan_published(plan.model, {}, plan.rest, config, None)
    assert {name: tuple(tensor.shape) for name, tensor in back.model.items()} == shapes
    assert Counter(record.fate for record in back.records) == {"mapped": 785, "dropped": 1}
