"""Packing changes what a step costs, not what it optimises: Q questions in one row are Q rows of one question."""

import pytest
import torch
from transformers import AutoProcessor

from ross3d.configuration_ross3d import Ross3DDistillationConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration, get_loss_names
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint
from ross3d.tools.make_tiny import make_tiny_geometry_encoder
from ross3d.training.trainer import count_losses


# Eight of all kinds, in words, about a place, and answered by boxes; two with the same answer.
QUESTIONS = (
    ("How many chairs are there?", "4", None, None),
    ("the lamp in the corner", "<ground>", None, [2]),
    ("What is at <coord>?", "a brown table", [0.5, -0.2, 1.0], None),
    ("Is there a bed?", "yes", None, None),
    ("two of the chairs", "<ground>", None, [0, 3]),
    ("What color is the table next to the window?", "dark brown", None, None),
    ("nothing that is here", "<ground>", None, []),
    ("Describe what is at <coord>.", "This is a tall lamp.", [-1.0, 0.3, 0.4], None),
)


def make_row(processor, scene: dict, questions) -> dict[str, torch.Tensor]:
    """One row of the same scene, with the same seed whatever is asked."""
    texts, answers, points, targets = ([question[i] for question in questions] for i in range(4))
    words = {"text": texts, "answers": answers, "query_coords": points, "target_objects": targets}
    if all(point is None for point in points):
        del words["query_coords"]
    if all(target is None for target in targets):
        del words["target_objects"]
    row = dict(processor(**scene, **words))
    return row | {"row_seed": torch.tensor([11]), "bool_masked_views": torch.tensor([[True, False, False]])}


# Of the tiny geometry encoder; `student_layer` is not the last.
DISTILLATION = {"head_hidden_size": 24, "feature_size": 32, "encoder_image_size": 64, "encoder_dtype": "float32",
                "student_layer": 1}  # fmt: skip


def get_step(model, rows, counts) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Named losses and gradients of rows that are averaged over `counts`."""
    model.zero_grad()
    losses = dict.fromkeys(("loss", *get_loss_names(model.config)), 0.0)
    for row in rows:
        outputs = model(**row, num_items_in_batch=counts)
        outputs.loss.backward()
        losses = {name: value + getattr(outputs, name).item() for name, value in losses.items()}
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("label_rule", ["published", "answer_only"])
@pytest.mark.parametrize("spatial_instruction", [False, True])
@pytest.mark.parametrize("condition", ["pooled", "per_view"])
def test_eight_questions_in_one_row_are_eight_rows(label_rule, spatial_instruction, condition):
    """All losses and gradients, float32; what is paid once in the one row weighs an eighth in the eight.

    That is reconstruction and distillation.
    """
    processor = AutoProcessor.from_pretrained(get_checkpoint(), trust_remote_code=True)
    processor.label_rule, processor.spatial_instruction = label_rule, spatial_instruction
    section = Ross3DDistillationConfig(**DISTILLATION)
    processor.geometry_image_size, processor.geometry_patch_size = 64, 8
    model = Ross3DForConditionalGeneration.from_pretrained(get_checkpoint(), distillation_config=section).train()
    model.attach_teacher(get_checkpoint() / "teacher")
    model.attach_geometry_encoder(make_tiny_geometry_encoder())
    model.config.reconstruct_on_grounding_rows = True
    model.config.denoiser_config.condition = condition
    # New denoisers end in zeros, which would hide what stands before them.
    for name, parameter in model.reconstruction_head.named_parameters():
        if "modulation" in name or "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    picture = torch.randint(1, 255, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scene = make_views() | {"bev_image": picture.numpy(), "bev_bounds": [-3.0, -3.0, 3.0, 3.0]}
    scene["bev_valid"] = picture[..., 0].numpy() > 30
    packed = make_row(processor, scene, QUESTIONS)
    separate = [make_row(processor, scene, [question]) for question in QUESTIONS]
    # Answers, scenes with masked views, with a bird's-eye picture, grounding questions, scenes for the encoder.
    counts = count_losses(packed, model.config)
    assert counts.tolist() == [5, 1, 1, 3, 1]
    shared = torch.tensor([5.0, 8.0, 8.0, 3.0, 8.0])
    found, gradients = get_step(model, [packed], counts)
    wanted, wanted_gradients = get_step(model, separate, shared)
    for name, value in wanted.items():
        assert value > 0.01 and found[name] == pytest.approx(value, rel=1e-5), name
    largest = max(gradient.norm().item() for gradient in wanted_gradients.values())
    for name, gradient in wanted_gradients.items():
        # What is a thousandth of the largest gradient or less (the bias of keys has none at all) is rounding.
        scale = max(gradient.norm().item(), 1e-3 * largest)
        assert (gradients[name] - gradient).norm().item() <= 1e-5 * scale, name
