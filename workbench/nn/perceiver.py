"""Attention over continuous time, and the gated feed-forward layer: what Perceivers over spikes are made of.

Structure as in torch_brain 0.2.1 (Apache-2.0): everything is normed first, queries, keys and values turn with their
times (nn/rotary.py), and answers are turned back, so that they hold times relative to each query.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from workbench.nn.rotary import rotate_, unrotate


class CrossAttention(nn.Module):
    """Queries look at a context; both are normed first. Rotary codes turn queries and keys."""

    def __init__(self, dim: int, heads: int, *, head_dim: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.norm_context = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)

    def packed(self, queries: Tensor, query_turn: Tensor, table: Tensor, rows: Tensor, turn: Tensor,
               sizes: list[int]) -> Tensor:
        """The same queries [L, D] for every window, over table[rows], packed, `sizes` tokens a window → [B, L, D].

        Values turn too, and the answer is turned back, so that it holds times relative to each query. Keys and values
        are projected once a row of the table. One attention a window: on CPUs faster than padding with a mask.
        """
        q = rotate_(self.to_q(self.norm(queries)).unflatten(-1, (self.heads, -1)), query_turn[:, None])
        kv = self.to_kv(self.norm_context(table)).index_select(0, rows)
        kv = rotate_(kv.unflatten(-1, (2 * self.heads, -1)), turn[:, None])
        q, dropout = q.transpose(0, 1)[None], self.dropout if self.training else 0.0
        # Split, not sliced: the gradient of a split is one concatenation, of a slice a whole table of zeros.
        windows = (window.transpose(0, 1)[None].chunk(2, dim=1) for window in kv.split(sizes))
        seen = torch.cat([scaled_dot_product_attention(q, k, v, dropout_p=dropout) for k, v in windows])
        seen = unrotate(seen.transpose(1, 2), query_turn[:, None])
        return self.to_out(seen.flatten(-2))

    def forward(self, queries: Tensor, query_turn: Tensor, context: Tensor, turn: Tensor) -> Tensor:
        """One query content a window [B, D], asked at times query_turn [B, Q, pairs], over [B, L, D] → [B, Q, D]."""
        q = self.to_q(self.norm(queries)).unflatten(-1, (self.heads, -1))
        q = rotate_(q[:, None].repeat(1, query_turn.shape[1], 1, 1), query_turn[:, :, None])
        k, v = self.to_kv(self.norm_context(context)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k = rotate_(k.contiguous(), turn[:, None])
        seen = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                            dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(seen.transpose(1, 2).flatten(-2))


class SelfAttention(nn.Module):
    """Latents look at each other; queries, keys and values turn, and the answer is turned back."""

    def __init__(self, dim: int, heads: int, *, head_dim: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """x [B, L, D] at times turn [L, pairs] → [B, L, D]."""
        qkv = rotate_(self.to_qkv(self.norm(x)).unflatten(-1, (3 * self.heads, -1)), turn[:, None])
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)
        seen = scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        seen = unrotate(seen.transpose(1, 2), turn[:, None])
        return self.to_out(seen.flatten(-2))


class FeedForward(nn.Module):
    """Gated feed-forward layer (GEGLU, Shazeer 2020, arXiv 2002.05202), normed first."""

    def __init__(self, dim: int, dropout: float, mult: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 2 * mult * dim), nn.Linear(mult * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(self.dropout(x * gelu(gate)))
