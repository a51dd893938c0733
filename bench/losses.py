"""What the reconstruction losses cost beside text, and against the published way to compute them.

    python bench/losses.py [--views 32] [--rounds 3]

`published`: the states are repeated four times before they become keys, every masked view and every draw of its noise
passes VAE and denoiser by itself; in turn with ours, which pools once and batches. The losses have to be equal.
`share` is the time of both losses over that of a whole training step of text with one question.
"""

import argparse
from typing import Any

import torch

from ross3d.bench.harness import compare, describe_run, get_peak_gb, print_line, time_rounds
from ross3d.bench.train_step import Steps
from ross3d.objectives_ross3d import Draws, SceneStates
from ross3d.reconstruction_ross3d import (
    BevObjective,
    ViewObjective,
    encode_pictures,
    get_target_tokens,
    get_view_pictures,
    get_view_queries,
    sample_posterior,
)


PUBLISHED_REPEATS = 4


class Losses:
    """Random visual states of one scene, and the ways to compute its reconstruction losses from them."""

    def __init__(self, num_views: int):
        self.steps = Steps(num_views, 1, text_only=False)
        self.model, scene = self.steps.model, self.steps.scene
        self.head = self.model.reconstruction_head
        config, generator = self.model.config, torch.Generator().manual_seed(3)
        grid, width = config.view_grid_size, config.text_config.hidden_size
        self.states = torch.randn(1, num_views, grid**2, width, generator=generator).requires_grad_()
        self.masked, self.views = scene["bool_masked_views"], scene["view_mask"]
        self.pixel_values, self.bev = scene["pixel_values"], scene["bev_pixel_values"]
        count = int(self.masked.sum())
        repeats = num_views // count
        denoiser = config.denoiser_config
        latent = denoiser.view_image_size // 8
        self.posterior = torch.randn(count, denoiser.latent_channels, latent, latent, generator=generator)
        shape = (count * repeats, denoiser.token_channels, grid, grid)
        self.noise = torch.randn(shape, generator=generator)
        self.timesteps = torch.randint(0, denoiser.num_train_timesteps, (count * repeats,), generator=generator)
        self.count, self.repeats = count, repeats
        self.bev_valid, self.row_seed = scene["bev_valid"], scene["row_seed"]

    def get_states(self) -> SceneStates:
        return SceneStates(self.states, self.views & ~self.masked)

    def finish(self, loss: torch.Tensor) -> float:
        self.model.zero_grad()
        self.states.grad = None
        loss.backward()
        return loss.item()

    def compute_bev(self) -> torch.Tensor:
        batch = {"bev_pixel_values": self.bev, "bev_valid": self.bev_valid}
        return BevObjective().compute(self.model, self.get_states(), batch, Draws(self.row_seed))

    def run_ours(self) -> float:
        given = {"timesteps": self.timesteps, "noise": self.noise, "posterior_noise": self.posterior}
        draws = Draws(given={f"view.{purpose}": numbers for purpose, numbers in given.items()})
        batch = {"pixel_values": self.pixel_values, "view_mask": self.views, "bool_masked_views": self.masked}
        loss = ViewObjective().compute(self.model, self.get_states(), batch, draws)
        return self.finish(loss + self.compute_bev())

    def run_published(self) -> float:
        """View by view and draw by draw, with keys that are there four times."""
        config = self.model.config
        visible = self.states[:, ~self.masked[0]].repeat(1, PUBLISHED_REPEATS, 1, 1)
        repeated = SceneStates(visible, torch.ones(visible.shape[:2], dtype=torch.bool))
        one = torch.zeros(1, 1, dtype=torch.bool).logical_not()
        condition = get_view_queries(repeated, one, config).get_conditions(self.head)
        errors = []
        for repeat in range(self.repeats):
            for place, view in enumerate(self.masked[0].nonzero()[:, 0].tolist()):
                picture = get_view_pictures(self.pixel_values[0, view : view + 1], config)
                posterior = encode_pictures(self.model.get_teacher(), picture)
                latents = sample_posterior(posterior, self.posterior[place : place + 1])
                target = get_target_tokens(latents, config.denoiser_config, config.view_grid_size)
                item = repeat * self.count + place
                draw = slice(item, item + 1)
                error = self.head.compute_errors(target, self.timesteps[draw], self.noise[draw], condition, "view")
                errors.append(error.mean())
        return self.finish(torch.stack(errors).mean() + self.compute_bev())

    def run_text(self) -> float:
        """A whole step with text alone."""
        row = self.steps.build_row(self.steps.questions)
        for name in ("bool_masked_views", "bev_pixel_values", "bev_valid"):
            del row[name]
        return self.steps.run_step([row])


def run(num_views: int, rounds: int) -> dict[str, Any]:
    losses = Losses(num_views)
    seconds, results = time_rounds(
        {"published": losses.run_published, "ours": losses.run_ours, "text": losses.run_text}, rounds
    )
    if abs(results["published"] - results["ours"]) > 1e-4 * results["ours"]:
        raise RuntimeError(f"bench/losses.py: expected equal losses, got {results}.")
    return {
        "bench": "losses", **describe_run(), "views": num_views, "masked": losses.count, "rounds": rounds,
        "published_over_ours": compare(seconds, "published", "ours"), "share": compare(seconds, "ours", "text"),
        "ours_ms": round(1000 * min(seconds["ours"])), "text_ms": round(1000 * min(seconds["text"])),
        "peak_gb": round(get_peak_gb(), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.rounds))


if __name__ == "__main__":
    main()
