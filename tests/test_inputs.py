"""The table of a batch's tensors: what is no tensor, has another dtype or does not fit the others is refused."""

import numpy as np
import pytest
import torch

from ross3d.inputs_ross3d import INPUTS, check_inputs
from ross3d.tests.posed_views import make_bev, make_test_processor, make_views


SIZES = {"B": 2, "L": 7, "V": 3, "K": 4, "Q": 5, "h": 6, "w": 11, "S": 8, "b": 10, "*": 9}
# The attention mask takes other forms, which `check_mask` knows.
CHECKED = {name: row for name, row in INPUTS.items() if row.dtypes}


def make_batch() -> dict[str, torch.Tensor]:
    """A tensor of each row of the table, in sizes that differ from each other."""
    batch = {}
    for name, row in CHECKED.items():
        shape = [SIZES.get(axis, axis) for axis in row.axes if axis != "..."]
        batch[name] = torch.zeros(*shape, *([2, 2] if row.axes[-1] == "..." else []), dtype=row.dtypes[0])
    return batch


def test_a_batch_of_all_tensors_passes():
    check_inputs(make_batch())
    check_inputs(make_batch(), h=6, w=11)
    check_inputs({name: None for name in INPUTS} | {"not_in_the_table": 3})


def test_the_processor_returns_what_the_table_says():
    """Every tensor of a training row has its row in the table."""
    call = make_views() | make_bev()
    call |= {
        "text": ["How many chairs?", "the lamp", "What is at <coord>?"],
        "query_coords": [None, None, [0.5, -0.5, 1.0]],
        "answers": ["two", "<ground>", "a table"],
        "target_objects": [None, [1], None],
    }
    inputs = make_test_processor()(**call)
    assert set(inputs) <= set(INPUTS)
    check_inputs(inputs)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("value", ["words", [1, 2], np.zeros((2, 7)), 3.5, True])
def test_what_is_no_tensor_is_refused(name, value):
    message = f"{name}: expected a tensor, got {type(value).__name__}; pass what the processor returns"
    with pytest.raises(TypeError, match=f"^{message}"):
        check_inputs(make_batch() | {name: value})


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("input_ids", torch.float32, "torch.int64, got dtype torch.float32; build rows"),
        (
            "pixel_values",
            torch.uint8,
            "torch.float32 or another floating-point one, got dtype torch.uint8; build rows",
        ),
        ("view_mask", torch.int64, "torch.bool, got dtype torch.int64; build rows"),
        (
            "bool_masked_views",
            torch.float32,
            "torch.bool, got dtype torch.float32; pass one value a view, True = masked",
        ),
        ("patch_coords", torch.complex64, "torch.float32, got dtype torch.complex64"),
        ("proposal_patches", torch.float32, "torch.bool, or torch.uint8 for packed bits, got dtype torch.float32"),
        ("proposal_tokens", torch.float32, "torch.bool, or torch.uint8 for packed bits, got dtype torch.float32"),
        ("grounding_labels", torch.complex64, "torch.int64, got dtype torch.complex64"),
    ],
)
def test_other_dtypes_are_refused(name, dtype, expected):
    batch = make_batch()
    with pytest.raises(TypeError) as error:
        check_inputs(batch | {name: batch[name].to(dtype)})
    assert str(error.value).startswith(f"{name}: expected a tensor of dtype {expected}")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("input_ids", (3, 7), "(2, L), got (3, 7)"),
        ("labels", (2, 6), "(2, 7), got (2, 6)"),
        ("pixel_values", (2, 3, 4, 8, 8), "(B, V, 3, S, S), got (2, 3, 4, 8, 8)"),
        ("pixel_values", (2, 3, 3, 8, 7), "(B, V, 3, S, S), got (2, 3, 3, 8, 7)"),
        ("view_mask", (3, 2), "(2, 3), got (3, 2)"),
        ("patch_coords", (2, 3, 5, 5, 3), "(2, 3, 6, 11, 3), got (2, 3, 5, 5, 3)"),
        ("proposal_mask", (2, 5), "(2, 4), got (2, 5)"),
        ("proposal_patches", (2, 4, 4, 9), "(2, 4, 3, ...), got (2, 4, 4, 9)"),
        ("proposal_tokens", (2, 3, 3, 9), "(2, 4, 3, ...), got (2, 3, 3, 9)"),
        ("bev_pixel_values", (2, 3, 10, 9), "(2, 3, b, b), got (2, 3, 10, 9); build rows with a processor whose bev"),
        ("bev_valid", (2, 12, 12), "(2, 10, 10), got (2, 12, 12); build rows with a processor whose bev_size is this"),
        ("row_seed", (3,), "(2,), got (3,)"),
        ("bev_bounds", (2, 3), "(2, 4), got (2, 3); pass x_min, y_min, x_max, y_max of each picture, metres"),
        ("query_coords", (2, 3), "(2, Q, 3), got (2, 3); pass x, y, z of each question, metres"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, shape, expected):
    batch = make_batch()
    with pytest.raises(ValueError) as error:
        check_inputs(batch | {name: torch.zeros(shape, dtype=batch[name].dtype)}, h=6, w=11)
    assert str(error.value).startswith(f"{name}: expected shape {expected}")
    assert str(error.value).endswith("Tensors of one batch have to fit together.")
