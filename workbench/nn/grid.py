"""Log rates on the grid of units × bins: two ways to read them off latents, and what a unit's own counts add.

    factorised   each bin reads the latents once, whatever the number of units: ⟨unit, time⟩
    queries      each unit in each bin reads them for itself; a hundred times the cost, trained on a sample of entries
    own          the unit's visible counts around the bin
"""

import torch
from torch import Tensor, nn

from workbench.nn.perceiver import CrossAttention, FeedForward

PIECE = 2 ** 15                                                         # queries answered at once, for memory


class Factorised(nn.Module):
    """Each bin reads the latents once, whatever the number of units; a unit is a direction in what it finds."""

    def __init__(self, dim: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width) * 0.02)
        self.read = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0)
        self.ffn, self.norm, self.dropout = FeedForward(width, dropout), nn.LayerNorm(width), nn.Dropout(dropout)
        self.unit_norm, self.direction = nn.LayerNorm(dim), nn.Linear(dim, width)

    def known(self, units: Tensor) -> Tensor:
        """What it takes of units' vectors [..., dim]: their directions [..., width]."""
        return self.direction(self.unit_norm(units))

    def forward(self, latents: Tensor, known: Tensor, turn: Tensor, bins: Tensor, near: Tensor) -> Tensor:
        """latents [B, M, width] at turn [M, pairs], known [B or 1, N, width], bins [T, pairs], near [heads, T, M]
        → [B, N, T].
        """
        times = self.dropout(self.times(latents, turn, bins, near))
        return known @ times.transpose(1, 2) * times.shape[-1] ** -0.5

    def times(self, latents: Tensor, turn: Tensor, bins: Tensor, near: Tensor) -> Tensor:
        """What each bin is like [B, T, width]."""
        found = self.read(self.query.expand(len(latents), -1), bins.expand(len(latents), -1, -1), latents, turn, near)
        return self.norm(self.query + found + self.ffn(self.query + found))


class Queries(nn.Module):
    """Each unit in each bin reads the latents for itself."""

    def __init__(self, dim: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.unit = nn.Linear(dim, width)
        self.read = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0)
        self.ffn, self.norm, self.out = FeedForward(width, dropout), nn.LayerNorm(width), nn.Linear(width, 1)

    def known(self, units: Tensor) -> Tensor:
        """What it takes of units' vectors [..., dim]: what they ask by [..., width]."""
        return self.unit(units)

    def forward(self, latents: Tensor, known: Tensor, turn: Tensor, bins: Tensor, near: Tensor) -> Tensor:
        """latents [B, M, width] at turn [M, pairs], known [B or 1, N, width], bins [T, pairs], near [heads, T, M]
        → [B, N, T].
        """
        windows, size = len(latents), len(bins)
        known = known.expand(windows, -1, -1)
        some = max(PIECE // (windows * size), 1)                        # units at once
        asked = lambda rows: self.ask(latents, rows.repeat_interleave(size, 1), turn,
                                      bins.repeat(rows.shape[1], 1).expand(windows, -1, -1),
                                      near.repeat(1, rows.shape[1], 1))
        return torch.cat([asked(rows).unflatten(1, (-1, size)) for rows in known.split(some, dim=1)], dim=1)

    def ask(self, latents: Tensor, known: Tensor, turn: Tensor, bins: Tensor, near: Tensor) -> Tensor:
        """known [B, Q, width], of a unit each, in bins [B, Q, pairs], near [(B,) heads, Q, M] → [B, Q]."""
        x = known + self.read(known, bins, latents, turn, near)
        return self.out(self.norm(x + self.ffn(x)))[..., 0]


DECODERS = {"factorised": Factorised, "queries": Queries}


class OwnActivity(nn.Module):
    """What a unit's visible counts around a bin say of it: the log of what it fired there over what it fires on
    average, a spike added to either, for several widths of the look around, each with a weight of the unit's.
    """

    WIDTHS = (0.03, 0.1, 0.3, 1.0)                                      # seconds

    def __init__(self, dim: int, bin_size: float):
        super().__init__()
        self.bin_size = bin_size
        self.norm, self.weigh = nn.LayerNorm(dim), nn.Linear(dim, len(self.WIDTHS))

    def known(self, units: Tensor) -> Tensor:
        """What it takes of units' vectors [..., dim]: their weights [..., widths]."""
        return self.weigh(self.norm(units))

    def forward(self, counts: Tensor, visible: Tensor, level: Tensor, known: Tensor) -> Tensor:
        """counts and visible [B, N, T], level [B or 1, N, 1] log mean counts, known [B or 1, N, widths] → [B, N, T]."""
        return (self.ratios(counts, visible, level) @ known[..., None])[..., 0]

    def ratios(self, counts: Tensor, visible: Tensor, level: Tensor) -> Tensor:
        """What the counts around say, before a unit weighs it [B, N, T, widths]."""
        bins = torch.arange(counts.shape[2], device=counts.device) * self.bin_size
        far, mean = (bins - bins[:, None]).abs(), level.detach().exp()
        counts, expected = counts.masked_fill(~visible, 0), mean * visible
        kernels = torch.stack([(-far / max(width, self.bin_size)).exp() for width in self.WIDTHS], dim=2).flatten(1)
        return ((counts @ kernels + 1) / (expected @ kernels + 1)).log().unflatten(2, (counts.shape[2], -1))
