# Copyright 2026 The ross3d authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Reconstruction: pictures that the model did not see, rebuilt in a frozen VAE's latent space.

One denoiser serves two objectives: masked views (cross-view) and the bird's-eye picture (global-view). This file holds
the head, the conversion of pictures to the teacher's latents and back, the queries (which pictures to rebuild, at
which positions), and both losses.

Shapes: B scenes, V views, N tokens of a view, D width of the language model, n pictures to rebuild, m pictures of a
scene, M tokens of a picture (grid g x g), Z channels of a folded latent token, z channels of a teacher latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils.generic import maybe_autocast

from .configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from .denoiser_ross3d import Ross3DConditionPooler, Ross3DDenoiser, Ross3DPictureEmbedding
from .diffusion_ross3d import (
    add_noise,
    get_alphas_cumprod,
    get_cosine_betas,
    get_target,
    sample_latents,
    space_timesteps,
)
from .geometry_ross3d import MAX_COORDINATE
from .inputs_ross3d import HINTS, check_numbers, read_float32
from .objectives_ross3d import (
    Batch,
    Draws,
    Objective,
    SceneStates,
    count_nothing,
    draw_normal,
    get_allowed_rows,
    get_masked_views,
)


# The release uses torch's default epsilon to normalise the states, and 1e-6 in its blocks.
CONDITION_NORM_EPS = 1e-5
Branch = Literal["view", "bev"]


# ---- pictures and the teacher's latents


def get_view_pictures(pixel_values: torch.Tensor, config: Ross3DConfig) -> torch.Tensor:
    """Convert normalised views (n, 3, H, W) to the teacher's input: (n, 3, size, size) in [-1, 1], size by config."""
    mean, std = (
        torch.tensor(values, device=pixel_values.device).view(1, 3, 1, 1)
        for values in (config.image_mean, config.image_std)
    )
    pictures = (2 * (pixel_values.float() * std + mean) - 1).clamp(-1, 1)
    return resize_bilinear(pictures, config.denoiser_config.view_image_size)


def get_bev_pictures(bev_pixel_values: torch.Tensor) -> torch.Tensor:
    """Convert bird's-eye pictures (n, 3, H, W) in [0, 1] to the teacher's input, in [-1, 1]."""
    return (2 * bev_pixel_values.float() - 1).clamp(-1, 1)


def encode_pictures(teacher: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Encode pictures (n, 3, H, W) in [-1, 1] with the teacher: (n, 2z, a, b) on the pictures' device.

    The result is the posterior's mean and log-variance, concatenated along the channels.
    """
    with torch.no_grad(), maybe_autocast(teacher.device.type, enabled=False):
        posterior = teacher.encode(pictures.to(teacher.device, teacher.dtype).contiguous()).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).to(pictures.device)


def decode_latents(teacher: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [0, 1] of teacher latents (n, z, a, b)."""
    with torch.no_grad(), maybe_autocast(teacher.device.type, enabled=False):
        pictures = teacher.decode(latents.to(teacher.device, teacher.dtype)).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def sample_posterior(posterior: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents (n, z, a, b) from a posterior (n, 2z, a, b) and standard normal noise (n, z, a, b)."""
    mean, logvar = posterior.chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean)


def fold_latents(latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(n, z, g*p, g*p) -> (n, z*p*p, g, g); channel order (z, row in patch, column in patch)."""
    return F.pixel_unshuffle(latents, patch_size)


def unfold_latents(tokens: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of `fold_latents`."""
    return F.pixel_shuffle(tokens, patch_size)


def get_target_tokens(latents: torch.Tensor, config: Ross3DDenoiserConfig, grid_size: int) -> torch.Tensor:
    """Teacher latents (n, z, a, b) -> the denoiser's targets: scaled, resized and folded (n, Z, g, g), float32."""
    latents = (latents - config.shift_factor) * config.scaling_factor
    size = grid_size * config.latent_patch_size
    return fold_latents(resize_bilinear(latents.float(), size), config.latent_patch_size)


def get_latents(tokens: torch.Tensor, config: Ross3DDenoiserConfig) -> torch.Tensor:
    """Teacher latents (n, z, g*p, g*p) from tokens (n, Z, g, g): unfolded, with the scaling undone."""
    return unfold_latents(tokens, config.latent_patch_size) / config.scaling_factor + config.shift_factor


def resize_bilinear(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Resize bilinearly (no antialias, corners not aligned) to a contiguous tensor.

    On CPU the results of convolutions differ slightly for strided input.
    """
    if pictures.shape[-2:] != (size, size):
        pictures = F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    return pictures.contiguous()


def get_bev_cells(
    bev_pixel_values: torch.Tensor | None, bev_valid: torch.Tensor | None, grid_size: int, rule: str
) -> torch.Tensor:
    """Which cells of the bird's-eye picture the loss counts.

    Args:
        bev_pixel_values (B, 3, H, W): in [0, 1]; needed by the rule `"rgb_positive"`.
        bev_valid (B, H, W) bool: pixels that a reading fell on; needed by the rule `"valid"`.
        grid_size (`int`): cells along a side.
        rule (`str`): `"rgb_positive"` (published): colour above zero after a bilinear resize; `"valid"`: at least
            half of the cell's pixels are valid.

    Returns:
        (B, grid, grid) bool.
    """
    if rule == "rgb_positive":
        if bev_pixel_values is None:
            raise ValueError(
                "bev_pixel_values: expected the picture itself, because bev_loss_mask='rgb_positive' counts its"
                " coloured cells, got None; pass it with bev_latents or choose bev_loss_mask='valid'."
            )
        return resize_bilinear(bev_pixel_values.float(), grid_size).mean(dim=1) > 0
    if bev_valid is None:
        raise ValueError(
            "bev_valid: expected a mask (B, H, W) of the observed pixels, because bev_loss_mask='valid' counts them,"
            " got None; pass bev_valid or choose bev_loss_mask='rgb_positive'."
        )
    return F.adaptive_avg_pool2d(bev_valid.float()[:, None], grid_size)[:, 0] >= 0.5


def get_timestep_draw(num_train_timesteps: int):
    """A function that draws uniform timesteps in [0, T)."""

    def draw(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(num_train_timesteps, shape, generator=generator)

    return draw


class Ross3DTeacherMixin:
    """The frozen VAE of a model. It is not a part of the model: its weights are never saved with the model's."""

    # In a tuple, so that it is not registered as a sub-module.
    _teacher = ()

    def attach_teacher(self, teacher) -> None:
        """Give the model the frozen VAE whose latents it rebuilds.

        Args:
            teacher (`AutoencoderKL`, `str` or `Path`): a diffusers VAE or a folder that holds one (a checkpoint's
                `teacher/`). It is used in its own dtype under `no_grad` and never saved with the model.

        Raises:
            ImportError: when a folder is given and diffusers is not installed.
            ValueError: when its latent channels, scale or shift are not those of `denoiser_config`.
        """
        if isinstance(teacher, str | Path):
            # Imported here: the import takes a fifth of a cold start, and answering needs no teacher.
            try:
                from diffusers import AutoencoderKL
            except ImportError as error:
                raise ImportError(
                    "attach_teacher: expected the package diffusers to read a VAE folder, got none; run `pip install"
                    " diffusers`."
                ) from error
            teacher = AutoencoderKL.from_pretrained(teacher)
        if self.reconstruction_head is None:
            raise ValueError("attach_teacher: expected a model with denoiser_config, got None; leave out the teacher.")
        for name in ("latent_channels", "scaling_factor", "shift_factor"):
            wanted, found = getattr(self.config.denoiser_config, name), getattr(teacher.config, name) or 0.0
            if wanted != found:
                raise ValueError(
                    f"attach_teacher: expected a VAE with {name}={wanted} (denoiser_config), got {found}; attach the"
                    " VAE that this checkpoint was trained with."
                )
        self._teacher = (teacher.requires_grad_(False).eval(),)

    def get_teacher(self):
        """The attached VAE, on this model's device.

        Raises:
            ValueError: when none is attached.
        """
        if not self._teacher:
            raise ValueError(
                "teacher: expected an attached VAE to encode or decode images, got none; call"
                " model.attach_teacher(DIR/'teacher') or pass view_latents and bev_latents."
            )
        teacher = self._teacher[0]
        # Not by the weight's name: that would gather it from all processes under ZeRO-3.
        device = next(self.lm_head.parameters()).device
        return teacher.to(device) if device.type != "meta" else teacher


# ---- the head


class Ross3DReconstructionHead(nn.Module):
    """Condition poolers, picture embeddings and the shared denoiser.

    Losses and sampling both call `forward`, because wrappers that shard weights hook into it. All computation is in
    the dtype of the head's weights (float32 as loaded), also under autocast.
    """

    def __init__(self, config: Ross3DDenoiserConfig, state_size: int, view_grid_size: int):
        super().__init__()
        self.config = config
        self.view_grid_size = view_grid_size
        self.view_pooler = Ross3DConditionPooler(config, state_size, view_grid_size**2)
        self.bev_pooler = Ross3DConditionPooler(config, state_size, config.bev_grid_size**2)
        self.view_embedding = Ross3DPictureEmbedding(config, view_grid_size)
        self.bev_embedding = Ross3DPictureEmbedding(config, config.bev_grid_size)
        self.denoiser = Ross3DDenoiser(config)

    @property
    def dtype(self) -> torch.dtype:
        # Not by the weight's name: that would gather it from all processes under ZeRO-3.
        return next(self.parameters()).dtype

    def get_grid_size(self, branch: Branch) -> int:
        return self.view_grid_size if branch == "view" else self.config.bev_grid_size

    def forward(
        self,
        branch: Branch,
        states: torch.Tensor,
        visible: torch.Tensor,
        state_positions: torch.Tensor | None,
        query_positions: torch.Tensor | None,
        places: tuple[torch.Tensor, torch.Tensor],
        targets: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        items: Sequence[int] | None = None,
        num_inference_steps: int | str = 50,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Squared errors of the denoiser if targets are given, else samples.

        Args:
            branch (`str`): `"view"` or `"bev"`.
            states (B, V, N, D), visible (B, V), state_positions (B, V, N, D): see `SceneStates`.
            query_positions (B, m, M, D): 3D position embedding of the patches to rebuild; not read with `pooled`.
            places: scene (n,) of each picture, and its number (n,) among the m pictures of that scene.
            targets (k, Z, g, g), timesteps (k,) (preferably on CPU, as drawn), noise (k, Z, g, g): of each training
                item.
            items (list of `int`): which of the n pictures each of the k items belongs to; n = k by default.
            num_inference_steps, generator, temperature: of the sampler.

        Returns:
            squared errors (k, Z, g, g), or sampled tokens (n, Z, g, g).
        """
        condition = self.get_conditions(branch, states, visible, state_positions, query_positions, places)
        if targets is None:
            return self.sample(condition, branch, num_inference_steps, generator, temperature)
        condition = condition if items is None else condition[items]
        return self.compute_errors(targets, timesteps, noise, condition, branch)

    def predict(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor, branch: Branch
    ) -> torch.Tensor:
        """Prediction (n, Z, g, g), noise or v, for noisy latents (n, Z, g, g), timesteps (n,), condition (n, M, C)."""
        embedding = self.view_embedding if branch == "view" else self.bev_embedding
        with maybe_autocast(noisy_latents.device.type, enabled=False):
            tokens = self.denoiser(embedding(noisy_latents.to(self.dtype)), timesteps, condition.to(self.dtype))
        return tokens.transpose(1, 2).unflatten(2, noisy_latents.shape[-2:])

    def normalize_states(self, states: torch.Tensor) -> torch.Tensor:
        """Non-affine LayerNorm over D, in the head's own dtype."""
        return F.layer_norm(states.to(self.dtype), states.shape[-1:], eps=CONDITION_NORM_EPS)

    def get_conditions(
        self,
        branch: Branch,
        states: torch.Tensor,
        visible: torch.Tensor,
        state_positions: torch.Tensor | None,
        query_positions: torch.Tensor | None,
        places: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Pool the visible states of each scene into the condition of each picture (n, M, C); see `forward`.

        With `pooled` all pictures of a scene share one.
        """
        num_tokens = states.shape[2]
        states = self.normalize_states(states).flatten(1, 2)  # (B, S, D)
        # CODEPATH: "positions" is the control of "per_view", in no published checkpoint.
        if self.config.condition == "positions":
            states = torch.zeros_like(states)
        mask = visible[:, :, None].expand(-1, -1, num_tokens).flatten(1)
        # A scene of padding alone attends its padding, so that nothing becomes NaN.
        mask = mask | ~mask.any(dim=1, keepdim=True)
        positions = None
        if state_positions is not None:
            positions = state_positions.to(self.dtype).flatten(1, 2)
        pooler = self.view_pooler if branch == "view" else self.bev_pooler
        if query_positions is not None:
            query_positions = query_positions.to(self.dtype)
        with maybe_autocast(states.device.type, enabled=False):
            conditions = pooler(states, mask, positions, query_positions).to(states.device)  # (B, m, M, C)
        scene, number = places
        return conditions[scene, number if conditions.shape[1] > 1 else torch.zeros_like(number)]

    def compute_errors(
        self,
        targets: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        condition: torch.Tensor,
        branch: Branch,
    ) -> torch.Tensor:
        """Squared errors (n, Z, g, g) of the denoiser for given noise and timesteps (preferably on CPU, as drawn)."""
        schedule = get_alphas_cumprod(get_cosine_betas(self.config.num_train_timesteps))
        noisy_latents = add_noise(targets, noise, timesteps, schedule)
        prediction = self.predict(noisy_latents, timesteps.to(targets.device), condition, branch).to(targets.device)
        wanted = get_target(targets, noise, timesteps, schedule, self.config.prediction_type)
        return (wanted - prediction).square()

    def sample(
        self,
        condition: torch.Tensor,
        branch: Branch,
        num_inference_steps: int | str,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Sample tokens (n, Z, g, g) for conditions (n, M, C)."""
        grid = self.get_grid_size(branch)
        shape = (condition.shape[0], self.config.token_channels, grid, grid)

        def draw(index: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(condition)

        published = self.config.sampler == "published"
        return sample_latents(
            lambda sample, timesteps: self.predict(sample, timesteps, condition, branch).to(sample.device),
            draw(len(space_timesteps(self.config.num_train_timesteps, num_inference_steps))),
            draw,
            num_train_timesteps=self.config.num_train_timesteps,
            num_inference_steps=num_inference_steps,
            prediction_type=self.config.prediction_type,
            clip=published,
            large_variance=published,
            temperature=temperature,
        )


# ---- which pictures to rebuild


@dataclass
class PictureQueries:
    """Pictures to rebuild, and the states to rebuild them from.

    Attributes:
        branch (`str`): `"view"` or `"bev"`.
        states (`SceneStates`): of the scenes.
        positions (`torch.Tensor` of shape `(B, m, M, D)`, *optional*): 3D position embeddings of the patches of up to
            m pictures of each scene.
        scenes, numbers (`torch.LongTensor` of shape `(n,)`): the scene of each picture, and its number among the m.
    """

    branch: Branch
    states: SceneStates
    positions: torch.Tensor | None
    scenes: torch.Tensor
    numbers: torch.Tensor

    def repeat(self, times: int) -> "PictureQueries":
        """The same pictures `times` times, to draw several samples of each."""
        return PictureQueries(
            self.branch, self.states, self.positions, self.scenes.repeat(times), self.numbers.repeat(times)
        )

    def list_arguments(self) -> tuple:
        """The first arguments of `Ross3DReconstructionHead.forward` for these queries."""
        states, places = self.states, (self.scenes, self.numbers)
        return (self.branch, states.states, states.visible, states.positions, self.positions, places)

    def get_conditions(self, head: nn.Module) -> torch.Tensor:
        """The condition (n, M, C) of each picture."""
        return head.get_conditions(*self.list_arguments())


def get_unseen_views(masked: torch.Tensor | None, config: Ross3DConfig) -> torch.Tensor | None:
    """Which of the views to rebuild (B, V) are hidden from the language model: all, or none with `vanilla`."""
    # CODEPATH: cross-view in published checkpoints; the vanilla objective is what the paper compares with.
    return masked if config.view_objective == "cross_view" else None


def get_visible_views(view_mask: torch.Tensor, unseen: torch.Tensor | None) -> torch.Tensor:
    """The views (B, V) that conditions may attend: the visible ones, or all of them in a scene that hides all."""
    if unseen is None:
        return view_mask
    seen = view_mask & ~unseen
    return torch.where(seen.any(dim=1, keepdim=True), seen, view_mask)


def get_view_queries(states: SceneStates, masked: torch.Tensor, config: Ross3DConfig) -> PictureQueries:
    """The views to rebuild, scene by scene.

    These are the masked views (B, V). With the vanilla objective `masked` names visible views, each of which is
    rebuilt as a scene with that view alone.
    """
    scene, view = masked.nonzero(as_tuple=True)
    # CODEPATH: cross-view in published checkpoints; the vanilla objective is what the paper compares with.
    if config.view_objective == "vanilla":
        states = states.select(scene, view)
        masked = torch.ones_like(scene[:, None], dtype=torch.bool)
        scene, view = torch.arange(len(scene), device=scene.device), torch.zeros_like(view)
    number = masked.cumsum(dim=1)[scene, view] - 1
    queries = None
    # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
    if config.denoiser_config.queries_have_positions and states.positions is not None:
        positions = states.positions
        queries = positions.new_zeros(len(masked), int(masked.sum(dim=1).max()), *positions.shape[2:])
        queries[scene, number] = positions[scene, view]
    return PictureQueries("view", states, queries, scene, number)


def check_bev_bounds(bev_bounds: torch.Tensor) -> None:
    """Refuse edges of pictures (B, 4) that are in the wrong order or not metres; NaN where a scene has no picture.

    Raises:
        ValueError: names the scene.
    """
    bev_bounds = read_float32("bev_bounds", bev_bounds)
    ordered = (bev_bounds[:, :2] < bev_bounds[:, 2:]).all(dim=1)
    ordered = ordered & (bev_bounds.abs() <= MAX_COORDINATE).all(dim=1)
    wrong = (~ordered & ~bev_bounds.isnan().all(dim=1)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            "bev_bounds: expected finite x_min < x_max and y_min < y_max, in the order x_min, y_min, x_max,"
            f" y_max, metres up to {MAX_COORDINATE:.0f}, got {bev_bounds[wrong[0]].tolist()} for scene"
            f" {wrong[0]}; {HINTS['bev_bounds']}"
        )


def get_bev_queries(model: nn.Module, states: SceneStates, bev_bounds: torch.Tensor | None) -> PictureQueries:
    """The bird's-eye picture of every scene; `bev_bounds` (B, 4) are its edges in metres.

    Outside training the edges are checked; in training that would wait for the device, and the processor has checked
    them.
    """
    queries, config = None, model.config.denoiser_config
    # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
    if config.queries_have_positions and bev_bounds is not None:
        if not model.training:
            check_bev_bounds(bev_bounds)
        cells = get_cell_centres(read_float32("bev_bounds", bev_bounds), config.bev_grid_size)
        given = ~torch.isnan(cells).any(dim=-1)
        queries = model.model.get_position_embedding(cells.nan_to_num(), given)[:, None]
    rows = torch.arange(len(states.states), device=states.states.device)
    return PictureQueries("bev", states, queries, rows, torch.zeros_like(rows))


def get_cell_centres(bev_bounds: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Centres (B, grid * grid, 3) of the cells of bird's-eye pictures, in metres, on the floor (z = 0).

    Row by row from the top (large y); `bev_bounds` (B, 4) are x_min, y_min, x_max, y_max.
    """
    share = (torch.arange(grid_size, device=bev_bounds.device, dtype=torch.float32) + 0.5) / grid_size
    x = bev_bounds[:, None, 0] + share * (bev_bounds[:, None, 2] - bev_bounds[:, None, 0])  # (B, grid)
    y = bev_bounds[:, None, 3] - share * (bev_bounds[:, None, 3] - bev_bounds[:, None, 1])
    x = x[:, None, :].expand(-1, grid_size, -1)
    y = y[:, :, None].expand(-1, -1, grid_size)
    return torch.stack([x, y, torch.zeros_like(x)], dim=-1).flatten(1, 2)


# ---- the objectives


def list_view_items(counts: list[int], repeats: list[int]) -> tuple[list[int], list[float]]:
    """Which masked view each denoising item rebuilds, and the item's weight.

    The `counts[b]` masked views of scene b are repeated `repeats[b]` times, each time with new noise and a new
    timestep; the weights of a scene sum to 1.
    """
    items, weights, first = [], [], 0
    for count, repeat in zip(counts, repeats, strict=True):
        items += list(range(first, first + count)) * repeat
        if count:
            weights += [1.0 / (count * repeat)] * (count * repeat)
        first += count
    return items, weights


def get_view_repeats(view_mask: torch.Tensor, masked: torch.Tensor) -> list[int]:
    """Noise draws per masked view of each scene: V // masked, as published, so about V items per scene."""
    views, counts = torch.stack([view_mask.sum(dim=1), masked.sum(dim=1)]).tolist()
    return [view // count if count else 0 for view, count in zip(views, counts, strict=True)]


def check_timesteps(draws: Draws, config: Ross3DDenoiserConfig) -> None:
    """Refuse given timesteps outside of the schedule; in train.py timesteps are always drawn."""
    last = config.num_train_timesteps - 1
    for branch in ("view", "bev"):
        timesteps = draws.given.get(f"{branch}.timesteps")
        if timesteps is not None and not bool(((timesteps >= 0) & (timesteps <= last)).all()):
            raise ValueError(
                f"{branch}_timesteps: expected 0..{last}, got {timesteps.tolist()}; draw them from the schedule."
            )


class ReconstructionObjective(Objective):
    """Base class of the view and bird's-eye objectives: head, draws, and a step without pictures.

    Attributes:
        branch (`str`): of the head.
        targets (tuple of `str`): tensors of a batch that are compared with what the head makes.
    """

    head = "reconstruction_head"
    branch: Branch
    targets: tuple[str, ...]

    def is_on(self, config: Ross3DConfig) -> bool:
        return config.denoiser_config is not None

    def can_run(self, model: nn.Module, states: SceneStates) -> bool:
        return super().can_run(model, states) and states.states is not None

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Also refuse pictures and latents with NaN outside training, where no loss is watched."""
        super().check_batch(model, batch)
        given = [] if model.training else [name for name in self.targets if name in batch]
        for name in given:
            check_numbers(name, batch[name], torch.ones_like(batch[name], dtype=torch.bool))

    def draw_latents(self, posterior: torch.Tensor, draws: Draws, counts: Sequence[int], rows=None) -> torch.Tensor:
        """Sample latents of `counts[r]` pictures of each row from the teacher's posterior (n, 2z, a, b)."""
        shape = (posterior.shape[1] // 2, *posterior.shape[2:])
        shapes = [(count, *shape) for count in counts]
        return sample_posterior(posterior, draws.take(f"{self.name}.posterior_noise", shapes, draw_normal, rows))

    def draw_steps(
        self, targets: torch.Tensor, config: Ross3DDenoiserConfig, draws: Draws, counts: Sequence[int], rows=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw timesteps (k,) and noise (k, Z, g, g) for `counts[r]` items of each row."""
        draw = get_timestep_draw(config.num_train_timesteps)
        timesteps = draws.take(f"{self.name}.timesteps", [(count,) for count in counts], draw, rows)
        shapes = [(count, *targets.shape[1:]) for count in counts]
        return timesteps, draws.take(f"{self.name}.noise", shapes, draw_normal, rows).to(targets)

    def run_on_nothing(self, model: nn.Module, states: SceneStates) -> torch.Tensor:
        """Zero, through every parameter of the branch."""
        head, config = getattr(model, self.head), model.config.denoiser_config
        one, grid, queries = states.select(slice(0, 1)), head.get_grid_size(self.branch), None
        # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
        if config.queries_have_positions:
            queries = one.states.new_zeros(1, 1, grid**2, one.states.shape[-1])
            if one.positions is None:
                one.positions = torch.zeros_like(one.states)
        row = torch.zeros(1, dtype=torch.long, device=one.states.device)
        latents = torch.zeros(1, config.token_channels, grid, grid, device=one.states.device, dtype=head.dtype)
        asked = PictureQueries(self.branch, one, queries, row, row).list_arguments()
        # Timesteps on the host, as drawn ones are. The sum over an empty slice is 0, even if the errors overflow.
        return head(*asked, targets=latents, timesteps=torch.zeros(1, dtype=torch.long), noise=latents)[:0].sum()


class ViewObjective(ReconstructionObjective):
    """Mean over scenes with masked views of the denoising error of these views."""

    name = branch = "view"
    reads = ("bool_masked_views",)
    targets = ("view_latents",)

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        masked = get_masked_views(batch, config)
        return masked is not None and bool(masked.any())

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        masked = get_masked_views(batch, config)
        return count_nothing(batch) if masked is None else masked.any(dim=1).long()

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        head, config = getattr(model, self.head), model.config.denoiser_config
        masked = get_masked_views(batch, model.config)
        places = () if masked is None else masked.nonzero(as_tuple=True)
        if masked is None or not len(places[0]):
            return self.run_on_nothing(model, states)
        if "view_latents" in batch:
            posterior = batch["view_latents"][places]
        elif "pixel_values" not in batch:
            raise ValueError(
                "bool_masked_views: expected pixel_values or view_latents of the views to reconstruct, got neither;"
                " pass the processor's whole output."
            )
        else:
            pictures = get_view_pictures(batch["pixel_values"][places], model.config)
            posterior = encode_pictures(model.get_teacher(), pictures)
        counts = masked.sum(dim=1).tolist()
        latents = self.draw_latents(posterior, draws, counts)
        targets = get_target_tokens(latents, config, head.get_grid_size("view")).to(head.dtype)
        repeats = get_view_repeats(batch["view_mask"], masked)
        items, weights = list_view_items(counts, repeats)
        per_scene = [count * repeat for count, repeat in zip(counts, repeats, strict=True)]
        timesteps, noise = self.draw_steps(targets, config, draws, per_scene)
        asked = get_view_queries(states, masked, model.config).list_arguments()
        errors = head(*asked, targets=targets[items], timesteps=timesteps, noise=noise, items=items)
        return (errors.flatten(1).mean(dim=1) * torch.tensor(weights, device=errors.device)).sum()


class BevObjective(ReconstructionObjective):
    """Mean over scenes with a bird's-eye picture of the denoising error over the picture's counted cells."""

    name = branch = "bev"
    reads = ("bev_pixel_values",)
    targets = ("bev_pixel_values", "bev_latents")

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        return "bev_pixel_values" in batch or "bev_latents" in batch

    def get_cells(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor | None:
        """Which cells (B, grid, grid) of each row's picture are counted; None where no row has a picture."""
        if not self.is_on(config) or not ("bev_pixel_values" in batch or "bev_latents" in batch):
            return None
        head = config.denoiser_config
        cells = get_bev_cells(
            batch.get("bev_pixel_values"), batch.get("bev_valid"), head.bev_grid_size, head.bev_loss_mask
        )
        allowed = get_allowed_rows(batch, config)
        return cells if allowed is None else cells & allowed[:, None, None]

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        cells = self.get_cells(batch, config)
        return count_nothing(batch) if cells is None else cells.flatten(1).any(dim=1).long()

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        head, config = getattr(model, self.head), model.config.denoiser_config
        cells = self.get_cells(batch, model.config)
        rows = () if cells is None else cells.flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(rows):
            return self.run_on_nothing(model, states)
        if "bev_latents" in batch:
            posterior = batch["bev_latents"][rows]
        else:
            posterior = encode_pictures(model.get_teacher(), get_bev_pictures(batch["bev_pixel_values"][rows]))
        counts = [1] * len(rows)
        latents = self.draw_latents(posterior, draws, counts, rows)
        targets = get_target_tokens(latents, config, head.get_grid_size("bev")).to(head.dtype)
        timesteps, noise = self.draw_steps(targets, config, draws, counts, rows)
        bounds = batch["bev_bounds"][rows] if "bev_bounds" in batch else None
        asked = get_bev_queries(model, states.select(rows), bounds).list_arguments()
        errors = head(*asked, targets=targets, timesteps=timesteps, noise=noise)
        counted = cells[rows][:, None].to(errors)  # (n, 1, g, g)
        return ((errors * counted).flatten(1).sum(dim=1) / (counted.flatten(1).sum(dim=1) * errors.shape[1])).sum()


__all__ = [
    "BevObjective",
    "PictureQueries",
    "Ross3DReconstructionHead",
    "Ross3DTeacherMixin",
    "ViewObjective",
    "check_bev_bounds",
    "check_timesteps",
    "decode_latents",
    "encode_pictures",
    "fold_latents",
    "get_bev_cells",
    "get_bev_pictures",
    "get_bev_queries",
    "get_masked_views",
    "get_latents",
    "get_target_tokens",
    "get_timestep_draw",
    "get_unseen_views",
    "get_view_pictures",
    "get_view_queries",
    "get_view_repeats",
    "get_visible_views",
    "resize_bilinear",
    "sample_posterior",
    "unfold_latents",
]
