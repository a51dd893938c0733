"""Checks of the launcher's sharding, for settings that need whole weights or whole matrices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled


def is_launched_with(name: str) -> bool:
    """Whether `accelerate launch` was told to use `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")


@contextmanager
def without_zero3() -> Iterator[None]:
    """In this context the library loads models whole, also where ZeRO-3 would shard them."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


def check_whole_weights(name: str) -> None:
    """Refuse a setting where weights are sharded over processes."""
    if is_deepspeed_zero3_enabled() or is_launched_with("FSDP"):
        raise ValueError(
            f"{name}: expected all weights on every process, got ZeRO-3 or FSDP, which shard them; start with"
            " configs/accelerate/single.yaml, ddp.yaml or deepspeed_zero2.yaml."
        )


def check_whole_matrices(name: str) -> None:
    """Refuse a setting where the optimizer sees shards of matrices."""
    if is_launched_with("DEEPSPEED") or is_launched_with("FSDP"):
        raise ValueError(
            f"{name}: expected an optimizer that sees whole matrices, got DeepSpeed or FSDP, which shard them; start"
            " with configs/accelerate/single.yaml or ddp.yaml, or use adamw."
        )
