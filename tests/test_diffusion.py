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


def test_sections_of_the_schedule_are_spread_each_for_itself():
    """Improved DDPM's respacing: the first sections are one timestep longer where they cannot all be as long."""
    assert space_timesteps(1000, "5,3") == [0, 125, 250, 374, 499, 500, 750, 999]
    assert space_timesteps(10, "2,3,1") == [0, 3, 4, 5, 6, 7]
    assert space_timesteps(11, " 1, 4,2 ") == [0, 4, 5, 6, 7, 8, 10]
    assert space_timesteps(1000, "7") == space_timesteps(1000, 7)
    # Sampling begins at the last timestep; the published text for one step keeps the first one.
    assert (space_timesteps(30, 1), space_timesteps(30, "1")) == ([29], [0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("5;3", "expected a whole number, or whole numbers separated by commas such as '5,3', got '5;3'"),
        ("5,,3", "got '5,,3'; give the number of timesteps for each section of the schedule"),
        ("5,-3", "got '5,-3'"),
        ("5,11", r"expected 1..10 \(the length of section 1\), got 11; choose a number"),
        ("0,3", r"expected 1..10 \(the length of section 0\), got 0"),
    ],
)
def test_wrong_sections_are_refused(given, message):
    with pytest.raises(ValueError, match=f"num_inference_steps: .*{message}"):
        space_timesteps(20, given)
    assert space_timesteps(20, "5,10") == [0, 2, 4, 7, 9, *range(10, 20)]


def test_a_chain_walks_the_sections(latents):
    """The denoiser sees the timesteps of the sections, latest first, and the chain ends at the latents."""
    schedule, seen = get_alphas_cumprod(get_cosine_betas(50)), []
    generator = torch.Generator().manual_seed(2)

    def predict(sample, timesteps):
        seen.append(int(timesteps[0]))
        a = schedule[timesteps[0]].float()
        return (sample - a.sqrt() * latents) / (1 - a).sqrt()

    def draw(index):
        return torch.randn(latents.shape, generator=generator)

    found = sample_latents(
        predict, draw(0), draw, num_train_timesteps=50, num_inference_steps="3,2", prediction_type="epsilon"
    )
    assert seen == [49, 25, 24, 12, 0]
    assert torch.allclose(found, latents, atol=1e-3)
