"""NuCLR, a vector for every neuron, learnt by recognising it in another stretch of the same recording.

Arora et al. 2025, "Know Thyself by Knowing Others: Learning Neuron Identity from Population Context",
arXiv 2512.01199; structure as in nerdslab/nuclr (Apache-2.0).

    counts of a neuron over one view → patches of `patch` s → linear → tokens [N, L, D], nothing else tells who is who
    → `temporal` blocks: a neuron over its patches, rotary time
    → `spatial` blocks: the neurons of one patch, in no order, then each neuron over its patches
    → mean over patches → vectors [N, D]

The two views are the halves of one window: stretches that follow each other (theirs lie up to 30 s apart). Training
keeps a random part of the neurons of each view; those silent in a view are not seen by the others. The loss compares
the neurons of one window only: two views of one neuron attract, those of two neurons repel.

Departs from the authors' code: similarities to neurons of the same view are divided by the temperature like all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import decoupled_contrast
from workbench.models.base import Output, SpikeModel
from workbench.nn.perceiver import FeedForward, SelfAttention
from workbench.nn.rotary import RotaryTime
from workbench.nn.transformer import Attention
from workbench.session import Session


class NuCLR(SpikeModel):
    """bin_size, patch and view in seconds; a window holds two views. keep: the smallest share of a view's neurons."""

    name = "nuclr"
    embeds = True
    takes = "neurons"

    def __init__(self, *, bin_size: float = 0.02, patch: float = 1.0, view: float = 10.0, dim: int = 256,
                 heads: int = 4, temporal: int = 2, spatial: int = 2, dropout: float = 0.2, keep: float = 0.5,
                 temperature: float = 0.2, project: int = 256):
        super().__init__()
        bins, patches = round(patch / bin_size), round(view / patch)
        if abs(bins * bin_size - patch) > 1e-6 or abs(patches * patch - view) > 1e-6:
            raise WorkbenchError(f"views of {view:g} s do not hold a whole number of patches of {patch:g} s of bins of "
                                 f"{bin_size:g} s; choose bin_size, patch and view that divide each other")
        self.window, self.keep, self.temperature = 2 * view, keep, temperature
        self.patch, self.patch_bins, self.patches = patch, bins, patches
        self.read_in = nn.Linear(bins, dim)
        self.rotary = RotaryTime(dim // heads // 4, 1, 8 * patches)     # half of every head turns; times count patches
        self.temporal = nn.ModuleList(Temporal(dim, heads, dropout) for _ in range(temporal))
        self.spatial = nn.ModuleList(SpatioTemporal(dim, heads, dropout) for _ in range(spatial))
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, project), nn.ReLU(), nn.Linear(project, project))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], **settings) -> NuCLR:
        """A model for any session: nothing of these is stored, since a neuron is known by its activity alone."""
        return cls(**settings)

    def forward(self, batch: SpikeBatch) -> Output:
        """The vectors of the window's neurons [B, N, D], as latents: the mean of the views in which a neuron fires.

        Columns as in `batch.counts`; zeros for a neuron that is silent throughout.
        """
        views = self.views(batch)
        fires = views.any((-1, -2))
        vectors = self.encode(views, fires) * fires[..., None]
        return Output(latents=vectors.sum(1) / fires.sum(1).clamp(min=1)[..., None])

    def views(self, batch: SpikeBatch) -> Tensor:
        """The counts of both views, in patches [B, 2, N, L, bins]."""
        if abs(batch.duration - self.window) > 1e-6:
            raise WorkbenchError(f"NuCLR was built for windows of {self.window:g} s, two views, and was given "
                                 f"{batch.duration:g} s; build it with view=, or cut windows of its own length")
        counts = batch.counts(self.patch / self.patch_bins)
        return counts.unflatten(2, (2, self.patches, self.patch_bins)).transpose(1, 2)

    def encode(self, views: Tensor, seen: Tensor) -> Tensor:
        """Views [B, 2, N, L, bins] → vectors [B, 2, N, D]. seen [B, 2, N]: the neurons that the others may see."""
        x = self.read_in(views.flatten(0, 1))                                               # [2 B, N, L, D]
        seen = seen.flatten(0, 1)
        seen = seen | ~seen.any(1, keepdim=True)                        # attention to nothing is not a number
        turn = self.rotary(torch.arange(self.patches, device=x.device))
        for block in self.temporal:
            x = block(x, turn)
        for block in self.spatial:
            x = block(x, turn, seen)
        return self.norm(x.mean(2)).unflatten(0, (-1, 2))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Decoupled contrastive loss between the two views of each neuron, nats; 0 where no window has two neurons."""
        views = self.views(batch)
        seen = views.any((-1, -2))
        if self.training:
            share = self.keep + (1 - self.keep) * torch.rand(*seen.shape[:2], 1, device=seen.device)
            seen = seen & (torch.rand(seen.shape, device=seen.device) < share)
        one, two = normalize(self.project(self.encode(views, seen)), dim=-1).unbind(1)
        return {"loss": decoupled_contrast(one, two, seen.all(1), self.temperature)}


class Temporal(nn.Module):
    """Every neuron over its own patches: attention with rotary time, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(dim, heads, head_dim=dim // heads, dropout=dropout)
        self.ffn, self.dropout = FeedForward(dim, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """x [B, N, L, D] at times turn [L, pairs] → [B, N, L, D]."""
        flat = x.flatten(0, 1)
        flat = flat + self.dropout(self.attention(flat, turn))
        return (flat + self.dropout(self.ffn(flat))).view_as(x)


class SpatioTemporal(nn.Module):
    """The neurons of one patch, each looking at those that are `seen`, then every neuron over its own patches."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads, dropout=dropout)
        self.ffn, self.dropout = FeedForward(dim, dropout), nn.Dropout(dropout)
        self.temporal = Temporal(dim, heads, dropout)

    def forward(self, x: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        """x [B, N, L, D], seen [B, N] → [B, N, L, D]."""
        patches = x.transpose(1, 2).flatten(0, 1)
        mask = seen.repeat_interleave(x.shape[2], dim=0)[:, None, None]
        patches = patches + self.dropout(self.attention(self.norm(patches), mask=mask))
        patches = patches + self.dropout(self.ffn(patches))
        return self.temporal(patches.unflatten(0, (len(x), -1)).transpose(1, 2), turn)
