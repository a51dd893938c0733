"""One training step of the recorded model: gradients of every parameter against the recorded ones."""

import torch

from ross3d.modeling_ross3d import Ross3DOutput
from ross3d.tests.parity.build import Recorded
from ross3d.tests.parity.golden import GoldenCase
from ross3d.tests.parity.tables import GRADIENTS
from ross3d.tools.checkpoints.keys import to_published


def check_gradients(recorded: Recorded, case: GoldenCase, prefix: str, inputs: dict) -> Ross3DOutput:
    """Run forward and backward in training mode; compare norms, full tensors and which parameters have none.

    `prefix` stands before the names of a case that records several steps.
    """
    model = recorded.model
    model.zero_grad(set_to_none=True)
    model.train()
    outputs = model(**inputs)
    outputs.loss.backward()
    model.eval()
    gradients = {to_published(name): p.grad for name, p in model.named_parameters() if p.requires_grad}
    norms = case.scalars[f"{prefix}grad_norms"]
    unused = case.scalars[f"{prefix}no_grad_params"]
    assert sorted(gradients) == sorted([*norms, *unused]), "other parameters are trained than were recorded"
    for name in norms:
        case.close(f"scalars|{prefix}grad_norms|{name}", get_norm(gradients[name]), GRADIENTS)
    # The placeholders of a loss that does not apply leave zeros where the published code leaves nothing.
    still = [name for name in unused if get_norm(gradients[name]) == 0.0]
    case.same(f"scalars|{prefix}no_grad_params", still)
    for path in case.tensors:
        name = path.removeprefix(f"{prefix}grad.")
        if path.startswith(f"{prefix}grad."):
            case.close(path, gradients[name], GRADIENTS)
    return outputs


def get_norm(gradient: torch.Tensor | None) -> float:
    return 0.0 if gradient is None else gradient.double().norm().item()
