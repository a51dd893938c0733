"""Turn a published checkpoint of Ross3D or 3DRS into one of this repository, or back.

    python tools/convert.py --from DIR_OR_REPO --to DIR
    python tools/convert.py --from DIR --to DIR --reverse
    python tools/convert.py --init llava_video --denoiser mm_inv_projector.bin --teacher FLUX_DIR --to DIR

The second command undoes the first. The third builds the checkpoint from which the published recipe trains: a
LLaVA-Video model with the new tokens, heads and denoiser. Tensors are read and written one shard at a time; the folder
appears when it is complete, and the next run reuses the shards that a killed run has written.
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from huggingface_hub import ModelCard
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from ross3d.command_line import DEBUG_HELP, parse_path, run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.atomic import check_output_folder, write_text
from ross3d.data.names import check_name
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.report.card import (
    CARD_NAME,
    INGREDIENTS,
    INTRODUCTION,
    LIMITATIONS,
    USAGE,
    Ingredient,
    Origin,
    load_card,
    make_card,
    make_unknown,
    read_origin,
)
from ross3d.rows_ross3d import LLAVA_VIDEO
from ross3d.tools import checkpoints
from ross3d.tools.checkpoints.files import (
    check_new_folder,
    copy_files,
    count_bytes,
    describe_files,
    find_checkpoint,
    find_folder,
    finish_replacing,
    list_tensors,
    read_json,
    replace_folder,
    write_shards,
)
from ross3d.tools.checkpoints.ingredients import (
    DEFAULT_TEACHER,
    DEFAULT_VISION_TOWER,
    TEACHERS,
    VISION_KEYS,
    VISION_TOWERS,
    find_config,
    find_known_name,
    read_teacher_config,
)
from ross3d.tools.checkpoints.keys import INVERSE_PROJECTOR
from ross3d.tools.checkpoints.plan import (
    ConversionPlan,
    KeyRecord,
    check_own_layers,
    get_new_denoiser_settings,
    make_mask_token,
    plan_ours,
    plan_published,
    plan_start,
)
from ross3d.tools.checkpoints.published_config import (
    EMBEDDINGS,
    PUBLISHED_TEMPLATE,
    SET_BY_RECIPE,
    check_publishable,
    explain_dropped_denoiser,
    is_3drs_model,
    list_unknown_keys,
    make_config,
    make_published_config,
)
from ross3d.tools.checkpoints.source import (
    PublishedSource,
    list_ingredients,
    make_processor,
    make_release_config,
    read_source,
    read_tokenizer,
    set_generation_defaults,
)


# Base models of the published recipe, by their `--init` names.
BASES = {"llava_video": "lmms-lab/LLaVA-Video-7B-Qwen2"}

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "generation_config.json",
)  # fmt: skip
DENOISER_FILE = "mm_inv_projector.bin"
REPORT = "conversion.json"


def convert_release(options: argparse.Namespace) -> Path:
    """Convert a published checkpoint to our names; returns the folder."""
    source = read_source(options.source, options.vision_tower, options.teacher, options.drop)
    config = make_release_config(source)
    token = make_mask_token(config, source.tensors[EMBEDDINGS[0]].dtype, options.seed or 0)
    plan = plan_ours(source.tensors, config, source.teacher if source.has_teacher else None, token)
    return write_ours(options, source, config, plan, "release")


def start_training(options: argparse.Namespace) -> Path:
    """Build the checkpoint from which the published recipe trains; returns the folder."""
    source = read_source(options.source or BASES[options.init], options.vision_tower, options.teacher, options.drop)
    if source.is_3drs or any(name.startswith(INVERSE_PROJECTOR) for name in source.tensors):
        raise ValueError(
            f"--init: expected a base model without the parts of Ross3D or 3DRS, got {source.folder}, which has some;"
            " leave out --init to convert it."
        )
    file = None if options.denoiser is None else find_denoiser_file(options.denoiser)
    stored = {} if file is None else list_tensors(file)
    teacher = source.teacher or find_config("mm_pixel_decoder", source.config, source.folder, options.teacher)
    denoiser = get_new_denoiser_settings({name: t.shape for name, t in stored.items()}, teacher)
    published = source.config | {key: PUBLISHED_TEMPLATE[key] for key in SET_BY_RECIPE}
    config = make_config(published, len(source.tokenizer), source.token_ids, source.vision, denoiser, grounding=True)
    plan = plan_start(
        source.tensors, stored, config, teacher if source.has_teacher else None, source.num_old_tokens,
        options.seed or 0,
    )  # fmt: skip
    if not source.has_teacher:
        print("the new model has no VAE: give --teacher, or set teacher: in the config of the run that trains it")
    return write_ours(options, source, config, plan, "start", file)


def find_denoiser_file(name: str) -> Path:
    """The path of a denoiser file, given itself or by its folder or Hub repository."""
    path = find_folder(name, [DENOISER_FILE])
    return path / DENOISER_FILE if path.is_dir() else path


def write_ours(
    options: argparse.Namespace,
    source: PublishedSource,
    config: Ross3DConfig,
    plan: ConversionPlan,
    kind: Literal["release", "start"],
    denoiser_file: Path | None = None,
) -> Path:
    """Write model, processor, teacher, card and report; returns the folder."""
    plan.records += [KeyRecord(name, None, "dropped", "--drop") for name in source.dropped]
    name = get_display_name(options.source or BASES[options.init])
    unknown = list_unknown_keys(source.config)
    if unknown:
        print(f"config.json has unused keys: {', '.join(unknown)}")
    has_release = kind == "release" or denoiser_file is not None
    ingredients = list_ingredients(name, source, bool(plan.teacher), has_release)
    config.dtype = source.tensors[EMBEDDINGS[0]].dtype
    identity = make_identity(options, source.used + ([] if denoiser_file is None else [denoiser_file]), plan)
    if is_finished(options.to, identity):
        return tell_finished(options.to)
    with open_output(options, identity, plan) as (folder, progress):
        write_shards(plan.model, folder, "model", options.max_shard_size, progress)
        write_model_files(folder, config)
        make_processor(source.tokenizer, config, kind == "start").save_pretrained(folder)
        if plan.teacher:
            write_shards(plan.teacher, folder / "teacher", "diffusion_pytorch_model", options.max_shard_size, progress)
            write_teacher_config(folder / "teacher", source.teacher)
        if kind == "release":
            keep_published(source, plan, folder / "published", options.max_shard_size, progress)
        write_text(folder / CARD_NAME, str(make_converted_card(name, plan, ingredients)))
        write_report(folder, name, plan, ingredients, identity, unknown_config_keys=unknown)
    return options.to


def make_converted_card(name: str, plan: ConversionPlan, ingredients: Sequence[Ingredient]) -> ModelCard:
    """The page of a checkpoint that was converted from the Hub id or folder called `name`."""
    origin = Origin(base_model=name if "/" in name else None)
    origin.add(ingredients)
    introduction = (
        f"{INTRODUCTION}, converted from `{name}`: {summarize(plan.records)}. `conversion.json` lists what became of"
        " every key."
    )
    return make_card(introduction, origin, {"Use": USAGE, "Limitations": LIMITATIONS})


def make_published_card(source: Path, plan: ConversionPlan, ingredients: Sequence[Ingredient]) -> ModelCard:
    """The page of a checkpoint that was converted back; its terms come from the page of the source checkpoint."""
    known = source / CARD_NAME
    origin = read_origin(load_card(known)) if known.is_file() else Origin()
    origin.add(ingredients if origin.licenses else [make_unknown(source.name), *ingredients])
    introduction = (
        f"{INTRODUCTION}, in the format of the published code; only that code loads it: {summarize(plan.records)}."
        " `tools/convert.py` of ross3d wrote it and can convert it back; `conversion.json` lists what became of"
        " every key."
    )
    return make_card(introduction, origin, {"Limitations": LIMITATIONS})


def get_display_name(source: str) -> str:
    """A Hub id, or the name of a folder without its path, since the page is read on other machines."""
    return Path(source).resolve().name if Path(source).exists() else source


def keep_published(
    source: PublishedSource, plan: ConversionPlan, folder: Path, max_shard_size: str, progress: tqdm
) -> None:
    """Save what only converting back needs: config, tokenizer files, rows beyond the vocabulary, idle layers."""
    if plan.rest:
        write_shards(plan.rest, folder, "model", max_shard_size, progress)
    folder.mkdir(exist_ok=True)
    copy_files(("config.json", *TOKENIZER_FILES), source.folder, folder)


def name_teacher(config: Ross3DConfig, teacher: dict[str, Any] | None) -> str:
    """The VAE's name in the published config: the released VAE's name, or a folder of the checkpoint for another."""
    released = TEACHERS[Path(DEFAULT_TEACHER).name]
    if teacher is None and config.denoiser_config is not None:
        keys = ("latent_channels", "scaling_factor", "shift_factor")
        teacher = released if all(getattr(config.denoiser_config, key) == released[key] for key in keys) else {}
    return DEFAULT_TEACHER if teacher in (None, released) else "pixel_decoder"


def convert_back(options: argparse.Namespace) -> Path:
    """Convert one of our checkpoints to the published names; returns the folder."""
    source = find_checkpoint(options.source)
    if read_json(source / "config.json").get("model_type") != "ross3d":
        raise ValueError(f"{source}: expected a checkpoint of ross3d, got one of another model; leave out --reverse.")
    check_own_layers(read_json(source / "config.json"), list_tensors(source), source / "config.json")
    config = Ross3DConfig.from_pretrained(source)
    check_publishable(config)
    came_from = source / "published"
    base = read_base_config(came_from, config)
    tokenizer = read_tokenizer(source)
    rest = list_tensors(came_from) if any(came_from.glob("model*.safetensors")) else {}
    reason = explain_dropped_denoiser(config)
    has_denoiser = config.denoiser_config is not None and reason is None
    teacher = list_tensors(source / "teacher") if (source / "teacher").is_dir() else {}
    teacher_config = read_teacher_config(source / "teacher") if teacher else None
    plan = plan_published(list_tensors(source), teacher, rest, config, options.embedding_rows)
    tower_config, tower_name = name_tower(config)
    parts = {"mm_vision_tower": tower_name}
    if not is_3drs_model(config):
        parts["mm_pixel_decoder"] = name_teacher(config, teacher_config)
    rows = {plan.model[name].shape[0] for name in EMBEDDINGS if name in plan.model}
    published = make_published_config(config, base, parts, has_denoiser, rows)
    changed = sorted(key for key in published if base is not None and published[key] != base.get(key))
    ingredients = [INGREDIENTS["teacher"]] if teacher_config in TEACHERS.values() and has_denoiser else []
    identity = make_identity(options, [source], plan)
    if is_finished(options.to, identity):
        return tell_finished(options.to)
    with open_output(options, identity, plan) as (folder, progress):
        write_shards(plan.model, folder, "model", options.max_shard_size, progress)
        write_json(folder / "config.json", published)
        # A part without a well-known name is described in the folder that its name refers to, next to the weights.
        if find_known_name("mm_vision_tower", published["mm_vision_tower"]) is None:
            describe_part(folder, published["mm_vision_tower"], tower_config)
        if (
            teacher_config
            and has_denoiser
            and find_known_name("mm_pixel_decoder", published["mm_pixel_decoder"]) is None
        ):
            describe_part(folder, published["mm_pixel_decoder"], {"_class_name": "AutoencoderKL", **teacher_config})
        write_tokenizer(folder, tokenizer, came_from)
        write_text(folder / CARD_NAME, str(make_published_card(source, plan, ingredients)))
        name = get_display_name(options.source)
        write_report(folder, name, plan, ingredients, identity, changed_config_keys=changed)
    if base is None:
        print("config.json was generated: this checkpoint has no published/ folder with the original of its kind")
    return options.to


def read_base_config(folder: Path, config: Ross3DConfig) -> dict[str, Any] | None:
    """The published `config.json` that a model came from; None if there is none, or if the model has become a 3DRS."""
    if not (folder / "config.json").is_file():
        return None
    base = read_json(folder / "config.json")
    is_other = is_3drs_model(config) and base.get("model_type") == PUBLISHED_TEMPLATE["model_type"]
    return None if is_other else base


def describe_part(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Write the configuration of a part into the checkpoint's folder that its name refers to, if it does.

    Raises:
        ValueError: for a name that leads out of the checkpoint, or is the name of one of its files.
    """
    if len(Path(name).parts) > 1:
        return
    check_name(name, "mm_vision_tower and mm_pixel_decoder of published/config.json")
    if (folder / name).exists():
        raise ValueError(
            f"published/config.json: expected a name that no file of the checkpoint has, got {name!r}; correct it"
            " there."
        )
    write_json(folder / name / "config.json", config)


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, came_from: Path) -> None:
    """Write the tokenizer's original files, or files that the published code's library can read."""
    if copy_files(TOKENIZER_FILES, came_from, folder):
        return
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = read_json(folder / "tokenizer_config.json")
    for key in ("auto_map", "backend", "extra_special_tokens", "is_local", "local_files_only", "processor_class"):
        settings.pop(key, None)
    # The published code expects exactly these two.
    marks = {
        "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": [LLAVA_VIDEO.turn_start, LLAVA_VIDEO.turn_end],
    }
    write_json(folder / "tokenizer_config.json", settings | marks)


def name_tower(config: Ross3DConfig) -> tuple[dict[str, Any], str]:
    """SigLIP's configuration with its last layer, and the tower's name in the published config."""
    vision = {key: getattr(config.vision_config, key) for key in VISION_KEYS}
    vision |= {"num_hidden_layers": vision["num_hidden_layers"] + 1}
    known = vision == VISION_TOWERS[Path(DEFAULT_VISION_TOWER).name]
    return {"model_type": "siglip_vision_model", **vision}, DEFAULT_VISION_TOWER if known else "vision_tower"


def make_identity(options: argparse.Namespace, sources: Sequence[Path], plan: ConversionPlan) -> dict[str, Any]:
    """Everything that determines the output, regardless of its folder."""
    arguments = {key: str(value) for key, value in vars(options).items() if key not in ("to", "debug")}
    code = [
        hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(checkpoints.__file__).parent.glob("*.py"))
    ]
    return {"arguments": arguments, "sources": describe_files(sources), "tensors": plan.describe(), "code": code}


def hash_identity(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def is_finished(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder is the complete result of the same command on the same files."""
    report = folder / REPORT
    if not report.is_file() or read_json(report).get("made_of_sha256") != hash_identity(identity):
        return False
    # Refuses a folder that has since lost a shard, or a part of one.
    list_tensors(folder)
    finish_replacing(folder)
    return True


def tell_finished(folder: Path) -> Path:
    print(f"{folder} is already complete: the same command wrote it from the same files; nothing to do")
    return folder


@contextmanager
def open_output(
    options: argparse.Namespace, identity: dict[str, Any], plan: ConversionPlan
) -> Iterator[tuple[Path, tqdm]]:
    """The folder to write to, which gets its final name when it is complete, and a progress bar that counts bytes."""
    print_records(plan.records)
    num_bytes = count_bytes(plan.list_tensors())
    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc=f"writing {options.to}")
    with bar, replace_folder(options.to, identity, num_bytes) as folder:
        yield folder, bar


def write_model_files(folder: Path, config: Ross3DConfig) -> None:
    """Write what `save_pretrained` of the model would write besides weights: configs and the code it needs."""
    with torch.device("meta"):
        model = Ross3DForConditionalGeneration(config)
    model.config.architectures = [type(model).__name__]
    custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    set_generation_defaults(model)
    model.generation_config.save_pretrained(folder)


def write_teacher_config(folder: Path, teacher: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        AutoencoderKL.from_config(dict(teacher)).save_config(folder)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_report(
    folder: Path,
    source: str,
    plan: ConversionPlan,
    ingredients: Sequence[Ingredient],
    identity: Mapping[str, Any],
    **more: list[str],
) -> None:
    """Write `conversion.json`: the result for every key, and the terms on which each part is published."""
    licenses = [item.describe() for item in ingredients]
    for line in licenses:
        print(f"licence of {line}")
    keys = [asdict(record) for record in plan.records]
    report = {"source": source, "summary": summarize(plan.records), "licenses": licenses, **more}
    write_json(folder / REPORT, report | {"made_of_sha256": hash_identity(identity), "keys": keys})


def print_records(records: Sequence[KeyRecord]) -> None:
    """Print how many keys had each result, and details of those that are not simply renamed."""
    print(summarize(records))
    names: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.reason:
            names.setdefault((record.fate, record.reason), []).append(record.ours or record.published)
    for (fate, reason), found in names.items():
        print(f"  {fate} {', '.join(found[:2])}{f' and {len(found) - 2} more' if len(found) > 2 else ''}: {reason}")


def summarize(records: Sequence[KeyRecord]) -> str:
    counts = Counter(record.fate for record in records)
    return ", ".join(f"{counts[fate]} keys {fate}" for fate in ("mapped", "generated", "dropped"))


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", help="checkpoint to convert: folder or Hub id")
    parser.add_argument("--to", type=parse_path, required=True, help="folder to write; must not exist")
    parser.add_argument("--reverse", action="store_true", help="convert from our format to the published one")
    parser.add_argument(
        "--init", choices=sorted(BASES), help="prepare training from a base model, given here or with --from"
    )
    parser.add_argument(
        "--denoiser", help="with --init: mm_inv_projector.bin, or the folder or Hub id that contains it"
    )
    parser.add_argument(
        "--vision-tower", help="folder or Hub id of SigLIP, if the name in the checkpoint cannot be loaded"
    )
    parser.add_argument(
        "--teacher", help="folder or Hub id of the VAE, if the name in the checkpoint cannot be loaded"
    )
    parser.add_argument(
        "--drop", action="append", default=[], help="leave out published keys that match a pattern such as a.b.*"
    )
    parser.add_argument(
        "--embedding-rows",
        type=int,
        help="with --reverse: write this many rows of input embeddings (the published code expects 152064)",
    )
    parser.add_argument("--max-shard-size", type=parse_size, default="2GB", help="maximum size of a weight file")
    parser.add_argument("--seed", type=int, help="random seed of new weights (default: 0)")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    options = parser.parse_args(args)
    if options.source is None and options.init is None:
        parser.error("--from: expected a folder or Hub id, got none")
    if options.denoiser is not None and options.init is None:
        parser.error("--denoiser: expected --init too: a released checkpoint has its own denoiser")
    if options.embedding_rows is not None and not options.reverse:
        parser.error("--embedding-rows: expected --reverse too: our format has exactly the rows of the vocabulary")
    only_forward = [options.init, options.denoiser, options.vision_tower, options.teacher, options.drop or None]
    only_forward += [options.seed]
    if options.reverse and any(value is not None for value in only_forward):
        parser.error("--reverse: expected only --from and --to: everything else is in the checkpoint")
    # An existing folder may be the complete result of this very conversion, which is known once the sources are read.
    if not (options.to / REPORT).is_file():
        check_new_folder(options.to)
    return options


def parse_size(text: str) -> str:
    if re.fullmatch(r"[1-9]\d*(KB|MB|GB)", text) is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 2GB or 500MB, got {text!r}")
    return text


def main(args: list[str] | None = None) -> Path:
    """Convert; returns the folder that was written."""
    options = parse_arguments(args)
    check_output_folder(options.to.absolute().parent, "--to")
    convert = convert_back if options.reverse else start_training if options.init else convert_release
    folder = convert(options)
    print(folder)
    return folder


if __name__ == "__main__":
    run_program(main)
