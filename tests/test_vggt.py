"""VGGT: ragged scenes, the reference view, layers, precision, files of published weights."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch.testing import assert_close

from ross3d import vggt_ross3d
from ross3d.configuration_ross3d import Ross3DVGGTConfig
from ross3d.vggt_ross3d import (
    Ross3DVGGT,
    convert_published_weights,
    decode_cameras,
    get_rotations,
    make_published_weights,
)


SIZES = {
    "image_size": 42, "patch_size": 14, "hidden_size": 16, "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2, "num_hidden_layers": 4, "num_attention_heads": 2, "num_register_tokens": 3,
    "camera_num_hidden_layers": 1, "camera_num_attention_heads": 2, "camera_num_iterations": 2,
    "dense_layers": [0, 1, 2, 3], "neck_hidden_sizes": [4, 8, 8, 12], "fusion_hidden_size": 8,
}  # fmt: skip
OUTPUTS = (
    "world2cam", "intrinsics", "depth_maps", "depth_confidence", "world_coords", "world_confidence",
)  # fmt: skip


def make_vggt(seed: int = 0, **changes) -> Ross3DVGGT:
    """A small VGGT whose weights are all drawn, LayerScales, tokens and norms included."""
    torch.manual_seed(seed)
    model = Ross3DVGGT(Ross3DVGGTConfig(**(SIZES | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def draw_pictures(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(28, 56), (42, 42)])
def test_scenes_of_different_numbers_of_views_are_those_alone(height, width, monkeypatch):
    """Padding views change nothing, whichever place they have, and neither does the number of views at a time."""
    model, pictures = make_vggt(), draw_pictures(3, 4, 3, height, width)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [False, True, False, False]])
    pictures[~mask] = float("nan")
    monkeypatch.setattr(vggt_ross3d, "VIEWS_AT_ONCE", 3)
    monkeypatch.setattr(vggt_ross3d, "PIXELS_AT_ONCE", 2 * height * width + 1)
    together = model(pictures, mask, layers=[1, -1])
    monkeypatch.undo()
    for scene in range(3):
        alone = model(pictures[scene][mask[scene]][None], layers=[1, 3])
        for ours, wanted in zip(together.features, alone.features, strict=True):
            assert_close(ours[scene][mask[scene]], wanted[0])
            assert not ours[scene][~mask[scene]].any()
        for name in OUTPUTS:
            # Convolutions of other numbers of pictures round differently, and the dense heads end in exponentials.
            assert_close(together[name][scene][mask[scene]], alone[name][0], rtol=1e-4, atol=1e-5, msg=name)
        for ours, wanted in zip(together.camera_encodings, alone.camera_encodings, strict=True):
            assert_close(ours[scene][mask[scene]], wanted[0])


def test_the_first_view_is_the_reference_and_the_others_are_a_set():
    model, pictures = make_vggt(), draw_pictures(1, 4, 3, 28, 42)
    order = [0, 3, 1, 2]
    features, permuted = (model(part, layers=[3]).features[0] for part in (pictures, pictures[:, order]))
    assert_close(permuted, features[:, order])
    other = model(pictures[:, [1, 0, 2, 3]], layers=[3]).features[0]
    assert (other[:, 1] - features[:, 0]).abs().max() > 0.05
    changed = pictures.clone()
    changed[:, 3] = 1 - changed[:, 3]
    assert (model(changed, layers=[3]).features[0][:, 0] - features[:, 0]).abs().max() > 1e-3


def test_only_what_is_asked_for_is_run():
    model, pictures = make_vggt(), draw_pictures(2, 2, 3, 28, 28)
    whole = model(pictures, layers=[0, 1, 2, 3])
    ran = []
    for number, block in enumerate(model.aggregator.frame_blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    part = model(pictures, layers=[1], heads=())
    assert set(ran) == {0, 1} and part.world2cam is None and part.depth_maps is None
    assert_close(part.features[0], whole.features[1])
    trunk = make_vggt(heads=[])
    assert not any("head." in name for name, _ in trunk.named_parameters())
    assert trunk(pictures).features is None


def test_attention_of_the_library_and_checkpointing_change_nothing():
    pictures = draw_pictures(2, 2, 3, 28, 42)
    model = make_vggt()
    wanted = model(pictures, layers=[2])
    model.set_attn_implementation("eager")
    assert model.aggregator.patch_embed.config._attn_implementation == "eager"
    eager = model(pictures, layers=[2])
    assert_close(eager.features[0], wanted.features[0])
    assert_close(eager.depth_maps, wanted.depth_maps, rtol=1e-4, atol=0)
    model.set_attn_implementation("sdpa")
    gradients = []
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(pictures, layers=[2])
        (output.features[0].sum() + output.depth_maps.sum() + output.world2cam.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            assert_close(gradients[1][name], gradient, msg=name)


def test_angles_are_float32_in_half_precision():
    """Neighbouring patches of a long row would share an angle in bfloat16."""
    cosines, sines = vggt_ross3d.get_rotary_table(2, 300, 4, 8, 100.0)
    assert cosines.dtype == torch.float32 and cosines.shape == (604, 8)
    assert len(cosines[4:304, 4:].unique(dim=0)) == 300
    assert not sines[:4].any() and cosines[:4].eq(1).all()
    model = make_vggt().bfloat16()
    features = model(draw_pictures(1, 2, 3, 28, 28).bfloat16(), layers=[3]).features[0]
    exact = make_vggt()(draw_pictures(1, 2, 3, 28, 28), layers=[3]).features[0]
    assert features.dtype == torch.bfloat16
    assert (features.float() - exact).abs().max() < 0.1 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make_vggt()(draw_pictures(1, 2, 3, 28, 28), layers=[3]).features[0]
    assert mixed.dtype == torch.float32
    assert (mixed - exact).abs().max() < 0.1 * exact.abs().max()


def test_autocast_rounds_neither_normalisation_nor_heads(monkeypatch):
    """As published: rounded pictures are normalised in float32, and heads run in the precision of their weights."""
    model, pictures = make_vggt(), draw_pictures(1, 3, 3, 28, 42).bfloat16()
    read, wanted = [], (pictures.float()[0] - torch.tensor(vggt_ross3d.IMAGE_MEAN)[:, None, None])
    wanted = wanted / torch.tensor(vggt_ross3d.IMAGE_STD)[:, None, None]
    model.aggregator.patch_embed.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pictures, layers=[0, 1, 2, 3])
    assert_close(read[0], wanted, rtol=0, atol=0)
    tokens = output.features[3][:, :, 0]
    assert_close(output.camera_encodings[-1][..., :7], model.camera_head(tokens)[-1][..., :7], rtol=0, atol=0)
    start = 1 + model.config.num_register_tokens
    maps, _ = model.depth_head([layer[0, :, start:] for layer in output.features], (28, 42))
    assert_close(output.depth_maps[0], maps[..., 0].exp(), rtol=1e-5, atol=0)


def test_cameras_are_decoded():
    """A turn by 90 degrees about z, with a quaternion of length 2, and fields of view of 90 and 60 degrees."""
    half = 2**0.5
    encoding = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.0, half, half, torch.pi / 2, torch.pi / 3]).repeat(2, 3, 1)
    world2cam, intrinsics = decode_cameras(encoding, (30, 40))
    expected = torch.tensor([[0.0, -1, 0, 0.5], [1, 0, 0, -1.0], [0, 0, 1, 2.0], [0, 0, 0, 1]])
    assert_close(world2cam, expected.repeat(2, 3, 1, 1))
    focal_y, focal_x = 15.0, 20 * 3**0.5
    wanted = torch.tensor([[focal_x, 0, 20], [0, focal_y, 15], [0, 0, 1]])
    assert_close(intrinsics, wanted.repeat(2, 3, 1, 1))
    quaternions = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    rotations = get_rotations(quaternions)
    assert_close(rotations @ rotations.mT, torch.eye(3).repeat(5, 1, 1))
    assert_close(torch.linalg.det(rotations), torch.ones(5))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_published_files_are_read(tmp_path, suffix, monkeypatch):
    """The sizes come from the weights; the head for tracks and heads that are not wanted are left out."""
    monkeypatch.setattr(vggt_ross3d, "VISION_HEAD_WIDTH", 8)
    monkeypatch.setattr(vggt_ross3d, "CAMERA_HEADS", 2)
    model, pictures = make_vggt(camera_num_iterations=4), draw_pictures(2, 2, 3, 28, 42)
    weights = make_published_weights(model.state_dict())
    weights = {key: value.contiguous() for key, value in weights.items()} | {"track_head.norm.weight": torch.ones(3)}
    file = tmp_path / "published" / f"model.{suffix}"
    file.parent.mkdir()
    torch.save(weights, file) if suffix == "pt" else save_file(weights, file)
    (file.parent / "config.json").write_text('{"embed_dim": 16, "img_size": 42, "patch_size": 14}')
    for source in (file, file.parent):
        again = Ross3DVGGT.from_pretrained(source, config=model.config)
        assert_close(again(pictures, layers=[3]).depth_maps, model(pictures, layers=[3]).depth_maps, rtol=0, atol=0)
    trunk = Ross3DVGGT.from_pretrained(file, heads=[])
    assert trunk.config.heads == [] and not hasattr(trunk, "camera_head")
    sizes = (
        "image_size",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_register_tokens",
    )
    assert {name: getattr(trunk.config, name) for name in sizes} == {name: SIZES[name] for name in sizes}
    found = trunk(pictures, layers=[0, 3]).features
    for ours, wanted in zip(found, model(pictures, layers=[0, 3]).features, strict=True):
        assert_close(ours, wanted, rtol=0, atol=0)
    # Saved as a checkpoint of this library, it is read back with fewer heads as well.
    model.save_pretrained(tmp_path / "ours")
    camera = Ross3DVGGT.from_pretrained(tmp_path / "ours", heads=["camera"])
    assert hasattr(camera, "camera_head") and not hasattr(camera, "depth_head")
    assert_close(camera(pictures).world2cam, model(pictures).world2cam, rtol=0, atol=0)
    del weights["aggregator.global_blocks.2.norm1.weight"]
    torch.save(weights, tmp_path / "short.pt")
    with pytest.raises(
        ValueError, match=r"short.pt: expected all tensors .*'aggregator.global_blocks.2.norm1.weight'"
    ):
        Ross3DVGGT.from_pretrained(tmp_path / "short.pt", heads=[])
    torch.save({"other": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt: expected the weights of a published VGGT.*got \['other'\]"):
        Ross3DVGGT.from_pretrained(tmp_path / "other.pt")
    # Files and folders of something else, and those of this library given as published.
    with pytest.raises(
        ValueError, match=r"model.safetensors: .*, with aggregator.patch_embed.pos_embed, got .* or the"
    ):
        Ross3DVGGT.from_pretrained(tmp_path / "ours" / "model.safetensors")
    for name in ("text.txt", "text.safetensors", "text.pt"):
        (tmp_path / name).write_text("words")
        with pytest.raises(
            ValueError, match=rf"{name}: expected the weights of a published VGGT .* got a damaged or o"
        ):
            Ross3DVGGT.from_pretrained(tmp_path / name)
    other = tmp_path / "other"
    other.mkdir()
    for config, message in (
        (None, r"other: expected a VGGT, config.json with model_type 'ross3d_vggt', .* got neither; name another"),
        ('{"_class_name": "AutoencoderKL"}', "other: expected a VGGT, .* got neither"),
        ('{"model_type": "ross3d"}', "other: expected a VGGT, .* got config.json of 'ross3d'"),
        ("words", "config.json: expected a config in JSON, got a damaged file"),
    ):
        if config is not None:
            (other / "config.json").write_text(config)
        with pytest.raises(ValueError, match=message):
            Ross3DVGGT.from_pretrained(other)
    inner = Ross3DVGGT.from_pretrained(tmp_path, subfolder="ours")
    assert_close(inner(pictures).world2cam, model(pictures).world2cam, rtol=0, atol=0)
    with pytest.raises(ValueError, match="blocks.0.extra: expected a tensor of the patch embedder of a"):
        convert_published_weights({"aggregator.patch_embed.blocks.0.extra": torch.ones(2)})


def test_paths_of_nothing_are_named_without_asking_the_hub(tmp_path):
    for path in (tmp_path / "none", "outputs/a/geometry_encoder", "nowhere"):
        with pytest.raises(FileNotFoundError, match="expected a folder or a file of a VGGT, or a Hub id such as"):
            Ross3DVGGT.from_pretrained(path)


def test_names_of_the_published_model():
    """At full size: the numbers of tensors and parameters of facebook/VGGT-1B, less those of its head for tracks."""
    with torch.device("meta"):
        model = Ross3DVGGT(Ross3DVGGTConfig())
    published = make_published_weights(model.state_dict())
    sizes = {key: value.numel() for key, value in published.items()}
    # 394 further tensors are the head for tracks.
    assert (len(sizes), sum(sizes.values())) == (1797 - 394, 1_256_537_516 - 65_941_396)
    assert sum(size for key, size in sizes.items() if key.startswith("aggregator.patch_embed.")) == 304_372_736
    assert sum(size for key, size in sizes.items() if key.startswith("aggregator.")) == 909_112_320
    assert published["aggregator.patch_embed.blocks.23.attn.qkv.weight"].shape == (3072, 1024)


@pytest.mark.parametrize(
    ("pictures", "mask", "message"),
    [
        (torch.rand(1, 2, 3, 30, 28), None, "multiples of patch_size 14, got 30 x 28"),
        (torch.rand(2, 3, 28, 28), None, r"pictures \(B, V, 3, H, W\) in \[0, 1\] as floats, got \(2, 3, 28, 28\)"),
        (torch.zeros(1, 2, 3, 28, 28, dtype=torch.uint8), None, "got .* of torch.uint8; divide uint8 pictures by 255"),
        (torch.rand(2, 2, 3, 28, 28), torch.tensor([[True, True], [False, False]]), r"view_mask: .* \[2, 0\] views"),
    ],
)
def test_pictures_that_are_refused(pictures, mask, message):
    with pytest.raises(ValueError, match=message):
        make_vggt(heads=[])(pictures, mask, layers=[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ["track"]}, "heads"),
        ({"dense_layers": [0, 1, 2, 4]}, "dense_layers: expected rising numbers of pairs below num_hidden_layers 4"),
        ({"num_attention_heads": 8}, "expected heads of a multiple of 4 channels, because positions"),
        (
            {"vision_num_attention_heads": 3},
            "vision_num_attention_heads: expected heads that share the 16 channels of a token",
        ),
        (
            {"camera_num_attention_heads": 3},
            "camera_num_attention_heads: expected heads that share the 32 channels of a",
        ),
        ({"neck_hidden_sizes": [4, 8, 8]}, "neck_hidden_sizes: expected four numbers, one for each map"),
        ({"image_size": 40}, "image_size: expected a multiple of patch_size 14"),
        ({"hiden_size": 4}, "unknown key `hiden_size`; did you mean `hidden_size`"),
        ({"neck_hidden_sizes": [4, 8, 8, 6]}, "neck_hidden_sizes: expected multiples of 4"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        Ross3DVGGTConfig(**(SIZES | changes))
