"""How views become squares, and the pictures of the same fields of view for a geometry encoder."""

import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ross3d.data.collator import Ross3DCollator
from ross3d.data.prepared import PreparedScenes
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.geometry_ross3d import assign_patches
from ross3d.image_processing_ross3d import ORIENTATION_TAG
from ross3d.inputs_ross3d import check_inputs
from ross3d.processing_ross3d import Ross3DProcessor, get_geometry_size
from ross3d.scene_cache_ross3d import Ross3DSceneCache
from ross3d.tests.posed_views import (
    BEV_SIZE,
    PATCH_SIZE,
    VIEW_SIZE,
    make_bev,
    make_poses,
    make_test_processor,
    make_views,
)
from ross3d.tests.tiny import get_rooms
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor
from ross3d.training.arguments import RunArguments
from ross3d.training.build import get_run_reading


# Height and width of pictures and depth maps: landscape, portrait.
SHAPES = [(36, 48), (61, 44)]
MODES = ["published", "valid_depth"]
FITS = ["center_crop", "squash"]
# Pillow rounds to whole numbers in between and at the end.
ROUNDING = 1.5
GRID, GEOMETRY_SIZE, GEOMETRY_PATCH = 3, 56, 7
GEOMETRY = {"geometry_image_size": GEOMETRY_SIZE, "geometry_patch_size": GEOMETRY_PATCH}


@pytest.fixture(scope="module")
def tokenizer():
    return make_test_processor().tokenizer


def make_scene(height: int, width: int, num_views: int = 3, seed: int = 0) -> dict:
    """The processor's arguments for one scene, its pictures twice as large as the depth maps.

    Colours keep away from black and white, so that no interpolation goes beyond them.
    """
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 3, (num_views, height, width)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1] = 0
    boxes = np.concatenate([rng.uniform(-1.5, 1.5, (5, 3)), rng.uniform(1.5, 4, (5, 3))], axis=1)
    return {
        "images": list(rng.integers(64, 192, (num_views, 2 * height, 2 * width, 3), dtype=np.uint8)),
        "depth_maps": depth,
        "intrinsics": np.array([[45.0, 0, 0.5 * width - 2], [0, 47.0, 0.5 * height + 1], [0, 0, 1]]),
        "cam2world": make_poses(num_views, seed),
        "proposal_boxes": boxes.astype(np.float32),
    }


def pool(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Means (V, 3, 3, 3) of the valid points of a view's overlapping cells."""
    edges = [(math.floor(i * VIEW_SIZE / GRID), math.ceil((i + 1) * VIEW_SIZE / GRID)) for i in range(GRID)]
    return np.stack([
        [[view[top:end, left:right][mask[top:end, left:right]].mean(axis=0) for left, right in edges]
         for top, end in edges]
        for view, mask in zip(points, valid, strict=True)
    ])  # fmt: skip


def get_weights(start: float, end: float, in_size: int, out_size: int) -> np.ndarray:
    """Weights (out_size, in_size) of bicubic interpolation (a = -0.5), widened where it makes smaller."""
    scale = (end - start) / out_size
    width = max(scale, 1.0)
    centres = start + (np.arange(out_size) + 0.5) * scale
    x = np.abs((np.arange(in_size) + 0.5 - centres[:, None]) / width)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resize(picture: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """The part left, top, right, bottom of a picture at `size` (height, width), bicubic, in float64."""
    left, top, right, bottom = box
    rows = get_weights(top, bottom, picture.shape[0], size[0])
    columns = get_weights(left, right, picture.shape[1], size[1])
    return np.einsum("ih,hwc,jw->ijc", rows, picture.astype(np.float64), columns)


def get_shown_box(height: int, width: int, fit: str) -> tuple[float, ...]:
    """The part of a picture that its view shows."""
    if fit == "squash":
        return 0, 0, width, height
    scale = VIEW_SIZE / min(height, width)
    resized_width, resized_height = int(width * scale), int(height * scale)
    left, top = (resized_width - VIEW_SIZE) // 2, (resized_height - VIEW_SIZE) // 2
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + VIEW_SIZE) * across, (top + VIEW_SIZE) * down


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SHAPES)
class TestSquash:
    def test_pixels_are_those_of_the_whole_picture(self, tokenizer, mode, height, width):
        own = make_test_processor(tokenizer, geometry_mode=mode, view_fit="squash")
        scene = make_scene(height, width)
        square = (VIEW_SIZE, VIEW_SIZE)
        wanted = np.stack(
            [Image.fromarray(image).resize(square, Image.Resampling.BICUBIC) for image in scene["images"]]
        )
        with_depth, alone = own(**scene), own(images=scene["images"])
        for found in (with_depth, alone):
            assert_close(found["pixel_values"][0].permute(0, 2, 3, 1), torch.from_numpy(wanted).float() / 127.5 - 1)
        assert "patch_coords" not in alone
        for view, image in zip(wanted, scene["images"], strict=True):
            assert np.abs(view - resize(image, (0, 0, 2 * width, 2 * height), square)).max() < ROUNDING

    def test_positions_are_those_of_the_chosen_pixels(self, tokenizer, mode, height, width):
        """Of the pixels that OpenCV's nearest rule takes, from their places in the full map."""
        own = make_test_processor(tokenizer, geometry_mode=mode, view_fit="squash")
        scene = make_scene(height, width)
        rows, columns = (
            np.array([math.floor(place * (1 / (VIEW_SIZE / side))) for place in range(VIEW_SIZE)])
            for side in (height, width)
        )
        depth = scene["depth_maps"][:, rows][:, :, columns].astype(np.float64)
        (fx, _, cx), (_, fy, cy), _ = scene["intrinsics"]
        rays = np.stack(np.broadcast_arrays((columns - cx) / fx, (rows[:, None] - cy) / fy, 1.0), axis=-1)
        rotations, centres = scene["cam2world"][:, :3, :3], scene["cam2world"][:, :3, 3]
        points = np.einsum("vij,vrcj->vrci", rotations, rays * depth[..., None]) + centres[:, None, None]
        fitted = own.fit_scene(**{key: value for key, value in scene.items() if key != "proposal_boxes"})
        assert fitted.rows.tolist() == rows.tolist() and fitted.columns.tolist() == columns.tolist()
        assert_close(fitted.world_coords.double(), torch.from_numpy(points), atol=1e-5, rtol=0)
        found = own(**scene)
        counted = depth > 0 if mode == "valid_depth" else np.ones_like(depth, dtype=bool)
        wanted = torch.from_numpy(pool(points, counted)).float()
        assert_close(found["patch_coords"][0], wanted, atol=1e-5, rtol=0)
        boxes = torch.from_numpy(scene["proposal_boxes"])
        patches = assign_patches(torch.from_numpy(points).float(), boxes, PATCH_SIZE, 0.5, torch.from_numpy(counted))
        assert torch.equal(found["proposal_patches"][0], patches) and patches.any() and not patches.all()

    def test_a_bird_s_eye_picture_is_shown_whole(self, tokenizer, mode, height, width):
        own = make_test_processor(tokenizer, geometry_mode=mode, view_fit="squash")
        bev = make_bev()
        found = own(**make_scene(height, width), **bev)
        pixels = np.asarray(Image.fromarray(bev["bev_image"]).resize((BEV_SIZE, BEV_SIZE), Image.Resampling.BICUBIC))
        seen = found["bev_valid"][0].numpy()
        assert seen[:, BEV_SIZE // 2 :].all() and not seen[:, : BEV_SIZE // 2].any()
        if mode == "valid_depth":
            pixels = pixels * seen[..., None]
        assert_close(found["bev_pixel_values"][0], torch.from_numpy(pixels / 255).permute(2, 0, 1).float())


@pytest.mark.parametrize(("height", "width"), SHAPES)
class TestGeometryPictures:
    @pytest.mark.parametrize("fit", FITS)
    def test_pixels_are_made_from_the_full_picture(self, tokenizer, height, width, fit):
        """With and without depth, by an interpolation written here."""
        own = make_test_processor(tokenizer, geometry_mode="valid_depth", view_fit=fit, **GEOMETRY)
        scene = make_scene(height, width)
        box = get_shown_box(2 * height, 2 * width, fit)
        squashed = (42, 56) if width > height else (56, 42)
        size = squashed if fit == "squash" else (56, 56)
        for given in (scene, {"images": scene["images"]}):
            found = own(**given)["geometry_pixel_values"]
            assert found.shape == (1, 3, 3, *size) and found.dtype == torch.uint8 and found.is_contiguous()
            for view, image in zip(found[0].permute(0, 2, 3, 1).numpy(), scene["images"], strict=True):
                assert np.abs(view - resize(image, box, size)).max() < ROUNDING

    @pytest.mark.parametrize("fit", FITS)
    def test_view_and_geometry_picture_show_the_same(self, tokenizer, height, width, fit):
        """Discs of their own colours in the corners and off the middle: seen in both or in neither, at one place."""
        own = make_test_processor(tokenizer, geometry_mode="valid_depth", view_fit=fit, **GEOMETRY)
        image = np.full((4 * height, 4 * width, 3), 90, dtype=np.uint8)
        rows, columns = np.mgrid[: 4 * height, : 4 * width]
        for place, colour in ((0, (255, 0, 0)), (0.999, (0, 255, 0)), (0.4, (0, 0, 255))):
            far = np.hypot(rows - place * 4 * height, columns - place * 4 * width)
            image[far < 16] = colour
        found = own(images=[image])
        view, picture = (found[key][0, 0].permute(1, 2, 0) for key in ("pixel_values", "geometry_pixel_values"))
        for channel, is_seen in enumerate((fit == "squash", fit == "squash", True)):
            centres = []
            for pixels in ((view + 1) / 2, picture / 255):
                others = pixels.sum(dim=2) - pixels[..., channel]
                disc = (pixels[..., channel] > 0.8) & (others < 0.4)
                assert bool(disc.any()) == is_seen
                centres.append((disc.nonzero().float().mean(dim=0) + 0.5) / torch.tensor(disc.shape))
            if is_seen:
                assert_close(centres[0], centres[1], atol=0.03, rtol=0)


def test_a_stretched_picture_keeps_its_part(tokenizer):
    """Published mode stretches a picture to the aspect of its depth map; both pictures show the same part."""
    own = make_test_processor(tokenizer, **GEOMETRY)
    image = np.zeros((60, 90, 3), dtype=np.uint8)
    image[:, :, 0] = np.linspace(0, 255, 90)
    image[:, :, 1] = np.linspace(0, 255, 60)[:, None]
    scene = make_scene(36, 48, 1) | {"images": [image], "proposal_boxes": None}
    with pytest.warns(UserWarning, match="is stretched to the aspect"):
        found = own(**scene)
    view = (found["pixel_values"][0, 0] + 1) * 127.5
    picture = torch.nn.functional.interpolate(
        found["geometry_pixel_values"][0].float(), (VIEW_SIZE, VIEW_SIZE), mode="bilinear", antialias=True
    )[0]
    assert 20 < view[0].min() and view[0].max() < 235 and view[1].min() < 4
    assert_close(picture, view, atol=3, rtol=0)


class TestGeometrySizes:
    @pytest.mark.parametrize(
        ("size", "wanted"),
        [
            ((968, 1296), (392, 518)),
            ((1296, 968), (518, 392)),
            ((480, 640), (392, 518)),
            ((1080, 1920), (294, 518)),
            ((700, 700), (518, 518)),
            ((30, 40), (392, 518)),
        ],
    )
    def test_the_longer_side_is_fixed_and_the_other_whole_patches(self, size, wanted):
        assert get_geometry_size(*size, 518, 14, "it") == wanted

    def test_a_side_below_one_patch(self, tokenizer):
        own = make_test_processor(tokenizer, view_fit="squash", geometry_image_size=14)
        message = (
            r"images\[1\] of scene hall: expected a shorter side of at least one patch of 14 pixels at"
            r" geometry_image_size 14, got 20 x 50 \(height x width\); raise geometry_image_size, or crop"
        )
        long = np.zeros((20, 50, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match=message):
            own(images=[np.zeros((50, 50, 3), dtype=np.uint8), long], scene_ids="hall")
        own.geometry_image_size = 28
        assert own(images=[long])["geometry_pixel_values"].shape == (1, 1, 3, 14, 28)

    def test_views_of_a_scene_have_one_size(self, tokenizer):
        own = make_test_processor(tokenizer, view_fit="squash", geometry_mode="valid_depth", **GEOMETRY)
        shapes = [(36, 48), (72, 96), (48, 36)]
        images = [np.full((*shape, 3), 7, dtype=np.uint8) for shape in shapes]
        assert own(images=images[:2])["geometry_pixel_values"].shape == (1, 2, 3, 42, 56)
        message = (
            r"images\[2\] of scene 0: expected the aspect of images\[0\], for geometry_image_size one of 42 x 56"
            r" \(height x width\), got one of 56 x 42; crop or turn one of them, or set view_fit='center_crop'"
        )
        with pytest.raises(ValueError, match=message):
            own(images=images)
        own.view_fit = "center_crop"
        assert own(images=images)["geometry_pixel_values"].shape == (1, 3, 3, 56, 56)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"view_fit": "pad"}, r"view_fit: expected one of \('center_crop', 'squash'\), got 'pad'"),
            ({"view_fit": None}, r"view_fit: expected one of .*, got None"),
            ({"geometry_image_size": 500}, "geometry_image_size: expected a multiple of geometry_patch_size 14, or"
             " None, got 500; take another, such as 518"),
            ({"geometry_image_size": 518, "geometry_patch_size": 16}, "such as 592"),
            ({"geometry_image_size": 0}, "geometry_image_size: expected a whole number from 1 on, got 0"),
            ({"geometry_image_size": 518.0}, "geometry_image_size: expected a whole number from 1 on, got 518.0"),
            ({"geometry_image_size": True}, "geometry_image_size: expected a whole number from 1 on, got True"),
            ({"geometry_patch_size": None}, "geometry_patch_size: expected a whole number from 1 on, got None"),
        ],
    )  # fmt: skip
    def test_settings_that_are_wrong(self, tokenizer, settings, message):
        with pytest.raises(ValueError, match=message):
            make_test_processor(tokenizer, **settings)
        own = make_test_processor(tokenizer, geometry_patch_size=16, geometry_image_size=64, view_fit="squash")
        own.geometry_patch_size, own.geometry_image_size = 14, 50
        with pytest.raises(ValueError, match="geometry_image_size: expected a multiple of geometry_patch_size 14"):
            own(**make_views())


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_pictures_are_turned_upright_first(tokenizer, fit, orientation, turns):
    own = make_test_processor(tokenizer, geometry_mode="valid_depth", view_fit=fit, **GEOMETRY)
    scene = make_scene(36, 48)
    files = []
    for image in scene["images"]:
        picture, stream = Image.fromarray(image), io.BytesIO()
        exif = picture.getexif()
        exif[ORIENTATION_TAG] = orientation
        picture.save(stream, format="PNG", exif=exif)
        files.append(Image.open(stream))
    found = own(**scene | {"images": files})
    upright = own(images=[np.rot90(image, turns) for image in scene["images"]])
    for key in ("pixel_values", "geometry_pixel_values"):
        assert torch.equal(found[key], upright[key]), key
    height, width = found["geometry_pixel_values"].shape[3:]
    assert (height > width) == (fit == "squash" and turns % 2 == 1)
    if fit == "squash":
        # Nearest pixels of a turned map are others by up to one; the points of a cell stay near.
        wanted = torch.rot90(own(**scene)["patch_coords"][0], turns, (1, 2))
        assert_close(found["patch_coords"][0], wanted, atol=0.4, rtol=0)


def test_without_the_setting_nothing_is_added(tokenizer):
    own = make_test_processor(tokenizer, view_fit="squash")
    assert "geometry_pixel_values" not in own(**make_views())
    assert own.fit_scene(make_views()["images"]).geometry_pictures is None


def test_the_published_crop_is_unchanged(tokenizer):
    """The default is what the processor did before it had the setting."""
    assert make_test_processor(tokenizer).view_fit == "center_crop"
    portrait = {"images": make_scene(61, 44)["images"]}
    with pytest.raises(ValueError, match="expected pictures at least as wide as high"):
        make_test_processor(tokenizer)(**portrait)
    assert make_test_processor(tokenizer, view_fit="squash")(**portrait)["pixel_values"].shape[3:] == (40, 40)


def test_batches_are_padded_with_views(tokenizer):
    """Packed rows of two scenes equal each alone; a cast leaves the bytes alone."""
    own = make_test_processor(tokenizer, view_fit="squash", **GEOMETRY)
    scenes = [make_scene(36, 48, views, seed=views) for views in (2, 4)]
    texts = [["Why?", "the lamp"], ["How many chairs are there?"]]
    found = own(**{key: [scene[key] for scene in scenes] for key in scenes[0]}, text=texts)
    assert found["geometry_pixel_values"].shape == (2, 4, 3, 42, 56)
    assert not found["geometry_pixel_values"][0, 2:].any() and found["geometry_pixel_values"][1, 2:].any()
    check_inputs(found)
    singles = [own(**scene, text=text) for scene, text in zip(scenes, texts, strict=True)]
    for row, single in enumerate(singles):
        views = single["geometry_pixel_values"].shape[1]
        assert torch.equal(found["geometry_pixel_values"][row, :views], single["geometry_pixel_values"][0])
    rows = [{key: value[0] for key, value in single.items()} | {"row_seed": torch.tensor(3)} for single in singles]
    batch = Ross3DCollator(0, 0.25)(rows)
    assert torch.equal(batch["geometry_pixel_values"], found["geometry_pixel_values"])
    assert found.to(torch.bfloat16)["geometry_pixel_values"].dtype == torch.uint8
    assert found["pixel_values"].dtype == torch.bfloat16


def test_scenes_of_two_aspects_share_no_batch(tokenizer):
    own = make_test_processor(tokenizer, view_fit="squash", **GEOMETRY)
    scenes = [make_scene(*shape, 2)["images"] for shape in SHAPES]
    message = (
        r"rows: expected geometry_pixel_values of shape \(..., 3, 42, 56\) in every row of a batch, got"
        r" \(2, 3, 56, 42\) in row 1; scenes whose pictures differ in aspect cannot share a batch: one scene per call,"
        r" one row per step \(--trainer.per_device_train_batch_size 1\), features from files"
    )
    rows = [{key: value[0] for key, value in own(images=scene).items()} for scene in scenes]
    for make in (lambda: own(images=scenes), lambda: Ross3DCollator(0, 0.25)(rows)):
        with pytest.raises(ValueError, match=message):
            make()
    own.view_fit, own.geometry_mode = "center_crop", "valid_depth"
    assert own(images=scenes)["geometry_pixel_values"].shape == (2, 2, 3, 56, 56)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fitted_scene_stands_for_its_views(tokenizer, shape):
    own = make_test_processor(tokenizer, view_fit="squash", **GEOMETRY)
    scene = make_scene(*shape) | make_bev()
    boxes = scene.pop("proposal_boxes")
    fitted = own.fit_scene(**scene)
    words = {"text": ["Why?", "the lamp"], "proposal_boxes": boxes}
    found, wanted = own(images=fitted, **words), own(**scene, **words)
    assert found.keys() == wanted.keys() >= {"geometry_pixel_values", "bev_valid", "proposal_patches"}
    for key in wanted:
        assert torch.equal(found[key], wanted[key]), key
    for change in ({"view_fit": "center_crop"}, {"geometry_image_size": 63}, {"geometry_image_size": None}):
        other = make_test_processor(tokenizer, **{"view_fit": "squash", **GEOMETRY, **change})
        with pytest.raises(ValueError, match="expected a scene fitted by a processor with"):
            other(images=fitted)


@pytest.mark.parametrize("saved", [{}, {"view_fit": "squash", **GEOMETRY}])
def test_settings_survive_saving(tokenizer, tmp_path, saved):
    """Processors that were saved without them crop."""
    own = make_test_processor(tokenizer, **saved)
    own.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    names = ("view_fit", "geometry_image_size", "geometry_patch_size")
    wanted = {"view_fit": "center_crop", "geometry_image_size": None, "geometry_patch_size": 14} | saved
    assert {name: settings.get(name) for name in names} == wanted
    if not saved:
        file.write_text(json.dumps({key: value for key, value in settings.items() if key not in names}))
    again, scene = Ross3DProcessor.from_pretrained(tmp_path), make_scene(36, 48)
    assert {name: getattr(again, name) for name in names} == wanted
    first, second = own(**scene), again(**scene)
    assert first.keys() == second.keys() and ("geometry_pixel_values" in first) == bool(saved)
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_what_was_stored_before_there_were_these_settings_stays_valid(tokenizer):
    """Stores compare settings; those of today's default equal those of earlier files."""
    own = make_test_processor(tokenizer)
    before = {"view_size": 40, "patch_size": 8, "geometry_mode": "published", "bev_size": 24, "resample": 3}
    assert own.get_fit_settings() == before and "view_fit" not in own.get_scene_settings()
    own.view_fit = "squash"
    assert own.get_fit_settings() == before | {"view_fit": "squash"}
    scene, views = own.get_scene_settings(), own.get_view_settings()
    assert scene["view_fit"] == "squash"
    own.geometry_image_size = 56
    # Pictures for another reader change neither what the model reads nor what the VAE teacher encodes.
    assert (own.get_scene_settings(), own.get_view_settings()) == (scene, views)
    assert own.get_fit_settings() == views | {"geometry_image_size": 56, "geometry_patch_size": 14}


def test_prepared_scenes_keep_the_pictures_and_are_made_again(tmp_path):
    """Those of other settings are not read; those of these settings are, without the scene's pictures."""
    path = shutil.copytree(sorted((get_rooms() / "train").iterdir())[0], tmp_path / "room")
    scene = read_rgbd_folder(path)
    inputs = {key: value for key, value in scene.get_inputs(bev=True).items() if key != "scene_ids"}
    read = []

    def read_counted(folder):
        read.append(folder)
        return read_rgbd_folder(folder)

    changes = [{}, {"view_fit": "squash"}, {"view_fit": "squash", "geometry_image_size": 56}]
    for count, change in enumerate(changes, start=1):
        processor = make_tiny_processor()
        for name, value in change.items():
            setattr(processor, name, value)
        store = PreparedScenes(tmp_path / "prepared", processor, read_counted)
        wanted = processor.fit_scene(**inputs)
        for fitted in (store.read(path)[1], store.read(path)[1]):
            assert len(read) == count
            assert torch.equal(fitted.pictures, wanted.pictures)
            assert torch.equal(fitted.patch_coords, wanted.patch_coords)
            if "geometry_image_size" in change:
                assert torch.equal(fitted.geometry_pictures, wanted.geometry_pictures)
            else:
                assert fitted.geometry_pictures is None


def test_saved_scenes_of_another_fit_are_refused(tmp_path):
    processor, scene = make_tiny_processor(), make_views()
    model = make_tiny_model(processor.tokenizer, seed=1)
    inputs = processor(**scene)
    model.encode_scene(**inputs).save(tmp_path / "room.scene", model, processor)
    processor.geometry_image_size = 28
    Ross3DSceneCache.load(tmp_path / "room.scene", model, processor)
    processor.view_fit = "squash"
    with pytest.raises(ValueError, match="expected scenes prepared with .*'view_fit': 'squash'"):
        Ross3DSceneCache.load(tmp_path / "room.scene", model, processor)
    # The model reads the pictures of its own size alone.
    both = processor(**scene, text="Why?")
    processor.geometry_image_size = None
    plain = processor(**scene, text="Why?")
    with torch.no_grad():
        assert torch.equal(model(**both).logits, model(**plain).logits)
    answers = [model.generate(**given, max_new_tokens=3) for given in (both, plain)]
    assert torch.equal(*answers) and "geometry_pixel_values" in both and "geometry_pixel_values" not in plain


@pytest.mark.parametrize(("size", "wanted"), [(None, 64), (56, 64), (518, 518)])
def test_pictures_are_decoded_as_large_as_either_reader_needs(size, wanted):
    processor = make_tiny_processor()
    processor.geometry_image_size = size
    arguments = RunArguments()
    arguments.data.decode = "reduced"
    assert processor.view_size == 64 and get_run_reading(arguments, processor)["reduce_to"] == wanted
