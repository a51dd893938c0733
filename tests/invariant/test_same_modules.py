"""Whatever a process holds, it runs the same modules in the same order, forward and backward.

ZeRO-3 and FSDP gather each weight from all processes when a module runs, when a gradient reaches one of its outputs,
or when a weight is read by its name; DDP and ZeRO reduce gradients in the order in which they come to be. Processes
that do this in different orders wait for each other for ever, or crash.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import peft
import pytest
import torch

from ross3d.modeling_ross3d import get_loss_names
from ross3d.objectives_ross3d import is_sharded
from ross3d.tests.fabricate import (
    DISTILLATION,
    EARLY_DISTILLATION,
    EVERY_KIND,
    GRID,
    WORST_KINDS,
    RowKind,
    add_cameras,
    add_proposal_tokens,
    make_collator,
    make_model,
)
from ross3d.training.trainer import count_losses, open_view_gate


class WatchedParameters(OrderedDict):
    """A module's own parameters, which tells of every one that is read by its name, as ZeRO-3's does."""

    def __init__(self, parameters, module_name: str, tell: Callable[[str, str], None]):
        super().__init__(parameters)
        self.module_name, self.tell = module_name, tell

    def __getitem__(self, name: str):
        self.tell("read", f"{self.module_name}.{name}")
        return super().__getitem__(name)


def make_mark(happens: Callable[[], None]) -> type[torch.autograd.Function]:
    """A function that changes nothing; `happens` is called when a gradient passes it."""

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.detach()

        @staticmethod
        def backward(ctx, gradient):
            happens()
            return gradient

    return Mark


def mark_tensors(mark: type[torch.autograd.Function], value):
    """Every tensor of a module's positional arguments or output behind a mark, where DeepSpeed puts them."""
    if isinstance(value, tuple | list):
        return type(value)(mark_tensors(mark, item) for item in value)
    if isinstance(value, dict):
        for key in value:
            value[key] = mark_tensors(mark, value[key])
    return mark.apply(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Record:
    """What a model's modules and parameters do in a step, in its order, as ZeRO-3 hooks into it.

    Events are (what, where): a parameter is "read" by its name, a module is "called", a gradient comes to one of its
    outputs ("fetch") and has come to all of its inputs ("release"), a parameter has its "gradient".
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.events: list[tuple[str, str]] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.tell("gradient", name))
        for name, module in model.named_modules():
            module._parameters = WatchedParameters(module._parameters, name, self.tell)
            self.watch(name, module)

    def tell(self, what: str, where: str) -> None:
        self.events.append((what, where))

    def watch(self, name: str, module: torch.nn.Module) -> None:
        inputs_left = 0

        def release() -> None:
            nonlocal inputs_left
            inputs_left -= 1
            if not inputs_left:
                self.tell("release", name)

        fetch_mark, release_mark = make_mark(lambda: self.tell("fetch", name)), make_mark(release)

        def begin(module, arguments):
            nonlocal inputs_left
            self.tell("call", name)
            inputs_left = sum(isinstance(value, torch.Tensor) and value.requires_grad for value in arguments)
            return mark_tensors(release_mark, arguments)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(lambda module, arguments, output: mark_tensors(fetch_mark, output))

    def train(self, batch: dict[str, torch.Tensor], **arguments) -> list[tuple[str, str]]:
        self.events.clear()
        self.model(**batch, **arguments).loss.backward()
        return self.events.copy()


def make_distilling_model(**changes) -> torch.nn.Module:
    """All five losses, of which distillation reads a layer that others only pass through."""
    return make_model(distillation_config=EARLY_DISTILLATION, **changes).train()


def draw_kinds(seed: int, count: int) -> list[RowKind]:
    """`count` kinds of all rows, as a seed draws them."""
    return [EVERY_KIND[place] for place in np.random.default_rng(seed).choice(len(EVERY_KIND), count, replace=False)]


def check_same_record(model: torch.nn.Module, batches: Iterable[tuple[str, dict]], **arguments) -> None:
    """Train on batches with names; every step has the record of the first, and a gradient for all that is trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    record, wanted = Record(model), None
    for name, batch in batches:
        events = record.train(batch, **arguments)
        wanted = wanted or events
        gradients = [where for what, where in events if what == "gradient"]
        assert set(gradients) == trained, f"{name}: a gradient is missing"
        differing = [place for place, pair in enumerate(zip(events, wanted, strict=False)) if pair[0] != pair[1]]
        first = differing[0] if differing else min(len(events), len(wanted))
        assert events == wanted, f"{name}: {events[first:][:3]}, in the first step {wanted[first:][:3]}"
    assert {what for what, _ in wanted} == {"read", "call", "fetch", "release", "gradient"}


def make_batches(
    kinds: list[RowKind], rows: int = 1, geometry: bool = False
) -> Iterable[tuple[str, dict[str, torch.Tensor]]]:
    """Batches of so many rows; in every other step views stay seen, as between two steps that hide them.

    With `geometry` rows with views have pictures for the geometry encoder.
    """
    for first in range(0, len(kinds) - rows + 1, rows):
        chosen = kinds[first : first + rows]
        made = [kind.make_row(first + place, geometry) for place, kind in enumerate(chosen)]
        batch = make_collator()([add_cameras(add_proposal_tokens(row), first) for row in made])
        if first // rows % 2 and "bool_masked_views" in batch:
            batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
        yield str(chosen), batch


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        ("pooled", {}),
        ("per_view", {}),
        ("positions", {}),
        ("per_view", {"view_objective": "vanilla"}),
        ("pooled", {"view_objective": "vanilla", "reconstruct_on_grounding_rows": False}),
        ("per_view", {"grounding": False}),
        ("per_view", {"proposal_pooling": "states"}),
        ("per_view", {"proposal_pooling": "mean"}),
        ("pooled", {"distillation_config": EARLY_DISTILLATION}),
        ("per_view", {"distillation_config": DISTILLATION | {"tasks": ["grounding"], "masked_views": "include"}}),
        ("per_view", {"distillation_config": DISTILLATION, "denoiser_config": None, "proposal_pooling": "mean"}),
    ],
)
def test_every_row_does_the_same_in_the_same_order(condition, changes):
    model = make_model(**{"denoiser": {"condition": condition}} | changes).train()
    kinds = [*WORST_KINDS, *draw_kinds(0, 8)]
    if model.grounding_head is None:
        kinds = [kind for kind in kinds if "ground" not in kind.questions]
    batches = make_batches(kinds, geometry=model.config.distillation_config is not None)
    check_same_record(model, batches, num_items_in_batch=torch.ones(len(get_loss_names(model.config))))


def test_features_from_files_do_the_same_as_the_encoder():
    """Rows with features, rows beside them that have none, and rows with pictures."""
    batches = list(make_batches([*WORST_KINDS, *draw_kinds(7, 8)], rows=2, geometry=True))
    for place, (_, batch) in enumerate(batches):
        if place % 3 and "geometry_pixel_values" in batch:
            rows, views = batch.pop("geometry_pixel_values").shape[:2]
            batch["geometry_features"] = torch.randn(rows, views, 2, GRID, GRID, 16)
            # Of the second row none, or of no row any.
            batch["geometry_features"][place % 2 :] = torch.nan
    kinds = {(name, len(batch["input_ids"])) for _, batch in batches for name in batch if name.startswith("geometry")}
    assert kinds == {("geometry_features", 2), ("geometry_pixel_values", 2)}
    check_same_record(make_distilling_model(), batches, num_items_in_batch=torch.ones(5))


@pytest.mark.parametrize(("rows", "layer"), [(1, -1), (1, 1), (2, 0)])
def test_cameras_and_depth_do_the_same_in_the_same_order(rows, layer):
    """Rows have no cameras, cameras without a depth, or both."""
    section = {"head_hidden_size": 12}
    model = make_model(camera_config=section | {"student_layer": layer}, depth_config=section).train()
    kinds = [*WORST_KINDS, *draw_kinds(7, 8)]
    check_same_record(model, make_batches(kinds, rows), num_items_in_batch=torch.ones(6))


@pytest.mark.slow
@pytest.mark.parametrize("denoises", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_every_mixture_does_the_same_in_the_same_order(rows, denoises):
    model = make_distilling_model() if denoises else make_model(denoiser_config=None).train()
    kinds = [*WORST_KINDS, *EVERY_KIND, *reversed(EVERY_KIND)]
    num_items = torch.ones(len(get_loss_names(model.config)))
    check_same_record(model, make_batches(kinds, rows, geometry=denoises), num_items_in_batch=num_items)


def test_batches_of_several_rows_do_what_single_rows_do():
    kinds = draw_kinds(1, 18)
    sizes = ((kinds[:2], 1), (kinds, 2), (kinds, 3))
    batches = [batch for chosen, rows in sizes for batch in make_batches(chosen, rows, geometry=True)]
    check_same_record(make_distilling_model(), batches, num_items_in_batch=torch.ones(5))


def test_a_stock_trainer_meets_the_same_order():
    """It counts nothing: rows without text give logits, rows with text none."""
    check_same_record(make_distilling_model(), make_batches(draw_kinds(2, 16), geometry=True))
    labelled = [("labels alone", {"input_ids": torch.ones(2, 5).long(), "labels": torch.ones(2, 5).long()})]
    check_same_record(make_model().train(), [*labelled, *make_batches(list(WORST_KINDS[:4]))])


def test_evaluation_of_sharded_weights_runs_every_module(monkeypatch):
    """No gradient tells what was run there; where weights are whole, what is not asked for is left out."""
    model = make_distilling_model().eval()
    record, calls = Record(model), {}
    for sharded in (True, False):
        monkeypatch.setattr(f"{type(model).__module__}.is_sharded", lambda model, sharded=sharded: sharded)
        calls[sharded] = set()
        for _, batch in make_batches([*WORST_KINDS, *draw_kinds(6, 8)], geometry=True):
            record.events.clear()
            with torch.no_grad():
                model(**batch)
            calls[sharded].add(tuple(event for event in record.events if event[0] in ("call", "read")))
    assert len(calls[True]) == 1 < len(calls[False])


@pytest.mark.parametrize("mark", ["ds_id", "reshard"])
def test_sharded_weights_are_recognised(mark):
    """ZeRO-3 marks parameters, FSDP2 the class of a model."""
    model = make_model(denoiser_config=None)
    assert not is_sharded(model)
    marked = next(model.parameters()) if mark == "ds_id" else model
    setattr(marked, mark, 0)
    assert is_sharded(model)


def freeze(model: torch.nn.Module, *prefixes: str) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_published_training_does_the_same_in_the_same_order(use_reentrant):
    """The tower frozen, activations computed again in backward; hooks of the reentrant kind want inputs with grads."""
    model = freeze(make_distilling_model(), "model.vision_tower")
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    check_same_record(model, make_batches(draw_kinds(3, 12), geometry=True), num_items_in_batch=torch.ones(5))


@pytest.mark.parametrize(
    "prefixes",
    [
        ("model.language_model",),
        ("model.language_model", "model.vision_tower", "model.multi_modal_projector"),
        ("model.", "lm_head"),
        ("grounding_head.no_target", "model.image_newline", "reconstruction_head"),
        ("model.language_model", "distillation_head"),
    ],
)
def test_frozen_parts_do_the_same_in_the_same_order(prefixes):
    model = freeze(make_distilling_model(), *prefixes)
    check_same_record(model, make_batches(draw_kinds(4, 12), geometry=True), num_items_in_batch=torch.ones(5))


def test_lora_does_the_same_in_the_same_order():
    settings = peft.LoraConfig(
        r=2,
        target_modules=r".*language_model.*(q_proj|v_proj)",
        modules_to_save=["grounding_head", "distillation_head", "lm_head"],
    )
    model = peft.get_peft_model(make_distilling_model(), settings).train()
    check_same_record(model, make_batches(draw_kinds(5, 12), geometry=True), num_items_in_batch=torch.ones(5))


def test_outputs_that_take_part_change_no_number():
    """The loss and its gradients are to the bit those of the loss alone; what did nothing gets zeros, if it is inf."""
    model = make_distilling_model()
    ((_, batch),) = make_batches([RowKind(("text", "ground"), 3, "full", "patches", "full")], geometry=True)
    outputs = model(**batch)
    parts = [getattr(model.config, f"{name}_weight") * outputs[name] for name in get_loss_names(model.config)]
    assert len(parts) == 5 and all(part > 0 for part in parts)
    alone = torch.autograd.grad(
        sum(parts, torch.zeros(())), list(model.parameters()), retain_graph=True, allow_unused=True
    )
    found = torch.autograd.grad(outputs.loss, list(model.parameters()))
    assert torch.equal(outputs.loss, sum(parts, torch.zeros(())))
    for name, one, other in zip(dict(model.named_parameters()), found, alone, strict=True):
        assert torch.equal(one, other), name


def test_text_alone_trains_what_it_would_without_a_tower():
    """The blank view of rows without views changes no number: loss and gradients are those of a model without one."""
    kinds = [RowKind(("text", "text"), 0, "none", "none", "none"), RowKind(("coord",), 0, "none", "none", "none")]
    model = make_distilling_model()
    ((_, batch),) = make_batches(kinds, rows=2, geometry=True)
    assert not {"pixel_values", "view_mask", "bool_masked_views", "geometry_pixel_values"} & batch.keys()
    # In evaluation no blank view is made; nothing else here differs in training.
    names = [name for name, _ in model.named_parameters() if name.startswith("model.language_model")]
    weights = [weight for name, weight in model.named_parameters() if name in names]
    wanted, found = model.eval()(**batch), model.train()(**batch)
    assert torch.equal(found.lm_loss, wanted.lm_loss) and wanted.view_loss is None
    gradients = [torch.autograd.grad(outputs.lm_loss, weights, retain_graph=True) for outputs in (found, wanted)]
    for name, one, other in zip(names, *gradients, strict=True):
        assert torch.equal(one, other), name
    assert found.loss_counts.tolist() == [3, 0, 0, 0, 0]
    open_view_gate(batch, 1, 2)
    assert torch.equal(count_losses(batch, model.config), found.loss_counts)
    found.loss.backward()
    assert not any(weight.grad.any() for weight in model.model.vision_tower.parameters())


def test_image_tokens_without_views_are_refused():
    model = make_model().train()
    ((_, batch),) = make_batches([RowKind(("text",), 2, "full", "none", "none")])
    model(**batch)
    alone = {name: batch[name] for name in ("input_ids", "attention_mask", "segment_ids")}
    with pytest.raises(ValueError, match=r"input_ids: expected \[0\] image placeholders .* got \[24\]"):
        model(**alone)
