"""Vision tower, embeddings, language model, generation and grounding against the recorded cases."""

import torch

from ross3d.data.collator import choose_masked_views
from ross3d.grounding_ross3d import get_proposal_features
from ross3d.tests.parity.build import Recorded
from ross3d.tests.parity.golden import GoldenCase, read_slices
from ross3d.tests.parity.gradients import check_gradients
from ross3d.tests.parity.tables import ACTIVATIONS, EXACT_ARITHMETIC, LOSSES


def compare_vision(recorded: Recorded, case: GoldenCase) -> None:
    model, pixels = recorded.model, recorded.get_inputs()["pixel_values"][0]
    rows, columns = read_slices(case.describe("pixel_values_crop"))
    case.close("pixel_values_crop", pixels[:, :, rows, columns], EXACT_ARITHMETIC)
    seen = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        features = model.get_image_features(pixels)
    hook.remove()
    tower = seen[0]
    projected, pooled = features.patch_features, features.pooler_output
    frames = case.scalars["frames"]
    case.same("scalars|frames", [0, len(pixels) - 1])
    case.close("tower", tower[frames[:1]], ACTIVATIONS)
    case.close("tower_last", tower[frames[-1:]], ACTIVATIONS)
    case.close("projector", projected[frames[:1]], ACTIVATIONS)
    case.close("pooled", pooled[frames], ACTIVATIONS)
    for name, tensor in {"tower": tower, "projector": projected, "pooled": pooled}.items():
        scale = tensor.double().abs().sum()
        case.close(f"scalars|all_frames_sum|{name}", tensor.double().sum(), ACTIVATIONS, scale.item())
        if f"{name}_abs" in case.scalars["all_frames_sum"]:
            case.close(f"scalars|all_frames_sum|{name}_abs", scale, ACTIVATIONS)


def check_image_block(recorded: Recorded, case: GoldenCase, inputs: dict) -> torch.Tensor:
    """Where views and their newlines stand in the row; returns the positions (V, h, w + 1)."""
    model = recorded.model
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    placeholders = model.model.get_placeholder_mask(inputs["input_ids"], embeds)[0]
    grid = model.config.view_grid_size
    positions = placeholders.nonzero()[:, 0].view(-1, grid, grid + 1)
    case.same("scalars|boi", positions[:, 0, 0])
    case.same("scalars|eoi", positions[:, -1, -2])
    return positions


def get_input_embeddings(recorded: Recorded, inputs: dict) -> torch.Tensor:
    """What enters the first layer of the language model: (B, L, D)."""
    with torch.no_grad():
        return recorded.model(**inputs, output_hidden_states=True).hidden_states[0]


def compare_embed_plain(recorded: Recorded, case: GoldenCase) -> None:
    inputs = recorded.get_inputs("qa", train=True)
    positions = check_image_block(recorded, case, inputs)
    newlines = positions[..., -1].flatten()
    case.same("scalars|newline_first", newlines[: len(case.scalars["newline_first"])])
    case.same("scalars|newline_last", newlines[-1])
    case.same("scalars|n_newline", len(newlines))
    case.same("scalars|seq_len", inputs["input_ids"].shape[1])
    case.same("labels", inputs["labels"])
    case.same("attention_mask", inputs["attention_mask"])
    embeds = get_input_embeddings(recorded, inputs)
    case.close("inputs_embeds", embeds[:, case.read("rows")], ACTIVATIONS)


def compare_embed_masked(recorded: Recorded, case: GoldenCase) -> None:
    config = recorded.model.config
    hidden = choose_masked_views(case.read("noise"), config.view_mask_ratio)
    case.same("mask", hidden)
    case.same("scalars|mask", hidden.float())
    case.same("scalars|mask_ratio", config.view_mask_ratio)
    case.same("scalars|len_mask", hidden.sum())
    case.same("scalars|len_keep", (~hidden).sum())
    case.same("scalars|frames", len(hidden))
    inputs = recorded.get_inputs("qa", train=True)
    positions = check_image_block(recorded, case, inputs)
    first, last = int(positions.min()), int(positions.max()) + 1
    case.same("scalars|span", [first, last])
    embeds = get_input_embeddings(recorded, inputs | {"bool_masked_views": hidden[None]})
    case.close("image_span", embeds[:, first:last], ACTIVATIONS)
    plain = get_input_embeddings(recorded, inputs)
    assert torch.equal(embeds[:, :first], plain[:, :first]) and torch.equal(embeds[:, last:], plain[:, last:])


def compare_embed_coord(recorded: Recorded, case: GoldenCase) -> None:
    model, inputs = recorded.model, recorded.get_inputs("cap", train=True)
    ids = inputs["input_ids"][0]
    text = ids != model.config.image_token_id
    places = (ids[text] == model.config.coord_token_id).nonzero()[:, 0]
    case.same("scalars|coord_rows_in_text", places)
    image = (~text).nonzero()[:, 0]
    case.same("scalars|text_rows", [0, int(image[0]), int(image[-1]) + 1, len(ids)])
    case.same("labels", inputs["labels"])
    case.close("text_embeds", get_input_embeddings(recorded, inputs)[:, text], ACTIVATIONS)
    point = recorded.shared.read("box_input")[None]
    case.close("coord_pe", model.model.get_position_embedding(point), ACTIVATIONS)


def compare_llm(recorded: Recorded, case: GoldenCase) -> None:
    inputs = recorded.get_inputs("qa", train=True)
    with torch.no_grad():
        outputs = recorded.model(**inputs, output_hidden_states=True)
    rows = case.read("rows")
    case.close("logits", outputs.logits[0, rows], ACTIVATIONS)
    case.close("final_hidden_rows", outputs.hidden_states[-1][0, rows], ACTIVATIONS)
    case.close("layer1_hidden_rows", outputs.hidden_states[1][0, rows], ACTIVATIONS)
    case.close("scalars|loss", outputs.loss, LOSSES)
    case.close("scalars|lm_loss", outputs.lm_loss, LOSSES)
    case.same("scalars|vm_loss", outputs.view_loss)
    case.same("scalars|bev_loss", outputs.bev_loss)
    case.same("scalars|n_supervised", (inputs["loss_weights"] > 0).sum())
    logits = outputs.logits.double()
    case.close("scalars|logits_double_sum", logits.sum(), ACTIVATIONS, logits.abs().sum().item())
    case.close("scalars|logits_abs_mean", logits.abs().mean(), ACTIVATIONS)
    case.same("scalars|seq_len", logits.shape[1])


def check_answer(recorded: Recorded, case: GoldenCase, task: str) -> None:
    """Greedy decoding, of a fixed length since no token ends it."""
    inputs = recorded.get_inputs(task)
    outputs = recorded.model.generate(
        **inputs,
        max_new_tokens=case.scalars["max_new_tokens"],
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = outputs.sequences[:, inputs["input_ids"].shape[1] :]
    case.same("tokens", tokens)
    case.same("scalars|tokens", tokens[0])
    scores = torch.stack(outputs.logits, dim=1)[0]
    case.close("scores", scores, ACTIVATIONS)
    best = scores.topk(2).values
    # A difference of close numbers: its error is measured against the numbers.
    case.close("scalars|min_top2_gap", (best[:, 0] - best[:, 1]).min(), ACTIVATIONS, scores.abs().max().item())
    case.same("scalars|prompt", f"inputs:{task}_eval_ids")
    case.same("scalars|max_new_tokens", tokens.shape[1])


def compare_generate(recorded: Recorded, case: GoldenCase) -> None:
    check_answer(recorded, case, "qa")


def compare_generate_coord(recorded: Recorded, case: GoldenCase) -> None:
    check_answer(recorded, case, "cap")


def compare_grounding(recorded: Recorded, case: GoldenCase) -> None:
    model = recorded.model
    case.same("scalars|temperature", model.config.grounding_temperature)
    for kind in ("single", "multi", "zero"):
        check_grounding_step(recorded, case, kind)
    case.close("scores_eval", model.ground(**recorded.get_inputs("ground"))[0], ACTIVATIONS)


def check_grounding_step(recorded: Recorded, case: GoldenCase, kind: str) -> None:
    """Scores, loss and gradients of a question with one, several or no targets."""
    targets = case.scalars[f"box_labels_{kind}"][0]
    inputs = recorded.get_inputs("ground", train=True, target_objects=targets)
    marked = inputs["grounding_labels"][0, 0].nonzero()[:, 0].tolist()
    last = inputs["grounding_labels"].shape[-1] - 1
    case.same(f"scalars|box_labels_{kind}_after_call", [[-1 if place == last else place for place in marked]])
    outputs = check_gradients(recorded, case, f"{kind}.", inputs)
    names = {"vm_loss": outputs.view_loss, "bev_loss": outputs.bev_loss}
    # In training a loss that no row has is a zero with count 0, so that every rank runs the same parameters.
    for place, (name, loss) in enumerate(names.items(), start=1):
        case.same(f"scalars|{name}_{kind}", loss if outputs.loss_counts[place] else None)
    case.close(f"scalars|loss_{kind}", outputs.loss, LOSSES)
    case.close(f"scores_{kind}", outputs.grounding_scores[0, 0], ACTIVATIONS)
    if kind == "single":
        check_grounding_features(recorded, case, inputs)


def check_grounding_features(recorded: Recorded, case: GoldenCase, inputs: dict) -> None:
    """What enters and leaves the two sides of the grounding head."""
    model, head = recorded.model, recorded.model.grounding_head
    place = (inputs["input_ids"][0] == model.config.ground_token_id).nonzero()[:, 0]
    case.same("scalars|ground_position", place[0])
    case.same("scalars|seq_len", inputs["input_ids"].shape[1])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1][0, place]
        projected = model.get_image_features(inputs["pixel_values"]).patch_features[None]
        features, _ = get_proposal_features(
            model, projected, inputs["proposal_boxes"], inputs["proposal_mask"], inputs["proposal_patches"]
        )
        candidates = torch.cat([features[0], head.no_target[None]])
        case.close("ground_hidden", states, ACTIVATIONS)
        case.close("object_features", candidates, ACTIVATIONS)
        case.close("obj_feat", head.proposal_mlp(candidates), ACTIVATIONS)
        case.close("query_feat", head.query_mlp(states), ACTIVATIONS)
