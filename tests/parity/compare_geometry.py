"""Geometry and processing against the recorded cases."""

import hashlib
import re

import numpy as np
import torch
from PIL import Image

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.sampling import sample_uniform
from ross3d.data.sources.optional_files import Alignment, align_cameras
from ross3d.geometry_ross3d import (
    get_nearest_indices,
    get_sin3d_embedding,
    pool_patch_coords,
    quantize_coords,
    unproject,
)
from ross3d.grounding_ross3d import get_proposal_features
from ross3d.processing_ross3d import fit_picture, get_resized_size
from ross3d.rows_ross3d import IMAGE_TOKEN, SPATIAL_INSTRUCTION
from ross3d.tests.parity.build import SLOT, Recorded, collapse_slot, enlarge_recorded, make_processor, to_pictures
from ross3d.tests.parity.golden import GoldenCase, read_slices
from ross3d.tests.parity.tables import ACTIVATIONS, EXACT_ARITHMETIC, get_angle_tolerance


def align_poses(case: GoldenCase) -> torch.Tensor:
    """Cameras (V, 4, 4) in the aligned world, as readers of scans compute them, float32."""
    cameras = dict(enumerate(case.read("poses").double().numpy()))
    aligned = align_cameras(cameras, Alignment(case.read("axis_align").double().numpy()))
    return torch.from_numpy(np.stack(list(aligned.values()))).float()


def compare_unproject(recorded: Recorded, case: GoldenCase) -> None:
    poses = align_poses(case)
    case.same("composed_poses", poses)
    depth = case.read("depth") / 1000
    case.close("world_coords", unproject(depth, case.read("intrinsic")[:3, :3], poses), EXACT_ARITHMETIC)


def get_position_tolerance(config: Ross3DConfig) -> float:
    """Tolerance of position embeddings: their angles are voxel indices, at most those of the scene's bounds."""
    edges = zip(config.scene_bounds_min, config.scene_bounds_max, strict=True)
    return get_angle_tolerance(max((high - low) / config.voxel_size for low, high in edges))


def compare_coord_pe(recorded: Recorded, case: GoldenCase) -> None:
    config = recorded.model.config
    case.same("scalars|voxel_size", config.voxel_size)
    case.same("scalars|min_xyz", list(config.scene_bounds_min))
    case.same("scalars|max_xyz", list(config.scene_bounds_max))
    low, high = torch.tensor(config.scene_bounds_min).float(), torch.tensor(config.scene_bounds_max).float()

    def quantize(coords: torch.Tensor) -> torch.Tensor:
        return quantize_coords(coords, config.voxel_size, low, high)

    coords, _ = pool_patch_coords(recorded.world_coords, None, config.vision_config.patch_size, "published")
    case.close("avg", coords, EXACT_ARITHMETIC)
    case.same("discrete", quantize(coords))
    case.same("points_discrete", quantize(case.read("points")))
    case.same("ties_discrete", quantize(case.read("ties")))
    voxels = case.read("pe_input")
    for size in case.scalars["sizes"]:
        chosen = re.search(r"pe_input\[:, \[([\d,]+)\]\]", case.describe(f"pe_{size}"))
        rows = voxels[:, [int(row) for row in chosen.group(1).split(",")]] if chosen else voxels
        case.close(f"pe_{size}", get_sin3d_embedding(rows, size), get_angle_tolerance(float(rows.max())))
    case.same("scalars|sizes", [case.tensors[f"pe_{size}"].shape[-1] for size in case.scalars["sizes"]])
    embedding = recorded.model.model.get_position_embedding(coords.flatten(1, 2))
    case.close("pe_frames", embedding, get_position_tolerance(config))


def compare_objects(recorded: Recorded, case: GoldenCase) -> None:
    processor, model = recorded.train_processor, recorded.model
    boxes, patches = recorded.shared.read("objects"), recorded.object_patches
    case.same("object_patch", patches)
    case.same("scalars|patches_per_object", patches.flatten(1).sum(dim=1))
    case.same("scalars|threshold_pixels", int(processor.patch_size**2 * processor.object_patch_threshold))
    low, high = (torch.tensor(edge).float() for edge in (model.config.scene_bounds_min, model.config.scene_bounds_max))
    case.same("center_discrete", quantize_coords(boxes[:, :3], model.config.voxel_size, low, high))
    centres = model.model.get_position_embedding(boxes[:, :3])
    tolerance = get_position_tolerance(model.config)
    case.close("center_pe", centres, tolerance)
    inputs = recorded.get_inputs("ground")
    with torch.no_grad():
        projected = model.get_image_features(inputs["pixel_values"]).patch_features[None]
        features, _ = get_proposal_features(model, projected, boxes[None], None, patches[None])
    case.close("object_features", features[0], tolerance)
    case.close("pooled", features[0] - centres, ACTIVATIONS)


def compare_inputs(recorded: Recorded, case: GoldenCase) -> None:
    """Texts, token ids and labels of the three questions; the pictures and boxes are read by the other cases."""
    for name in ("images_small", "bev_small", "world_coords_small", "objects", "box_input"):
        case.read(name)
    ground = recorded.model.config.ground_token_id
    for task in ("qa", "cap", "ground"):
        user_text = f"{IMAGE_TOKEN}\n{SPATIAL_INSTRUCTION}\n{recorded.get_question(task)}"
        case.same(f"scalars|{task}_train_user_text", user_text)
        targets = {"target_objects": [0]} if task == "ground" else {}
        inputs = recorded.get_inputs(task, train=True, **targets)
        ids, labels = collapse_row(recorded, inputs)
        case.same(f"{task}_train_ids", ids)
        case.same(f"{task}_train_labels", labels)
        ids, _ = collapse_row(recorded, recorded.get_inputs(task))
        case.same(f"{task}_eval_ids", ids)
    # The evaluation script writes the answer into the prompt; ours is asked without it.
    words = {"text": recorded.get_question("ground"), "answers": recorded.shared.scalars["ground_answer_text"]}
    words |= {"proposal_boxes": recorded.shared.read("objects"), "target_objects": [0]}
    inputs = recorded.eval_processor(images=to_pictures(recorded.views), **words)
    ids, labels = collapse_row(recorded, inputs)
    case.same("ground_eval_ref_ids", ids)
    labelled = case.tensors["ground_eval_ref_labels"] == ground
    assert torch.equal(labelled, labels == ground), "inputs:ground_eval_ref_labels name another <ground>"


def collapse_row(recorded: Recorded, inputs: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ids and labels (1, L) of one row, with the published mark where the views are."""
    is_image = inputs["input_ids"][0] == recorded.model.config.image_token_id
    ids = collapse_slot(inputs["input_ids"][0], is_image, SLOT)
    labels = collapse_slot(inputs["labels"][0], is_image, -100)[None] if "labels" in inputs else None
    return ids[None], labels


def compare_preprocess(recorded: Recorded, case: GoldenCase) -> None:
    """Files to tensors: crops, cameras, bird's-eye picture."""
    pictures = to_pictures(enlarge_recorded(case, "rgb_small"))
    depth = enlarge_recorded(case, "depth_small") / 1000
    bev = Image.fromarray(enlarge_recorded(case, "bev_src_small").numpy())
    intrinsics = case.read("intrinsic")[:3, :3]
    cam2world = align_poses(case)
    boxes = case.read("objects")
    size = case.scalars["image_processor"]["size"][0]
    processor = make_processor(recorded.golden, spatial_instruction=False, views=size)
    inputs = processor(
        images=pictures, depth_maps=depth, intrinsics=intrinsics, cam2world=cam2world, proposal_boxes=boxes,
        bev_image=bev,
    )  # fmt: skip
    frames = check_frames(case, processor, pictures, depth, inputs["pixel_values"][0])
    check_world(case, depth, intrinsics, cam2world, size, inputs["patch_coords"][0], processor.patch_size)
    check_bev(case, processor, bev, depth, inputs["bev_pixel_values"])
    shapes = case.scalars["keys"]
    case.same("scalars|keys|images", list(inputs["pixel_values"].shape[1:]))
    case.same("scalars|keys|world_coords", [*frames.shape[:3], 3])
    case.same("scalars|keys|video_size", inputs["view_mask"].shape[1])
    case.same("scalars|keys|objects", list(inputs["proposal_boxes"].shape[1:]))
    case.same("scalars|keys|bev_image", list(inputs["bev_pixel_values"].shape))
    case.same("scalars|keys|boundry", list(case.tensors["boundry"].shape))
    assert set(shapes) == {"images", "world_coords", "video_size", "objects", "bev_image", "boundry"}
    case.same("scalars|video_size", inputs["view_mask"].shape[1])
    chosen = sample_uniform(case.scalars["total_frames"], len(case.scalars["frame_sampled_indices"]))
    case.same("scalars|frame_sampled_indices", chosen)
    check_image_processor(case, processor.image_processor)


def check_frames(case: GoldenCase, processor, pictures, depth: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The cropped uint8 pictures (V, S, S, 3), and the processor's normalised values of them."""
    size, resample = processor.view_size, processor.image_processor.resample
    resized = get_resized_size(*depth.shape[1:], size, "published", "views")
    crops = [fit_picture(picture, resized, size, resample) for picture in pictures]
    expected = {"new_width": resized[1], "new_height": resized[0], "left": (resized[1] - size) // 2, "top": 0}
    for key, value in expected.items():
        case.same(f"scalars|resize_then_crop|{key}", value)
    case.same("scalars|frame_sha256", [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops])
    frames = torch.from_numpy(np.stack(crops))
    case.close("scalars|frame_mean", frames.double().mean(dim=(1, 2, 3)), EXACT_ARITHMETIC)
    rows, columns = read_slices(case.describe("frame_crop"))
    case.same("frame_crop", frames[:, rows, columns])
    corner = case.tensors["frame_corner"].shape[1]
    case.same("frame_corner", frames[:, :corner, :corner])
    case.same("frame_corner_br", frames[:, -corner:, -corner:])
    rows, columns = read_slices(case.describe("pixel_values_crop"))
    case.close("pixel_values_crop", pixels[:, :, rows, columns], EXACT_ARITHMETIC)
    case.close("scalars|pixel_values_sum", pixels.double().sum(), EXACT_ARITHMETIC, pixels.double().abs().sum().item())
    plain = (frames.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    case.same("scalars|pixel_values_vs_(x/255-0.5)/0.5_max_abs", (pixels - plain).abs().max())
    return frames


def check_world(case, depth, intrinsics, cam2world, size: int, patch_coords: torch.Tensor, patch_size: int) -> None:
    """World coordinates of the cropped pixels, which the processor pools and keeps to itself."""
    height, width = get_resized_size(*depth.shape[1:], size, "published", "views")
    left = (width - size) // 2
    rows = get_nearest_indices(depth.shape[1], height)
    columns = get_nearest_indices(depth.shape[2], width)[left : left + size]
    case.same("nearest_rows", rows)
    case.same("nearest_cols", columns)
    world = unproject(depth[:, rows][:, :, columns], intrinsics, cam2world, rows, columns)
    case.close("world_coords_stride12", world, EXACT_ARITHMETIC)
    views, rows, columns = read_slices(case.describe("world_coords_crop"))
    case.close("world_coords_crop", world[views, rows, columns], EXACT_ARITHMETIC)
    total = world.double().sum()
    case.close("scalars|world_coords_double_sum", total, EXACT_ARITHMETIC, world.double().abs().sum().item())
    case.same("scalars|world_coords_dtype", str(world.dtype))
    pooled, _ = pool_patch_coords(world, None, patch_size, "published")
    assert torch.equal(pooled, patch_coords), "preprocess: the processor pools other world coordinates"
    everything = unproject(depth, intrinsics, cam2world).flatten(0, 2)
    edges = torch.stack([everything.amin(dim=0), everything.amax(dim=0)], dim=1).flatten()
    case.close("boundry", edges, EXACT_ARITHMETIC)


def check_bev(case: GoldenCase, processor, bev: Image.Image, depth: torch.Tensor, pixels: torch.Tensor) -> None:
    size = processor.bev_size
    height, width = get_resized_size(*depth.shape[1:], size, "published", "bev_image")
    for key, value in {"new_width": width, "new_height": height, "left": (width - size) // 2}.items():
        case.same(f"scalars|bev_resize_then_crop|{key}", value)
    crop = fit_picture(bev, (height, width), size, processor.image_processor.resample)
    picture = torch.from_numpy(crop.copy()).permute(2, 0, 1)
    assert torch.equal(pixels[0], picture / 255), "preprocess: the processor makes another bird's-eye picture"
    case.same("scalars|bev_sha256_chw_uint8", hashlib.sha256(picture.numpy().tobytes()).hexdigest())
    case.same("bev_stride8", picture)
    rows, columns = read_slices(case.describe("bev_crop"))
    case.same("bev_crop", picture[:, rows, columns])


def check_image_processor(case: GoldenCase, image_processor) -> None:
    """The image processor called by itself, on a picture of another aspect."""
    settings = {
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "size": [image_processor.size.height, image_processor.size.width],
        "resample": int(image_processor.resample),
        "resample_name": image_processor.resample.name,
        "rescale_factor": image_processor.rescale_factor,
    }
    for key, value in settings.items():
        case.same(f"scalars|image_processor|{key}", value)
    picture = Image.fromarray(case.read("rgb_small")[0].numpy())
    single = image_processor(picture, return_tensors="pt")["pixel_values"]
    listed = image_processor([picture], return_tensors="pt")["pixel_values"]
    case.same("scalars|single_image_equals_list", torch.equal(single, listed))
    case.close("processor_small_out_stride8", single[0], EXACT_ARITHMETIC)


def compare_dataset_samples(recorded: Recorded, case: GoldenCase) -> None:
    """Training rows of every task, from a conversation to token ids and labels."""
    scene = recorded.golden.get_case("preprocess")
    views = enlarge_recorded(scene, "rgb_small")
    depth = enlarge_recorded(scene, "depth_small") / 1000
    cam2world = align_poses(scene)
    belongings = {
        "images": to_pictures(views),
        "depth_maps": depth,
        "intrinsics": scene.read("intrinsic")[:3, :3],
        "cam2world": cam2world,
        "proposal_boxes": scene.read("objects"),
        "bev_image": Image.fromarray(enlarge_recorded(scene, "bev_src_small").numpy()),
    }
    side = scene.scalars["image_processor"]["size"][0]
    processor = make_processor(recorded.golden, spatial_instruction=True, views=side)
    samples = {name: sample for name, sample in case.scalars.items() if isinstance(sample, dict) and "raw" in sample}
    lengths = [check_sample(case, recorded, processor, belongings, name) for name in samples]
    # The published rows grow when they are read again; ours do not.
    again = check_sample(case, recorded, processor, belongings, next(iter(samples)))
    case.same("scalars|second_read_of_sample_0|first_len", lengths[0])
    assert again == lengths[0]


def check_sample(case: GoldenCase, recorded: Recorded, processor, belongings: dict, name: str) -> int:
    """One row; returns its length with the views as one mark."""
    sample = case.scalars[name]
    raw = sample["raw"]
    human, answer = (turn["value"] for turn in raw["conversations"])
    words = {"text": human.replace(IMAGE_TOKEN, ""), "answers": answer}
    if "box_input" in raw:
        words["query_coords"] = raw["box_input"][:3]
    grounds = sample["use_object_proposals"]
    if grounds:
        targets = raw["metadata"]["object_id"]
        words["target_objects"] = [int(targets)] if isinstance(targets, str | int) else targets
    inputs = processor(**belongings, **words)
    ids, labels = collapse_row(recorded, inputs)
    case.same(f"{name}.input_ids", ids)
    case.same(f"{name}.labels", labels)
    written = processor.tokenizer.decode(torch.where(ids[0] == SLOT, processor.image_token_id, ids[0]))
    case.same(f"scalars|{name}|decoded", written)
    case.same(f"scalars|{name}|use_object_proposals", "grounding_labels" in inputs)
    marked = inputs["grounding_labels"][0, :, :-1] if grounds else None
    case.same(f"scalars|{name}|box_labels", [row.nonzero()[:, 0].tolist() for row in marked] if grounds else None)
    if grounds:
        none_marked = inputs["grounding_labels"][0, :, -1] == 1
        assert none_marked.tolist() == [not row.any() for row in marked]
    points = inputs["query_coords"][0] if "query_coords" in inputs else torch.zeros(0)
    case.same(f"scalars|{name}|box_input", points)
    case.same(f"scalars|{name}|video_dict|box_input", list(points.shape))
    case.same(f"scalars|{name}|video_dict|bev_image", list(inputs["bev_pixel_values"].shape))
    case.same(f"scalars|{name}|video_dict|objects", list(inputs["proposal_boxes"].shape))
    case.same(f"scalars|{name}|images", [list(inputs["pixel_values"].shape[1:])])
    case.same(f"scalars|{name}|image_sizes", inputs["view_mask"].sum(dim=1))
    return ids.shape[1]
