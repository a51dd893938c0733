"""Small posed RGB-D views for tests of geometry and processor: every size differs, so a swapped axis shows."""

import numpy as np

from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.scenes.tokenizer import make_tokenizer


NUM_VIEWS, HEIGHT, WIDTH, NUM_PROPOSALS = 3, 36, 48, 5
VIEW_SIZE, PATCH_SIZE, BEV_SIZE = 40, 8, 24
WORDS = (
    "How many chairs are there in the room? What color is the table next to the window? There is a brown cabinet. "
    "the tall lamp in the corner, two of them. Describe the object. The video captures 3D spatial information of a "
    "scene. Please focus on the spatial relationships in the video and answer the following questions."
).split(". ")


def make_test_processor(tokenizer=None, **settings) -> Ross3DProcessor:
    """A processor of 40-pixel views, 5 x 5 patches, 3 x 3 tokens, with a tokenizer that has real merges."""
    settings = {"patch_size": PATCH_SIZE, "bev_size": BEV_SIZE} | settings
    image_processor = Ross3DImageProcessor(size={"height": VIEW_SIZE, "width": VIEW_SIZE})
    tokenizer = tokenizer or make_tokenizer(WORDS, vocab_size=420)
    return Ross3DProcessor(image_processor=image_processor, tokenizer=tokenizer, **settings)


def make_poses(num_views: int, seed: int = 0) -> np.ndarray:
    """Rigid camera poses (num_views, 4, 4) inside a room, float64."""
    rng = np.random.default_rng(seed)
    rotations, _ = np.linalg.qr(rng.normal(size=(num_views, 3, 3)))
    rotations[:, :, 0] *= np.sign(np.linalg.det(rotations))[:, None]
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = rng.uniform(-1, 1, size=(num_views, 3))
    return poses


def make_views(num_views: int = NUM_VIEWS, num_proposals: int = NUM_PROPOSALS, seed: int = 0) -> dict:
    """The processor's arguments for one scene: pictures, depth with holes, cameras, proposals."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 3.0, size=(num_views, HEIGHT, WIDTH)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1] = 0
    return {
        "images": list(rng.integers(0, 256, size=(num_views, HEIGHT, WIDTH, 3), dtype=np.uint8)),
        "depth_maps": depth,
        "intrinsics": np.array([[45.0, 0, 23.5], [0, 47.0, 17.5], [0, 0, 1]]),
        "cam2world": make_poses(num_views, seed),
        "proposal_boxes": np.concatenate(
            [rng.uniform(-1.5, 1.5, (num_proposals, 3)), rng.uniform(1.5, 4, (num_proposals, 3))], axis=1
        ).astype(np.float32),
    }


def make_bev(seed: int = 0) -> dict:
    """The processor's arguments for a bird's-eye picture whose left half is void."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 256, size=(30, 30, 3), dtype=np.uint8)
    valid = np.ones((30, 30), dtype=bool)
    valid[:, :15] = False
    image[~valid] = 0
    return {"bev_image": image, "bev_valid": valid, "bev_bounds": np.array([-2.0, -3.0, 4.0, 3.0])}
