"""Both picture towers by their definitions, in torch: what the product's are measured against, and what they are not.

In: tensors by the names of the original checkpoints, pixels, a VisionSpec. Out: rows, in the precision of the tensors.
Written from descriptions of the models, with convolutions, grids and patches row by row, where the product has
reshapes and patches in blocks. `mistake` names one thing that a wrong reading does otherwise: a test that cannot tell
it from the right one proves nothing about it.

Sources: visual.py of THUDM/glm-4v-9b, and modeling_glm4v.py of huggingface/transformers 4.57.6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from edge.runtime.vision.spec import VisionSpec
from tests.vision_tensors import EVA, GLM4V, Tensors

EVA_MISTAKES = (
    "a causal mask",
    "q, k and v of each head together",
    "silu of the other half",
    "the last row dropped and not the first",
    "the grid by columns",
    "ends not divided",
    "norms before sublayers",
    "GELU by tanh in the adapter",
    "the layers' eps in the adapter",
    "the adapter's eps in the layers",
)
GLM4V_MISTAKES = (
    "a causal mask",
    "columns turned before rows",
    "pairs turned and not halves",
    "merged row by row of channels",
    "places with corners aligned",
    "places before the norm of patches",
    "norms after sublayers",
    "no last norm",
    "GELU by tanh in the adapter",
    "silu of the other half",
    "eps of 1e-6 in the norms of layers",
    "eps of 1e-6 in the adapter",
)


def pixels_of(rows: int, columns: int, spec: VisionSpec, seed: int = 1) -> torch.Tensor:
    """(3, height, width) normalized pixels of a picture of rows x columns patches, in float64."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, rows * spec.patch_size, columns * spec.patch_size, generator=random, dtype=torch.float64)


def eva_rows(w: Tensors, pixels: torch.Tensor, spec: VisionSpec, mistake: str = "") -> torch.Tensor:
    """(m, out_size): the learned first row, a row for each 2 x 2 patches, the learned last row."""
    assert mistake in ("", *EVA_MISTAKES)

    def get(name: str) -> torch.Tensor:
        return w[EVA + name]

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        eps = spec.merger_eps if mistake == "the adapter's eps in the layers" else spec.norm_eps
        return F.layer_norm(y, y.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), eps)

    def linear(y: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(y, get(f"{name}.weight"), get(f"{name}.bias"))

    dtype = get("boi").dtype
    x = F.conv2d(
        pixels[None].to(dtype), get("patch_embedding.proj.weight"), get("patch_embedding.proj.bias"), spec.patch_size
    )
    _, _, grid_rows, grid_columns = x.shape
    x = torch.cat([get("patch_embedding.cls_embedding"), x[0].flatten(1).T]) + get(
        "patch_embedding.position_embedding.weight"
    )
    for index in range(spec.num_layers):
        prefix = f"transformer.layers.{index}."

        def attended(y: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            qkv = linear(y, f"{prefix}attention.query_key_value")
            if mistake == "q, k and v of each head together":
                q, k, v = qkv.unflatten(-1, (spec.num_heads, 3, spec.head_dim)).permute(2, 1, 0, 3)
            else:
                q, k, v = qkv.unflatten(-1, (3, spec.num_heads, spec.head_dim)).permute(1, 2, 0, 3)
            return linear(_attended(q, k, v, causal=mistake == "a causal mask"), f"{prefix}attention.dense")

        def through(y: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            return linear(F.gelu(linear(y, f"{prefix}mlp.fc1")), f"{prefix}mlp.fc2")

        if mistake == "norms before sublayers":
            x = x + attended(normed(x, f"{prefix}input_layernorm"))
            x = x + through(normed(x, f"{prefix}post_attention_layernorm"))
        else:
            x = x + normed(attended(x), f"{prefix}input_layernorm")
            x = x + normed(through(x), f"{prefix}post_attention_layernorm")
    x = x[:-1] if mistake == "the last row dropped and not the first" else x[1:]
    grid = x.T.unflatten(-1, (grid_rows, grid_columns))
    if mistake == "the grid by columns":
        grid = grid.transpose(1, 2)
    x = F.conv2d(grid[None], get("conv.weight"), get("conv.bias"), spec.merge_size)[0].flatten(1).T
    eps = spec.norm_eps if mistake == "the layers' eps in the adapter" else spec.merger_eps
    x = F.linear(x, get("linear_proj.linear_proj.weight"))
    x = F.layer_norm(x, x.shape[-1:], get("linear_proj.norm1.weight"), get("linear_proj.norm1.bias"), eps)
    x = F.gelu(x, approximate="tanh" if mistake == "GELU by tanh in the adapter" else "none")
    gate, up = (F.linear(x, get(f"linear_proj.{name}.weight")) for name in ("gate_proj", "dense_h_to_4h"))
    if mistake == "silu of the other half":
        gate, up = up, gate
    x = F.linear(F.silu(gate) * up, get("linear_proj.dense_4h_to_h.weight"))
    begin, end = get("boi")[0], get("eoi")[0]
    if mistake == "ends not divided":
        return torch.cat([begin, x / spec.scale, end])
    return torch.cat([begin, x, end]) / spec.scale


def glm4v_rows(w: Tensors, pixels: torch.Tensor, spec: VisionSpec, mistake: str = "") -> torch.Tensor:
    """(m, out_size): a row for each 2 x 2 patches."""
    assert mistake in ("", *GLM4V_MISTAKES)

    def get(name: str) -> torch.Tensor:
        return w[GLM4V + name]

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        eps = 1e-6 if mistake == "eps of 1e-6 in the norms of layers" else spec.norm_eps
        return y / torch.sqrt(y.square().mean(-1, keepdim=True) + eps) * get(f"{name}.weight")

    dtype = get("downsample.bias").dtype
    frames = pixels.to(dtype)[:, None].expand(-1, spec.frames, -1, -1)[None]
    kernel = get("patch_embed.proj.weight")
    x = F.conv3d(frames, kernel, get("patch_embed.proj.bias"), kernel.shape[2:])[0, :, 0]  # (h, rows, columns)
    _, rows, columns = x.shape
    x = x.flatten(1).T
    shares = places_of(rows, columns, spec.side, align_corners=mistake == "places with corners aligned").to(dtype)
    places = shares @ get("embeddings.position_embedding.weight")
    if mistake == "places before the norm of patches":
        x = normed(x + places, "post_conv_layernorm")
    else:
        x = normed(x, "post_conv_layernorm") + places
    cos, sin = turns_of(rows, columns, spec, columns_first=mistake == "columns turned before rows")
    for index in range(spec.num_layers):
        prefix = f"blocks.{index}."

        def attended(y: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            qkv = F.linear(y, get(f"{prefix}attn.qkv.weight"))
            q, k, v = qkv.unflatten(-1, (3, spec.num_heads, spec.head_dim)).permute(1, 2, 0, 3)
            pairs = mistake == "pairs turned and not halves"
            q, k = (_turned(t, cos.to(dtype), sin.to(dtype), pairs=pairs) for t in (q, k))
            return F.linear(_attended(q, k, v, causal=mistake == "a causal mask"), get(f"{prefix}attn.proj.weight"))

        def through(y: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            gate, up = (F.linear(y, get(f"{prefix}mlp.{name}_proj.weight")) for name in ("gate", "up"))
            return F.linear(F.silu(gate) * up, get(f"{prefix}mlp.down_proj.weight"))

        if mistake == "norms after sublayers":
            x = x + normed(attended(x), f"{prefix}norm1")
            x = x + normed(through(x), f"{prefix}norm2")
        else:
            x = x + attended(normed(x, f"{prefix}norm1"))
            x = x + through(normed(x, f"{prefix}norm2"))
    if mistake != "no last norm":
        x = normed(x, "post_layernorm")
    kernel = get("downsample.weight")
    if mistake == "merged row by row of channels":
        kernel = kernel.flatten(1).unflatten(1, (2, 2, -1)).permute(0, 3, 1, 2)
    x = (
        F.conv2d(x.T.unflatten(-1, (rows, columns))[None], kernel, get("downsample.bias"), spec.merge_size)[0]
        .flatten(1)
        .T
    )
    x = F.linear(x, get("merger.proj.weight"))
    norm, eps = "merger.post_projection_norm", 1e-6 if mistake == "eps of 1e-6 in the adapter" else spec.merger_eps
    x = F.layer_norm(x, x.shape[-1:], get(f"{norm}.weight"), get(f"{norm}.bias"), eps)
    x = F.gelu(x, approximate="tanh" if mistake == "GELU by tanh in the adapter" else "none")
    gate, up = (F.linear(x, get(f"merger.{name}_proj.weight")) for name in ("gate", "up"))
    if mistake == "silu of the other half":
        gate, up = up, gate
    return F.linear(F.silu(gate) * up, get("merger.down_proj.weight"))


def places_of(rows: int, columns: int, side: int, *, align_corners: bool = False) -> torch.Tensor:
    """(rows * columns, side * side): shares of the learned places in each patch's, row by row, in float64."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    at = torch.stack([(x + 0.5) / columns * 2 - 1, (y + 0.5) / rows * 2 - 1], -1)[None].double()
    every = torch.eye(side**2, dtype=torch.float64).unflatten(1, (side, side))[None]
    found: torch.Tensor = F.grid_sample(every, at, mode="bicubic", padding_mode="border", align_corners=align_corners)
    return found[0].flatten(1).T


def turns_of(
    rows: int, columns: int, spec: VisionSpec, *, columns_first: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (rows * columns, head_dim / 2) of each patch's row, then of its column, row by row, in float64."""
    inverse = 10000.0 ** -(torch.arange(0, spec.head_dim // 2, 2, dtype=torch.float64) / (spec.head_dim // 2))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    first, second = (x, y) if columns_first else (y, x)
    angles = torch.cat([first.flatten()[:, None] * inverse, second.flatten()[:, None] * inverse], -1)
    return angles.cos(), angles.sin()


def in_blocks(by_row: torch.Tensor, rows: int, columns: int, size: int = 2) -> torch.Tensor:
    """(rows * columns, ...) row by row -> the same by blocks of size x size, which is the order of a tower's inputs."""
    grid = by_row.unflatten(0, (rows // size, size, columns // size, size))
    blocks: torch.Tensor = grid.transpose(1, 2).flatten(0, 3)
    return blocks


def inputs_of(pixels: torch.Tensor, spec: VisionSpec) -> dict[str, npt.NDArray[Any]]:
    """A tower's inputs, made another way than the product makes them."""
    p = spec.patch_size
    rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
    patches = F.unfold(pixels[None], p, stride=p)[0].T.unflatten(1, (3, 1, p * p)).expand(-1, -1, spec.frames, -1)
    values = {"patches": patches.flatten(1).float()}
    if spec.kind == "eva":
        values["places"] = torch.arange(1, rows * columns + 1)
    else:
        values["places"] = places_of(rows, columns, spec.side).float()
        values["cos"], values["sin"] = (t.float() for t in turns_of(rows, columns, spec))
    return {name: np.ascontiguousarray(in_blocks(t, rows, columns).numpy()) for name, t in values.items()}


def _attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """(heads, n, head_dim) each -> (n, h)."""
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, pairs: bool) -> torch.Tensor:
    """(heads, n, head_dim), dim i against dim i + head_dim / 2."""
    if pairs:
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
