"""Teacher, denoiser, losses, gradients and sampler against the recorded cases."""

import copy
import math
from functools import partial

import torch
from torch import nn

from ross3d.data.collator import choose_masked_views
from ross3d.diffusion_ross3d import (
    add_noise,
    get_alphas_cumprod,
    get_cosine_betas,
    respace_betas,
    sample_latents,
    space_timesteps,
)
from ross3d.objectives_ross3d import Draws, SceneStates
from ross3d.reconstruction_ross3d import (
    BevObjective,
    ViewObjective,
    decode_latents,
    encode_pictures,
    get_bev_cells,
    get_bev_queries,
    get_target_tokens,
    get_view_pictures,
    get_view_queries,
    get_view_repeats,
)
from ross3d.tests.parity.build import Recorded, split_weights
from ross3d.tests.parity.compare_model import check_image_block
from ross3d.tests.parity.golden import GoldenCase, get_deviation, read_slices
from ross3d.tests.parity.gradients import check_gradients
from ross3d.tests.parity.tables import (
    ACTIVATIONS,
    EXACT_ARITHMETIC,
    GRADIENTS,
    LARGEST,
    LOSSES,
    TYPICAL,
    get_angle_tolerance,
)
from ross3d.tools.checkpoints.keys import adapt_denoiser_file, to_ours, to_published
from ross3d.training.trainer import open_view_gate


def get_masked_views(recorded: Recorded, numbers: torch.Tensor) -> torch.Tensor:
    """Masked views (1, V) bool for recorded uniform numbers."""
    return choose_masked_views(numbers, recorded.model.config.view_mask_ratio)[None]


def get_scene_states(recorded: Recorded, hidden: torch.Tensor) -> tuple[SceneStates, torch.Tensor, dict]:
    """States of the training row with these views hidden, all output states (1, L, D), and the row itself."""
    inputs = recorded.get_inputs("qa", train=True, bev=True)
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    with torch.no_grad():
        outputs = recorded.model.model(**{name: inputs[name] for name in names}, bool_masked_views=hidden)
    states = SceneStates(outputs.visual_states, inputs["view_mask"] & ~hidden, outputs.visual_positions)
    return states, outputs.last_hidden_state, inputs


def get_draws(view: GoldenCase | None, bev: GoldenCase) -> dict[str, torch.Tensor]:
    """Recorded draws as arguments of the model's `forward`."""
    draws = {}
    for branch, case in (("view", view), ("bev", bev)):
        if case is not None:
            draws[f"{branch}_timesteps"] = case.read("t")
            draws[f"{branch}_noise"] = case.read("noise")
            draws[f"{branch}_posterior_noise"] = case.read("posterior_noise")
    return draws


def encode(recorded: Recorded, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean and log-variance of the teacher's posterior."""
    return encode_pictures(recorded.model.get_teacher(), pictures).chunk(2, dim=1)


def get_targets(recorded: Recorded, latents: torch.Tensor, branch: str) -> torch.Tensor:
    head = recorded.model.reconstruction_head
    return get_target_tokens(latents, head.config, head.get_grid_size(branch))


def check_targets(recorded: Recorded, case: GoldenCase, pictures: torch.Tensor, branch: str) -> torch.Tensor:
    """Posterior of the teacher and the folded latents (n, Z, g, g)."""
    mean, logvar = encode(recorded, pictures)
    case.close("posterior_mean", mean, ACTIVATIONS)
    case.close("posterior_logvar", logvar, ACTIVATIONS)
    latents = mean + torch.exp(0.5 * logvar) * case.read("posterior_noise")
    targets = get_targets(recorded, latents, branch)
    case.close("z_q", targets, ACTIVATIONS)
    return targets


def predict_noise(recorded: Recorded, targets, timesteps, noise, condition, branch: str) -> torch.Tensor:
    head = recorded.model.reconstruction_head
    schedule = get_alphas_cumprod(get_cosine_betas(head.config.num_train_timesteps))
    return head.predict(add_noise(targets, noise, timesteps, schedule), timesteps, condition, branch)


@torch.no_grad()
def compare_recon_view(recorded: Recorded, case: GoldenCase) -> None:
    model, config = recorded.model, recorded.model.config
    head = model.reconstruction_head
    hidden = get_masked_views(recorded, case.read("mask_noise"))
    case.same("mask", hidden[0])
    case.same("scalars|mask", hidden[0].float())
    states, final_hidden, inputs = get_scene_states(recorded, hidden)
    case.close("final_hidden", final_hidden, ACTIVATIONS)
    positions = check_image_block(recorded, case, inputs)
    case.same("scalars|newline_ids", positions[..., -1].flatten())
    visible = head.normalize_states(states.states)[states.visible]  # (n, N, D)
    grid = config.view_grid_size
    case.close("context", visible.transpose(1, 2).unflatten(2, (grid, grid)), ACTIVATIONS)

    size = config.denoiser_config.view_image_size
    pictures = get_view_pictures(inputs["pixel_values"][hidden], config)
    case.same("scalars|vae_input_shape", list(pictures.shape))
    rows, columns = read_slices(case.describe("vae_input_crop"))
    case.close("vae_input_crop", pictures[:, :, rows, columns], ACTIVATIONS)
    targets = check_targets(recorded, case, pictures, "view")
    repeats = get_view_repeats(inputs["view_mask"], hidden)[0]
    case.same("scalars|repeat_factor", repeats)

    condition = get_view_queries(states, hidden, config).get_conditions(head)
    case.close("pooled_condition", condition[:1], ACTIVATIONS)
    items = list(range(len(targets))) * repeats
    timesteps, noise = case.read("t"), case.read("noise")
    prediction = predict_noise(recorded, targets[items], timesteps, noise, condition[items], "view")
    case.close("denoiser_out", prediction, ACTIVATIONS)
    errors = head.compute_errors(targets[items], timesteps, noise, condition[items], "view")
    case.close("loss_elements", errors, ACTIVATIONS)
    case.close("scalars|loss_elements_sum", errors.double().sum(), LOSSES)
    given = {"timesteps": timesteps, "noise": noise, "posterior_noise": case.read("posterior_noise")}
    draws = Draws(given={f"view.{purpose}": numbers for purpose, numbers in given.items()})
    batch = inputs | {"bool_masked_views": hidden}
    total = ViewObjective().compute(model, states, batch, draws)
    assert ViewObjective().count(batch, config).tolist() == [1]
    case.close("scalars|vm_loss", total, LOSSES)
    settings = {
        "decode_image_size": size,
        "image_embed_len": head.get_grid_size("view") ** 2,
        "scaling_factor": config.denoiser_config.scaling_factor,
        "shift_factor": config.denoiser_config.shift_factor,
        "num_timesteps": config.denoiser_config.num_train_timesteps,
    }
    for key, value in settings.items():
        case.same(f"scalars|{key}", value)


@torch.no_grad()
def compare_recon_bev(recorded: Recorded, case: GoldenCase) -> None:
    model, config = recorded.model, recorded.model.config.denoiser_config
    head = model.reconstruction_head
    hidden = get_masked_views(recorded, recorded.golden.get_case("recon_view").read("mask_noise"))
    case.same("scalars|mask", hidden[0].float())
    states, _, inputs = get_scene_states(recorded, hidden)
    pictures = 2 * inputs["bev_pixel_values"] - 1
    targets = check_targets(recorded, case, pictures, "bev")
    condition = get_bev_queries(model, states, None).get_conditions(head)
    case.close("pooled_condition", condition, ACTIVATIONS)
    timesteps, noise = case.read("t"), case.read("noise")
    prediction = predict_noise(recorded, targets, timesteps, noise, condition, "bev")
    case.close("denoiser_out", prediction, ACTIVATIONS)
    errors = head.compute_errors(targets, timesteps, noise, condition, "bev")
    case.close("loss_elements", errors, ACTIVATIONS)
    case.close("scalars|loss_elements_sum", errors.double().sum(), LOSSES)
    cells = get_bev_cells(inputs["bev_pixel_values"], None, config.bev_grid_size, config.bev_loss_mask)
    case.same("loss_mask", cells[:, None])
    case.same("scalars|loss_mask_cells", cells.sum())
    given = {"timesteps": timesteps, "noise": noise, "posterior_noise": case.read("posterior_noise")}
    draws = Draws(given={f"bev.{purpose}": numbers for purpose, numbers in given.items()})
    batch = {"bev_pixel_values": inputs["bev_pixel_values"]}
    total = BevObjective().compute(model, states, batch, draws)
    assert BevObjective().count(batch, model.config).tolist() == [1]
    case.close("scalars|bev_loss", total, LOSSES)


def check_step(recorded: Recorded, case: GoldenCase, hidden: torch.Tensor, draws: dict, global_step: int) -> None:
    """Losses and gradients of one optimizer step, through the gate that hides views in some steps only."""
    inputs = recorded.get_inputs("qa", train=True, bev=True) | {"bool_masked_views": hidden}
    open_view_gate(inputs, global_step, recorded.model.config.view_mask_period)
    outputs = check_gradients(recorded, case, "", inputs | draws)
    case.same("scalars|global_step", global_step)
    case.close("scalars|loss", outputs.loss, LOSSES)
    case.close("scalars|lm_loss", outputs.lm_loss, LOSSES)
    case.close("scalars|vm_loss", outputs.view_loss, LOSSES)
    case.close("scalars|bev_loss", outputs.bev_loss, LOSSES)
    if "mask" in case.scalars:
        case.same("scalars|mask", inputs["bool_masked_views"][0].float())


def compare_train_step(recorded: Recorded, case: GoldenCase) -> None:
    view, bev = recorded.golden.get_case("recon_view"), recorded.golden.get_case("recon_bev")
    hidden = get_masked_views(recorded, view.read("mask_noise"))
    check_step(recorded, case, hidden, get_draws(view, bev), case.scalars["global_step"])
    frozen = [to_published(name) for name, p in recorded.model.named_parameters() if not p.requires_grad]
    frozen += [name for name in recorded.golden.weights if to_ours(name).startswith("teacher.")]
    prefixes = case.scalars["frozen_prefixes"]
    assert all(name.startswith(tuple(prefixes)) for name in frozen)
    used = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in frozen)]
    case.same("scalars|frozen_prefixes", used)
    weight = recorded.model.get_input_embeddings().weight
    case.close("grad_rows.embed_tokens", weight.grad[read_token_ids(recorded, case)], GRADIENTS)


def read_token_ids(recorded: Recorded, case: GoldenCase) -> list[int]:
    """The rows named in the description, `[im_start, 198, ...]`."""
    words = case.describe("grad_rows.embed_tokens").partition("[")[2].partition("]")[0].split(",")
    special = {name.strip("<|>"): token for name, token in recorded.golden.config["special_ids"].items()}
    return [int(word) if word.strip().isdigit() else special[word.strip()] for word in words]


def compare_train_step_unmasked(recorded: Recorded, case: GoldenCase) -> None:
    hidden = get_masked_views(recorded, recorded.golden.get_case("recon_view").read("mask_noise"))
    check_step(recorded, case, hidden, get_draws(None, case), case.scalars["global_step"])
    with torch.no_grad():
        states, _, inputs = get_scene_states(recorded, torch.zeros_like(hidden))
        grid = recorded.model.config.view_grid_size
        visible = states.states[states.visible].transpose(1, 2).unflatten(2, (grid, grid))
        case.same("scalars|context_frames", list(visible.shape))
        mean, logvar = encode(recorded, 2 * inputs["bev_pixel_values"] - 1)
        latents = mean + torch.exp(0.5 * logvar) * case.read("posterior_noise")
        targets = get_targets(recorded, latents, "bev")
        head = recorded.model.reconstruction_head
        condition = get_bev_queries(recorded.model, states, None).get_conditions(head)
        case.close("pooled_condition", condition, ACTIVATIONS)
        prediction = predict_noise(recorded, targets, case.read("t"), case.read("noise"), condition, "bev")
        case.close("denoiser_out", prediction, ACTIVATIONS)


@torch.no_grad()
def compare_sampling(recorded: Recorded, case: GoldenCase) -> None:
    head = recorded.model.reconstruction_head
    betas = get_cosine_betas(head.config.num_train_timesteps)
    alphas_cumprod = get_alphas_cumprod(betas)
    for name, schedule in {"betas": betas, "alphas_cumprod": alphas_cumprod}.items():
        case.close(f"sched_{name}", schedule, EXACT_ARITHMETIC)
        case.close(f"scalars|{name}_last", schedule[-len(case.scalars[f"{name}_last"]) :], EXACT_ARITHMETIC)
    case.same("scalars|clip_denoised", head.config.sampler == "published")
    case.same("scalars|temperature", 1.0)
    check_direct(recorded, case)
    for branch in ("view", "bev"):
        check_chain(recorded, case, branch, alphas_cumprod)


def get_recorded_condition(head: nn.Module, case: GoldenCase, branch: str) -> torch.Tensor:
    """(1, M, C) pooled from the recorded context, which is normalised already, in the precision of the head."""
    states = case.read("context").flatten(2).transpose(1, 2).flatten(0, 1)[None].to(head.dtype)
    pooler = head.view_pooler if branch == "view" else head.bev_pooler
    return pooler(states, torch.ones(states.shape[:2], dtype=torch.bool))[:, 0]


def get_exact_frequencies(timesteps: torch.Tensor, num_frequencies: int) -> torch.Tensor:
    """Cosines, then sines, of the timesteps (n,) in float64: (n, 2 * num_frequencies)."""
    steps = torch.arange(num_frequencies, dtype=torch.float64)
    angles = timesteps[:, None].double() * torch.exp(-math.log(10000) * steps / num_frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def make_exact_head(head: nn.Module) -> nn.Module:
    """A copy of the head that works in float64, its timestep sinusoids included."""
    exact = copy.deepcopy(head).double()
    embedding = exact.denoiser.timestep_embedding
    embedding.get_frequencies = partial(get_exact_frequencies, num_frequencies=embedding.num_frequencies)
    return exact


def check_direct(recorded: Recorded, case: GoldenCase) -> None:
    """Plain calls of the denoiser and its timestep embedding."""
    head, timesteps = recorded.model.reconstruction_head, case.read("direct_t")
    embedding = head.denoiser.timestep_embedding
    tolerance = get_angle_tolerance(int(timesteps.max()))
    exact = get_exact_frequencies(timesteps, embedding.num_frequencies)
    got, wanted = embedding.get_frequencies(timesteps), case.get_leaf("direct_t_freq")
    assert get_deviation(got, exact) <= tolerance / 2 and get_deviation(wanted, exact) <= tolerance / 2
    case.close("direct_t_freq", got, tolerance)
    case.close("direct_t_emb", embedding(timesteps), ACTIVATIONS)
    condition = get_recorded_condition(head, case, "view").expand(len(timesteps), -1, -1)
    case.close("direct_out", head.predict(case.read("direct_x"), timesteps, condition, "view"), ACTIVATIONS)


def check_chain(recorded: Recorded, case: GoldenCase, branch: str, alphas_cumprod: torch.Tensor) -> None:
    """The published sampler with the recorded noise, from the beginning and from the recorded middle."""
    head, respacing = recorded.model.reconstruction_head, case.scalars[f"{branch}_respacing"]
    timesteps = space_timesteps(head.config.num_train_timesteps, respacing)
    case.same(f"scalars|{branch}_timestep_map", timesteps)
    case.close(f"scalars|{branch}_betas", respace_betas(alphas_cumprod, timesteps), EXACT_ARITHMETIC)
    case.same(f"scalars|{branch}_respacing", respacing)
    temperature, steps = case.scalars[f"{branch}_temperature"], len(timesteps)
    case.same(f"scalars|{branch}_temperature", temperature)
    noise = case.read(f"{branch}_step_noise")

    def walk(head: nn.Module, on_step) -> torch.Tensor:
        condition = get_recorded_condition(head, case, branch)
        return sample_latents(
            lambda sample, t: head.predict(sample, t, condition, branch),
            case.read(f"{branch}_x_T").to(head.dtype),
            lambda index: noise[steps - 1 - index].to(head.dtype),
            num_train_timesteps=head.config.num_train_timesteps,
            num_inference_steps=respacing,
            prediction_type=head.config.prediction_type,
            clip=True,
            large_variance=True,
            temperature=temperature,
            on_step=on_step,
        )

    trails = []
    for walker in (head, make_exact_head(head)):
        trail = []
        walk(walker, lambda index, *made, trail=trail: trail.append([tensor.clone() for tensor in made]))
        trails.append(trail)
    channels = case.tensors[f"{branch}_first_sample"].shape[1]
    places = {"first_sample": (0, 0), "first_xstart": (0, 1), "sample": (steps - 1, 0)}
    middle = case.scalars.get(f"{branch}_mid_steps")
    if middle is not None:
        places["mid_sample"] = (middle - 1, 0)
    for name, (step, kind) in places.items():
        got, exact = (trail[step][kind] for trail in trails)
        if name.startswith("first"):
            got, exact = got[:, :channels], exact[:, :channels]
        check_ill_conditioned(case, f"{branch}_{name}", got, exact)
    if middle is None:
        return
    recorded_middle = case.read(f"{branch}_mid_sample")

    def continue_from_middle(index: int, sample: torch.Tensor, latents: torch.Tensor) -> None:
        if index == steps - middle:
            sample.copy_(recorded_middle)

    case.close(f"{branch}_sample", walk(head, continue_from_middle), get_angle_tolerance(timesteps[steps - middle]))


def check_ill_conditioned(case: GoldenCase, path: str, got: torch.Tensor, exact: torch.Tensor) -> None:
    """A sample behind the first step, whose division by sqrt(alphas_cumprod) magnifies rounding.

    What a float32 run gives depends on the CPU's vector unit, most of all through the timestep sinusoids. So the
    recorded run and ours are both held against our float64 run: 99 % of their elements within TYPICAL, all of them
    within LARGEST (single elements jump where they meet the clipping edge at +-1).
    """
    for run, values in (("recorded", case.get_leaf(path)), ("ours", got)):
        errors = (values.double() - case.take_recorded(path, exact).double()).abs().flatten()
        typical = errors.kthvalue(1 + int(0.99 * (len(errors) - 1))).values.item()
        assert typical <= TYPICAL, f"{case.name}:{path}: typical error {typical:.3g} of the run {run}"
        assert errors.max() <= LARGEST, f"{case.name}:{path}: largest error {errors.max():.3g} of the run {run}"
    case.close(path, got, 2 * LARGEST, scale=1.0)


@torch.no_grad()
def compare_vae(recorded: Recorded, case: GoldenCase) -> None:
    model = recorded.model
    mean, logvar = encode(recorded, case.read("x") / 127.5 - 1)
    case.close("mean", mean, ACTIVATIONS)
    case.close("logvar", logvar, ACTIVATIONS)
    decoded = model.get_teacher().decode(case.read("z")).sample
    case.close("decoded", decoded, ACTIVATIONS)
    assert torch.equal(decode_latents(model.get_teacher(), case.read("z")), (decoded / 2 + 0.5).clamp(0, 1))
    case.same("scalars|latent_dim_property", model.config.denoiser_config.token_channels)


def compare_inv_adapter(recorded: Recorded, case: GoldenCase) -> None:
    """A denoiser file of the 2D model, loaded into both branches."""
    config = recorded.model.config
    file = {name.removeprefix("old."): case.read(name) for name in case.tensors if name.startswith("old.")}
    adapted = adapt_denoiser_file(file, config.view_grid_size, config.denoiser_config.bev_grid_size)
    weights, _ = split_weights(recorded.golden)
    loaded = {name for name in adapted if name in weights}
    assert loaded == set(adapted) and all(adapted[name].shape == weights[name].shape for name in loaded)
    published = {to_published(name).removeprefix("model.mm_inv_projector."): name for name in adapted}
    assert sorted(published) == sorted(case.scalars["changed"])
    case.same("scalars|changed", [name for name in case.scalars["changed"] if name in published])
    for path in case.tensors:
        if path.startswith("new."):
            case.close(path, adapted[published[path.removeprefix("new.")]], ACTIVATIONS)
    for name, tensor in adapted.items():
        if "embedding.proj" in name:
            short = name.rpartition(".")[2]
            assert torch.equal(tensor, file[f"model.mm_inv_projector.net.x_embedder.proj.{short}"])
