"""The method once more, from its description: small functions, plain loops, published parameter names.

Nothing here is imported by what ships, nothing of ours is imported here: two derivations that agree. Shapes: V views,
p x p vision patches, g x g pooled tokens, D width, K boxes, C denoiser width, Z folded latent channels.
"""

import math

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional as F


Weights = dict[str, torch.Tensor]
HEAD = "model.mm_inv_projector.net."


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    x = x @ weights[f"{name}.weight"].T
    return x + weights[f"{name}.bias"] if f"{name}.bias" in weights else x


def norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """(n, Lq, C), (n, Lk, C), (n, Lk, C) -> (n, Lq, C), one head after the other."""
    out = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        out.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)
    return torch.cat(out, dim=-1)


def get_bilinear_weights(size: int, out: int) -> torch.Tensor:
    """(out, size): what each output takes of each input; corners not aligned, no antialias."""
    weights = torch.zeros(out, size)
    for i in range(out):
        place = max((i + 0.5) * size / out - 0.5, 0.0)
        low = min(int(place), size - 1)
        high, share = min(low + 1, size - 1), place - low
        weights[i, low] += 1 - share
        weights[i, high] += share
    return weights


def resize(x: torch.Tensor, out: int) -> torch.Tensor:
    """(..., a, b) -> (..., out, out)."""
    rows, columns = get_bilinear_weights(x.shape[-2], out), get_bilinear_weights(x.shape[-1], out)
    return torch.einsum("ia,...ab,jb->...ij", rows, x, columns)


# Vision


def run_tower(weights: Weights, pixels: torch.Tensor, patch: int, layers: int, heads: int, eps: float) -> torch.Tensor:
    """(V, 3, S, S) -> (V, p * p, width), before the post-norm."""
    root = "model.vision_tower.vision_tower.vision_model."
    grid = pixels.shape[-1] // patch
    patches = []
    for row in range(grid):
        for column in range(grid):
            cell = pixels[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            patches.append(cell.flatten(1))
    kernel = weights[f"{root}embeddings.patch_embedding.weight"].flatten(1)
    x = torch.stack(patches, dim=1) @ kernel.T + weights[f"{root}embeddings.patch_embedding.bias"]
    x = x + weights[f"{root}embeddings.position_embedding.weight"]
    for layer in range(layers):
        name = f"{root}encoder.layers.{layer}."
        h = norm(x, eps) * weights[f"{name}layer_norm1.weight"] + weights[f"{name}layer_norm1.bias"]
        q, k, v = (linear(weights, f"{name}self_attn.{part}_proj", h) for part in "qkv")
        x = x + linear(weights, f"{name}self_attn.out_proj", attend(q, k, v, heads))
        h = norm(x, eps) * weights[f"{name}layer_norm2.weight"] + weights[f"{name}layer_norm2.bias"]
        h = F.gelu(linear(weights, f"{name}mlp.fc1", h), approximate="tanh")
        x = x + linear(weights, f"{name}mlp.fc2", h)
    return x


def project(weights: Weights, tower: torch.Tensor) -> torch.Tensor:
    return linear(weights, "model.mm_projector.2", F.gelu(linear(weights, "model.mm_projector.0", tower)))


def pool(projected: torch.Tensor, out: int) -> torch.Tensor:
    """(V, p * p, D) -> (V, g * g, D)."""
    side = math.isqrt(projected.shape[1])
    grid = projected.transpose(1, 2).reshape(len(projected), -1, side, side)
    return resize(grid, out).flatten(2).transpose(1, 2)


# Geometry


def unproject(depth_mm: torch.Tensor, intrinsic: torch.Tensor, cam2world: torch.Tensor) -> torch.Tensor:
    """mm (V, H, W), (4, 4) and float32 (V, 4, 4) -> (V, H, W, 3), in float64 until the end."""
    z = depth_mm.double() / 1000
    v, u = torch.meshgrid(torch.arange(z.shape[1]), torch.arange(z.shape[2]), indexing="ij")
    x = (u - intrinsic[0, 2]) * z / intrinsic[0, 0]
    y = (v - intrinsic[1, 2]) * z / intrinsic[1, 1]
    points = torch.stack([x, y, z, torch.ones_like(z)], dim=-1)
    return torch.einsum("vab,vhwb->vhwa", cam2world.double(), points)[..., :3].float()


def average_cells(world: torch.Tensor, patch: int) -> torch.Tensor:
    """(V, S, S, 3) -> (V, g, g, 3): means over cells of the pixels that a vision patch covers."""
    used = world.shape[1] // patch * patch
    grid = (used // patch + 1) // 2
    cell = used // grid
    out = torch.zeros(len(world), grid, grid, 3)
    for row in range(grid):
        for column in range(grid):
            part = world[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            out[:, row, column] = part.double().mean(dim=(1, 2)).float()
    return out


def get_voxels(points: torch.Tensor, low: list[float], high: list[float], size: float) -> torch.Tensor:
    out = torch.zeros_like(points)
    for axis in range(3):
        out[..., axis] = (points[..., axis].clamp(low[axis], high[axis]) - low[axis]) / size
    return out.round()


def get_sinusoid(voxels: torch.Tensor, width: int) -> torch.Tensor:
    channels, share = [], width // 3
    for axis in range(3):
        for channel in range(share):
            angle = voxels[..., axis].double() / 10000 ** (2 * (channel // 2) / share)
            channels.append(angle.sin() if channel % 2 == 0 else angle.cos())
    channels += [torch.zeros_like(voxels[..., 0]).double()] * (width - 3 * share)
    return torch.stack(channels, dim=-1).float()


def assign(world: torch.Tensor, boxes: torch.Tensor, patch: int) -> torch.Tensor:
    """(K, V, p, p) uint8: patches with at least half of their points inside a box."""
    grid = world.shape[1] // patch
    out = torch.zeros(len(boxes), len(world), grid, grid, dtype=torch.uint8)
    for k, box in enumerate(boxes):
        low, high = box[:3] - box[3:] / 2, box[:3] + box[3:] / 2
        inside = ((world >= low) & (world <= high)).all(dim=-1)
        for row in range(grid):
            for column in range(grid):
                cell = inside[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                out[k, :, row, column] = cell.flatten(1).sum(dim=1) >= int(patch * patch * 0.5)
    return out


def pool_objects(projected: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """(K, D): mean of each object's patches, zeros without any."""
    out = []
    for member in patches.flatten(2).bool():
        chosen = projected[member]
        out.append(chosen.mean(dim=0) if len(chosen) else torch.zeros(projected.shape[-1]))
    return torch.stack(out)


# Language


def embed_row(
    weights: Weights,
    ids: list[int],
    slot: int,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    hidden: list[int],
    coord: tuple[int, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Embeddings (1, L, D) of a row whose one `slot` is filled by views: tokens and positions (V, g * g, D)."""
    side = math.isqrt(tokens.shape[1])
    image = []
    for view, (view_tokens, view_positions) in enumerate(zip(tokens, positions, strict=True)):
        for place, (token, position) in enumerate(zip(view_tokens.unbind(), view_positions.unbind(), strict=True)):
            image.append((weights["model.mask_token"] if view in hidden else token) + position)
            if place % side == side - 1:
                image.append(weights["model.image_newline"])
    vectors = weights["model.embed_tokens.weight"][[0 if token == slot else token for token in ids]]
    out = []
    for token, vector in zip(ids, vectors.unbind(), strict=True):
        if token == slot:
            out += image
        else:
            out.append(vector + coord[1] if coord is not None and token == coord[0] else vector)
    return torch.stack(out)[None]


def run_language(weights: Weights, model: torch.nn.Module, embeds: torch.Tensor):
    """The language model with the given weights: its output with all hidden states."""
    names = dict(model.named_parameters())
    return functional_call(
        model, {name: weights[name] for name in names}, (),
        {"inputs_embeds": embeds, "output_hidden_states": True, "use_cache": False},
    )  # fmt: skip


def compute_text_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    total, count = 0.0, 0
    for guess, target in zip(logits.log_softmax(dim=-1).unbind()[:-1], labels.tolist()[1:], strict=True):
        if target != -100:
            total, count = total - guess[target], count + 1
    return total / count


def run_grounding_mlp(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(linear(weights, f"{name}.0", x))
    x = norm(x, 1e-5) * weights[f"{name}.2.weight"] + weights[f"{name}.2.bias"]
    x = linear(weights, f"{name}.3", x)
    return x / x.norm(dim=-1, keepdim=True)


def compute_grounding_loss(scores: torch.Tensor, targets: list[int], temperature: float) -> torch.Tensor:
    exponentials = (scores / temperature).exp()
    return -(exponentials[targets or [-1]].sum() / exponentials.sum()).log()


# Denoising


def get_schedule(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Betas and cumulative alphas, float64."""
    betas, product, products = [], 1.0, []
    for t in range(steps):
        here, after = ((share / steps + 0.008) / 1.008 * math.pi / 2 for share in (t, t + 1))
        betas.append(min(1 - math.cos(after) ** 2 / math.cos(here) ** 2, 0.999))
        product *= 1 - betas[-1]
        products.append(product)
    return torch.tensor(betas, dtype=torch.float64), torch.tensor(products, dtype=torch.float64)


def pool_condition(weights: Weights, branch: str, states: torch.Tensor, heads: int) -> torch.Tensor:
    """States (S, D) -> (1, M, C)."""
    name = f"{HEAD}z_embedder_{branch}."
    x = linear(weights, f"{name}proj.1", F.silu(states))[None]
    keys, values = linear(weights, f"{name}k", x), linear(weights, f"{name}v", x)
    return linear(weights, f"{name}linear", attend(weights[f"{name}cls_token"], keys, values, heads))


def embed_timesteps(weights: Weights, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sinusoids (n, F) and embedding (n, C)."""
    kernel = weights[f"{HEAD}t_embedder.mlp.0.weight"]
    half = kernel.shape[1] // 2
    rows = []
    for t in timesteps.tolist():
        angles = [t * 10000 ** (-j / half) for j in range(half)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    frequencies = torch.tensor(rows, dtype=kernel.dtype)
    embedding = F.silu(linear(weights, f"{HEAD}t_embedder.mlp.0", frequencies))
    return frequencies, linear(weights, f"{HEAD}t_embedder.mlp.2", embedding)


def denoise(
    weights: Weights,
    branch: str,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    condition: torch.Tensor,
    depth: int,
    heads: int,
) -> torch.Tensor:
    """Predicted noise (n, Z, g, g) for one condition (1, M, C)."""
    kernel = weights[f"{HEAD}x_embedder_{branch}.proj.weight"][:, :, 0, 0]
    h = x.flatten(2).transpose(1, 2) @ kernel.T + weights[f"{HEAD}x_embedder_{branch}.proj.bias"]
    h = h + weights[f"{HEAD}pos_embed_{branch}"]
    c = F.silu(condition + embed_timesteps(weights, timesteps)[1][:, None])
    for block in range(depth):
        name = f"{HEAD}blocks.{block}."
        parts = linear(weights, f"{name}adaLN_modulation.1", c).chunk(6, dim=-1)
        a = norm(h, 1e-6) * (1 + parts[1]) + parts[0]
        a = attend(*linear(weights, f"{name}attn.qkv", a).chunk(3, dim=-1), heads)
        h = h + parts[2] * linear(weights, f"{name}attn.proj", a)
        m = norm(h, 1e-6) * (1 + parts[4]) + parts[3]
        m = linear(weights, f"{name}mlp.fc2", F.gelu(linear(weights, f"{name}mlp.fc1", m), approximate="tanh"))
        h = h + parts[5] * m
    shift, scale = linear(weights, f"{HEAD}final_layer.adaLN_modulation.1", c).chunk(2, dim=-1)
    out = linear(weights, f"{HEAD}final_layer.linear", norm(h, 1e-6) * (1 + scale) + shift)
    return out.transpose(1, 2).reshape(x.shape)


def fold(latents: torch.Tensor) -> torch.Tensor:
    """(n, z, 2g, 2g) -> (n, 4z, g, g), channels ordered (z, row, column)."""
    parts = [latents[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(parts, dim=2).flatten(1, 2)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, products: torch.Tensor):
    out = []
    for item, draw, t in zip(clean, noise, timesteps.tolist(), strict=True):
        out.append(float(products[t].sqrt()) * item + float((1 - products[t]).sqrt()) * draw)
    return torch.stack(out)


def list_kept_timesteps(num_timesteps: int, sections: list[int]) -> list[int]:
    """So many timesteps of each equal part of the schedule, its ends included; of one alone, the first."""
    kept = []
    for part, count in zip(np.array_split(np.arange(num_timesteps), len(sections)), sections, strict=True):
        stride, place = (len(part) - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            kept.append(int(part[round(place)]))
            place += stride
    return kept


def sample(
    predict, start: torch.Tensor, noises: torch.Tensor, kept: list[int], products: torch.Tensor, temperature: float
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Ancestral sampling with clipped x0 and the large variance: the samples, the x0 predictions, the betas."""
    products = products[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    betas = 1 - products / before
    x, samples, predictions = start.double(), [], []
    for call, i in enumerate(reversed(range(len(kept)))):
        eps = predict(x.float(), torch.full((len(x),), kept[i])).double()
        clean = (x / products[i].sqrt() - (1 / products[i] - 1).sqrt() * eps).clamp(-1, 1)
        mean = betas[i] * before[i].sqrt() / (1 - products[i]) * clean
        mean = mean + (1 - before[i]) * (1 - betas[i]).sqrt() / (1 - products[i]) * x
        x = mean if i == 0 else mean + betas[i].sqrt() * temperature * noises[call].double()
        samples.append(x.float())
        predictions.append(clean.float())
    return samples, predictions, betas
