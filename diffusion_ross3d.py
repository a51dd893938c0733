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

"""Denoising diffusion in pure torch: schedule, noising, targets, ancestral sampling. Schedules are float64.

Shapes: n items, C channels, h w latent tokens; `timesteps` (n,) int64 in [0, T).
Sources: squared-cosine schedule of Improved DDPM (arXiv 2102.09672), v-prediction of Progressive Distillation
(arXiv 2202.00512), ancestral sampling of DDPM (arXiv 2006.11239).
"""

import math
from collections.abc import Callable
from itertools import accumulate
from numbers import Integral

import torch


def get_cosine_betas(num_train_timesteps: int, max_beta: float = 0.999) -> torch.Tensor:
    """Betas (T,) of the squared-cosine schedule, float64, each at most `max_beta`."""

    def alpha_bar(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(num_train_timesteps)
    ratios = [alpha_bar((t + 1) / num_train_timesteps) / alpha_bar(t / num_train_timesteps) for t in steps]
    return torch.tensor([min(1 - ratio, max_beta) for ratio in ratios], dtype=torch.float64)


def get_alphas_cumprod(betas: torch.Tensor) -> torch.Tensor:
    """Cumulative product (T,) of `1 - betas`: the share of signal variance left after each step."""
    return torch.cumprod(1.0 - betas, dim=0)


def space_timesteps(num_train_timesteps: int, num_inference_steps: int | str) -> list[int]:
    """Evenly spaced timesteps, first 0 and last T - 1, ascending; rounded half to even.

    Args:
        num_train_timesteps (`int`): length T of the training schedule.
        num_inference_steps (`int` or `str`): how many timesteps to keep. A text such as "5,3" divides the schedule
            into as many equal sections as it has numbers; each number says how many timesteps to keep of its section,
            earliest section first. The first T mod n sections are one timestep longer. A section that keeps a single
            timestep keeps its first. The rule is that of Improved DDPM (arXiv 2102.09672). The number 1 keeps the last
            timestep, since sampling has to begin there; the text "1" keeps the first, as published.

    Raises:
        ValueError: for a text that does not consist of whole numbers, and for more timesteps than a section has.
    """
    if isinstance(num_inference_steps, str):
        sections = num_inference_steps.split(",")
        if not all(section.strip().isdecimal() for section in sections):
            raise ValueError(
                "num_inference_steps: expected a whole number, or whole numbers separated by commas such as '5,3',"
                f" got {num_inference_steps!r}; give the number of timesteps for each section of the schedule."
            )
        counts = [int(section) for section in sections]
    else:
        if not isinstance(num_inference_steps, Integral) or isinstance(num_inference_steps, bool):
            raise ValueError(
                f"num_inference_steps: expected 1..{num_train_timesteps} (the training schedule's length), got"
                f" {num_inference_steps!r}; choose a number of sampler steps in this range."
            )
        counts = [num_inference_steps]
    size, longer = divmod(num_train_timesteps, len(counts))
    start, timesteps = 0, []
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            whole = "the training schedule's length" if len(counts) == 1 else f"the length of section {section}"
            raise ValueError(
                f"num_inference_steps: expected 1..{length} ({whole}), got {count}; choose a number of sampler steps"
                " in this range."
            )
        # Summed rather than multiplied, as in the release: the rounding of halves depends on it.
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        timesteps += [start + round(place) for place in accumulate([0.0] + [stride] * (count - 1))]
        start += length
    return [num_train_timesteps - 1] if num_inference_steps == 1 else timesteps


def respace_betas(alphas_cumprod: torch.Tensor, timesteps: list[int]) -> torch.Tensor:
    """Betas (S,) of the shorter schedule that keeps `alphas_cumprod` at the given ascending `timesteps`."""
    kept = alphas_cumprod[timesteps]
    before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    return 1.0 - kept / before


def expand_to(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape per-item `values` (n,) to broadcast over `like` (n, ...), in its dtype and on its device."""
    return values.to(like.device, like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Noisy latents (n, C, h, w): `sqrt(a) * latents + sqrt(1 - a) * noise` with `a = alphas_cumprod[timesteps]`."""
    kept = alphas_cumprod[timesteps.cpu()]
    return expand_to(kept.sqrt(), latents) * latents + expand_to((1 - kept).sqrt(), latents) * noise


def get_target(
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """What the denoiser should predict: the noise, or `v = sqrt(a) * noise - sqrt(1 - a) * latents`."""
    if prediction_type == "epsilon":
        return noise
    kept = alphas_cumprod[timesteps.cpu()]
    return expand_to(kept.sqrt(), latents) * noise - expand_to((1 - kept).sqrt(), latents) * latents


def predict_latents(
    noisy_latents: torch.Tensor, prediction: torch.Tensor, alpha_cumprod: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The clean latents that a prediction implies at one timestep (0-dim `alpha_cumprod`)."""
    a = alpha_cumprod.to(torch.float64)
    if prediction_type == "epsilon":
        # Written with 1/a throughout: sqrt(1/a) * x - sqrt(1/a - 1) * eps.
        return float((1 / a).sqrt()) * noisy_latents - float((1 / a - 1).sqrt()) * prediction
    return float(a.sqrt()) * noisy_latents - float((1 - a).sqrt()) * prediction


def step_ancestral(
    noisy_latents: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    index: int,
    betas: torch.Tensor,
    large_variance: bool,
    temperature: float = 1.0,
) -> torch.Tensor:
    """One step of ancestral sampling, from position `index` of the (respaced) schedule to the one before.

    Args:
        noisy_latents (n, C, h, w): the current sample.
        latents (n, C, h, w): the clean latents predicted from it.
        noise (n, C, h, w): a standard normal draw; not used at index 0.
        index (`int`): position in `betas`.
        betas (S,): the (respaced) schedule.
        large_variance (`bool`): the published variance (beta); otherwise the posterior's.
        temperature (`float`): factor on the noise.
    """
    alphas_cumprod = get_alphas_cumprod(betas)
    before = alphas_cumprod[index - 1] if index > 0 else torch.ones((), dtype=betas.dtype)
    here, beta = alphas_cumprod[index], betas[index]
    to_latents = beta * before.sqrt() / (1 - here)
    to_noisy = (1 - before) * (1 - beta).sqrt() / (1 - here)
    mean = float(to_latents) * latents + float(to_noisy) * noisy_latents
    if index == 0:
        return mean
    variance = beta if large_variance else beta * (1 - before) / (1 - here)
    return mean + float(variance.sqrt()) * temperature * noise


def sample_latents(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    draw_noise: Callable[[int], torch.Tensor],
    *,
    num_train_timesteps: int,
    num_inference_steps: int | str,
    prediction_type: str,
    clip: bool = False,
    large_variance: bool = False,
    temperature: float = 1.0,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample latents from pure noise by ancestral sampling.

    Args:
        predict: called with noisy latents (n, C, h, w) and original timesteps (n,); returns the prediction.
        noise (n, C, h, w): the initial sample, standard normal.
        draw_noise: called with the position in the respaced schedule (S - 1 down to 0); returns the step's noise.
        num_train_timesteps (`int`): length T of the training schedule.
        num_inference_steps (`int` or `str`): steps S to take, see `space_timesteps`.
        prediction_type (`str`): `"epsilon"` or `"v_prediction"`.
        clip (`bool`): clip predicted latents to [-1, 1] (published; latents are not bounded, so ours does not).
        large_variance (`bool`): see `step_ancestral`.
        temperature (`float`): see `step_ancestral`.
        on_step: called after each step with the position, the sample and the predicted latents.

    Returns:
        latents (n, C, h, w).
    """
    alphas_cumprod = get_alphas_cumprod(get_cosine_betas(num_train_timesteps))
    timesteps = space_timesteps(num_train_timesteps, num_inference_steps)
    betas = respace_betas(alphas_cumprod, timesteps)
    sample = noise
    for index in reversed(range(len(timesteps))):
        t = torch.full((sample.shape[0],), timesteps[index], dtype=torch.long, device=sample.device)
        latents = predict_latents(sample, predict(sample, t), alphas_cumprod[timesteps[index]], prediction_type)
        if clip:
            latents = latents.clamp(-1, 1)
        sample = step_ancestral(sample, latents, draw_noise(index), index, betas, large_variance, temperature)
        if on_step is not None:
            on_step(index, sample, latents)
    return sample


__all__ = [
    "add_noise",
    "get_alphas_cumprod",
    "get_cosine_betas",
    "get_target",
    "predict_latents",
    "respace_betas",
    "sample_latents",
    "space_timesteps",
    "step_ancestral",
]
