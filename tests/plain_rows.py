"""Logits and losses of rows once more, one question after the other: no padding, masks, cache or packing.

What tests of right inputs compare with. Shapes: B rows, L positions, V views, D width.
"""

import torch

from ross3d.tests.fabricate import COORD_TOKEN, GRID, IMAGE_TOKEN


def embed_view(model, batch: dict, row: int, view: int) -> torch.Tensor:
    """The placeholders' vectors of one view (GRID * (GRID + 1), D): its tokens, each grid row ended by the newline."""
    base = model.model
    tokens = base.get_image_features(batch["pixel_values"][row, view][None]).pooler_output[0]
    if "bool_masked_views" in batch and batch["bool_masked_views"][row, view]:
        tokens = base.mask_token.expand_as(tokens)
    if "patch_coords" in batch:
        valid = batch["patch_valid"][row, view].flatten() if "patch_valid" in batch else None
        tokens = tokens + base.get_position_embedding(batch["patch_coords"][row, view].flatten(0, 1), valid)
    grid_rows = [[*tokens[line * GRID : (line + 1) * GRID], base.image_newline] for line in range(GRID)]
    return torch.stack(sum(grid_rows, []))


def embed_question(model, batch: dict, row: int, ids: torch.Tensor, question: int) -> torch.Tensor:
    """Vectors (n, D) of a scene and one question (1, 2, ...; 0: the scene alone), `ids` (n,)."""
    embeds = model.get_input_embeddings()(ids).clone()
    if "pixel_values" in batch:
        real = batch["view_mask"][row] if "view_mask" in batch else torch.ones(batch["pixel_values"].shape[1])
        views = [embed_view(model, batch, row, view) for view in real.nonzero()[:, 0].tolist()]
        embeds[ids == IMAGE_TOKEN] = torch.cat([embeds[:0], *views])
    if "query_coords" in batch and question:
        embeds[ids == COORD_TOKEN] += model.model.get_position_embedding(batch["query_coords"][row, question - 1])
    return embeds


@torch.no_grad()
def compute_logits(model, batch: dict) -> torch.Tensor:
    """Logits (B, L, vocabulary) of `input_ids`; zeros at padding."""
    input_ids = batch["input_ids"]
    real = batch.get("attention_mask", torch.ones_like(input_ids)).bool()
    segments = batch.get("segment_ids", torch.ones_like(input_ids))
    logits = torch.zeros(*input_ids.shape, model.lm_head.out_features, dtype=model.lm_head.weight.dtype)
    for row in range(len(input_ids)):
        for question in segments[row][real[row]].unique().tolist():
            places = (real[row] & ((segments[row] == 0) | (segments[row] == question))).nonzero()[:, 0]
            embeds = embed_question(model, batch, row, input_ids[row, places], question)
            states = model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state[0]
            own = segments[row, places] == question
            logits[row, places[own]] = model.lm_head(states[own])
    return logits


def compute_lm_loss(model, batch: dict) -> float:
    """Mean over answers of the mean cross entropy of an answer's tokens."""
    logits, weights = compute_logits(model, batch).double().log_softmax(dim=-1), batch["loss_weights"].double()
    total = 0.0
    for row, place in weights.nonzero().tolist():
        total -= float(weights[row, place] * logits[row, place, batch["shift_labels"][row, place]])
    return total / float(weights.sum())


def assert_plain(model, batch: dict, given: dict | None = None) -> None:
    """`forward` of `given`, which says the same as `batch` in other words, has the plain logits of `batch`."""
    with torch.no_grad():
        found = model(**(batch if given is None else given)).logits
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    torch.testing.assert_close(found[real], compute_logits(model, batch)[real], rtol=1e-5, atol=1e-5)
