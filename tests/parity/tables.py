"""What of a recorded set is not compared, and why. Rows are patterns `case:path`; golden.py explains paths.

A row for something that is compared nevertheless fails the test, and so does a row that fits nothing.
"""

# Tolerances of max|a - b| / max|b|: the set's README suggests 2e-5, 1e-5 and 1e-4.
ACTIVATIONS = 2e-5
LOSSES = 1e-5
GRADIENTS = 1e-4
# For what a few float32 operations give.
EXACT_ARITHMETIC = 1e-6
# Distance of a float32 run of the whole sampler from a float64 run: of 99 % of the elements, and of the worst.
# Measured with SSE4.2, AVX2 and AVX-512 kernels: 1.3e-4 and 5e-2. A sampler of another kind is noticed
# (test_other_sizes.py).
TYPICAL, LARGEST = 1e-3, 0.25


def get_angle_tolerance(largest: float) -> float:
    """Tolerance between two float32 runs of sines and cosines of angles up to `largest`.

    An angle is a product of a whole number and a power of 10000 in float32. Their roundings move it by up to
    `largest` * 2^-23, in a direction that depends on the CPU's vector unit, and two runs by twice as much.
    """
    return ACTIVATIONS + largest * 2**-22


RECORDED_INPUT = "input of the recorded run"
RECORDED_DRAW = "random draw of the recorded run, handed to ours"
RECORDED_ROWS = "which positions were recorded"
STRIDE = "which part of a tensor was recorded"
HALF_PRECISION = "published coordinates are rounded to half precision on this path, ours stay in float32"

# Read by the comparisons.
INPUTS: dict[str, str] = {
    "unproject:depth": RECORDED_INPUT,
    "unproject:intrinsic": RECORDED_INPUT,
    "unproject:poses": RECORDED_INPUT,
    "unproject:axis_align": RECORDED_INPUT,
    "coord_pe:points": RECORDED_INPUT,
    "coord_pe:ties": RECORDED_INPUT,
    "coord_pe:pe_input": RECORDED_INPUT,
    "inputs:images_small": RECORDED_INPUT,
    "inputs:bev_small": RECORDED_INPUT,
    "inputs:world_coords_small": RECORDED_INPUT,
    "inputs:objects": RECORDED_INPUT,
    "inputs:box_input": RECORDED_INPUT,
    "embed_plain:rows": RECORDED_ROWS,
    "embed_masked:noise": RECORDED_DRAW,
    "llm:rows": RECORDED_ROWS,
    "grounding:scalars|box_labels_single|*": RECORDED_INPUT,
    "grounding:scalars|box_labels_multi|*": RECORDED_INPUT,
    "recon_view:mask_noise": RECORDED_DRAW,
    "recon_view:posterior_noise": RECORDED_DRAW,
    "recon_view:t": RECORDED_DRAW,
    "recon_view:noise": RECORDED_DRAW,
    "recon_bev:posterior_noise": RECORDED_DRAW,
    "recon_bev:t": RECORDED_DRAW,
    "recon_bev:noise": RECORDED_DRAW,
    "train_step_unmasked:posterior_noise": RECORDED_DRAW,
    "train_step_unmasked:t": RECORDED_DRAW,
    "train_step_unmasked:noise": RECORDED_DRAW,
    "sampling:context": RECORDED_INPUT,
    "sampling:*_x_T": RECORDED_DRAW,
    "sampling:*_step_noise": RECORDED_DRAW,
    "sampling:direct_x": RECORDED_INPUT,
    "sampling:direct_t": RECORDED_INPUT,
    "vae:z": RECORDED_INPUT,
    "vae:x": RECORDED_INPUT,
    "inv_adapter:old.*": RECORDED_INPUT,
    "preprocess:rgb_small": RECORDED_INPUT,
    "preprocess:depth_small": RECORDED_INPUT,
    "preprocess:poses": RECORDED_INPUT,
    "preprocess:axis_align": RECORDED_INPUT,
    "preprocess:intrinsic": RECORDED_INPUT,
    "preprocess:bev_src_small": RECORDED_INPUT,
    "preprocess:objects": RECORDED_INPUT,
    "preprocess:scalars|total_frames": RECORDED_INPUT,
    "dataset_samples:scalars|*|raw|*": RECORDED_INPUT,
}

# Never compared.
LISTED: dict[str, str] = {
    "coord_pe:*_bf16": HALF_PRECISION,
    "coord_pe:*_fp16": HALF_PRECISION,
    "*:scalars|*_stride": STRIDE,
    "inputs:scalars|*_upsample": "factors by which recorded pictures are enlarged",
    "inputs:scalars|voxel_rounding_margin": "how the inputs were chosen: far from ties",
    "inputs:ground_eval_ref_labels": "the evaluation script finds <ground> with them; ours reads the ids, the test"
    " asserts that both name the same position",
    "embed_plain:scalars|mask|*": "zeros: no view is hidden in this case",
    "embed_masked:ids_shuffle": "the order behind `mask`, which is compared",
    "embed_masked:ids_restore": "the order behind `mask`, which is compared",
    "grounding:scalars|loss_eval": "the published evaluation returns a constant in place of a loss, ours none",
    "recon_view:scalars|pool_input_shape|*": "the release repeats the visible states before pooling, to no effect",
    "sampling:scalars|*_mid_steps": STRIDE,
    "sampling:scalars|*_float32_vs_float64|*": "error of the recorded run itself; both runs are compared with ours in"
    " float64",
    "inv_adapter:scalars|old_side": "side of the file's position table, which ours reads off the table",
    "preprocess:scalars|image_processor|crop_size|*": "an attribute the published image processor has and never reads",
    "dataset_samples:scalars|*|video_dict|world_coords|*": "ours pools world coordinates in the processor; those of"
    " this scene are compared in preprocess",
    "dataset_samples:scalars|second_read_of_sample_0|second_*": "a published fault: reading a row again lengthens it;"
    " the test asserts that ours keeps its length",
    "dataset_samples:scalars|task_lengths|*": "sort keys of the published sampler, which ours does not have",
}

# What an index holds beside its cases.
BESIDE_CASES: dict[str, str] = {
    "set": "a name",
    "reference_commit": "where the recordings come from",
    "versions": "where the recordings come from",
    "config": "what our model is built from",
    "float32_noise_floor": "error of the recorded run itself, which sets our tolerances",
}
