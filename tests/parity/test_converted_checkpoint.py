"""A recorded model, written as the published code saves it, converted: its outputs are the recorded ones."""

import json
import shutil
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.parity.build import Recorded
from ross3d.tests.parity.golden import GoldenSet, get_goldens_folder, list_tensor_sets
from ross3d.tests.parity.test_recorded_cases import COMPARISONS
from ross3d.tools import convert
from ross3d.tools.checkpoints.published_config import DENOISER_HEADS


pytestmark = pytest.mark.parity

GOLDENS = get_goldens_folder()
SETS = [pytest.param(GoldenSet(path), id=path.name) for path in list_tensor_sets(GOLDENS)]
SKIP = pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded sets in {GOLDENS} (ROSS3D_GOLDENS)"))


def write_recorded(golden: GoldenSet, folder: Path) -> Path:
    """The recorded model as a published checkpoint; tower and VAE lie beside it, as their names in the config say."""
    vision = dict(golden.config["siglip_config"])
    vision["num_hidden_layers"] = vision.pop("num_layers_kept") + 1
    vision.pop("num_hidden_layers_in_config", None)
    shutil.copytree(golden.path / "toy_tokenizer", folder)
    parts = {"mm_vision_tower": "tower", "mm_pixel_decoder": "vae"}
    written = {
        "config.json": {**golden.config["reference_config"], **parts},
        "tower/config.json": {"model_type": "siglip_vision_model", **vision},
        "vae/config.json": golden.config["vae_config"],
    }
    for name, value in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    shutil.copy(golden.path / golden.config["weights_file"], folder / "model.safetensors")
    return folder


class Converted(Recorded):
    """Model and processors of a recorded set, read from a converted checkpoint as a user reads them."""

    def __init__(self, golden: GoldenSet, folder: Path):
        super().__init__(golden)
        self.folder = folder

    @cached_property
    def model(self) -> Ross3DForConditionalGeneration:
        model = AutoModel.from_pretrained(self.folder, trust_remote_code=True)
        model.attach_teacher(str(self.folder / "teacher"))
        model.model.vision_tower.requires_grad_(False)
        # Recorded answers go on behind the end mark.
        model.generation_config.eos_token_id = None
        return model.eval()

    @cached_property
    def train_processor(self) -> Ross3DProcessor:
        processor = AutoProcessor.from_pretrained(self.folder, trust_remote_code=True)
        processor.spatial_instruction = True
        return processor

    @cached_property
    def eval_processor(self) -> Ross3DProcessor:
        return AutoProcessor.from_pretrained(self.folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def get_converted(tmp_path_factory):
    """The converted checkpoint of a set, made once."""
    made: dict[str, Converted] = {}

    def get(golden: GoldenSet) -> Converted:
        if golden.config["denoiser"]["num_heads"] != DENOISER_HEADS:
            pytest.skip(f"a published denoiser has {DENOISER_HEADS} heads; weights do not tell")
        if golden.name not in made:
            folder = tmp_path_factory.mktemp(golden.name)
            write_recorded(golden, folder / "published")
            convert.main(["--from", str(folder / "published"), "--to", str(folder / "ours")])
            made[golden.name] = Converted(golden, folder / "ours")
        return made[golden.name]

    return get


@pytest.mark.parametrize("name", sorted(COMPARISONS))
@pytest.mark.parametrize("golden", SETS or [SKIP])
def test_case(golden: GoldenSet, name: str, get_converted):
    with golden.get_case(name) as case:
        COMPARISONS[name](get_converted(golden), case)


@pytest.mark.parametrize("golden", SETS or [SKIP])
def test_back_again_bit_for_bit(golden: GoldenSet, get_converted, tmp_path):
    folder = get_converted(golden).folder
    convert.main(["--from", str(folder), "--to", str(tmp_path / "back"), "--reverse"])
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == golden.weights.keys()
    for name, tensor in golden.weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    first, second = (
        json.loads((path / "config.json").read_text()) for path in (folder.parent / "published", tmp_path / "back")
    )
    assert first == second


@pytest.mark.parametrize("golden", SETS or [SKIP])
def test_training_starts_from_the_recorded_denoiser_file(golden: GoldenSet, get_converted, tmp_path):
    """A base model of the recorded weights without their heads, and the recorded denoiser file, which tells sizes."""
    get_converted(golden)
    base = write_recorded(golden, tmp_path / "base")
    heads = ("ground_head_", "model.mm_inv_projector.", "model.mm_pixel_decoder.", "model.mask_token")
    save_file(
        {name: w for name, w in golden.weights.items() if not name.startswith(heads)}, base / "model.safetensors"
    )
    case = golden.get_case("inv_adapter")
    file = {name.removeprefix("old."): w.clone() for name, w in case.tensors.items() if name.startswith("old.")}
    torch.save(file, tmp_path / "mm_inv_projector.bin")
    words = {"--from": base, "--init": "llava_video", "--denoiser": tmp_path / "mm_inv_projector.bin"}
    convert.main([str(word) for pair in words.items() for word in pair] + ["--to", str(tmp_path / "start")])
    begun = load_file(tmp_path / "start" / "model.safetensors")
    side = Ross3DConfig.from_pretrained(tmp_path / "start").view_grid_size
    table = begun["reconstruction_head.view_embedding.position_embedding"]
    assert table.shape[1] == side**2
    for branch in ("view", "bev"):
        table = begun[f"reconstruction_head.{branch}_embedding.position_embedding"]
        # A recorded table may hold every n-th row; the grid of the bird's-eye picture is the released one here.
        recorded, grid = case.tensors[f"new.net.pos_embed_{branch}"], golden.config["denoiser"][f"n_patches_{branch}"]
        if table.shape[1] == grid:
            assert torch.allclose(table[:, :: -(-grid // recorded.shape[1])], recorded, atol=2e-5)
    for branch in ("view", "bev"):
        weight = begun[f"reconstruction_head.{branch}_embedding.proj.weight"]
        assert torch.equal(weight, next(w for name, w in file.items() if name.endswith("x_embedder.proj.weight")))
