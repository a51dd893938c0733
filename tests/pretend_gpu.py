"""A device that computes on CPU and refuses to meet CPU tensors, as a GPU does. Usage:

    python -m ross3d.tests.pretend_gpu

Runs a training step, the Trainer's counting, answers, grounding and reconstruction of a tiny model that lies there,
and compares every output with that of CPU. It finds tensors that were made on the wrong device, on machines without a
GPU; kernels, precision and speed of a real one it says nothing about.
"""

import copy
import sys
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ross3d.tests.fabricate import RaggedRows, make_collator, make_model, make_row
from ross3d.training.trainer import count_losses


aten = torch.ops.aten
# What may mix devices on CUDA as well: copies, and places on the host that index a tensor on the GPU.
COPYING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip


class PretendTensor(torch.Tensor):
    """Says that it lies on `gpu:0`; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("gpu:0"),
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self) -> str:
        return f"PretendTensor({self.inner})"

    def __getitem__(self, index):
        # Torch itself would make a tensor of a list below the level that is watched here.
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def tolist(self) -> list:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def unwrap(value):
    return value.inner if isinstance(value, PretendTensor) else value


def check_devices(func, args, kwargs) -> bool:
    """Whether anything lies on the pretended device; raises where CPU and it meet as they may not."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
    if func in INDEXING and isinstance(args[0], PretendTensor):
        here = [tensor for tensor in here if tensor is args[-1]]
    if there and here and func not in COPYING:
        shapes = [[tuple(tensor.shape) for tensor in group] for group in (there, here)]
        raise RuntimeError(f"{func}: tensors on gpu:0 {shapes[0]} and on cpu {shapes[1]}")
    return bool(there)


def run(func, args, kwargs):
    """An operation of the watched kind, computed on CPU; its outputs lie where a GPU would put them."""
    is_there = check_devices(func, args, kwargs)
    inner_kwargs = tree_map(unwrap, kwargs)
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]).type == "gpu"
        inner_kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        outputs = func(*tree_map(unwrap, args), **inner_kwargs)
    if func._schema.is_mutable:
        return kwargs.get("out", args[0])

    def wrap(value):
        is_plain = isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor)
        return PretendTensor(value) if is_plain and is_there else value

    return tree_map(wrap, outputs)


class WatchOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class WatchCreation(TorchFunctionMode):
    """`torch.tensor(..., device=)` moves its numbers below the level of operations."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        is_plain = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], PretendTensor)
        if is_plain and device is not None and torch.device(device).type == "gpu":
            return PretendTensor(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def move(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters and buffers to the pretended device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(PretendTensor(weight.data), weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else PretendTensor(buffer)
    return module


def train(model, batch, counts) -> list[torch.Tensor]:
    model.train()
    outputs = model(**batch, num_items_in_batch=counts)
    outputs.loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [outputs.loss, outputs.loss_counts, *gradients]


def ask(model, scenes, questions) -> list[torch.Tensor]:
    """Answers and scores about two encoded scenes."""
    model.eval()
    cache = model.encode_scene(**scenes, keep_patch_features=True)
    given = {"scene": cache, "scene_index": [1, 0], "input_ids": questions}
    boxes = {name: value for name, value in scenes.items() if name.startswith("proposal")}
    return [
        model.ground(**given),
        model.ground(**given, **boxes),
        model.generate(**given, max_new_tokens=3, do_sample=False),
        model.generate(**given, max_new_tokens=3, num_beams=2, do_sample=False),
    ]


def read(model, rows, one_row, bounds) -> list[torch.Tensor]:
    """Grounding, an answer and a reconstruction of rows that bring their views."""
    model.eval()
    names = ("labels", "shift_labels", "loss_weights", "bool_masked_views", "row_seed", "bev_bounds")
    rows = {name: value for name, value in rows.items() if name not in names}
    views, above = model.reconstruct(
        **rows, masked_views=[1], bev_bounds=bounds, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    return [model.ground(**rows), model.generate(**one_row, max_new_tokens=3, do_sample=False), *views, *above]


def make_calls() -> dict[str, tuple]:
    """Function and arguments by name."""
    packed = make_collator()([RaggedRows(4)[index] for index in range(4)])
    plain = {name: value for name, value in packed.items() if name not in ("patch_coords", "patch_valid")}
    plain = plain | {"bool_masked_views": torch.zeros_like(packed["bool_masked_views"])}
    counts = torch.tensor([10.0, 2.0, 2.0, 3.0])
    scenes = make_collator(0.0)([make_row(seed, 2, 3, []) for seed in (1, 2)])
    rows = make_collator(0.0)([make_row(seed, 2, 3, ["text"]) for seed in (1, 2)])
    scene_names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords")
    row_names = (*scene_names, "proposal_boxes", "proposal_mask", "proposal_patches")
    length = int(rows["attention_mask"][0].sum())
    one_row = {name: rows[name][:1] for name in scene_names}
    one_row |= {name: one_row[name][:, :length] for name in ("input_ids", "attention_mask", "segment_ids")}
    bounds = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [torch.nan] * 4])
    return {
        "train": (train, packed, counts),
        "train without depth": (train, plain, counts),
        "count": (lambda model, batch: [count_losses(batch, model.config)], packed),
        "ask": (ask, {name: scenes[name] for name in row_names}, torch.tensor([[4, 5, 6], [7, 8, 9]])),
        "read": (read, rows, one_row, bounds),
    }


def compare_calls() -> Iterator[str]:
    """A line for each thing that was seen to hold."""
    _setup_privateuseone_for_python_backend("gpu")
    # Two tensors that may not meet: the watch itself is watched.
    with WatchCreation(), WatchOperations():
        try:
            torch.ones(2, device="gpu") + torch.ones(2)
        except RuntimeError as error:
            yield f"refused: {error}"
    for condition in ("per_view", "pooled"):
        for name, (call, *arguments) in make_calls().items():
            model = make_model(denoiser={"condition": condition})
            wanted = call(copy.deepcopy(model), *arguments)
            there = tree_map(lambda value: PretendTensor(value) if torch.is_tensor(value) else value, arguments)
            with WatchCreation(), WatchOperations(), sdpa_kernel(SDPBackend.MATH):
                found = call(move(model), *there)
            assert all(isinstance(value, PretendTensor) for value in found), name
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours.detach().inner, theirs.detach(), rtol=1e-3, atol=1e-5)
            yield f"{condition}: {name}: {len(found)} outputs agree"


if __name__ == "__main__":
    for line in compare_calls():
        sys.stdout.write(line + "\n")
