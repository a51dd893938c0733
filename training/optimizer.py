"""Muon for matrices and AdamW for everything else, as one optimizer that the stock Trainer steps and saves."""

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` on the groups marked `"muon": True`, `torch.optim.AdamW` on the others.

    Muon orthogonalises the momentum of each matrix before it is added; small language models trained from scratch
    learn in a fraction of the steps (docs/LOG.md).

    Args:
        params (list of `dict`): groups with `params`, `lr`, `weight_decay` and `muon`; matrices only where it is true.
        lr (`float`): of groups that name none.

    Raises:
        ValueError: from Muon or AdamW if it has no groups; use the other one alone.
    """

    def __init__(self, params: list[dict], lr: float):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        # Each part adds its own settings to the groups, which are shared dictionaries.
        self.parts = {muon: cls(self.get_groups(muon)) for muon, cls in ((True, Muon), (False, AdamW))}

    def get_groups(self, muon: bool) -> list[dict]:
        return [group for group in self.param_groups if group["muon"] == muon]

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("closure: expected None, got a function; Muon and AdamW use one gradient per step.")
        for muon, part in self.parts.items():
            # Loading a checkpoint replaces groups and states here; the parts follow.
            part.param_groups, part.state = self.get_groups(muon), self.state
            part.step()
