"""Plans of conversions: every key of a checkpoint is renamed, generated, or dropped with a reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tools.checkpoints.files import MadeTensor, Readable, StoredTensor
from ross3d.tools.checkpoints.keys import (
    IDLE_3DRS_KEYS,
    INVERSE_PROJECTOR,
    adapt_denoiser_file,
    explain_dropped,
    get_short_name,
    to_ours,
    to_published,
)
from ross3d.tools.checkpoints.published_config import (
    EMBEDDINGS,
    explain_dropped_denoiser,
    explain_unpublished,
    get_denoiser_settings,
    is_3drs_model,
)


TEACHER = "teacher."
NEW_PARTS = ("model.mask_token", "grounding_head.", "reconstruction_head.")
ROWS_AT_ONCE = 8192
# For each number of layers in a config, published or ours: the prefix of these layers' weights.
OWN_SECTIONS = ("text_config", "vision_config", "denoiser_config")
LAYERS = {
    "num_hidden_layers": "model.layers.",
    "text_config.num_hidden_layers": "model.language_model.layers.",
    "vision_config.num_hidden_layers": "model.vision_tower.encoder.layers.",
    "denoiser_config.num_hidden_layers": "reconstruction_head.denoiser.blocks.",
}
# Number of missing layers up to which an error names the missing weights: building a few more layers costs little.
MAX_MISSING_LAYERS = 100


@dataclass(frozen=True)
class KeyRecord:
    """The result for one key: its name on both sides, if it has one."""

    published: str | None
    ours: str | None
    fate: Literal["mapped", "generated", "dropped"]
    reason: str = ""


@dataclass
class ConversionPlan:
    """Tensors to write, by their new names, and the result for every key.

    `rest` holds tensors without a place in the model that are saved separately for converting back.
    """

    model: dict[str, Readable] = field(default_factory=dict)
    teacher: dict[str, Readable] = field(default_factory=dict)
    rest: dict[str, Readable] = field(default_factory=dict)
    records: list[KeyRecord] = field(default_factory=list)

    def put(self, name: str, tensor: Readable) -> None:
        """Add a tensor under one of our names."""
        if name.startswith(TEACHER):
            self.teacher[name.removeprefix(TEACHER)] = tensor
        else:
            self.model[name] = tensor

    def list_tensors(self) -> list[Readable]:
        return [*self.model.values(), *self.teacher.values(), *self.rest.values()]

    def describe(self) -> list[list]:
        """Every tensor that will be written: name, shape, type, and how it is computed."""
        parts = {"model": self.model, "teacher": self.teacher, "rest": self.rest}
        return [
            [f"{part}/{name}", list(tensor.shape), str(tensor.dtype), getattr(tensor, "note", "")]
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        ]


def get_own_shapes(config: Ross3DConfig, teacher: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model, and of the teacher with the prefix `teacher.`; nothing is allocated."""
    with torch.device("meta"):
        tensors = Ross3DForConditionalGeneration(config).state_dict()
        if teacher is not None:
            vae = AutoencoderKL.from_config(dict(teacher)).state_dict()
            tensors |= {f"{TEACHER}{name}": tensor for name, tensor in vae.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def check_num_layers(counts: Mapping[str, Any], names: Iterable[str], where: Path) -> None:
    """Refuse a config with many more layers than its weights have, before a model of that size is built.

    Args:
        counts: key of the config (`num_hidden_layers`, or with its section) -> value; None is refused elsewhere.
        names: of the weights.
        where (`Path`): the config's file.

    Raises:
        ValueError: names the file and the key.
    """
    names = list(names)
    for key, count in counts.items():
        stem = LAYERS[key]
        found = {name[len(stem) :].split(".")[0] for name in names if name.startswith(stem)}
        if count is not None and (type(count) is not int or count > len(found) + MAX_MISSING_LAYERS):
            raise ValueError(
                f"{key} of {where}: expected the number of layers in its weights, {len(found)}, got"
                f" {str(count)[:50]}; correct it, or use the config.json of the weights."
            )


def check_own_layers(settings: Mapping[str, Any], names: Iterable[str], where: Path) -> None:
    """`check_num_layers` of one of our checkpoints, whose `config.json` holds `settings`.

    Raises:
        ValueError: names the file and the key.
    """
    counts = {}
    for key in OWN_SECTIONS:
        section = settings.get(key) or {}
        counts[f"{key}.num_hidden_layers"] = section.get("num_hidden_layers") if isinstance(section, dict) else None
    check_num_layers(counts, names, where)


def check_shapes(pairs: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]) -> None:
    """Refuse tensors (name, target, shape, shape of the target) whose shapes do not fit.

    Raises:
        ValueError: with both names of the first, and their number.
    """
    wrong = [pair for pair in pairs if pair[2] != pair[3]]
    if wrong:
        name, target, shape, wanted = wrong[0]
        raise ValueError(
            f"{name} -> {target}: expected shape {wanted}, got {shape} ({len(wrong)} such keys); config.json, vision"
            " tower or VAE belong to another checkpoint."
        )


def plan_ours(
    tensors: Mapping[str, Readable],
    config: Ross3DConfig,
    teacher: Mapping[str, Any] | None,
    new: Mapping[str, MadeTensor],
) -> ConversionPlan:
    """The plan of a published checkpoint under our names.

    Args:
        tensors: by published name, including the teacher's if it is there.
        config: ours.
        teacher: the diffusers configuration of the VAE; None when its weights are not there.
        new: by our name, tensors for keys that the checkpoint lacks.

    Raises:
        ValueError: for keys that have no place, are missing, or have another shape.
    """
    plan, unknown, pairs = ConversionPlan(), [], []
    shapes = get_own_shapes(config, teacher)
    for name, tensor in tensors.items():
        ours, reason = to_ours(name), explain_dropped(name, config.vision_config.num_hidden_layers)
        if config.tie_word_embeddings and name == "lm_head.weight":
            reason = "tied to the word embeddings"
        if reason is not None:
            plan.records.append(KeyRecord(name, None, "dropped", reason))
            if name in IDLE_3DRS_KEYS:
                plan.rest[name] = tensor
        elif ours not in shapes:
            unknown.append(name if ours is None else f"{name} (ours: {ours})")
        else:
            kept = trim_rows(plan, name, tensor, config.text_config.vocab_size)
            pairs.append((name, ours, tuple(kept.shape), shapes[ours]))
            plan.put(ours, kept)
            plan.records.append(KeyRecord(name, ours, "mapped", getattr(kept, "note", "")))
    if unknown:
        raise ValueError(
            f"{unknown[0]}: expected a key of the published model, got {len(unknown)} without a counterpart in our"
            f" format, such as {', '.join(unknown[:3])}; leave them out with --drop PATTERN if nothing needs them."
        )
    check_shapes(pairs)
    brought = {record.ours for record in plan.records}
    for name, tensor in new.items():
        if name in shapes and name not in brought:
            plan.put(name, tensor)
            fate = "generated" if tensor.source is None else "mapped"
            plan.records.append(KeyRecord(tensor.source or to_published(name), name, fate, tensor.note))
    check_complete(plan, shapes)
    return plan


def trim_rows(plan: ConversionPlan, name: str, tensor: Readable, vocab_size: int) -> Readable:
    """The first `vocab_size` rows of word embeddings; the rows after them go to `plan.rest`."""
    if name not in EMBEDDINGS or tensor.shape[0] <= vocab_size:
        return tensor
    shape, behind = ((n, *tensor.shape[1:]) for n in (vocab_size, tensor.shape[0] - vocab_size))
    plan.rest[name] = MadeTensor(behind, tensor.dtype, lambda: tensor.read()[vocab_size:])
    note = f"rows {vocab_size} to {tensor.shape[0] - 1} belong to no token; saved for the conversion back"
    return MadeTensor(shape, tensor.dtype, lambda: tensor.read()[:vocab_size], note)


def check_complete(plan: ConversionPlan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a plan that lacks keys of our model.

    Raises:
        ValueError: with the names that the checkpoint should have.
    """
    planned = plan.model.keys() | {f"{TEACHER}{name}" for name in plan.teacher}
    missing = [to_published(name) or name for name in shapes if name not in planned]
    if missing:
        raise ValueError(
            f"{missing[0]}: expected it in the checkpoint, found {len(missing)} keys missing, such as {missing[:3]};"
            " download the other files, or give the part they belong to (--vision-tower, --teacher)."
        )


# New weights


def make_new_weights(config: Ross3DConfig, seed: int) -> dict[str, torch.Tensor]:
    """Initial mask token and heads of a new model of this config; no other part is built at full size.

    The vector of "no target" has unit standard deviation, as in the published recipe.
    """
    settings = config.to_dict()
    settings["text_config"] |= {"num_hidden_layers": 0, "layer_types": [], "vocab_size": 3, "bos_token_id": None}
    settings["text_config"] |= {"eos_token_id": None, "pad_token_id": None}
    settings["vision_config"] |= {"num_hidden_layers": 0}
    settings |= {"image_token_id": 0, "ground_token_id": 1, "coord_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = Ross3DForConditionalGeneration(Ross3DConfig.from_dict(settings)).state_dict()
        if config.grounding:
            weights["grounding_head.no_target"] = torch.randn(config.text_config.hidden_size)
    return {name: tensor for name, tensor in weights.items() if name.startswith(NEW_PARTS)}


def hold(tensor: torch.Tensor, dtype: torch.dtype, note: str, source: str | None = None) -> MadeTensor:
    """A small tensor that is in memory already."""
    return MadeTensor(tuple(tensor.shape), dtype, lambda: tensor, note, source)


def make_mask_token(config: Ross3DConfig, dtype: torch.dtype, seed: int) -> dict[str, MadeTensor]:
    """A mask token for checkpoints that lack it, in which case the published code leaves it uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    token = torch.randn(config.text_config.hidden_size, generator=generator) * config.initializer_range
    return {"model.mask_token": hold(token, dtype, "not in the checkpoint: initialised as in a new model")}


# The start of training


def get_new_denoiser_settings(shapes: Mapping[str, tuple[int, ...]], teacher: Mapping[str, Any]) -> dict[str, Any]:
    """`denoiser_config` of the published recipe: from the initial denoiser file, else the released sizes.

    Args:
        shapes: of the file, by its own names; empty to start without a file, with sinusoids as position tables.
        teacher: the diffusers configuration of the VAE.

    Raises:
        ValueError: when the file does not hold a denoiser.
    """
    released = Ross3DDenoiserConfig()
    told = {get_short_name(name).replace("x_embedder.", "x_embedder_view."): tuple(s) for name, s in shapes.items()}
    embedding = "x_embedder_view.proj.weight"
    if told and not (embedding in told and told.keys() & {"pos_embed", "pos_embed_view"}):
        raise ValueError(
            f"--denoiser: expected a file with pos_embed and x_embedder.proj.weight, got keys {sorted(shapes)[:3]};"
            " use the mm_inv_projector.bin of a checkpoint."
        )
    channels = teacher["latent_channels"] * released.latent_patch_size**2
    width, channels = told.get(embedding, (released.hidden_size, channels))[:2]
    mlp = (width * released.intermediate_size // released.hidden_size, width)
    layers = {name.split(".")[1] for name in told if name.startswith("blocks.")} or range(released.num_hidden_layers)
    sizes = {f"blocks.{layer}.mlp.fc1.weight": mlp for layer in layers}
    sizes["t_embedder.mlp.0.weight"] = (width, released.frequency_embedding_size)
    sizes |= {embedding: (width, channels), "pos_embed_bev": (1, released.bev_grid_size**2, width)} | told
    settings = get_denoiser_settings({f"{INVERSE_PROJECTOR}{name}": shape for name, shape in sizes.items()}, teacher)
    return settings | ({} if shapes else {"position_embedding": "sincos"})


def plan_start(
    tensors: Mapping[str, Readable],
    denoiser: Mapping[str, Readable],
    config: Ross3DConfig,
    teacher: Mapping[str, Any] | None,
    num_old_tokens: int,
    seed: int,
) -> ConversionPlan:
    """The plan of a base model with the parts that the published recipe adds to it, under our names.

    Args:
        tensors: of the base model (and tower and teacher), by published name.
        denoiser: of the 2D-pretrained denoiser file, by its own names; empty to start with new weights.
        config: ours.
        teacher: the diffusers configuration of the VAE; None when its weights are not there.
        num_old_tokens (`int`): tokens that the base model knew; rows of new tokens are the mean of their rows.
        seed (`int`): of all random weights.

    Raises:
        ValueError: as `plan_ours`.
    """
    dtype = tensors[EMBEDDINGS[0]].dtype
    vocab_size = config.text_config.vocab_size
    grown = {name: add_rows(name, tensors[name], num_old_tokens, vocab_size) for name in EMBEDDINGS if name in tensors}
    new = {}
    for name, tensor in make_new_weights(config, seed).items():
        lacking = bool(denoiser) and name.startswith("reconstruction_head.")
        note = "not in the denoiser file: initialised" if lacking else "initialised as in the published recipe"
        new[name] = hold(tensor, dtype, note)
    begun, dropped = read_denoiser(denoiser, config, {name: tensor.shape for name, tensor in new.items()})
    plan = plan_ours({**tensors, **grown}, config, teacher, new | begun)
    plan.records += dropped
    return plan


def add_rows(name: str, tensor: Readable, num_old: int, num_rows: int) -> MadeTensor:
    """Word embeddings with the first `num_old` rows unchanged and the others equal to their mean.

    Raises:
        ValueError: when there are fewer rows than old tokens.
    """
    if tensor.shape[0] < num_old:
        raise ValueError(
            f"{name}: expected a row for each of the {num_old} tokens of the checkpoint's tokenizer, got"
            f" {tensor.shape[0]}; weights or tokenizer belong to another checkpoint."
        )

    def make() -> torch.Tensor:
        old = tensor.read()[:num_old]
        rows = old.new_empty(num_rows, *old.shape[1:])
        rows[:num_old] = old
        # In parts: a float32 copy of all rows would be the largest tensor of the conversion.
        rows[num_old:] = sum(part.sum(dim=0, dtype=torch.float64) for part in old.split(ROWS_AT_ONCE)) / num_old
        return rows

    note = f"rows {num_old} to {num_rows - 1} are the mean of those before them" if num_rows > num_old else ""
    return MadeTensor((num_rows, *tensor.shape[1:]), tensor.dtype, make, note)


def read_denoiser(
    tensors: Mapping[str, Readable], config: Ross3DConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, MadeTensor], list[KeyRecord]]:
    """Weights of a denoiser file by our names, and its keys that have no place in ours.

    Raises:
        ValueError: for a weight of another shape than the model's, except a condition embedding of another width,
            which is left out, as in the published code.
    """
    found, dropped, pairs = {}, [], []
    for name, stored in tensors.items():
        short, grids = get_short_name(name), (config.view_grid_size, config.denoiser_config.bev_grid_size)
        adapted = adapt_denoiser_file({name: stored.read()}, *grids)
        fitting = {ours: tensor for ours, tensor in adapted.items() if shapes.get(ours) == tuple(tensor.shape)}
        if not adapted or (short.startswith("z_embedder.") and len(fitting) < len(adapted)):
            reason = "condition embedding of another size, left out as in the published code"
            reason = reason if short.startswith("z_embedder.") else "not a denoiser weight"
            dropped.append(KeyRecord(name, None, "dropped", reason))
            continue
        pairs += [(name, ours, tuple(tensor.shape), shapes.get(ours)) for ours, tensor in adapted.items()]
        note = f"resized from {tuple(stored.shape)}" if short == "pos_embed" else "from the denoiser file"
        found |= {ours: hold(tensor, tensor.dtype, note, name) for ours, tensor in adapted.items()}
    check_shapes(pairs)
    return found, dropped


# The way back


def plan_published(
    tensors: Mapping[str, StoredTensor],
    teacher: Mapping[str, StoredTensor],
    rest: Mapping[str, StoredTensor],
    config: Ross3DConfig,
    embedding_rows: int | None,
) -> ConversionPlan:
    """The plan of one of our checkpoints under the published names.

    Args:
        tensors: of our model, by our names.
        teacher: of its VAE, by their names in the diffusers folder; empty when there is none.
        rest: rows of word embeddings and idle layers that were set aside when it was converted to ours, by published
            name.
        config: ours.
        embedding_rows (`int`, *optional*): rows of `model.embed_tokens.weight`; rows after the vocabulary are 0.

    Raises:
        ValueError: for keys that are not in our model, are missing, or have another shape.
    """
    plan, shapes = ConversionPlan(), get_own_shapes(config, None)
    if unknown := sorted(set(tensors) - set(shapes)):
        raise ValueError(f"{unknown[0]}: expected keys of this model, got {len(unknown)} unknown ones: {unknown[:3]}.")
    if missing := sorted(set(shapes) - set(tensors)):
        raise ValueError(f"{missing[0]}: expected it in the checkpoint, found {len(missing)} keys missing.")
    check_shapes([(name, to_published(name) or name, tensor.shape, shapes[name]) for name, tensor in tensors.items()])
    for name, tensor in tensors.items():
        if (reason := explain_unpublished(name, config)) is not None:
            plan.records.append(KeyRecord(None, name, "dropped", reason))
            continue
        published = to_published(name)
        written = extend_rows(tensor, rest.get(published), embedding_rows if published == EMBEDDINGS[0] else None)
        plan.model[published] = written
        plan.records.append(KeyRecord(published, name, "mapped", getattr(written, "note", "")))
    reason = explain_dropped_denoiser(config)
    for name, tensor in teacher.items():
        if reason is not None:
            plan.records.append(KeyRecord(None, f"{TEACHER}{name}", "dropped", reason))
            continue
        published = to_published(f"{TEACHER}{name}")
        plan.model[published] = tensor
        plan.records.append(KeyRecord(published, f"{TEACHER}{name}", "mapped"))
    for name in IDLE_3DRS_KEYS if is_3drs_model(config) else ():
        if name in rest:
            plan.model[name] = rest[name]
            plan.records.append(KeyRecord(name, None, "mapped", "saved by the conversion to our format"))
    return plan


def extend_rows(tensor: StoredTensor, rest: StoredTensor | None, num_rows: int | None) -> Readable:
    """Word embeddings with the rows that were set aside, then rows of 0 up to `num_rows`."""
    pieces = [tensor] if rest is None else [tensor, rest]
    rows = sum(piece.shape[0] for piece in pieces)
    if rest is None and num_rows in (None, rows):
        return tensor
    total = rows if num_rows is None else num_rows
    if total < rows:
        raise ValueError(f"--embedding-rows: expected at least the {rows} existing rows, got {num_rows}.")

    def make() -> torch.Tensor:
        read = [piece.read() for piece in pieces]
        return torch.cat([*read, read[0].new_zeros(total - rows, *tensor.shape[1:])])

    note = f"{total - tensor.shape[0]} rows after the vocabulary"
    return MadeTensor((total, *tensor.shape[1:]), tensor.dtype, make, note)
