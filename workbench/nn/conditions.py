"""What is known beside spikes, each kind of it a modality of its own: cross-attention from bins to its samples.

    samples of a condition, by bin → MLP → tokens at their times ─┐ (and a blank token, for what is withheld)
    queries, one a bin ───────────────────────────────────────────┴→ attention, values turned
    Σ over conditions → feed-forward
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from workbench.nn.near import near
from workbench.nn.perceiver import FeedForward
from workbench.nn.rotary import RotaryTime, rotate_, unrotate


class Samples(NamedTuple):
    """A condition by bin: values [B, L, D]; times [B, L] seconds; there [B, L], whether the bin has a sample."""

    values: Tensor
    times: Tensor
    there: Tensor


class Condition(nn.Module):
    """One condition's tokens, and how bins ask them."""

    def __init__(self, columns: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.embed = nn.Sequential(nn.Linear(columns, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.blank, self.query = (nn.Parameter(torch.randn(1, width) * 0.02) for _ in range(2))
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        nn.init.normal_(self.to_out.weight, std=1e-3)                   # next to nothing is said before it is learned
        nn.init.zeros_(self.to_out.bias)

    def forward(self, at: Tensor, bins: Tensor, samples: Samples, shown: Tensor, rotary: RotaryTime,
                pace: Tensor) -> tuple[Tensor, Tensor]:
        """Answers [B, Q, width] for bins at `at` [Q] s, turned by bins [Q, pairs], and how much each asked the samples,
        not the blank [B, Q]. shown [B]: windows that are told.
        """
        tokens = torch.cat([self.embed(samples.values), self.blank.expand(len(samples.values), 1, -1)], dim=1)
        k, v = self.to_kv(tokens).unflatten(-1, (2, self.heads, -1)).unbind(2)
        turn = rotary(pad(samples.times, (0, 1)))[:, :, None]
        q = rotate_(self.to_q(self.query.expand(len(bins), -1)).unflatten(-1, (self.heads, -1)), bins[:, None])
        k, v = rotate_(k.contiguous(), turn), rotate_(v.contiguous(), turn)
        bias = near(pace, at, samples.times).masked_fill(~(samples.there & shown[:, None])[:, None, None], -torch.inf)
        bias = pad(bias, (0, 1))                                        # the blank is near to everything
        q, k, v = q.transpose(0, 1).expand(len(tokens), -1, -1, -1), k.transpose(1, 2), v.transpose(1, 2)
        seen = unrotate(scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2), bins[:, None])
        with torch.no_grad():
            weight = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias).softmax(-1)[..., :-1].sum(-1).mean(1)
        return self.to_out(seen.flatten(-2)), weight


class Conditions(nn.Module):
    """All conditions of a model, in order: columns of each."""

    def __init__(self, columns: Mapping[str, int], width: int, heads: int, dropout: float):
        super().__init__()
        self.each = nn.ModuleList(Condition(n, width, heads) for n in columns.values())
        self.ffn = FeedForward(width, dropout)
        nn.init.normal_(self.ffn.down.weight, std=1e-3)

    def forward(self, at: Tensor, samples: list[Samples], shown: Tensor, rotary: RotaryTime,
                pace: Tensor) -> tuple[Tensor, Tensor]:
        """What the conditions say of bins at `at` [Q] s [B, Q, width], and how much each was asked [B, Q, conditions].

        shown [B, conditions]: which windows are told which.
        """
        bins = rotary(at)
        found = [one(at, bins, each, told, rotary, pace)
                 for one, each, told in zip(self.each, samples, shown.unbind(1), strict=True)]
        if not found:
            return at.new_zeros(len(shown), len(at), self.ffn.down.out_features), at.new_zeros(len(shown), len(at), 0)
        total = sum(answer for answer, _ in found)
        return total + self.ffn(total), torch.stack([weight for _, weight in found], dim=2)
