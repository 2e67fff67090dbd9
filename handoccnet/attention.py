"""The two transformers of HandOccNet on tokens (B, N, C), N = rows x columns in row-major order.

FIT (feature injecting): what is hidden, the query, collects from what is seen, the key. SET (self-enhancing): a map
looks at itself. In both, keys and values come from the *input* map in both layers; only the query is refined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, N, C) queries, keys and values in ``heads`` groups of channels; (B, N, C).

    Through ``scaled_dot_product_attention``: the (B, heads, N, N) map never exists in memory.
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def injection_gate(query: Tensor, key_sum: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """FIT's "sigmoid attention", which is one number per query and head: sigmoid of q2 . sum_j k2_j / sqrt(d).

    The sum over keys is taken first, and q2 = W query + b is never formed: its product with a fixed vector per head is
    a product of ``query`` with W^T times that vector.

    Args:
        query: (B, N, C) with its embedding.
        key_sum: (B, C) sum of the projected keys k2.
        weight, bias: (C, C) and (C,) of the projection q2.
        heads: groups of channels.

    Returns:
        (B, N, heads) in 0..1.
    """
    batch, channels = key_sum.shape
    size = channels // heads
    sums = key_sum.view(batch, heads, size)
    vectors = torch.einsum("bhd,hdc->bch", sums, weight.view(heads, size, channels))
    offset = torch.einsum("bhd,hd->bh", sums, bias.view(heads, size))
    return torch.sigmoid((query @ vectors + offset[:, None]) * size**-0.5)


class AttentionLayer(nn.Module):
    """One layer of FIT (``gated``: gate, and no query added back) or SET.

    Args:
        channels, tokens, heads: sizes; channels divisible by heads.
        gated: FIT's form.
    """

    def __init__(self, channels: int, tokens: int, heads: int, *, gated: bool) -> None:
        super().__init__()
        self.heads, self.gated = heads, gated
        self.query_embedding = nn.Parameter(torch.randn(tokens, channels))
        self.key_embedding = nn.Parameter(torch.randn(tokens, channels))
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)  # its bias shifts all logits of a row and changes nothing
        self.value = nn.Linear(channels, channels)
        if gated:
            self.gate_query = nn.Linear(channels, channels)
            self.gate_key = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def gate(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, N, heads) of a query and a key map with their embeddings, in float32: the logits reach hundreds."""
        with torch.autocast(query.device.type, enabled=False):
            tokens = key.shape[1]
            mean = key.float().mean(1)
            key_sum = tokens * F.linear(mean, self.gate_key.weight.float(), self.gate_key.bias.float())
            weight, bias = self.gate_query.weight.float(), self.gate_query.bias.float()
            return injection_gate(query.float(), key_sum, weight, bias, self.heads)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, N, C) from a query map and a key map, both (B, N, C)."""
        placed, keyed = query + self.query_embedding, key + self.key_embedding
        out = attend(self.query(placed), self.key(keyed), self.value(key), self.heads)
        if self.gated:
            gate = self.gate(placed, keyed).to(out.dtype)
            out = (out.reshape(*gate.shape, -1) * gate[..., None]).flatten(2)
        else:
            out = query + out
        hidden = F.gelu(self.fc1(self.norm(out)))  # exact GELU
        refined: Tensor = out + self.fc2(hidden)
        return refined


class Transformer(nn.Module):
    """Layers that refine a query against one and the same key map: SET as it is, FIT with ``gated``."""

    def __init__(self, channels: int, tokens: int, heads: int, layers: int = 2, *, gated: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionLayer(channels, tokens, heads, gated=gated) for _ in range(layers))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, N, C)."""
        for layer in self.layers:
            query = layer(query, key)
        return query


class Injection(nn.Module):
    """FIT: the secondary map asks the primary map, and a convolutional tail merges the answer with the primary map."""

    def __init__(self, channels: int, size: int, heads: int) -> None:
        super().__init__()
        self.transformer = Transformer(channels, size * size, heads, gated=True)
        self.merge1 = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.merge2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, C, H, W) from the secondary and the primary map, both (B, C, H, W)."""
        answer = self.transformer(to_tokens(query), to_tokens(key))
        x = torch.cat((key, to_map(answer, key.shape[-1])), 1)
        merged: Tensor = self.merge2(F.relu(self.merge1(x), inplace=True)) + self.skip(x)
        return merged


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C); no copy where the channels are last in memory."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, width: int) -> Tensor:
    """(B, H W, C) as (B, C, H, W), channels last in memory."""
    return tokens.reshape(tokens.shape[0], -1, width, tokens.shape[2]).permute(0, 3, 1, 2)
