"""A run's YAML file and command line -> typed settings; an unknown key is refused by name.

The file has one section per class below. Any value can be set from the command line as `--section.key value`, or as
`--key value` for keys of `trainer` and those that only one other section has.
"""

import difflib
import inspect
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from enum import EnumType
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ross3d.command_line import (
    COUNT,
    COUNT_OR_NONE,
    DEBUG_HELP,
    POSITIVE,
    RATE,
    SEED,
    Number,
    check_fields,
    check_value,
    list_attributes,
)
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.arguments import DataArguments
from ross3d.data.text_files import describe_kind, parse_yaml, read_yaml
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.training.model_section import check_tables, make_config


# The one-cycle schedule of the vision warm-up rises during the first tenth of its steps.
MIN_WARMUP_STEPS = 20
OPTIMIZERS = ("adamw", "muon")


@dataclass
class PartArguments:
    """How one part of the model trains.

    Attributes:
        freeze (`bool`): do not train it.
        learning_rate (`float`, *optional*): of this part; the trainer's by default.
        optimizer (`str`): `adamw`, or `muon` for its matrices; its vectors keep AdamW and the trainer's rate.
    """

    freeze: bool = False
    learning_rate: float | None = None
    optimizer: str = "adamw"

    def __post_init__(self):
        check_fields(self, "", {"learning_rate": RATE})
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, got {self.optimizer!r}.")
        if self.optimizer == "muon" and self.learning_rate is None:
            raise ValueError(
                "optimizer: expected a learning_rate with optimizer: muon, got none; AdamW's rate is too small for"
                " Muon, try 2.0e-2."
            )


@dataclass
class NewWeightsArguments:
    """Initial scales of a model trained from scratch, where a single `initializer_range` is not enough.

    Word embeddings as small as `initializer_range` are dominated by visual tokens and by the first layer's output, and
    visual features by the position embedding that is added to them.

    Attributes:
        embedding_std (`float`): standard deviation of word embeddings; with tied embeddings it is the output's too.
        residual_scale (`float`): factor on the matrices through which attention and MLP add to the residual stream.
        visual_scale (`float`): factor on projected visual features.
    """

    embedding_std: float = 1.0
    residual_scale: float = 0.1
    visual_scale: float = 1.0

    def __post_init__(self):
        check_fields(
            self, "new_weights.", dict.fromkeys(("embedding_std", "residual_scale", "visual_scale"), POSITIVE)
        )


@dataclass
class VisionWarmupArguments:
    """A short supervised start for vision towers with random weights (`training/vision_warmup.py`).

    Attributes:
        scenes (`int`): the most scenes to use; they are held in memory.
        steps (`int`): optimizer steps.
        views_per_step (`int`): views of a step.
        muon_learning_rate (`float`): peak of a one-cycle schedule, for the matrices of tower and projector.
        learning_rate (`float`): the same for everything else, which AdamW trains.
    """

    scenes: int = 2000
    steps: int = 1000
    views_per_step: int = 32
    muon_learning_rate: float = 3e-2
    learning_rate: float = 4e-3

    def __post_init__(self):
        counts = dict.fromkeys(("scenes", "views_per_step"), COUNT)
        rates = dict.fromkeys(("muon_learning_rate", "learning_rate"), POSITIVE)
        check_fields(self, "vision_warmup.", {**counts, **rates, "steps": Number(whole=True, least=MIN_WARMUP_STEPS)})


# Modules that LoRA trains whole unless a run names others, as far as the model has them.
WHOLE_MODULES = ("model.multi_modal_projector", "grounding_head", "reconstruction_head", "distillation_head")


@dataclass
class LoraArguments:
    """Train low-rank adapters of frozen matrices (LoRA) with peft (`training/lora.py`); needs `init_from`.

    `image_newline` and `mask_token`, parameters of no module of their own, stay as the checkpoint has them.

    Attributes:
        rank, alpha (`int`): of the adapters; their output is scaled by alpha / rank.
        dropout (`float`): of the adapters' input.
        target_modules (`str`): regular expression that the full names of the adapted linear layers match; by default
            all linear layers of the language model.
        modules (list of `str`, *optional*): modules that are trained whole; by default the projector, and the heads
            that the model has.
        tokens (list of `str`): whose rows of the word embeddings are trained; the others stay frozen.
    """

    rank: int = 64
    alpha: int = 128
    dropout: float = 0.0
    target_modules: str = r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    modules: list[str] | None = None
    tokens: list[str] = field(default_factory=lambda: ["<ground>", "<coord>"])

    def __post_init__(self):
        check_fields(self, "lora.", {"rank": COUNT, "alpha": COUNT, "dropout": Number(least=0, below=1)})
        try:
            re.compile(self.target_modules)
        except re.error as error:
            raise ValueError(
                f"lora.target_modules: expected a regular expression, got {self.target_modules!r}: {error}."
            ) from error


@dataclass
class RunArguments:
    """One run of train.py.

    Attributes:
        seed (`int`): of weights, order, choice of questions, proposals, masked views and diffusion draws.
        num_processes (`int`, *optional*): how many have to be started together, since rows per step, and with them
            the order of rows, depend on it; by default the number started. A resumed run needs the same number.
        init_from (`str`, *optional*): checkpoint folder or Hub id to start from; new weights otherwise.
        allow_missing_weights (`bool`): initialise weights that this checkpoint lacks at random instead of refusing it.
        teacher (`str`, *optional*): diffusers folder of the VAE teacher.
        geometry_encoder (`str`, *optional*): folder, file or Hub id of the VGGT whose features the model learns to
            predict (`model.distillation_config`), such as facebook/VGGT-1B.
        model (`dict`): keys of `Ross3DConfig`; with `init_from`, changes to its config.
        processor (`dict`): settings of `Ross3DProcessor`, and those of its image processor.
        data, new_weights, vision_warmup, lora, parts, trainer: see the classes; `parts` maps prefixes of parameter
            names to settings.
    """

    seed: int = 0
    num_processes: int | None = None
    init_from: str | None = None
    allow_missing_weights: bool = False
    teacher: str | None = None
    geometry_encoder: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    data: DataArguments = field(default_factory=DataArguments)
    new_weights: NewWeightsArguments | None = None
    vision_warmup: VisionWarmupArguments | None = None
    lora: LoraArguments | None = None
    parts: dict[str, PartArguments] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_fields(self, "", {"seed": SEED, "num_processes": COUNT})


# Allowed ranges of numbers of `TrainingArguments`.
TRAINER_NUMBERS = (
    dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"), RATE)
    | dict.fromkeys(("adam_beta1", "adam_beta2"), Number(least=0, below=1))
    | dict.fromkeys(("adam_epsilon", "logging_steps", "save_steps", "eval_steps"), POSITIVE)
    | dict.fromkeys(
        (
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "save_total_limit", "dataloader_prefetch_factor", "ddp_timeout", "ddp_bucket_cap_mb",
            "torch_empty_cache_steps",
        ),
        COUNT,
    )
    | {"dataloader_num_workers": COUNT_OR_NONE, "seed": SEED, "data_seed": SEED}
)  # fmt: skip


# Settings that may differ when a run is resumed: they do not change its results.
FREE_SETTINGS = frozenset(
    f"trainer.{name}"
    for name in (
        "output_dir", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
        "dataloader_persistent_workers", "ddp_timeout", "disable_tqdm", "report_to", "run_name", "project",
        "save_total_limit",
    )
) | {"data.prepared", "data.latents", "data.geometry_storage"}  # fmt: skip

SECTION_CLASSES = {
    "data": DataArguments,
    "new_weights": NewWeightsArguments,
    "vision_warmup": VisionWarmupArguments,
    "lora": LoraArguments,
    "trainer": TrainingArguments,
    "model": Ross3DConfig,
}
SECTIONS = {name: SECTION_CLASSES[name] for name in ("data", "new_weights", "vision_warmup", "lora")}


def check_keys(keys, known: set[str], where: str) -> None:
    """Refuse unknown keys of a section, naming the nearest known one."""
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(known))}."
            raise ValueError(f"{where}: expected a known key, got `{key}`; {hint}")


def check_table(values: Any, where: str) -> dict[str, Any]:
    """A section's table; an empty table for None.

    Raises:
        ValueError: for a list, a text or a number.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table of `key: value`, got {describe_kind(values)}: {values!r}.")
    return values


def read_section(cls: type, values: Any, where: str):
    values = check_table(values, where)
    check_keys(values, {f.name for f in fields(cls)}, where)
    return cls(**values)


def check_trainer(settings: dict[str, Any]) -> None:
    """Refuse unknown keys of `trainer`, and values of the wrong type or range.

    Raises:
        ValueError: names the key.
    """
    check_keys(settings, {f.name for f in fields(TrainingArguments)}, "trainer")
    for f in fields(TrainingArguments):
        if f.name in settings:
            # The library reads its own choices and tables itself.
            plain = f.type if f.type in (int, float, bool) or NoneType in get_args(f.type) else Any
            check_value(f"trainer.{f.name}", settings[f.name], plain, TRAINER_NUMBERS.get(f.name))
            check_trainer_choice(f.name, settings[f.name], get_args(f.type))
    steps = settings.get("max_steps", -1)
    if steps != -1:
        COUNT.require("trainer.max_steps", steps)


def check_trainer_choice(name: str, value: Any, kinds: tuple) -> None:
    """Refuse a value of `trainer` that is not one of the library's choices, not a table, or not a tracker known here.

    Raises:
        ValueError: names the key.
    """
    choices = [choice.value for kind in kinds if isinstance(kind, EnumType) for choice in kind]
    if choices and value not in choices:
        raise ValueError(f"trainer.{name}: expected one of the values {choices}, got {value!r}; correct it.")
    if name.endswith("_kwargs") and value is not None and not isinstance(value, dict):
        raise ValueError(f"trainer.{name}: expected a table of `key: value`, got {value!r}; correct it.")
    if name == "report_to" and value not in (None, "none", "all"):
        for tracker in value if isinstance(value, list) else [value]:
            if tracker in ("none", "all"):
                continue
            if tracker not in list(INTEGRATION_TO_CALLBACK):
                known = ["none", "all", *sorted(INTEGRATION_TO_CALLBACK)]
                raise ValueError(f"trainer.report_to: expected one of {known}, got {tracker!r}; correct it.")
            if tracker not in get_available_reporting_integrations():
                raise ValueError(
                    f"trainer.report_to: expected an installed tracker, got {tracker!r}; install its package, or set"
                    " --trainer.report_to none."
                )


def apply_overrides(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Settings with the `--section.key value` and unambiguous `--key value` pairs of a command line applied.

    Raises:
        ValueError: for a key without a value, and for an unknown key.
    """
    overrides = [
        piece
        for word in overrides
        for piece in (word.split("=", 1) if word.startswith("--") and "=" in word else [word])
    ]
    if len(overrides) % 2:
        raise ValueError(f"command line: expected pairs `--key value`, got {overrides}; give every key a value.")
    for flag, text in zip(overrides[::2], overrides[1::2], strict=True):
        if not flag.startswith("--"):
            raise ValueError(
                f"command line: expected an option such as --data.limit, got {flag!r}; options begin with `--`."
            )
        path = flag.removeprefix("--").split(".")
        if len(path) == 1 and path[0] not in {f.name for f in fields(RunArguments)}:
            owners = [name for name, cls in SECTION_CLASSES.items() if path[0] in {f.name for f in fields(cls)}]
            if not owners:
                known = {f.name for cls in (RunArguments, *SECTION_CLASSES.values()) for f in fields(cls)}
                check_keys(path, known, "command line")
            if "trainer" in owners:
                owners = ["trainer"]
            path = [owners[0], *path]
        if path[0] == "parts" and len(path) > 1:
            # A prefix of a parameter's name has dots itself.
            has_key = path[-1] in {f.name for f in fields(PartArguments)}
            rest = path[1:-1] if has_key else path[1:]
            path = ["parts", ".".join(rest), *path[len(path) - has_key :]]
            if not has_key and parse_yaml(text, flag, "a value") is None:
                check_table(settings.get("parts"), "parts").pop(path[1], None)
                continue
        place = settings
        for name in path[:-1]:
            if place.get(name) is None:
                place[name] = {}
            place = check_table(place[name], name)
        place[path[-1]] = parse_yaml(text, flag, "a value")
    return settings


def read_run_arguments(config_file: str | Path, overrides: list[str] | None = None) -> RunArguments:
    """The settings of a run.

    Args:
        config_file (`str` or `Path`): a YAML file.
        overrides (list of `str`): the words after it on the command line.

    Raises:
        FileNotFoundError, ValueError: for a file that does not exist or is not YAML; an unknown key; a value of the
            wrong type or range; a number that YAML read as text (`1e-5` has to be written `1.0e-5`); and a file with
            neither a `model` section nor `init_from`. Names file and key.
    """
    settings = read_yaml(config_file, "the settings of a run")
    try:
        return make_run_arguments(apply_overrides(check_table(settings, "run"), overrides or []))
    except ValueError as error:
        source = f"{config_file} with {' '.join(overrides)}" if overrides else f"{config_file}"
        error.args = (f"{source}: {error}",)
        raise


def make_run_arguments(settings: dict[str, Any]) -> RunArguments:
    """The settings of a run from its tables."""
    check_keys(settings, {f.name for f in fields(RunArguments)}, "run")
    for section, values in settings.items():
        check_numbers(values, section)
    for name in ("model", "processor", "trainer", "parts"):
        settings[name] = check_table(settings.get(name), name)
    for name, value in settings["trainer"].items():
        if name.endswith("_strategy") and value is False:
            settings["trainer"][name] = "no"  # what YAML made of it
    check_trainer(settings["trainer"])
    own = inspect.signature(Ross3DProcessor.__init__).parameters.keys() - {"self", "tokenizer", "kwargs"}
    check_keys(settings["processor"], own, "processor")
    check_image_processor(settings["processor"])
    for section, cls in SECTIONS.items():
        if settings.get(section) is not None:
            settings[section] = read_section(cls, settings[section], section)
    settings["parts"] = {name: read_part(values, f"parts.{name}") for name, values in settings["parts"].items()}
    run = RunArguments(**{name: value for name, value in settings.items() if value is not None})
    if run.lora is not None and run.init_from is None:
        raise ValueError("lora: expected init_from, the checkpoint to adapt, got none; set it.")
    if not run.model and run.init_from is None:
        raise ValueError(
            "model: expected the sizes of a new model (see configs/tiny.yaml) or init_from, a checkpoint to start"
            " from, got neither; set one."
        )
    if run.init_from is None:
        make_config(run.model)
    else:
        # Everything else is checked against the checkpoint's config (`build_config`).
        check_tables(run.model)
    for prefix, part in run.parts.items():
        trained = () if run.lora is None else WHOLE_MODULES if run.lora.modules is None else run.lora.modules
        whole = [module for module in trained if part.freeze and overlap(module, prefix)]
        if whole:
            raise ValueError(
                f"parts.{prefix}: expected not to freeze modules that lora.modules trains, got {whole} in both;"
                " remove it from one of them."
            )
    return run


def check_image_processor(processor: dict[str, Any]) -> None:
    """Refuse unknown keys and values of the wrong type among the settings of the image processor.

    Raises:
        ValueError: names the key.
    """
    where = "processor.image_processor"
    if "image_processor" not in processor:
        return
    values = processor["image_processor"] = check_table(processor["image_processor"], where)
    check_keys(values, set(Ross3DImageProcessor.valid_kwargs.__annotations__), where)
    size = values.get("size")
    if "size" in values and not (isinstance(size, dict) and set(size) == {"height", "width"}):
        raise ValueError(f"{where}.size: expected {{height: S, width: S}}, got {size!r}; correct it.")
    for name, side in (size or {}).items():
        COUNT.require(f"{where}.size.{name}", side)
    for name, rule in (("image_mean", Number()), ("image_std", POSITIVE)):
        numbers = values.get(name, [1, 1, 1])
        if not (isinstance(numbers, list) and len(numbers) == 3 and all(map(rule.allows, numbers))):
            raise ValueError(
                f"{where}.{name}: expected three numbers, each {rule}, got {numbers!r}; write one per colour."
            )
    if "rescale_factor" in values:
        POSITIVE.require(f"{where}.rescale_factor", values["rescale_factor"])
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if name in values:
            check_value(f"{where}.{name}", values[name], bool)


def read_part(values: Any, where: str) -> PartArguments:
    """The settings of one part; errors begin with its name."""
    try:
        return read_section(PartArguments, values, where)
    except ValueError as error:
        if not str(error).startswith(where):
            error.args = (f"{where}.{error}",)
        raise


def overlap(module: str, prefix: str) -> bool:
    """Whether a module has parameters of a part (a prefix of their names)."""
    return module.startswith(prefix) or prefix == module or prefix.startswith(f"{module}.")


def read_command_line(words: list[str], usage: str) -> RunArguments:
    """Parse `CONFIG.yaml [--section.key value ...]`; without words or with `--help`, print the usage and exit."""
    if {"-h", "--help"} & set(words):
        sys.stdout.write(f"{usage}\n{describe_keys()}\n\n  --debug  {DEBUG_HELP}\n")
        sys.exit(0)
    if not words:
        sys.exit(usage)
    return read_run_arguments(words[0], words[1:])


def describe_keys() -> str:
    """Every key of a run with its meaning; keys of other libraries and of the architecture by their class."""
    lines = ["Keys of the file and of the command line:", ""]
    for section, cls in {"": RunArguments, **SECTIONS, "parts.PREFIX": PartArguments}.items():
        told = list_attributes(cls)
        names = [f.name for f in fields(cls) if f.name not in (*SECTIONS, "parts", "trainer")]
        lines += [f"  --{f'{section}.' if section else ''}{name}  {told.get(name, '')}" for name in names]
    return "\n".join([*lines, "  --trainer.KEY  any field of transformers.TrainingArguments"])


def check_numbers(values: Any, where: str) -> None:
    """Refuse text that looks like a number: YAML reads `1e-5` as text, which would fail hours later."""
    if isinstance(values, dict):
        for name, value in values.items():
            check_numbers(value, f"{where}.{name}")
    elif isinstance(values, str):
        try:
            float(values)
        except ValueError:
            return
        raise ValueError(f"{where}: expected a number, got the string {values!r}; write it as 1.0e-5, not 1e-5.")


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted name -> value."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check_same_run(arguments: RunArguments, file: Path) -> None:
    """Refuse to resume a run that was started with other settings.

    Args:
        arguments (`RunArguments`): of the run that starts now.
        file (`Path`): where `describe_run` was written when the run began.

    Raises:
        ValueError: names the first setting that differs; also if the file is absent while its folder holds checkpoints
            of something else, which this run would remove.
    """
    if not file.is_file():
        raise ValueError(
            f"trainer.output_dir: expected a new folder or the folder of an earlier run, got {file.parent} with"
            f" checkpoints but without {file.name}; choose another folder, because a run deletes old checkpoints."
        )
    before = flatten_settings(check_table(read_yaml(file, "the settings of the run in this folder"), str(file)))
    if not before:
        raise ValueError(
            f"{file}: expected the settings of the run in this folder, got an empty file; choose another"
            " --trainer.output_dir, or remove that folder to start over."
        )
    now = flatten_settings(yaml.safe_load(describe_run(arguments)))
    for settings in (before, now):
        # Their folder may move, but features in files are not the numbers of the encoder, to the last digit.
        if settings.get("data.geometry_features") is not None:
            settings["data.geometry_features"] = "a folder"
    for name in sorted((before.keys() | now.keys()) - FREE_SETTINGS):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{file}: expected {name}={before.get(name)!r}, as when this run began, got {now.get(name)!r}; choose"
                " another --trainer.output_dir, or remove that folder to start over."
            )


def describe_run(arguments: RunArguments) -> str:
    """All settings of a run as YAML that `read_run_arguments` reads."""
    return yaml.safe_dump(asdict(arguments), sort_keys=False)
