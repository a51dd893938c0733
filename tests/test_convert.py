"""Published checkpoints to ours and back: bits, files, reports, refusals, and what a kill leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, SiglipConfig, SiglipModel, TrainerState

from ross3d import train
from ross3d.command_line import run_program
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.report.card import load_card, read_origin
from ross3d.tests.posed_views import make_views
from ross3d.tests.published import HEADS, MARKS, VISION, Published, save_tensors, write_published
from ross3d.tests.tiny import get_rooms
from ross3d.tools import convert, push
from ross3d.tools.checkpoints import files
from ross3d.tools.checkpoints.files import list_tensors, load_pickle
from ross3d.tools.checkpoints.keys import to_published
from ross3d.tools.checkpoints.load import load_published
from ross3d.training.arguments import read_run_arguments
from ross3d.training.build import save_run


ROOT = Path(__file__).resolve().parents[1]
VAE = "model.mm_pixel_decoder.pixel_decoder."
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def run(source: Path, target: Path, *options: str) -> Path:
    return convert.main(["--from", str(source), "--to", str(target), *map(str, options)])


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in list_tensors(folder).items()}


def check_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype and torch.equal(second[name], tensor), name


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    return write_published(tmp_path_factory.mktemp("published") / "checkpoint")


@pytest.fixture(scope="module")
def ours(published, tmp_path_factory) -> Path:
    return run(published.folder, tmp_path_factory.mktemp("ours") / "checkpoint")


# There and back


@pytest.mark.parametrize(
    ("kind", "num_shards", "dtype", "extra_rows"),
    [
        ("safetensors", 1, torch.float32, (0, 0)),
        ("safetensors", 3, torch.bfloat16, (7, 7)),
        ("bin", 2, torch.float16, (5, 0)),
        ("bin", 1, torch.float32, (2, 4)),
    ],
)
def test_back_again_bit_for_bit(tmp_path, kind, num_shards, dtype, extra_rows):
    """Every tensor and the config, whatever the files; embeddings of two sizes keep their odd rows."""
    source = write_published(tmp_path / "published", dtype, kind, num_shards, extra_rows, seed=num_shards)
    middle = run(source.folder, tmp_path / "ours", "--max-shard-size", "40KB")
    assert len(list(middle.glob("model-*.safetensors"))) > 1
    rows = len(source.tensors[EMBED]) - extra_rows[0] + min(extra_rows)
    model = Ross3DForConditionalGeneration.from_pretrained(middle)
    assert model.dtype == dtype and model.config.text_config.vocab_size == rows
    back = run(middle, tmp_path / "back", "--reverse")
    check_same(source.tensors, read(back))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (back / file).read_bytes() == (source.folder / file).read_bytes() or file == "config.json"
    assert json.loads((back / "config.json").read_text()) == source.config
    again = run(back, tmp_path / "again")
    check_same(read(middle), read(again))


def test_config_means_what_was_published(ours):
    config = Ross3DForConditionalGeneration.from_pretrained(ours).config
    denoiser, text, vision = config.denoiser_config, config.text_config, config.vision_config
    assert (denoiser.condition, denoiser.prediction_type, denoiser.sampler) == ("pooled", "epsilon", "published")
    assert (denoiser.bev_loss_mask, config.reconstruct_on_grounding_rows) == ("rgb_positive", False)
    assert (denoiser.num_attention_heads, denoiser.intermediate_size, denoiser.bev_image_size) == (16, 36, 8)
    assert (text.max_position_embeddings, text.rope_parameters["rope_theta"], text.sliding_window) == (
        400,
        5000.0,
        None,
    )
    assert (vision.num_hidden_layers, vision.image_size, config.view_grid_size) == (2, 20, 3)
    assert (config.view_mask_period, config.view_mask_ratio, config.voxel_size) == (3, 0.4, 0.2)
    assert list(config.scene_bounds_min) == [-9, -8, -4] and config.grounding_temperature == 0.1
    processor = AutoProcessor.from_pretrained(ours, trust_remote_code=True)
    assert (processor.geometry_mode, processor.label_rule, processor.spatial_instruction) == ("published",) * 2 + (
        False,
    )
    assert (processor.view_size, processor.patch_size, processor.bev_size) == (20, 4, 8)
    assert processor.max_position_embeddings == 400
    assert config.image_token_id == processor.image_token_id == 259


def test_the_folder_is_all_that_is_needed(ours, published, monkeypatch):
    """Auto classes with remote code, generation, and pictures by the teacher beside the weights; the card's block."""
    text = (ours / "README.md").read_text()
    monkeypatch.chdir(ours)
    scope = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    model, processor, ids = scope["model"], scope["processor"], scope["ids"]
    assert model.generation_config.max_new_tokens == 512 and not model.generation_config.do_sample
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.shape[1] > scope["inputs"]["input_ids"].shape[1]
    model.attach_teacher(str(ours / "teacher"))
    views, bev = model.reconstruct(**processor(**make_views()), masked_views=[1], num_inference_steps=2)
    assert views[0].shape == (1, 3, 12, 12) and bev[0].shape == (3, 8, 8)
    assert "VAE (`teacher/`)" in text and text.startswith("---\n") and str(ours.parent) not in text
    teacher = AutoencoderKL.from_pretrained(ours / "teacher").state_dict()
    check_same({n.removeprefix(VAE): t for n, t in published.tensors.items() if n.startswith(VAE)}, teacher)


def test_a_checkpoint_that_was_converted_back_has_a_page(ours, tmp_path):
    """With the terms of the one it came from, also of one whose page is gone; without code that does not load it."""
    card = load_card(run(ours, tmp_path / "back", "--reverse") / "README.md")
    assert read_origin(card) == read_origin(load_card(ours / "README.md")) and read_origin(card).licenses
    assert card.data.pipeline_tag is None and "```" not in card.text and "in the format of the published" in card.text
    shutil.copytree(ours, tmp_path / "bare", ignore=shutil.ignore_patterns("README.md"))
    card = load_card(run(tmp_path / "bare", tmp_path / "bare_back", "--reverse") / "README.md")
    assert read_origin(card).licenses == ["weights (bare): as stated by their authors"]


def test_report_has_every_key(ours, published, capsys):
    report = json.loads((ours / "conversion.json").read_text())
    assert {record["published"] for record in report["keys"]} == set(published.tensors)
    assert {record["fate"] for record in report["keys"]} == {"mapped"}
    named = {record["ours"] for record in report["keys"]}
    held = set(read(ours)) | {f"teacher.{name}" for name in read(ours / "teacher")}
    assert named == held


def test_direct_loading_gives_the_converted_model(published, ours, tmp_path):
    direct, converted = load_published(published.folder), Ross3DForConditionalGeneration.from_pretrained(ours)
    check_same(converted.state_dict(), direct.state_dict())
    first, second = direct.config.to_dict(), converted.config.to_dict()
    assert {key for key in first if first[key] != second[key]} == {"_name_or_path"}
    assert direct.generation_config == converted.generation_config
    assert direct.get_teacher().config.latent_channels == 3
    direct.save_pretrained(tmp_path)
    check_same(read(ours), read(tmp_path))


def test_checkpoints_without_heads(tmp_path, capsys):
    """No grounding head, no denoiser, no VAE, no mask token: the model has none, and the token is drawn."""
    source = write_published(tmp_path / "published", torch.bfloat16, leave_out=HEADS)
    source.change_config(use_old_trick=1)
    middle = run(source.folder, tmp_path / "ours", "--seed", "3")
    printed = capsys.readouterr().out
    assert "use_old_trick" in printed and "1 keys generated" in printed and "FLUX" not in printed
    model = Ross3DForConditionalGeneration.from_pretrained(middle)
    assert model.config.denoiser_config is None and not model.config.grounding
    assert not (middle / "teacher").exists()
    token = model.model.mask_token
    assert token.dtype == torch.bfloat16 and 0 < token.std() < 0.1
    back = read(run(middle, tmp_path / "back", "--reverse"))
    assert torch.equal(back.pop("model.mask_token"), token)
    check_same(source.tensors, back)


def make_siglip() -> SiglipModel:
    """A whole SigLIP: all layers of the tower, its pooling head, and the text half."""
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return SiglipModel(
        SiglipConfig(vision_config=VISION, text_config=words | {"projection_size": 24, "vocab_size": 9})
    )


def make_pipeline(whole: Published, folder: Path) -> Path:
    """A diffusers pipeline with the VAE of a whole checkpoint."""
    (folder / "vae").mkdir(parents=True)
    weights = {n.removeprefix(VAE): tensor for n, tensor in whole.tensors.items() if n.startswith(VAE)}
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "vae" / "config.json").write_text((whole.folder / "vae" / "config.json").read_text())
    return folder


def test_parts_that_lie_elsewhere(tmp_path):
    """A SigLIP folder (its last layer, head and words unread) and the `vae` of a pipeline folder."""
    left = ("model.vision_tower.", "model.mm_pixel_decoder.")
    whole = write_published(tmp_path / "whole")
    source = write_published(tmp_path / "published", leave_out=left)
    source.change_config(mm_vision_tower="nowhere", mm_pixel_decoder="nowhere")
    siglip = make_siglip()
    siglip.save_pretrained(tmp_path / "siglip")
    make_pipeline(whole, tmp_path / "pipeline")
    parts = ("--vision-tower", tmp_path / "siglip", "--teacher", tmp_path / "pipeline")
    middle = run(source.folder, tmp_path / "ours", *parts)
    tower = Ross3DForConditionalGeneration.from_pretrained(middle).model.vision_tower
    wanted = siglip.vision_model.state_dict()
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    check_same(
        {n.removeprefix(VAE): t for n, t in whole.tensors.items() if n.startswith(VAE)}, read(middle / "teacher")
    )
    dropped = {record["reason"] for record in json.loads((middle / "conversion.json").read_text())["keys"]
               if record["fate"] == "dropped"}  # fmt: skip
    assert dropped == {
        "the tower's last layer is not used", "the tower's pooling head is not used",
        "SigLIP's text encoder is not used",
    }  # fmt: skip
    with pytest.raises(ValueError, match="nowhere.*--vision-tower"):
        run(source.folder, tmp_path / "other", *parts[2:])
    with pytest.raises(ValueError, match="nowhere.*--teacher"):
        run(source.folder, tmp_path / "other", *parts[:2])
    with pytest.raises(ValueError, match="vision tower's weights in the checkpoint"):
        load_published(source.folder, *map(str, parts[1::2]))


def test_ids_of_the_hub(published, tmp_path, monkeypatch):
    """Each part is asked for by what is needed of it; `.bin` files come only where there are no others."""
    hub = {"user/model": published.folder, "user/bins": write_published(tmp_path / "bins", kind="bin").folder}
    start = write_published(tmp_path / "start", marks=MARKS[:4], leave_out=(*HEADS, "model.vision_tower."))
    hub |= {"user/base": start.folder, "user/siglip": tmp_path / "siglip", "user/utils": tmp_path / "utils"}
    hub["user/pipeline"] = make_pipeline(published, tmp_path / "pipeline")
    make_siglip().save_pretrained(tmp_path / "siglip")
    (tmp_path / "utils").mkdir()
    make_denoiser_file(tmp_path / "utils" / "mm_inv_projector.bin")
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(hub[name])

    monkeypatch.setattr(files, "snapshot_download", download)
    middle = run("user/model", tmp_path / "ours")
    assert [name for name, _ in asked] == ["user/model"] and "*.safetensors" in asked[0][1]
    assert "base_model: user/model" in (middle / "README.md").read_text()
    run("user/bins", tmp_path / "ours_of_bins")
    assert "*.safetensors" in asked[1][1] and "*.bin" in asked[2][1] and len(asked) == 3
    asked.clear()
    start.change_config(mm_vision_tower="user/siglip", mm_pixel_decoder="unheard-of")
    options = ("--init", "llava_video", "--denoiser", "user/utils", "--teacher", "user/pipeline")
    run("user/base", tmp_path / "started", *options)
    assert {name for name, _ in asked} == hub.keys() - {"user/model", "user/bins"}
    assert ("user/utils", ["mm_inv_projector.bin"]) in asked
    assert ("user/pipeline", ["config.json", "diffusion_pytorch_model*", "vae/*"]) in asked
    assert ("user/siglip", ["config.json"]) in asked


def test_settings_that_the_release_writes(tmp_path):
    """Normalisation of pictures, rope among its parameters, nulls."""
    source = write_published(tmp_path / "published")
    source.change_config(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], mm_hidden_size=None, rope_theta=None)
    config = source.config | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}, "voxel_size": None}
    (source.folder / "config.json").write_text(json.dumps(config | {"tokenizer_model_max_length": None}))
    middle = run(source.folder, tmp_path / "ours")
    found = Ross3DForConditionalGeneration.from_pretrained(middle).config
    assert list(found.image_mean) == [0.4, 0.5, 0.6] and found.voxel_size == 0.1
    assert found.text_config.rope_parameters["rope_theta"] == 77.0
    processor = AutoProcessor.from_pretrained(middle, trust_remote_code=True)
    assert list(processor.image_processor.image_std) == [0.2, 0.3, 0.4]
    back = run(middle, tmp_path / "back", "--reverse")
    assert json.loads((back / "config.json").read_text()) == json.loads((source.folder / "config.json").read_text())


# Our own models to the published form


def make_own(folder: Path, ours: Path, denoiser: dict, **changes) -> Path:
    """A model of ours with new weights and nothing of a published checkpoint but the processor."""
    config = Ross3DForConditionalGeneration.from_pretrained(ours).config
    for key, value in changes.items():
        setattr(config, key, value)
    for key, value in denoiser.items():
        setattr(config.denoiser_config, key, value)
    model = Ross3DForConditionalGeneration(config)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(ours, trust_remote_code=True).save_pretrained(folder)
    AutoencoderKL.from_pretrained(ours / "teacher").save_pretrained(folder / "teacher")
    return folder


def test_our_own_model_goes_there_and_comes_back(ours, tmp_path):
    """Without a published config to begin from, tower and VAE are described beside the weights."""
    own = make_own(tmp_path / "own", ours, {}, view_mask_period=7, voxel_size=0.05)
    there = run(own, tmp_path / "there", "--reverse")
    config = json.loads((there / "config.json").read_text())
    assert config["model_type"] == "ross3d_qwen" and int(1 / config["view_mask_prob"]) == 7
    assert (config["voxel_size"], config["mm_hidden_size"], config["image_embed_len"]) == (0.05, 24, 9)
    assert (config["mm_inv_hidden_size"], config["torch_dtype"]) == (12, "float32")
    tokenizer = json.loads((there / "tokenizer_config.json").read_text())
    assert tokenizer["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"] and "auto_map" not in tokenizer
    assert tokenizer["tokenizer_class"] == "Qwen2Tokenizer" and not (there / "chat_template.jinja").exists()
    again = run(there, tmp_path / "again")
    check_same(read(own), read(again))
    check_same(read(own / "teacher"), read(again / "teacher"))
    first, second = (Ross3DForConditionalGeneration.from_pretrained(path).config.to_dict() for path in (own, again))
    assert {key for key in first if first[key] != second[key]} == {"_name_or_path"}


def test_a_denoiser_that_the_published_code_lacks_is_left_out(ours, tmp_path, capsys):
    own = make_own(tmp_path / "own", ours, {"condition": "per_view", "prediction_type": "v_prediction"})
    there = run(own, tmp_path / "there", "--reverse")
    assert "condition='per_view', prediction_type='v_prediction'" in capsys.readouterr().out
    records = json.loads((there / "conversion.json").read_text())["keys"]
    dropped = {record["ours"] for record in records if record["fate"] == "dropped"}
    assert {f"teacher.{name}" for name in read(own / "teacher")} <= dropped
    assert not [name for name in read(there) if name.startswith(("model.mm_inv_projector", "model.mm_pixel_decoder"))]
    assert json.loads((there / "config.json").read_text())["ross_enable"] is False
    again = Ross3DForConditionalGeneration.from_pretrained(run(there, tmp_path / "again"))
    assert again.config.denoiser_config is None


def test_changed_settings_reach_a_published_config(ours, tmp_path):
    """A converted checkpoint that was trained on: what changed is changed, the rest is as it came."""
    model = Ross3DForConditionalGeneration.from_pretrained(ours)
    model.config.view_mask_period, model.config.view_mask_ratio = 5, 0.25
    processor = AutoProcessor.from_pretrained(ours, trust_remote_code=True)
    weights, published = model.state_dict(), ours / "published"
    save_run(model, weights, processor, ours / "teacher", published, TrainerState(), tmp_path / "trained")
    back = run(tmp_path / "trained", tmp_path / "back", "--reverse")
    config, before = (json.loads((path / "config.json").read_text()) for path in (back, ours / "published"))
    changed = {key for key in config.keys() | before.keys() if config.get(key) != before.get(key)}
    assert changed == {"view_mask_prob", "view_mask_ratio"} and int(1 / config["view_mask_prob"]) == 5
    assert set(json.loads((back / "conversion.json").read_text())["changed_config_keys"]) == changed


def test_embedding_rows_for_the_published_code(ours, published, tmp_path):
    back = read(run(ours, tmp_path / "back", "--reverse", "--embedding-rows", "300"))
    rows = len(published.tensors[EMBED])
    assert back[EMBED].shape[0] == 300 and back[HEAD].shape[0] == rows
    assert torch.equal(back[EMBED][:rows], published.tensors[EMBED]) and not back[EMBED][rows:].any()
    with pytest.raises(ValueError, match=f"at least the {rows} existing rows"):
        run(ours, tmp_path / "other", "--reverse", "--embedding-rows", "10")


# The start of training


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Published:
    """A LLaVA-Video model: no heads, no scene tokens beyond `<image>`, embeddings longer than its vocabulary."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    base = write_published(folder, torch.bfloat16, extra_rows=(9, 9), marks=MARKS[:4], leave_out=HEADS)
    base.change_config(model_type="llava", view_mask_prob=None, voxel_size=None, image_embed_len=None)
    return base


def make_denoiser_file(path: Path) -> dict[str, torch.Tensor]:
    """A denoiser of the 2D model: one branch, a 5 x 5 table, another condition embedding."""
    torch.manual_seed(4)
    width, channels = 32, 12
    shapes = {
        "pos_embed": (1, 25, width), "x_embedder.proj.weight": (width, channels, 1, 1),
        "x_embedder.proj.bias": (width,),
        "z_embedder.weight": (width, 8), "z_embedder.proj.1.weight": (width, 8),
        "t_embedder.mlp.0.weight": (width, 10), "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width), "t_embedder.mlp.2.bias": (width,),
        "final_layer.linear.weight": (channels, width), "final_layer.linear.bias": (channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }  # fmt: skip
    for layer in range(2):
        blocks = {
            "attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": 40, "adaLN_modulation.1": 6 * width,
        }  # fmt: skip
        shapes |= {f"blocks.{layer}.{name}.weight": (rows, width) for name, rows in blocks.items()}
        shapes |= {f"blocks.{layer}.{name}.bias": (rows,) for name, rows in blocks.items()}
        shapes |= {f"blocks.{layer}.mlp.fc2.weight": (width, 40), f"blocks.{layer}.mlp.fc2.bias": (width,)}
    state_dict = {f"model.mm_inv_projector.net.{name}": torch.randn(shape) for name, shape in shapes.items()}
    torch.save(state_dict, path)
    return {name.removeprefix("model.mm_inv_projector.net."): tensor for name, tensor in state_dict.items()}


def test_training_starts_as_published(base, tmp_path):
    file = make_denoiser_file(tmp_path / "mm_inv_projector.bin")
    start = run(base.folder, tmp_path / "start", "--init", "llava_video", "--denoiser", tmp_path)
    begun, config = read(start), Ross3DForConditionalGeneration.from_pretrained(start).config
    assert (config.ground_token_id, config.coord_token_id, config.text_config.vocab_size) == (260, 261, 262)
    assert (config.denoiser_config.num_hidden_layers, config.denoiser_config.intermediate_size) == (2, 40)
    assert (config.view_mask_period, config.voxel_size, config.denoiser_config.bev_grid_size) == (4, 0.1, 27)
    for name, ours in ((EMBED, "model.language_model.embed_tokens.weight"), (HEAD, HEAD)):
        old = base.tensors[name][:260]
        assert torch.equal(begun[ours][:260], old)
        assert torch.allclose(begun[ours][260:].float(), old.float().mean(dim=0).expand(2, -1), atol=1e-3)
        assert begun[ours].dtype == torch.bfloat16
    head = "reconstruction_head."
    for branch, side in (("view", 3), ("bev", 27)):
        table = file["pos_embed"].view(5, 5, 32).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(table, (side, side), mode="bilinear").flatten(2).transpose(1, 2)
        assert torch.equal(begun[f"{head}{branch}_embedding.position_embedding"], resized)
        assert torch.equal(begun[f"{head}{branch}_embedding.proj.weight"], file["x_embedder.proj.weight"])
    assert torch.equal(begun[f"{head}denoiser.blocks.1.mlp.fc1.weight"], file["blocks.1.mlp.fc1.weight"])
    assert torch.isfinite(begun["model.mask_token"]).all() and 0 < begun["model.mask_token"].float().std() < 0.1
    assert 0.5 < begun["grounding_head.no_target"].float().std() < 1.5
    check_same(
        *({n: t for n, t in tensors.items() if n == "model.image_newline"} for tensors in (base.tensors, begun))
    )
    records = json.loads((start / "conversion.json").read_text())["keys"]
    dropped = {record["published"].rpartition("net.")[2] for record in records if record["fate"] == "dropped"}
    assert dropped == {"z_embedder.weight", "z_embedder.proj.1.weight"}
    assert AutoProcessor.from_pretrained(start, trust_remote_code=True).spatial_instruction


def test_a_started_checkpoint_trains(base, tmp_path):
    """One step of all losses gives every new part a finite gradient."""
    make_denoiser_file(tmp_path / "file.bin")
    vae = make_pipeline(write_published(tmp_path / "whole"), tmp_path / "pipeline")
    options = ("--init", "llava_video", "--denoiser", tmp_path / "file.bin", "--teacher", vae)
    start = run(base.folder, tmp_path / "start", *options)
    model = AutoModel.from_pretrained(start, trust_remote_code=True, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(start, trust_remote_code=True)
    model.attach_teacher(str(start / "teacher"))
    words = {"text": "What stands here?", "answers": "a bed"}
    picture = torch.randint(0, 255, (108, 108, 3), dtype=torch.uint8).numpy()
    inputs = processor(**make_views(), **words, bev_image=picture)
    hidden = torch.tensor([[True, False, False]])
    output = model(**inputs, bool_masked_views=hidden, row_seed=torch.tensor([1]))
    output.loss.backward()
    for loss in (output.lm_loss, output.view_loss, output.bev_loss):
        assert torch.isfinite(loss) and loss > 0
    assert torch.isfinite(model.model.mask_token.grad).all()
    assert model.model.language_model.embed_tokens.weight.grad.abs().sum() > 0


def test_the_run_of_the_docs_trains_a_started_checkpoint(base, tmp_path):
    """Conversion, the YAML of docs/CHECKPOINTS.md, two steps, and the way to the published format."""
    make_denoiser_file(tmp_path / "file.bin")
    vae = make_pipeline(write_published(tmp_path / "whole"), tmp_path / "pipeline")
    options = ("--init", "llava_video", "--denoiser", tmp_path / "file.bin", "--teacher", vae)
    start = run(base.folder, tmp_path / "start", *options)
    text = (ROOT / "docs" / "CHECKPOINTS.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "run.yaml").write_text(block)
    changes = {
        "init_from": start, "data.root": get_rooms(), "trainer.output_dir": tmp_path / "trained",
        "trainer.max_steps": 2, "trainer.use_cpu": "true", "trainer.bf16": "false", "trainer.report_to": "none",
    }  # fmt: skip
    words = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    train.main(read_run_arguments(str(tmp_path / "run.yaml"), words))
    there, untrained = (run(tmp_path / name, tmp_path / f"{name}_back", "--reverse") for name in ("trained", "start"))
    assert read(there).keys() == read(untrained).keys()
    assert not torch.equal(read(there)[EMBED], read(untrained)[EMBED])


def test_training_starts_without_a_file(base, tmp_path):
    start = run(base.folder, tmp_path / "start", "--init", "llava_video")
    config = Ross3DForConditionalGeneration.from_pretrained(start).config.denoiser_config
    assert (config.hidden_size, config.num_hidden_layers, config.position_embedding) == (1024, 3, "sincos")
    assert read(start)["reconstruction_head.bev_embedding.position_embedding"].abs().sum() > 0


def test_a_start_has_a_published_form(base, tmp_path):
    """Its config is that of the recipe, not of the base model."""
    vae = make_pipeline(write_published(tmp_path / "whole"), tmp_path / "pipeline")
    start = run(base.folder, tmp_path / "start", "--init", "llava_video", "--teacher", vae)
    there = run(start, tmp_path / "there", "--reverse")
    config = json.loads((there / "config.json").read_text())
    assert (config["model_type"], config["ground_token_ids"], config["coord_token_ids"]) == (
        "ross3d_qwen",
        [260],
        [261],
    )
    assert config["mm_inv_projector_type"] == "denoiser_vit3x" and config["use_mm_inv_proj"]
    again = run(there, tmp_path / "again")
    check_same(read(start), read(again))


def test_a_denoiser_with_two_branches_begins_training_too(base, published, tmp_path):
    """A released denoiser in place of the 2D one: tables and embeddings are taken as they are."""
    prefix = "model.mm_inv_projector."
    file = {name: tensor for name, tensor in published.tensors.items() if name.startswith(prefix)}
    torch.save(file, tmp_path / "file.bin")
    begun = read(run(base.folder, tmp_path / "start", "--init", "llava_video", "--denoiser", tmp_path / "file.bin"))
    for name in ("view_embedding.position_embedding", "bev_embedding.position_embedding", "view_pooler.queries"):
        name = f"reconstruction_head.{name}"
        assert torch.equal(begun[name], published.tensors[to_published(name)])


# Refusals


def test_wrong_shapes_name_both_keys(published, tmp_path):
    source = write_published(tmp_path / "published")
    source.change_config(intermediate_size=44)
    message = (
        r"model\.layers\.0\.mlp\.\w+\.weight -> model\.language_model\.layers\.0\.mlp\.\w+\.weight: expected shape"
    )
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_keys_without_a_place(tmp_path):
    source = write_published(tmp_path / "published")
    save_tensors(source.folder, source.tensors | {"model.other.0.weight": torch.ones(2)}, "safetensors", 1)
    with pytest.raises(ValueError, match=r"model\.other\.0\.weight: expected a key .*--drop"):
        run(source.folder, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"model\.other\.0\.weight: expected a key"):
        load_published(source.folder)
    with pytest.raises(ValueError, match=r"--drop: expected patterns of keys .*got \['model.none.\*'\]"):
        run(source.folder, tmp_path / "ours", "--drop", "model.none.*")
    middle = run(source.folder, tmp_path / "ours", "--drop", "model.other.*")
    records = json.loads((middle / "conversion.json").read_text())["keys"]
    assert [r["published"] for r in records if r["reason"] == "--drop"] == ["model.other.0.weight"]


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (("model.layers.1.mlp.up_proj",), r"model\.layers\.1\.mlp\.up_proj\.weight: expected it in the checkpoint"),
        (("model.embed_tokens",), r"model\.embed_tokens\.weight: expected it among"),
        (("model.mm_inv_projector.net.blocks",), r"blocks\.0\.mlp\.fc1\.weight: expected it among"),
        (("model.mm_inv_projector.net.final",), r"final_layer\.\w+.*: expected it in the checkpoint"),
    ],
)
def test_missing_keys(tmp_path, left, message):
    source = write_published(tmp_path / "published", leave_out=left)
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: expected it in the published config.json"),
        ({"mm_projector_type": "linear"}, "mm_projector_type: expected 'mlp2x_gelu'"),
        ({"world_position_embedding_type": "mlp"}, "world_position_embedding_type: expected 'avg-discrete-sin3d'"),
        ({"mm_newline_position": "one_token"}, "mm_newline_position: expected 'grid'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type: expected 'spatial_unpad'"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0, "factor": 2.0}},
            "rope_parameters: expected rope_type 'default'",
        ),
        ({"image_embed_len": 196}, "image_embed_len: expected 9"),
        ({"ground_token_ids": [3]}, r"ground_token_ids of .*config.json: expected those of the tokenizer"),
        ({"mm_vision_tower": "unheard-of"}, "mm_vision_tower of .*--vision-tower"),
        ({"mm_pixel_decoder": "unheard-of"}, "mm_pixel_decoder of .*--teacher"),
        ({"model_type": "ross3d"}, "got one in our format; add --reverse"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, changes, message):
    source = write_published(tmp_path / "published")
    source.change_config(**changes)
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")


def test_broken_files(tmp_path, published):
    source = write_published(tmp_path / "published", num_shards=2)
    shard = source.folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="00002.*expected a safetensors file"):
        run(source.folder, tmp_path / "ours")
    save_file({"other": torch.ones(1)}, shard)
    with pytest.raises(ValueError, match="117 that are in no shard and 1 that are not in its list"):
        run(source.folder, tmp_path / "ours")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="expected the shards in its list"):
        run(source.folder, tmp_path / "ours")
    (source.folder / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match="config.json: expected a JSON object of a checkpoint, but the file is not valid JSON"
    ):
        run(source.folder, tmp_path / "ours")
    (source.folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: expected a JSON object of a checkpoint, got a list"):
        run(source.folder, tmp_path / "ours")
    (source.folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json does not exist; expected a JSON object of a checkpoint"):
        run(source.folder, tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="expected an existing folder or a"):
        run(tmp_path / "no such folder", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "empty" / "tokenizer.json").write_bytes((published.folder / "tokenizer.json").read_bytes())
    settings = (published.folder / "tokenizer_config.json").read_bytes()
    (tmp_path / "empty" / "tokenizer_config.json").write_bytes(settings)
    with pytest.raises(FileNotFoundError, match="expected weights, one of"):
        run(tmp_path / "empty", tmp_path / "ours")


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_pickles_run_nothing(tmp_path, capsys):
    torch.save({"model.mask_token": Harmful()}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a\.bin: expected a dictionary of tensors.*could run code"):
        list_tensors(tmp_path / "a.bin")
    assert "this ran" not in capsys.readouterr().out
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "b.bin")
    with pytest.raises(ValueError, match=r"got \['state_dict'\]; save only the inner"):
        list_tensors(tmp_path / "b.bin")
    torch.save({"a": torch.ones(4000)}, tmp_path / "c.bin")
    (tmp_path / "c.bin").write_bytes((tmp_path / "c.bin").read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"c\.bin: .*got a damaged file"):
        list_tensors(tmp_path / "c.bin")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert load_pickle(tmp_path / "old.bin")["a"].tolist() == [0, 1, 2]


def test_tokenizers(tmp_path, published):
    source = write_published(tmp_path / "published")
    settings = json.loads((source.folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (source.folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="expected a tokenizer with a pad_token"):
        run(source.folder, tmp_path / "ours")
    (source.folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="expected a complete tokenizer"):
        run(source.folder, tmp_path / "ours")
    (source.folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a tokenizer"):
        run(source.folder, tmp_path / "ours")
    short = write_published(tmp_path / "short", marks=MARKS[:5])
    with pytest.raises(ValueError, match="a row of word embeddings for each of.*got 261 rows"):
        run(short.folder, tmp_path / "ours")
    with pytest.raises(ValueError, match="got 261 rows; a base model"):
        load_published(short.folder)


def test_embeddings_of_two_sizes_are_not_loaded_directly(tmp_path):
    source = write_published(tmp_path / "published", extra_rows=(3, 0))
    with pytest.raises(ValueError, match="input and output embeddings of one size.*tools/convert.py"):
        load_published(source.folder)


def test_parts_of_another_kind(tmp_path, published):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip", "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="expected model_type siglip or siglip_vision_model, got 'clip'"):
        run(published.folder, tmp_path / "ours", "--vision-tower", tmp_path / "clip")
    with pytest.raises(ValueError, match="expected a diffusers AutoencoderKL, got UNet2DModel"):
        run(published.folder, tmp_path / "ours", "--teacher", tmp_path / "clip")


def test_models_that_have_no_published_form(ours, tmp_path):
    own = make_own(tmp_path / "own", ours, {}, projector_norm="layer_norm")
    with pytest.raises(ValueError, match="projector_norm: expected 'none'"):
        run(own, tmp_path / "there", "--reverse")
    tensors = read(ours)
    for name, changed, message in (
        ("more", tensors | {"other": torch.ones(1)}, "other: expected keys of this model"),
        ("less", {n: t for n, t in tensors.items() if n != "model.mask_token"}, "model.mask_token: expected it in"),
    ):
        folder = make_own(tmp_path / name, ours, {})
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            run(folder, tmp_path / "there", "--reverse")


def test_wrong_directions(published, ours, base, tmp_path):
    with pytest.raises(
        ValueError, match="expected a checkpoint of ross3d, got one of another model; leave out --reverse"
    ):
        run(published.folder, tmp_path / "back", "--reverse")
    with pytest.raises(ValueError, match="--init: expected a base model without the parts of Ross3D or 3DRS"):
        run(published.folder, tmp_path / "start", "--init", "llava_video")
    make_denoiser_file(tmp_path / "file.bin")
    wrong = torch.load(tmp_path / "file.bin") | {"net.blocks.0.mlp.fc2.weight": torch.ones(3, 3)}
    torch.save(wrong, tmp_path / "file.bin")
    start = ("--init", "llava_video", "--denoiser", tmp_path / "file.bin")
    with pytest.raises(ValueError, match=r"net\.blocks\.0\.mlp\.fc2\.weight -> reconstruction_head.*got \(3, 3\)"):
        run(base.folder, tmp_path / "start", *start)
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match="--denoiser: expected a file with pos_embed"):
        run(base.folder, tmp_path / "start", *start)
    file = make_denoiser_file(tmp_path / "file.bin")
    torch.save(file | {"pos_embed": torch.ones(1, 26, 32)}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match=r"pos_embed: expected a position table .*got \(1, 26, 32\)"):
        run(base.folder, tmp_path / "start", *start)
    torch.save(file | {"x_embedder.proj.weight": torch.ones(32, 3, 1, 1)}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match="x_embedder: expected 4 times the 3 latent channels"):
        run(base.folder, tmp_path / "start", *start)
    short = write_published(tmp_path / "short", marks=MARKS[:4], leave_out=HEADS)
    tensors = short.tensors | {EMBED: short.tensors[EMBED][:250].clone()}
    save_tensors(short.folder, tensors, "safetensors", 1)
    with pytest.raises(ValueError, match=f"{EMBED}: expected a row for each of the 260 tokens"):
        run(short.folder, tmp_path / "start", "--init", "llava_video")


def test_towers_that_count_other_layers(tmp_path):
    """Published checkpoints leave out the last layer; a config that counts what is there would lose another."""
    source = write_published(tmp_path / "published")
    for layers in (2, 12):
        (source.folder / "tower" / "config.json").write_text(json.dumps(VISION | {"num_hidden_layers": layers}))
        with pytest.raises(ValueError, match=f"expected one more than the 2 layers in .*got {layers}"):
            run(source.folder, tmp_path / "ours")
    (source.folder / "tower" / "config.json").write_text(json.dumps(VISION | {"num_attention_heads": 5}))
    with pytest.raises(ValueError, match="expected num_attention_heads that divide hidden_size 24, got 5"):
        run(source.folder, tmp_path / "ours")


def test_index_and_shards(tmp_path):
    """A tensor that is in two shards is read from the one that the index names."""
    source = write_published(tmp_path / "published", num_shards=2)
    index = source.folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    name = next(name for name, file in where.items() if file == first)
    more = {n: source.tensors[n] for n, file in where.items() if file == second} | {name: source.tensors[name] + 1}
    save_file(more, source.folder / second)
    assert torch.equal(list_tensors(source.folder)[name].read(), source.tensors[name])
    for broken in ({"weight_map": None}, {}):
        index.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="expected a weight_map"):
            run(source.folder, tmp_path / "ours")
    pointer = b"version https:" + b"//git-lfs.github.com/spec/v1\noid sha256:0\n"
    (source.folder / "pointer.safetensors").write_bytes(pointer)
    with pytest.raises(ValueError, match="got a Git-LFS pointer"):
        list_tensors(source.folder / "pointer.safetensors")
    with pytest.raises(ValueError, match="expected the checkpoint's folder, got a file"):
        run(source.folder / first, tmp_path / "ours")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "x"], "--from: expected a folder or Hub id"),
        (["--from", "a", "--to", "x", "--denoiser", "d"], "--denoiser: expected --init"),
        (["--from", "a", "--to", "x", "--embedding-rows", "9"], "--embedding-rows: expected --reverse"),
        (["--from", "a", "--to", "x", "--reverse", "--teacher", "t"], "--reverse: expected only --from and --to"),
        (["--from", "a", "--to", "x", "--reverse", "--seed", "1"], "--reverse: expected only --from and --to"),
        (["--from", "a", "--to", "x", "--max-shard-size", "2XB"], "expected a size such as 2GB"),
    ],
)
def test_options_that_contradict(options, message, capsys):
    with pytest.raises(SystemExit):
        convert.main(options)
    assert message in capsys.readouterr().err


# Files of others


@pytest.mark.parametrize("name", ["../secret/model-00002-of-00002.safetensors", "/etc/hostname", "a/b.safetensors", 7])
def test_an_index_names_files_of_its_own_folder(tmp_path, name):
    source = write_published(tmp_path / "published", num_shards=2)
    shutil.copytree(source.folder, tmp_path / "secret")
    index = source.folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    where = content["weight_map"]
    content["weight_map"] = {key: name if "00002" in shard else shard for key, shard in where.items()}
    index.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=f"index.json, weight_map: expected a name of letters.*got '{name}'; rename it"
    ):
        run(source.folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("key", ["mm_vision_tower", "mm_pixel_decoder"])
def test_a_config_names_parts_within_its_folder(tmp_path, monkeypatch, key):
    """Neither a folder elsewhere on this machine, absolute or from where we stand, nor a link to one."""
    source = write_published(tmp_path / "published")
    part = {"mm_vision_tower": "tower", "mm_pixel_decoder": "vae"}[key]
    shutil.move(source.folder / part, tmp_path / "mine" / part)
    (source.folder / "link").symlink_to(tmp_path / "mine" / part)
    monkeypatch.chdir(tmp_path / "mine")
    option = {"mm_vision_tower": "--vision-tower", "mm_pixel_decoder": "--teacher"}[key]
    for name in (str(tmp_path / "mine" / part), f"../mine/{part}", part, "..", ".", "link", 5):
        source.change_config(**{key: name})
        with pytest.raises(
            ValueError, match=f"{key} of .*config.json: expected a folder next to this file.*{option} DIR"
        ):
            run(source.folder, tmp_path / "ours")
    run(source.folder, tmp_path / "ours", option, tmp_path / "mine" / part)


@pytest.mark.parametrize("name", ["..", ".", "config.json", ".hidden", ""])
def test_nothing_is_written_beside_the_way_back(ours, tmp_path, name):
    """Names in published/config.json lead nowhere else; the neighbour's file stays as it was."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(ours, source)
    out.mkdir()
    (out / "config.json").write_text("mine")
    file = source / "published" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mm_vision_tower": name}))
    with pytest.raises(ValueError, match="published/config.json: expected a name (of letters|that no file)"):
        run(source, out / "there", "--reverse")
    assert (out / "config.json").read_text() == "mine" and not (out / "there").exists()


def test_links_out_of_a_checkpoint_are_not_copied(published, ours, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("my key")
    source = write_published(tmp_path / "published")
    (source.folder / "vocab.json").symlink_to(secret)
    with pytest.raises(
        ValueError, match=r"vocab.json: expected a file of .*, got a link that leads out of it, to .*id_rsa"
    ):
        run(source.folder, tmp_path / "there")
    shutil.copytree(ours, tmp_path / "own")
    (tmp_path / "own" / "published" / "merges.txt").symlink_to(secret)
    with pytest.raises(ValueError, match=r"merges.txt: expected a file of .*put a copy of the file there \(`cp -L`\)"):
        run(tmp_path / "own", tmp_path / "there", "--reverse")
    for folder in tmp_path.iterdir():
        assert not any(
            "my key" in file.read_text(errors="ignore")
            for file in folder.rglob("*")
            if not file.is_symlink() and file.is_file()
        )


def test_links_within_the_cache_of_the_hub_are_followed(tmp_path):
    """A checkpoint from the Hub is a folder of links to the cache's own files."""
    source = write_published(tmp_path / "published")
    snapshot, blobs = (
        tmp_path / "models--user--model" / "snapshots" / "abc",
        tmp_path / "models--user--model" / "blobs",
    )
    shutil.copytree(source.folder, snapshot)
    blobs.mkdir()
    for file in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = blobs / file.name.replace("config", file.parent.name)
        shutil.move(file, blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    check_same(read(run(source.folder, tmp_path / "plain")), read(run(snapshot, tmp_path / "cached")))


@pytest.mark.parametrize("count", [10**9, "3", -1.5])
def test_counts_of_layers_are_compared_with_the_weights(published, ours, tmp_path, count):
    """Before a model of so many layers is built, which would never end."""
    source = write_published(tmp_path / "published")
    source.change_config(num_hidden_layers=count)
    with pytest.raises(
        ValueError, match="num_hidden_layers of .*config.json: expected the number of layers in its weights, 2, got"
    ):
        run(source.folder, tmp_path / "there")
    for section in ("text_config", "vision_config", "denoiser_config"):
        own = tmp_path / section
        shutil.copytree(ours, own)
        settings = json.loads((own / "config.json").read_text())
        settings[section]["num_hidden_layers"] = count
        (own / "config.json").write_text(json.dumps(settings))
        message = (
            rf"{section}.num_hidden_layers of .*config.json: expected the number of layers in its weights, \d, got"
        )
        with pytest.raises(ValueError, match=message):
            run(own, tmp_path / "there", "--reverse")
        with pytest.raises(ValueError, match=message):
            push.check_weights(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 10**9}, "expected lists of at most 32 blocks with at most 32 layers_per_block, got"),
        ({"block_out_channels": [4] * 1000}, "expected lists of at most 32 blocks"),
        ({"block_out_channels": 10**9}, "expected lists of at most 32 blocks"),
        (
            {"norm_num_groups": 0},
            "vae/config.json: expected the settings of a VAE, got values for which no VAE can be built",
        ),
        ({"down_block_types": ["Nothing"]}, "vae/config.json: expected the settings of a VAE, got values for which"),
    ],
)
def test_settings_of_a_vae_that_never_end(tmp_path, changes, message):
    source = write_published(tmp_path / "published")
    file = source.folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        run(source.folder, tmp_path / "ours")


# Interrupted runs


@pytest.mark.parametrize("way", ["there", "back"])
def test_what_is_complete_is_not_made_again(published, ours, tmp_path, capsys, way):
    """Also where a kill came between the folder's name and the end: then notes of the run are still in it."""
    source, options = (published.folder, []) if way == "there" else (ours, ["--reverse"])
    target = run(source, tmp_path / "target", *options)
    before = {file: file.stat().st_mtime_ns for file in target.rglob("*")}
    for name in ("plan.json", "lock"):
        (target / name).write_text("{}")
    assert run(source, target, *options) == target
    assert "target is already complete: the same command wrote it from the same files" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in target.rglob("*")} == before
    with pytest.raises(FileExistsError, match="choose another"):
        run(source, target, *options, "--max-shard-size", "40KB")
    (target / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expected weights, one of"):
        run(source, target, *options)


def test_the_command_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["tools/convert.py", "--from", str(tmp_path), "--to", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        run_program(convert.main)
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(told) == 1
    assert told[0].startswith(f"convert.py: error: {tmp_path}/config.json does not exist; expected a JSON object of a")


def test_a_stopped_run_leaves_nothing_that_looks_whole_and_is_taken_up(published, ours, tmp_path, monkeypatch):
    target, written = tmp_path / "again", []
    save = files.save_file

    def stop_at_third(state_dict, file, metadata):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(sorted(state_dict))
        save(state_dict, file, metadata)

    monkeypatch.setattr(files, "save_file", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(published.folder, target, "--max-shard-size", "40KB")
    assert not target.exists()
    partial = tmp_path / ".again.partial"
    assert not (partial / "config.json").exists() and len(list(partial.glob("model-*"))) == 2
    monkeypatch.setattr(files, "save_file", lambda *args: (written.append(sorted(args[0])), save(*args)))
    run(published.folder, target, "--max-shard-size", "40KB")
    names = [name for shard in written for name in shard]
    assert len(names) == len(set(names)) and not partial.exists()
    check_same(read(ours), read(target))


def test_another_source_starts_again(published, tmp_path, monkeypatch):
    """What a stopped run wrote of one checkpoint never becomes part of another."""
    source = write_published(tmp_path / "published")
    save = files.save_file
    monkeypatch.setattr(files, "save_file", lambda *args: (save(*args), (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        run(source.folder, tmp_path / "ours", "--max-shard-size", "40KB")
    monkeypatch.setattr(files, "save_file", save)
    changed = {name: tensor + 1 for name, tensor in source.tensors.items()}
    save_tensors(source.folder, changed, "safetensors", 1)
    back = run(run(source.folder, tmp_path / "ours", "--max-shard-size", "40KB"), tmp_path / "back", "--reverse")
    check_same(changed, read(back))


def test_two_runs_do_not_write_to_one_place(published, tmp_path, monkeypatch):
    """The second is refused while the first writes, and so cannot mix its shards with it."""
    save, refused = files.save_file, []

    def write_twice(state_dict, file, metadata):
        if not refused:
            refused.append(True)
            with pytest.raises(OSError, match="another process is writing to this folder"):
                run(published.folder, tmp_path / "ours", "--seed", "1")
        save(state_dict, file, metadata)

    monkeypatch.setattr(files, "save_file", write_twice)
    check_same(published.tensors, read(run(run(published.folder, tmp_path / "ours"), tmp_path / "back", "--reverse")))
    assert refused and {path.name for path in tmp_path.iterdir()} == {"ours", "back"}


def test_a_link_to_an_empty_folder_is_filled(published, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(published.folder, tmp_path / "link")
    assert (tmp_path / "real" / "config.json").is_file() and (tmp_path / "link").is_symlink()


def test_no_folder_is_overwritten(published, ours, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="expected a new folder, found an existing one"):
        run(published.folder, ours, "--max-shard-size", "40KB")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other: expected a new folder, found an existing one"):
        run(published.folder, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert run(published.folder, tmp_path / "empty") == tmp_path / "empty"
    usage = type(files.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(
        OSError, match=r"full: the disk is full: expected 0\.\d\d\d MB of free space, got 0\.000 MB; free space"
    ):
        run(published.folder, tmp_path / "full")


@pytest.mark.slow
def test_kills_leave_no_folder_that_looks_whole(published, ours, tmp_path):
    """SIGKILL inside of shards, configs, code and the last rename: the folder is not there until a run ends."""
    target = tmp_path / "ours"
    command = [sys.executable, "-m", "ross3d.tests.invariant.kill_inside", str(ROOT / "tools" / "convert.py")]
    command += ["--from", str(published.folder), "--to", str(target), "--max-shard-size", "10KB"]
    codes = []
    for count in (1, 2, 3, 5, 8, 12, 20, 30, 40, 50, 60, 70, 1000):
        environment = os.environ | {"KILL_AT": f".{target.name}.partial:{count}"}
        run = subprocess.run(command, env=environment, capture_output=True, start_new_session=True)
        codes.append(run.returncode)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL and not target.exists(), run.stderr.decode()[-2000:]
    assert codes[-1] == 0 and len(codes) > 10, codes
    check_same(read(ours), read(target))
    check_same(read(ours / "teacher"), read(target / "teacher"))
    kept, wanted = (
        {file.name for file in folder.iterdir() if file.suffix != ".safetensors"} for folder in (target, ours)
    )
    assert kept == wanted | {"model.safetensors.index.json"}
