"""Law: every key of every file in configs/ exists on the class that reads it, and every file builds its config."""

import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2Config, SiglipVisionConfig

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.tests.laws.house import ROOT, list_files, write_house
from ross3d.training.arguments import SECTION_CLASSES, PartArguments, RunArguments, read_run_arguments


ANY_KEY = {"parts"}


def get_parameters(cls: type) -> set[str]:
    """Names that `cls(...)` takes: fields of a dataclass, parameters of an `__init__`, typed kwargs of a processor."""
    if is_dataclass(cls):
        return {field.name for field in fields(cls)}
    names = set(inspect.signature(cls).parameters)
    return names | set(getattr(getattr(cls, "valid_kwargs", None), "__annotations__", {}))


# Section of a run's file -> the class whose names are legal there; `parts` maps prefixes of parameters to settings.
CLASSES = {
    "": RunArguments,
    **SECTION_CLASSES,
    "model": Ross3DConfig,
    "model.vision_config": SiglipVisionConfig,
    "model.text_config": Qwen2Config,
    "model.denoiser_config": Ross3DDenoiserConfig,
    "processor": Ross3DProcessor,
    "processor.image_processor": Ross3DImageProcessor,
    "parts.*": PartArguments,
}


def find_unknown_keys(values: dict, section: str, known: set[str] | None) -> list[str]:
    """Dotted keys under `section` that its class does not know; sections without a class are free."""
    unknown = []
    for key, value in values.items():
        name = f"{section}.{key}" if section else key
        if known is not None and key not in known:
            unknown.append(name)
        child = f"{section}.*" if section in ANY_KEY else name
        if isinstance(value, dict) and (child in CLASSES or child in ANY_KEY):
            cls = CLASSES.get(child)
            unknown += find_unknown_keys(value, child, None if cls is None else get_parameters(cls))
    return unknown


def find_violations(root: Path) -> list[str]:
    violations = []
    for path in list_files(root, ".yaml", ".yml"):
        if path.parts[0] != "configs":
            continue
        values = yaml.safe_load((root / path).read_text(encoding="utf-8")) or {}
        if "accelerate" in path.parts:
            # Accelerate reads its own files: its class, and the names it moves there from older files.
            known = get_parameters(ClusterConfig) | {"compute_environment", "debug"}
            violations += [f"{path}: accelerate does not know `{key}`" for key in values if key not in known]
            continue
        unknown = find_unknown_keys(values, "", get_parameters(RunArguments))
        violations += [f"{path}: no class has the key `{key}`" for key in unknown]
        if not unknown:
            try:
                Ross3DConfig(**read_run_arguments(root / path).model)
            except (TypeError, ValueError, StrictDataclassError) as error:
                violations.append(f"{path}: does not build: {error}")
    return violations


def test_config_keys_hold():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


RUN = """seed: 3
model:
  vision_config: {hidden_size: 32, num_attention_heads: 4}
  denoiser_config: {hidden_size: 32, num_attention_heads: 4, num_pool_heads: 4}
  voxel_size: 0.1
processor:
  image_processor: {size: {height: 64, width: 64}}
data: {root: scenes}
parts:
  model.vision_tower: {learning_rate: 3.0e-4}
trainer: {output_dir: out, learning_rate: 2.0e-3}
"""


def test_known_keys_pass(tmp_path):
    house = {"configs/run.yaml": RUN, "configs/accelerate/ddp.yaml": "distributed_type: MULTI_GPU\nnum_processes: 2\n"}
    assert find_violations(write_house(tmp_path, house)) == []


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("voxel_size", "voxle_size", "model.voxle_size"),
        ("{hidden_size: 32, num_attention_heads: 4}", "{hiden_size: 32}", "model.vision_config.hiden_size"),
        ("num_pool_heads", "num_pool_head", "model.denoiser_config.num_pool_head"),
        ("root: scenes", "rooot: scenes", "data.rooot"),
        ("{size: {height", "{sizes: {height", "processor.image_processor.sizes"),
        ("{learning_rate: 3.0e-4}", "{lr: 3.0e-4}", "parts.*.lr"),
        ("output_dir: out", "output_folder: out", "trainer.output_folder"),
        ("data:", "dataset:", "dataset"),
        ("voxel_size: 0.1", "voxel_size: -1.0", "voxel_size: expected a finite number above 0"),
        ("learning_rate: 2.0e-3", "learning_rate: 2e-3", "expected a number"),
    ],
)
def test_unknown_keys_are_found(tmp_path, right, wrong, found):
    assert right in RUN
    violations = find_violations(write_house(tmp_path, {"configs/run.yaml": RUN.replace(right, wrong)}))
    assert any(found in violation for violation in violations), violations


def test_unknown_accelerate_keys_are_found(tmp_path):
    house = {"configs/accelerate/ddp.yaml": "num_proceses: 2\n"}
    assert find_violations(write_house(tmp_path, house)) == [
        "configs/accelerate/ddp.yaml: accelerate does not know `num_proceses`"
    ]
