"""Whatever a process holds, it runs the same modules in the same order.

ZeRO-3 and FSDP gather each weight from all processes when a module runs or a weight is read by its name. Processes
that read in different orders wait for each other for ever, or crash.
"""

from collections import OrderedDict

import pytest
import torch

from ross3d.tests.fabricate import RaggedRows, make_collator, make_model


class WatchedParameters(OrderedDict):
    """A module's own parameters, which tells of every one that is read by its name, as ZeRO-3's does."""

    def __init__(self, parameters, module_name: str, reads: list[str]):
        super().__init__(parameters)
        self.module_name, self.reads = module_name, reads

    def __getitem__(self, name: str):
        self.reads.append(f"{self.module_name}.{name}")
        return super().__getitem__(name)


def watch(model: torch.nn.Module) -> tuple[list[str], list[str]]:
    """Names of parameters as they are read from now on, and as their gradients come to be."""
    reads, gradients = [], []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: gradients.append(name))
    for name, module in model.named_modules():
        module._parameters = WatchedParameters(module._parameters, name, reads)
    return reads, gradients


@pytest.mark.parametrize(
    ("condition", "objective"),
    [("pooled", "cross_view"), ("per_view", "cross_view"), ("positions", "cross_view"), ("per_view", "vanilla")],
)
def test_every_row_reads_the_same_weights_in_the_same_order(condition, objective):
    """Rows with and without depth, bird's-eye picture, grounding, text, proposals and hidden views."""
    model = make_model(denoiser={"condition": condition}, view_objective=objective).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reads, gradients = watch(model)
    found = {}
    for index, kind in enumerate(RaggedRows.KINDS):
        for hide, propose in ((True, True), (False, True), (False, False)):
            if not propose and "ground" in kind[2]:
                continue
            reads.clear(), gradients.clear()
            row = RaggedRows(8)[index]
            batch = make_collator()([{k: v for k, v in row.items() if propose or not k.startswith("proposal")}])
            batch["bool_masked_views"] &= hide
            model(**batch, num_items_in_batch=torch.ones(4)).loss.backward()
            assert set(gradients) == trained, f"{kind}: a gradient is missing"
            found[(*map(str, kind), hide, propose)] = reads.copy(), gradients.copy()
    wanted = next(iter(found.values()))
    assert len(found) == 21 and len(wanted[0]) > len(trained) / 2
    for kind, orders in found.items():
        assert orders == wanted, kind
