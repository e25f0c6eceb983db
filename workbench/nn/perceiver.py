"""Attention over continuous time, and the gated feed-forward layer: what Perceivers over spikes are made of.

Structure as in torch_brain 0.2.1 (Apache-2.0): everything is normed first, queries, keys and values turn with their
times (nn/rotary.py), and answers are turned back, so that they hold times relative to each query.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from workbench.nn.rotary import RotaryTime, rotate_, unrotate


def in_pieces(layer: Callable[[Tensor], Tensor], x: Tensor, windows: int = 4) -> Tensor:
    """layer(x [B, …]), without gradients on a CPU a few windows at a time.

    Temporaries that fit the cache are used again; for large ones the system hands out, and clears, fresh memory at
    every operation, which took longer than the sums.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return layer(x)
    return torch.cat([layer(piece) for piece in x.split(windows)])


class Tokens(NamedTuple):
    """Packed tokens: rows [S] of a table, times [S] in seconds, sizes [B] of each window's share."""

    rows: Tensor
    times: Tensor
    sizes: list[int]


def keys_and_values(table: Tensor, tokens: Tokens, rotary: RotaryTime) -> Iterator[Tensor]:
    """Each window's keys and values [S_b, 2 × heads, head], turned by their times; table [R, 2 × heads, head]."""
    # One gather has one gradient; without gradients, small pieces (see in_pieces).
    pieces = [len(tokens.rows)] if torch.is_grad_enabled() else tokens.sizes
    for rows, times in zip(tokens.rows.split(pieces), tokens.times.split(pieces), strict=True):
        kv = rotate_(table.index_select(0, rows), rotary(times)[:, None])
        # Split, not sliced: the gradient of a split is one concatenation, of a slice a whole table of zeros.
        yield from kv.split(tokens.sizes) if torch.is_grad_enabled() else (kv,)


def attend(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [1, heads, L, head] of q over packed keys and values, and the logarithm of its denominators [.., 1]."""
    if not len(kv):                                                     # on which torch's kernel would crash
        return torch.zeros_like(q), q.new_full((*q.shape[:-1], 1), -1e30)
    seen, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, *kv.transpose(0, 1)[None].chunk(2, dim=1))
    return seen, log_sum[..., None]


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The attention over both sets of tokens, from the attention over each: exact, for softmax is a ratio of sums."""
    return torch.lerp(other[0], one[0], (one[1] - other[1]).sigmoid())


class CrossAttention(nn.Module):
    """Queries look at a context; both are normed first. Rotary codes turn queries and keys."""

    def __init__(self, dim: int, heads: int, *, head_dim: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.norm_context = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)

    def packed(self, queries: Tensor, query_turn: Tensor, table: Tensor, own: Tokens, common: Tokens,
               group: list[int], rotary: RotaryTime) -> Tensor:
        """The same queries [L, D] for every window, over tokens that are rows of a table [R, D] → [B, L, D].

        own: each window's; common: those that windows share; group [B]: which of the common ones a window has.
        Values turn too, and the answer is turned back, so that it holds times relative to each query. Keys and values
        are projected once a row of the table. One attention a window: on CPUs faster than padding with a mask.
        """
        q = rotate_(self.to_q(self.norm(queries)).unflatten(-1, (self.heads, -1)), query_turn[:, None])
        q, table = q.transpose(0, 1)[None], self.to_kv(self.norm_context(table)).unflatten(-1, (2 * self.heads, -1))
        own, shared = keys_and_values(table, own, rotary), list(keys_and_values(table, common, rotary))
        if torch.is_grad_enabled() or q.device.type != "cpu":
            dropout = self.dropout if self.training else 0.0
            both = (torch.cat([kv, shared[g]]).transpose(0, 1)[None] for kv, g in zip(own, group, strict=True))
            seen = torch.cat([scaled_dot_product_attention(q, *kv.chunk(2, dim=1), dropout_p=dropout) for kv in both])
        else:
            known = [attend(q, kv) for kv in shared]
            seen = torch.cat([merged(attend(q, kv), known[g]) for kv, g in zip(own, group, strict=True)])
        seen = unrotate(seen.transpose(1, 2), query_turn[:, None])
        return self.to_out(seen.flatten(-2))

    def forward(self, queries: Tensor, query_turn: Tensor, context: Tensor, turn: Tensor,
                bias: Tensor | None = None) -> Tensor:
        """Queries [B, Q, D], or one content a window [B, D], asked at times query_turn [B, Q, pairs], over a context
        [B, L, D] at times turn [(B,) L, pairs] → [B, Q, D]. bias: added to the scores [(B, heads,) Q, L].
        """
        q = self.to_q(self.norm(queries)).unflatten(-1, (self.heads, -1))
        q = q if q.ndim == 4 else q[:, None].repeat(1, query_turn.shape[1], 1, 1)
        q = rotate_(q, query_turn[:, :, None])
        k, v = self.to_kv(self.norm_context(context)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k = rotate_(k.contiguous(), turn[:, None])
        seen = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias,
                                            dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(seen.transpose(1, 2).flatten(-2))


class SelfAttention(nn.Module):
    """Latents look at each other; queries, keys and values turn, and the answer is turned back."""

    compiles = True

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

    compiles = True

    def __init__(self, dim: int, dropout: float, mult: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 2 * mult * dim), nn.Linear(mult * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(self.dropout(x * gelu(gate)))
