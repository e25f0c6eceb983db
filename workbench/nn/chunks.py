"""Spikes compressed a chunk of time at a time, by attention.

    spikes of a chunk → unit vector, rotary time inside the chunk ─┐ (and one blank token)
    learned queries, spread over the chunk ────────────────────────┴→ cross-attention → latents of the chunk
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from workbench.batch import SpikeBatch
from workbench.nn.perceiver import CrossAttention, FeedForward
from workbench.nn.rotary import RotaryTime, rotate_


class ChunkAttention(nn.Module):
    """`latents` learned queries look at the spikes of each chunk, and at a blank token, which an empty chunk has alone.

    Attention is a mean and knows no numbers, so how many spikes there are is added, as their log times a direction.
    """

    def __init__(self, dim: int, latents: int, chunk: float, *, timed: bool, t_min: float, dropout: float,
                 head_dim: int = 32):
        super().__init__()
        self.chunk, self.timed = chunk, timed
        self.attention = CrossAttention(dim, max(dim // head_dim, 1), head_dim=head_dim, dropout=0.0)
        self.rotary = RotaryTime(head_dim // 4, t_min, 4 * chunk)
        self.queries, self.blank, self.many = (nn.Parameter(torch.randn(n, dim) * 0.02) for n in (latents, 1, 1))
        self.ffn = FeedForward(dim, dropout)

    def forward(self, batch: SpikeBatch, table: Tensor, rows: Tensor) -> Tensor:
        """Latents [B, C, L, dim] of the spikes; `rows` [U] of the table [R, dim]: the units of `window_units`."""
        chunks, spikes, own = batch.bins(self.chunk), batch.spikes(), self.attention
        chunk, unit = batch.spike_bins(self.chunk), rows[spikes.units]
        cell = spikes.windows * chunks + chunk                          # sorted, since spikes are in time order
        size = torch.bincount(cell, minlength=len(batch) * chunks)

        kv = own.to_kv(own.norm_context(torch.cat([table, self.blank]))).unflatten(-1, (2 * own.heads, -1))
        q = own.to_q(own.norm(self.queries)).unflatten(-1, (own.heads, -1))
        asked = self.rotary((torch.arange(len(q), device=q.device) + 0.5) * (self.chunk / len(q)))
        q = rotate_(q, asked[:, None]).transpose(0, 1)                                          # [heads, L, head]
        if self.timed:
            found = self.over_spikes(q, kv, unit, cell, size, spikes.times - chunk * self.chunk)
        else:
            found = self.over_units(q, kv, unit, cell, size)
        x = self.queries + own.to_out(found.transpose(1, 2).flatten(2)) + self.many * (size + 1.0).log()[:, None, None]
        return (x + self.ffn(x)).unflatten(0, (len(batch), chunks))

    def over_spikes(self, q: Tensor, kv: Tensor, unit: Tensor, cell: Tensor, size: Tensor, times: Tensor) -> Tensor:
        """Attention of q over the spikes of each of the cells, [cells, heads, L, head].

        kv [R + 1, 2 × heads, head] are the units' and the blank's, unit, cell and times [S] the spikes', size [cells].
        """
        column = torch.arange(len(cell), device=cell.device) - (size.cumsum(0) - size)[cell]
        which = cell.new_full((len(size), int(size.max()) + 1), len(kv) - 1)                # the row of the blank
        which[cell, column] = unit
        there = which < len(kv) - 1
        there[:, -1] = True                                             # one blank; the others are padding
        at = times.new_zeros(which.shape)
        at[cell, column] = times
        kv = rotate_(kv.index_select(0, which.flatten()), self.rotary(at.flatten())[:, None])
        k, v = kv.unflatten(0, which.shape).transpose(1, 2).chunk(2, dim=1)
        return scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=there[:, None, None])

    def over_units(self, q: Tensor, kv: Tensor, unit: Tensor, cell: Tensor, size: Tensor) -> Tensor:
        """The same where no time inside a chunk is known: k spikes of a unit are one token that counts k times."""
        counts = torch.bincount(cell * len(kv) + unit, minlength=len(size) * len(kv)).view(len(size), -1)
        counts = torch.cat([counts[:, :-1], torch.ones_like(counts[:, :1])], dim=1).to(kv)      # and one blank
        k, v = kv.transpose(0, 1).chunk(2)
        score = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5                                     # [heads, L, R + 1]
        weight = (score - score.detach().amax(2, keepdim=True)).exp()
        total = torch.einsum("cr,hlr->chl", counts, weight)
        return torch.einsum("cr,hlrd->chld", counts, weight[..., None] * v[:, None]) / total[..., None]
