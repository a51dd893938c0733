"""Both prediction targets: what a perfect denoiser predicts leads back to the latents, in training and sampling."""

import pytest
import torch

from ross3d.diffusion_ross3d import (
    add_noise,
    get_alphas_cumprod,
    get_cosine_betas,
    get_target,
    predict_latents,
    sample_latents,
    space_timesteps,
)


TYPES = ("epsilon", "v_prediction")


@pytest.fixture(params=[(2, 3, 4, 4), (3, 5, 2, 6)])
def latents(request):
    return 2 * torch.randn(request.param, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("timestep", [0, 400, 990])
def test_a_target_leads_back_to_the_latents(latents, prediction_type, timestep):
    schedule = get_alphas_cumprod(get_cosine_betas(1000))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.full((len(latents),), timestep)
    noisy = add_noise(latents, noise, timesteps, schedule)
    a = float(schedule[timestep])
    assert torch.allclose(noisy, a**0.5 * latents + (1 - a) ** 0.5 * noise, atol=1e-5)
    target = get_target(latents, noise, timesteps, schedule, prediction_type)
    expected = noise if prediction_type == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * latents
    assert torch.allclose(target, expected, atol=1e-5)
    # At the noisy end epsilon divides by a small number; v never does.
    tolerance = 1e-4 if prediction_type == "v_prediction" else 1e-6 / a**0.5 + 1e-4
    assert torch.allclose(predict_latents(noisy, target, schedule[timestep], prediction_type), latents, atol=tolerance)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("steps", [5, 50])
def test_a_perfect_denoiser_is_walked_to_its_latents(latents, prediction_type, steps):
    schedule = get_alphas_cumprod(get_cosine_betas(50))
    generator = torch.Generator().manual_seed(2)

    def predict(sample, timesteps):
        a = schedule[timesteps[0]].float()
        noise = (sample - a.sqrt() * latents) / (1 - a).sqrt()
        return get_target(latents, noise, timesteps, schedule, prediction_type)

    def draw(index):
        return torch.randn(latents.shape, generator=generator)

    found = sample_latents(
        predict, draw(0), draw, num_train_timesteps=50, num_inference_steps=steps, prediction_type=prediction_type
    )
    assert torch.allclose(found, latents, atol=1e-3)


def test_steps_are_spread_over_the_schedule():
    assert space_timesteps(50, 50) == list(range(50))
    for total, steps in ((1000, 17), (50, 5)):
        spaced = space_timesteps(total, steps)
        assert len(spaced) == len(set(spaced)) == steps and spaced == sorted(spaced)
        assert spaced[0] == 0 and spaced[-1] == total - 1
