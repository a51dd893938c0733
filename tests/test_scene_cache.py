"""Scenes that were read, on disk: the same answers tomorrow, and refusals where they would not be."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from ross3d.scene_cache_ross3d import SCENE_CACHE_VERSION, Ross3DSceneCache
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint


QUESTIONS = ["How many chairs are there?", "Is there a bed?", "What is on the table?"]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(get_checkpoint(), trust_remote_code=True)


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(get_checkpoint(), trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def scene(model, processor):
    """Two scenes of three and five views."""
    first, second = make_views(num_views=3, seed=1), make_views(num_views=5, num_proposals=2, seed=2)
    return model.encode_scene(
        **processor(**{key: [first[key], second[key]] for key in first}), keep_patch_features=True
    )


@pytest.fixture
def file(scene, model, processor, tmp_path):
    scene.save(tmp_path / "rooms" / "two.scene", model, processor)
    return tmp_path / "rooms" / "two.scene"


def ask(model, processor, scene) -> tuple[torch.Tensor, torch.Tensor]:
    asks = processor(text=QUESTIONS, scene_index=[1, 0, 1])
    return model.generate(scene=scene, **asks, max_new_tokens=5), model.ground(scene=scene, **asks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scene_read_back_gives_the_same_answers(model, processor, tmp_path, dtype):
    """Bit for bit, in both precisions; nothing is left beside the file."""
    own = copy.deepcopy(model).to(dtype)
    read = own.encode_scene(**processor(**make_views()).to(dtype))
    read.save(tmp_path / "room.scene", own)
    found = type(read).load(tmp_path / "room.scene", own)
    asks = processor(text=QUESTIONS)
    assert torch.equal(
        own.generate(scene=read, **asks, max_new_tokens=5), own.generate(scene=found, **asks, max_new_tokens=5)
    )
    assert torch.equal(own.ground(scene=read, **asks), own.ground(scene=found, **asks))
    assert [path.name for path in tmp_path.iterdir()] == ["room.scene"]


def test_several_scenes_and_their_patches_are_read_back(scene, model, processor, file):
    found = type(scene).load(file, model, processor)
    for first, second in zip(ask(model, processor, scene), ask(model, processor, found), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(found.patch_features, scene.patch_features)


def test_files_of_other_models_and_processors_are_refused(scene, model, processor, file):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.model.language_model.norm.weight[0] += 1e-3
    with pytest.raises(ValueError, match="two.scene: expected scenes that this model has read, got those of other"):
        type(scene).load(file, trained)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        merged.model.language_model.layers[0].self_attn.q_proj.weight *= 1.01
    with pytest.raises(ValueError, match="other weights or another config"):
        type(scene).load(file, merged)
    widened = copy.deepcopy(model)
    widened.config.voxel_size = 0.3
    with pytest.raises(ValueError, match="other weights or another config"):
        type(scene).load(file, widened)
    moved = copy.deepcopy(processor)
    moved.geometry_mode = "published"
    with pytest.raises(ValueError, match="expected scenes prepared with .*'geometry_mode': 'published'.*valid_depth"):
        type(scene).load(file, model, moved)
    assert type(scene).load(file, model).prefix_mask.shape == scene.prefix_mask.shape


def test_offloaded_weights_are_refused(scene, model, tmp_path):
    away = copy.deepcopy(model)
    away.model.language_model.norm.to("meta")
    with pytest.raises(ValueError, match="norm.weight: expected weights in memory, .* got ones that are offloaded"):
        scene.save(tmp_path / "away.scene", away)
    assert not list(tmp_path.iterdir())


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_broken_foreign_and_old_files_are_refused(model, file, capsys):
    whole = file.read_bytes()
    file.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"two\.scene: expected scenes that save\(\) wrote, got another or a broken"):
        Ross3DSceneCache.load(file, model)
    file.write_bytes(b"hello world")
    with pytest.raises(ValueError, match="got another or a broken file"):
        Ross3DSceneCache.load(file, model)
    file.write_bytes(whole)
    state = torch.load(file, weights_only=True)
    state["layers"][0]["keys"][0, 0, 0, 0] += 1
    for wrong in (state, {key: value for key, value in state.items() if key != "layers"}):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match="got another or a broken file"):
            Ross3DSceneCache.load(file, model)
    torch.save({"version": Harmful()}, file)
    with pytest.raises(ValueError, match="got another or a broken file"):
        Ross3DSceneCache.load(file, model)
    assert "this ran" not in capsys.readouterr().out
    for state in ({"version": SCENE_CACHE_VERSION + 1}, [1, 2]):
        torch.save(state, file)
        with pytest.raises(ValueError, match=f"expected version {SCENE_CACHE_VERSION} of a scene cache, got"):
            Ross3DSceneCache.load(file, model)
