"""Turn a published Ross3D checkpoint into one of this repository, or back.

    python tools/convert.py --from DIR_OR_REPO --to DIR
    python tools/convert.py --from DIR --to DIR --reverse
    python tools/convert.py --init llava_video --denoiser mm_inv_projector.bin --teacher FLUX_DIR --to DIR

The second undoes the first. The third builds the checkpoint from which the published recipe trains: a LLaVA-Video
model with the new tokens, heads and denoiser. Tensors are read and written one shard at a time; the folder appears
when it is whole, and what a killed run has written is taken up by the next.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm
from transformers import AutoProcessor
from transformers.dynamic_module_utils import custom_object_save

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.atomic import write_text
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tools.checkpoints.card import list_licenses, make_card
from ross3d.tools.checkpoints.files import (
    count_bytes,
    describe_files,
    find_checkpoint,
    find_folder,
    list_tensors,
    read_json,
    replace_folder,
    write_shards,
)
from ross3d.tools.checkpoints.ingredients import (
    DEFAULT_TEACHER,
    DEFAULT_VISION_TOWER,
    INGREDIENTS,
    TEACHERS,
    VISION_KEYS,
    VISION_TOWERS,
    read_teacher_config,
)
from ross3d.tools.checkpoints.plan import (
    KeyRecord,
    Plan,
    get_new_denoiser_settings,
    make_mask_token,
    plan_ours,
    plan_published,
    plan_start,
)
from ross3d.tools.checkpoints.published_config import (
    EMBEDDINGS,
    check_publishable,
    explain_dropped_denoiser,
    get_denoiser_settings,
    list_unknown_keys,
    make_config,
    make_published_config,
)
from ross3d.tools.checkpoints.source import (
    PublishedSource,
    make_processor,
    make_release_config,
    read_source,
    set_generation_defaults,
)


# Base models of the published recipe, by what `--init` calls them.
BASES = {"llava_video": "lmms-lab/LLaVA-Video-7B-Qwen2"}

DENOISER_FILE = "mm_inv_projector.bin"


def convert_release(options: argparse.Namespace) -> Path:
    """A published checkpoint under our names."""
    source = read_source(options.source, options.vision_tower, options.teacher, options.drop)
    config = make_release_config(source)
    token = make_mask_token(config, source.tensors[EMBEDDINGS[0]].dtype, options.seed)
    plan = plan_ours(source.tensors, config, source.teacher if source.has_teacher else None, token)
    return write_ours(options, source, config, plan, for_training=False)


def start_training(options: argparse.Namespace) -> Path:
    """The checkpoint from which the published recipe trains."""
    source = read_source(options.source or BASES[options.init], options.vision_tower, options.teacher, options.drop)
    file = None if options.denoiser is None else find_denoiser_file(options.denoiser)
    stored = {} if file is None else list_tensors(file)
    denoiser = get_new_denoiser_settings({name: t.shape for name, t in stored.items()}, source.teacher)
    if get_denoiser_settings(source.shapes, source.teacher) is not None:
        raise ValueError(
            f"--init: expected a base model without a denoiser, got {source.folder}, which has one; leave --init out"
            " to convert it."
        )
    vocab_size = len(source.tokenizer)
    config = make_config(source.config, vocab_size, source.token_ids, source.vision, denoiser, grounding=True)
    teacher = source.teacher if source.has_teacher else None
    plan = plan_start(source.tensors, stored, config, teacher, source.num_old_tokens, options.seed)
    source.used += [] if file is None else [file]
    return write_ours(options, source, config, plan, for_training=True)


def find_denoiser_file(name: str) -> Path:
    """A denoiser file, or the one in a folder or Hub repository."""
    path = find_folder(name, [DENOISER_FILE])
    return path / DENOISER_FILE if path.is_dir() else path


def write_ours(
    options: argparse.Namespace, source: PublishedSource, config: Ross3DConfig, plan: Plan, for_training: bool
) -> Path:
    """Write model, processor, teacher, card and report; returns the folder."""
    plan.records += [KeyRecord(name, None, "dropped", "--drop") for name in source.dropped]
    name = options.source or BASES[options.init]
    parts = ["code", "release", "base", "language_model", "vision_tower"] + ["teacher"] * bool(plan.teacher)
    ingredients = [INGREDIENTS[part] for part in parts]
    config.dtype = source.tensors[EMBEDDINGS[0]].dtype
    with open_output(options, source.used, plan) as (folder, progress):
        write_shards(plan.model, folder, "model", options.max_shard_size, progress)
        write_model_files(folder, config)
        make_processor(source.tokenizer, config, for_training).save_pretrained(folder)
        if plan.teacher:
            write_shards(plan.teacher, folder / "teacher", "diffusion_pytorch_model", options.max_shard_size, progress)
            write_teacher_config(folder / "teacher", source.teacher)
        if plan.rest:
            write_shards(plan.rest, folder / "published", "model", options.max_shard_size, progress)
        write_json(folder / "published" / "config.json", source.config)
        make_card(name, summarize(plan.records), ingredients).save(folder / "README.md")
        write_report(folder, name, plan, list_unknown_keys(source.config))
    for line in list_licenses(ingredients):
        print(f"licence of {line}")
    return options.to


def convert_back(options: argparse.Namespace) -> Path:
    """One of our checkpoints under the published names."""
    source = find_checkpoint(options.source)
    if read_json(source / "config.json").get("model_type") != "ross3d":
        raise ValueError(f"{source}: expected a checkpoint of ross3d, got another; leave --reverse out.")
    config = Ross3DConfig.from_pretrained(source)
    check_publishable(config)
    came_from = source / "published"
    base = read_json(came_from / "config.json") if (came_from / "config.json").is_file() else None
    has_rest = any(came_from.glob("model*.safetensors"))
    rest = list_tensors(came_from) if has_rest else {}
    reason = explain_dropped_denoiser(config)
    has_denoiser = config.denoiser_config is not None and reason is None
    has_teacher = has_denoiser and (source / "teacher").is_dir()
    teacher = list_tensors(source / "teacher") if has_teacher else {}
    plan = plan_published(list_tensors(source), teacher, rest, config, options.embedding_rows)
    tower_config, tower_name = name_tower(config)
    teacher_config = read_teacher_config(source / "teacher") if has_teacher else None
    teacher_name = DEFAULT_TEACHER if teacher_config in (None, *TEACHERS.values()) else "pixel_decoder"
    parts = {"mm_vision_tower": tower_name, "mm_pixel_decoder": teacher_name}
    rows = {plan.model[name].shape[0] for name in EMBEDDINGS if name in plan.model}
    published = make_published_config(config, base, parts, has_denoiser, rows)
    with open_output(options, [source], plan) as (folder, progress):
        write_shards(plan.model, folder, "model", options.max_shard_size, progress)
        write_json(folder / "config.json", published)
        if base is None and tower_name == "vision_tower":
            write_json(folder / tower_name / "config.json", tower_config)
        if base is None and teacher_name == "pixel_decoder":
            write_teacher_config(folder / teacher_name, teacher_config)
        AutoProcessor.from_pretrained(source, trust_remote_code=True).tokenizer.save_pretrained(folder)
        write_json(folder / "generation_config.json", read_json(source / "generation_config.json"))
        write_report(folder, str(options.source), plan, [])
    if reason is not None:
        print(f"the denoiser was left out: {reason}")
    return options.to


def name_tower(config: Ross3DConfig) -> tuple[dict[str, Any], str]:
    """SigLIP's configuration with its last layer, and what the published config calls the tower."""
    vision = {key: getattr(config.vision_config, key) for key in VISION_KEYS}
    vision |= {"num_hidden_layers": vision["num_hidden_layers"] + 1}
    known = vision == VISION_TOWERS[Path(DEFAULT_VISION_TOWER).name]
    return {"model_type": "siglip_vision_model", **vision}, DEFAULT_VISION_TOWER if known else "vision_tower"


@contextmanager
def open_output(options: argparse.Namespace, sources: Sequence[Path], plan: Plan) -> Iterator[tuple[Path, tqdm]]:
    """The folder to write to, which takes its name when all is written, and a bar that counts bytes."""
    print_records(plan.records)
    num_bytes = count_bytes(plan.list_tensors())
    arguments = {key: str(value) for key, value in vars(options).items()}
    identity = {"arguments": arguments, "sources": describe_files(sources)}
    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc=f"writing {options.to}")
    with bar, replace_folder(options.to, identity, num_bytes) as folder:
        yield folder, bar


def write_model_files(folder: Path, config: Ross3DConfig) -> None:
    """Everything but weights that `save_pretrained` of the model would write: configs and the code it needs."""
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


def write_report(folder: Path, source: str, plan: Plan, unknown: list[str]) -> None:
    """`conversion.json`: what became of every key."""
    if unknown:
        print(f"config.json has keys that nothing here reads: {', '.join(unknown)}; they are kept for --reverse")
    keys = [asdict(record) for record in plan.records]
    report = {"source": source, "summary": summarize(plan.records), "unknown_config_keys": unknown, "keys": keys}
    write_json(folder / "conversion.json", report)


def print_records(records: Sequence[KeyRecord]) -> None:
    """How many keys of each fate, and what happened to those that are not simply renamed."""
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
    parser.add_argument("--to", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--reverse", action="store_true", help="from ours to the published format")
    parser.add_argument("--init", choices=sorted(BASES), help="begin training from a base model (or from --from)")
    parser.add_argument("--denoiser", help="with --init: mm_inv_projector.bin, or the folder or Hub id that has it")
    parser.add_argument("--vision-tower", help="SigLIP's folder or Hub id, where the checkpoint's own name fails")
    parser.add_argument("--teacher", help="the VAE's folder or Hub id, where the checkpoint's own name fails")
    parser.add_argument("--drop", action="append", default=[], help="leave out published keys that match, as in a.b.*")
    parser.add_argument("--embedding-rows", type=int, help="with --reverse: the published code builds 152064")
    parser.add_argument("--max-shard-size", default="2GB")
    parser.add_argument("--seed", type=int, default=0, help="of weights that are drawn")
    options = parser.parse_args(args)
    if options.source is None and options.init is None:
        parser.error("--from: expected a folder or Hub id, got none")
    if options.denoiser is not None and options.init is None:
        parser.error("--denoiser: expected --init beside it: a released checkpoint has its own")
    if options.embedding_rows is not None and not options.reverse:
        parser.error("--embedding-rows: expected --reverse beside it: ours has the rows of its vocabulary")
    only_forward = [options.init, options.denoiser, options.vision_tower, options.teacher, options.drop or None]
    if options.reverse and any(value is not None for value in only_forward):
        parser.error("--reverse: expected --from and --to alone: everything else is in the checkpoint")
    return options


def main(args: list[str] | None = None) -> Path:
    """Convert; returns the folder that was written."""
    options = parse_arguments(args)
    convert = convert_back if options.reverse else start_training if options.init else convert_release
    folder = convert(options)
    print(folder)
    return folder


if __name__ == "__main__":
    main()
