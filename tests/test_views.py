"""Backbones as values: another grid, no newlines, positions on three axes, without an edit anywhere else."""

import pytest
import torch
from torch.nn import functional as F

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import IMAGE_TOKEN, PAD_TOKEN, make_config
from ross3d.views_ross3d import BACKBONES, LlavaVideoViews, TokenLayout, get_views


ROWS, COLUMNS = 3, 2
WORDS = {"scene": [5, 6], "questions": [[7, 8, 9, 10], [11, 12, 13]]}


class TallViews(LlavaVideoViews):
    """Views of 3 x 2 cells, means of patches, no newlines."""

    def __init__(self, config):
        super().__init__(config)
        self.layout = TokenLayout(ROWS, COLUMNS, ends_rows=False)

    def to_tokens(self, projected: torch.Tensor) -> torch.Tensor:
        grid = projected.transpose(1, 2).unflatten(2, (self.patch_grid_size, self.patch_grid_size))
        return F.adaptive_avg_pool2d(grid, (ROWS, COLUMNS)).flatten(2).transpose(1, 2)


class ThreeAxesViews(TallViews):
    """Positions (3, B, L) as M-RoPE has them: a view's cells share a time and count rows and columns."""

    counts_along_row = False

    def get_positions(self, placeholders: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.zeros(3, *segment_ids.shape, dtype=torch.long)
        for row, segments in enumerate(segment_ids.tolist()):
            place, after_scene, seen = 0, 0, 0
            for index, segment in enumerate(segments):
                if segment > 0 and segment != segments[index - 1]:
                    place = after_scene
                if segment >= 0 and placeholders[row, index]:
                    cell = seen % (ROWS * COLUMNS)
                    positions[:, row, index] = place + torch.tensor([0, cell // COLUMNS, cell % COLUMNS])
                    seen += 1
                    place += max(ROWS, COLUMNS) if seen % (ROWS * COLUMNS) == 0 else 0
                elif segment >= 0:
                    positions[:, row, index] = place
                    place += 1
                after_scene = place if segment == 0 else after_scene
        return positions


@pytest.fixture(params=["tall", "three_axes"])
def model(request, monkeypatch) -> Ross3DForConditionalGeneration:
    monkeypatch.setitem(BACKBONES, "tall", TallViews)
    monkeypatch.setitem(BACKBONES, "three_axes", ThreeAxesViews)
    config = make_config(backbone=request.param).to_dict() | {"denoiser_config": None}
    if request.param == "three_axes":
        text = config["text_config"]
        kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "max_position_embeddings", "initializer_range", "pad_token_id")  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        config["text_config"] = {key: text[key] for key in kept} | {
            "model_type": "qwen2_5_vl_text", "rope_parameters": rope, "eos_token_id": None
        }  # fmt: skip
    torch.manual_seed(0)
    model = Ross3DForConditionalGeneration(type(make_config())(**config)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD_TOKEN
    return model


def make_scene(num_views: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(1, num_views, 3, 20, 20, generator=generator),
        "patch_coords": torch.randn(1, num_views, ROWS, COLUMNS, 3, generator=generator),
        "patch_valid": torch.rand(1, num_views, ROWS, COLUMNS, generator=generator) > 0.2,
    }


def make_row(num_views: int, questions: list[list[int]]) -> dict[str, torch.Tensor]:
    """A scene's words, its views and questions behind it, each a segment of its own."""
    scene = [*WORDS["scene"], *[IMAGE_TOKEN] * (num_views * ROWS * COLUMNS), 14]
    segments = [0] * len(scene)
    for number, words in enumerate(questions, start=1):
        scene, segments = scene + words, segments + [number] * len(words)
    return {"input_ids": torch.tensor([scene]), "segment_ids": torch.tensor([segments])}


@pytest.mark.parametrize("num_views", [2, 3])
def test_cells_stand_where_the_layout_says(model, num_views):
    """The states of a view are those at its placeholders; what stands there is token plus position, cell by cell."""
    scene, row, found = make_scene(num_views, 1), make_row(num_views, WORDS["questions"][:1]), []
    model.model.language_model.register_forward_pre_hook(
        lambda module, given, words: found.append(words["inputs_embeds"]), with_kwargs=True
    )
    outputs = model.model(**scene, **row)
    is_view = row["input_ids"][0] == IMAGE_TOKEN
    states = outputs.last_hidden_state[0, is_view].unflatten(0, (num_views, ROWS * COLUMNS))
    assert torch.equal(outputs.visual_states[0], states)
    pooled = model.get_image_features(scene["pixel_values"]).pooler_output
    positions = model.model.get_position_embedding(scene["patch_coords"][0], scene["patch_valid"][0]).flatten(1, 2)
    assert torch.equal(found[0][0, is_view], (pooled + positions).flatten(0, 1))


@pytest.mark.parametrize("num_views", [1, 3])
def test_packed_rows_train_as_rows_of_one_question(model, num_views):
    def train(questions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        row = make_row(num_views, questions)
        labels = torch.where(row["segment_ids"] > 0, row["input_ids"], -100)
        shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
        # The scene's last position would predict the first word of each question: left out.
        same = F.pad(row["segment_ids"][:, 1:] == row["segment_ids"][:, :-1], (0, 1), value=False)
        shifted = torch.where(same, shifted, -100)
        weights = torch.zeros(shifted.shape)
        for segment in range(1, len(questions) + 1):
            own = (shifted != -100) & (row["segment_ids"] == segment)
            weights[own] = 1 / own.sum()
        model.zero_grad()
        targets = {"labels": labels, "shift_labels": shifted, "loss_weights": weights}
        outputs = model.train()(**make_scene(num_views, 2), **row, **targets)
        outputs.loss.backward()
        return (
            outputs.lm_loss.detach(),
            model.model.image_newline.grad,
            model.model.multi_modal_projector.linear_1.weight.grad.clone(),
        )

    packed, newline, gradient = train(WORDS["questions"])
    alone = [train([words]) for words in WORDS["questions"]]
    assert torch.allclose(packed, torch.stack([loss for loss, _, _ in alone]).mean(), atol=1e-6)
    assert torch.allclose(gradient, (alone[0][2] + alone[1][2]) / 2, atol=1e-6) and gradient.abs().max() > 0
    # A layout without newlines leaves their vector unused, but not without a gradient.
    assert newline is not None and not newline.any()


@pytest.mark.parametrize("num_views", [2, 3])
def test_answers_about_an_encoded_scene(model, num_views):
    """The first new token's scores are those of the packed row, where each question sees the same scene."""
    scene, questions = make_scene(num_views, 3), WORDS["questions"]
    encoded = model.encode_scene(**scene, **make_row(num_views, []))
    longest = max(map(len, questions))
    ids = torch.tensor([[PAD_TOKEN] * (longest - len(words)) + words for words in questions])
    answers = model.generate(
        scene=encoded, input_ids=ids, attention_mask=(ids != PAD_TOKEN).long(), max_new_tokens=3, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    row = make_row(num_views, questions)
    logits = model(**scene, **row).logits[0]
    ends = [int((row["segment_ids"][0] == number).nonzero()[-1]) for number in range(1, len(questions) + 1)]
    assert torch.allclose(answers.logits[0], logits[ends], atol=1e-4)
    # The second token as well: the row goes on with the first.
    further = [words + [int(first)] for words, first in zip(questions, answers.sequences[:, longest], strict=True)]
    row = make_row(num_views, further)
    ends = [int((row["segment_ids"][0] == number).nonzero()[-1]) for number in range(1, len(questions) + 1)]
    assert torch.allclose(answers.logits[1], model(**scene, **row).logits[0][ends], atol=1e-4)
    length = make_row(num_views, [])["input_ids"].shape[1]
    assert (int(encoded.next_positions) == length) == model.model.views.counts_along_row
    if not model.model.views.counts_along_row:
        with pytest.raises(ValueError, match=r"generate: expected scene= with backbone 'three_axes', .* got views"):
            model.generate(**scene, **make_row(num_views, questions[:1]), max_new_tokens=2)


def test_layouts_place_and_pick_alike():
    generator = torch.Generator().manual_seed(0)
    for layout in (TokenLayout(3, 2, False), TokenLayout(2, 5, True)):
        tokens, newline = torch.randn(4, layout.num_cells, 7, generator=generator), torch.full((7,), 9.0)
        laid = layout.lay_out(tokens, newline)
        assert laid.shape == (4, layout.num_positions, 7) and torch.equal(layout.pick_cells(laid), tokens)
        ends = laid[:, layout.num_columns :: layout.num_columns + 1] if layout.ends_rows else laid[:, :0]
        assert (ends == 9).all() and ends.shape[1] == layout.ends_rows * layout.num_rows


def test_unknown_backbones_and_denoisers_of_other_grids_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"backbone: expected one of \['llava_video'\], got 'round'"):
        get_views(make_config(backbone="round"))
    monkeypatch.setitem(BACKBONES, "tall", TallViews)
    with pytest.raises(ValueError, match=r"denoiser_config: expected None with backbone 'tall', .* 3 x 2"):
        Ross3DForConditionalGeneration(make_config(backbone="tall"))
