"""Scenes that were read, on disk: the same answers tomorrow, and refusals where they would not be."""

import copy
import gc
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from ross3d.scene_cache_ross3d import SCENE_CACHE_VERSION, Ross3DSceneCache, check_tensors, sum_bytes
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
    with pytest.raises(ValueError, match="two.scene: expected scenes encoded by this model, got scenes of other"):
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
    found = type(scene).load(file, model, processor)
    for first, second in zip(ask(model, processor, scene), ask(model, processor, found), strict=True):
        assert torch.equal(first, second)


def test_offloaded_weights_are_refused(scene, model, tmp_path):
    away = copy.deepcopy(model)
    away.model.language_model.norm.to("meta")
    with pytest.raises(ValueError, match="norm.weight: expected weights in memory .* got offloaded ones"):
        scene.save(tmp_path / "away.scene", away)
    assert not list(tmp_path.iterdir())


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_broken_foreign_and_old_files_are_refused(model, file, capsys):
    whole = file.read_bytes()
    file.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"two\.scene: expected scenes written by save\(\), got another or a damaged"):
        Ross3DSceneCache.load(file, model)
    file.write_bytes(b"hello world")
    with pytest.raises(ValueError, match="got another or a damaged file"):
        Ross3DSceneCache.load(file, model)
    file.write_bytes(whole)
    state = torch.load(file, weights_only=True)
    state["layers"][0]["keys"][0, 0, 0, 0] += 1
    for wrong in (state, {key: value for key, value in state.items() if key != "layers"}):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match="got another or a damaged file"):
            Ross3DSceneCache.load(file, model)
    torch.save({"version": Harmful()}, file)
    with pytest.raises(ValueError, match="got another or a damaged file"):
        Ross3DSceneCache.load(file, model)
    assert "this ran" not in capsys.readouterr().out
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="got another or a damaged file"):
        Ross3DSceneCache.load(file, model)
    torch.save({"version": SCENE_CACHE_VERSION + 1}, file)
    with pytest.raises(ValueError, match=f"expected version {SCENE_CACHE_VERSION} of a scene cache, got"):
        Ross3DSceneCache.load(file, model)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_half_a_file_is_refused_wherever_it_ends(model, file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"two\.scene: expected scenes written by save\(\), got another or a damaged file"
    ):
        model.load_scene(file)


def test_what_is_no_file_is_refused(model, tmp_path):
    """Among them a pipe, whose reader would wait for ever."""
    os.mkfifo(tmp_path / "pipe.scene")
    for name, found in (("absent.scene", "nothing"), ("", "something else"), ("pipe.scene", "something else")):
        with pytest.raises(FileNotFoundError, match=rf"expected a file written by scene.save\(\), got {found}"):
            model.load_scene(tmp_path / name)


def test_packed_files_are_refused_before_they_grow(model, file):
    """Parts that are packed may hold a thousand times what the file has; torch packs none."""
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="got another or a damaged file"):
        model.load_scene(file)


def set_layer(name, change):
    def apply(state):
        state["layers"][1][name] = change(state["layers"][1][name])

    return apply


def set_tensor(name, change):
    return lambda state: state.update({name: change(state[name])})


def put_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


# The two scenes of the fixture are 76 positions long, in 2 layers of 2 key heads of 16; 4 and 2 proposals, 5 views.
FORGED = {
    "no mask": (set_tensor("prefix_mask", lambda x: None), r"expected prefix_mask, bool, of shape \(B, L\), got None"),
    "mask of numbers": (set_tensor("prefix_mask", lambda x: x.long()), r"expected prefix_mask, bool, .* got torch.i"),
    "short mask": (set_tensor("prefix_mask", lambda x: x[:, 1:].clone()), "expected keys of layer 0, floating"),
    "mask of one scene": (set_tensor("prefix_mask", lambda x: x[:1].clone()),
                          r"expected next_positions, int64, of shape \(1,\), got torch.int64 of \(2,\)"),
    "mask with a hole": (set_tensor("prefix_mask", lambda x: x.clone().index_fill_(1, torch.tensor([-2]), False)),
                         "expected prefix_mask with padding only at the start, got padding"),
    "mask of nothing": (set_tensor("prefix_mask", torch.zeros_like), "expected prefix_mask with padding only at"),
    "expanded mask": (set_tensor("prefix_mask", lambda x: torch.ones(1, dtype=torch.bool).expand(2, 3_000_000_000)),
                      r"expected prefix_mask, bool, of shape \(B, L\), got torch.bool of \(2, 3000000000\)"),
    "no positions": (set_tensor("next_positions", lambda x: None),
                     r"expected next_positions, int64, of shape \(2,\), got None"),
    "positions of one scene": (set_tensor("next_positions", lambda x: x[:1].clone()),
                               r"expected next_positions, int64, of shape \(2,\), got torch.int64 of \(1,\)"),
    "positions behind the prefixes": (set_tensor("next_positions", lambda x: x + 1),
                                      r"expected next_positions within the prefixes, got \["),
    "other heads": (set_layer("keys", lambda x: x.repeat(1, 2, 1, 1)),
                    r"expected keys of layer 1, .* got torch.float32 of \(2, 4"),
    "other length": (set_layer("values", lambda x: x[:, :, 1:].clone()), "expected values of layer 1, floating"),
    "whole numbers": (set_layer("keys", lambda x: x.long()), r"expected keys of layer 1, .* got torch.int64"),
    "NaN in keys": (set_layer("keys", put_nan), "expected finite keys of layer 1, got NaN or infinity; these"),
    "NaN in features": (set_tensor("proposal_features", put_nan), "expected finite proposal_features, got NaN or"),
    "NaN in patches": (set_tensor("patch_features", put_nan), "expected finite patch_features, got NaN or infinity"),
    "expanded keys": (set_layer("keys", lambda x: x[:, :1, :1, :1].expand_as(x)), "expected keys of layer 1, float"),
    "a layer less": (lambda state: state["layers"].pop(), "expected keys and values of 2 layers, got other layers"),
    "a layer of nothing": (lambda state: state["layers"].__setitem__(0, None), "expected keys and values of 2 layers"),
    "no list": (lambda state: state.update(layers=7), "expected keys and values of 2 layers, got other layers"),
    "features alone": (set_tensor("proposal_mask", lambda x: None), "expected proposal_features and proposal_mask or"),
    "other proposals": (set_tensor("proposal_mask", lambda x: x[:, 1:].clone()), "expected proposal_features, f"),
    "other width": (set_tensor("patch_features", lambda x: x[..., 1:].clone()), "expected patch_features, floating"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_tensors_that_no_scene_of_the_model_has_are_refused(model, file, name):
    """With a right checksum, as somebody would write who means harm; shapes are seen before a number is read."""
    change, message = FORGED[name]
    state = torch.load(file, weights_only=True)
    change(state)
    if name not in ("expanded mask", "a layer of nothing", "no list"):
        state["checksum"] = sum_bytes(state)
    torch.save(state, file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"two\.scene: {message}"):
        model.load_scene(file)
    # Kilobytes: the expanded mask names 6 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def spoil(scene, part: str, value: float):
    """A copy of a scene with a single number changed."""
    spoilt = copy.deepcopy(scene)
    layer = spoilt.past_key_values.layers[1]
    tensor = getattr(layer, part) if part in ("keys", "values") else getattr(spoilt, part)
    tensor.view(-1)[3] = value
    return spoilt


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["keys", "values", "proposal_features", "patch_features"])
def test_scenes_in_memory_that_are_not_finite_are_refused(scene, model, processor, part, value):
    name = f"{part} of layer 1" if part in ("keys", "values") else part
    asks = processor(text=QUESTIONS, scene_index=[1, 0, 1])
    for method in (model.generate, model.ground):
        with pytest.raises(
            ValueError, match=f"^scene: expected finite {name}, got NaN or infinity; these scenes were not encoded"
        ):
            method(scene=spoil(scene, part, value), **asks)
    ask(model, processor, spoil(scene, part, 1e4))


OTHERS = "^scene: expected scenes encoded by this model, got scenes of other weights or another config; encode the"


def test_scenes_in_memory_of_other_models_are_refused(scene, model, processor, file):
    """A second model of the same weights may answer; also of scenes that were joined, or read from disk."""
    twin, trained, widened = (copy.deepcopy(model) for _ in range(3))
    with torch.no_grad():
        trained.model.language_model.layers[0].mlp.up_proj.weight *= 1.01
    widened.config.voxel_size = 0.3
    views, kept = processor(**make_views()), {"keep_patch_features": True}
    joined = type(scene).join([scene, twin.encode_scene(**views, **kept)])
    for read in (scene, joined, model.load_scene(file)):
        ask(twin, processor, read)
        for other in (trained, widened):
            asks = processor(text=QUESTIONS, scene_index=[1, 0, 1])
            for method in (other.generate, other.ground):
                with pytest.raises(ValueError, match=OTHERS):
                    method(scene=read, **asks)
    with pytest.raises(ValueError, match=OTHERS):
        scene.save(file, trained)
    with pytest.raises(ValueError, match=OTHERS):
        ask(model, processor, type(scene).join([scene, trained.encode_scene(**views, **kept)]))


def test_scenes_of_a_model_that_is_gone_are_refused(model, processor, tmp_path):
    passing = copy.deepcopy(model)
    read = passing.encode_scene(**processor(**make_views()))
    read.save(tmp_path / "room.scene", passing)
    del passing
    gc.collect()
    with pytest.raises(ValueError, match="got scenes of a model that is no longer in memory; encode the scene again"):
        model.generate(scene=read, **processor(text=QUESTIONS))
    assert len(model.ground(scene=model.load_scene(tmp_path / "room.scene"), **processor(text=QUESTIONS)))


def test_scenes_are_pickled_without_their_models(scene, model, processor):
    content = pickle.dumps(scene)
    assert len(content) < sum(weight.nbytes for weight in model.parameters())
    for first, second in zip(ask(model, processor, pickle.loads(content)), ask(model, processor, scene), strict=True):
        assert torch.equal(first, second)


def test_scenes_longer_than_the_model_reads_are_refused(scene, model, file):
    short = copy.deepcopy(model)
    short.config.text_config.max_position_embeddings = scene.prefix_mask.shape[1] - 1
    state = torch.load(file, weights_only=True)
    length = scene.prefix_mask.shape[1]
    with pytest.raises(ValueError, match=rf"expected scenes of at most {length - 1} positions \(max_position_embedd"):
        check_tensors("two.scene", state, short.config)
    check_tensors("two.scene", state, model.config)


def test_what_somebody_notes_in_the_config_makes_no_other_model(model, file):
    noted = copy.deepcopy(model)
    noted.config.my_note, noted.config.text_config.reviewed = "as of Monday", True
    assert noted.load_scene(file).prefix_mask.any()
    noted.config.text_config.rms_norm_eps *= 2
    with pytest.raises(ValueError, match="other weights or another config"):
        noted.load_scene(file)


def test_a_full_disk_is_told(scene, model, tmp_path, monkeypatch):
    def fail(state, file):
        file.write_bytes(b"begun")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1600 vs 1494")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        OSError, match=r"room.scene: expected to write 0\.\d MB of scenes, got an error .* free space there"
    ):
        scene.save(tmp_path / "room.scene", model)
    assert not list(tmp_path.iterdir())


TOMORROW = """
import sys
import torch
from transformers import AutoModel, AutoProcessor

checkpoint, file, answers = sys.argv[1:]
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
scene = model.load_scene(file, processor)
asks = processor(text={questions}, scene_index=[1, 0, 1])
torch.save([model.generate(scene=scene, **asks, max_new_tokens=5), model.ground(scene=scene, **asks)], answers)
"""


def test_a_new_process_needs_the_checkpoint_and_the_file_alone(scene, model, processor, file, tmp_path):
    """No class of ours is at hand there: the model reads what it has written."""
    answers = tmp_path / "answers.pt"
    command = [sys.executable, "-c", TOMORROW.format(questions=QUESTIONS), get_checkpoint(), file, answers]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    for found, wanted in zip(torch.load(answers), ask(model, processor, scene), strict=True):
        assert torch.equal(found, wanted)
