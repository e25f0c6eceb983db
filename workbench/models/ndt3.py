"""NDT3, an autoregressive transformer over spikes and behaviour in one sequence.

Ye et al. 2025, "A Generalist Intracortical Motor Decoder"; their code is under the MIT licence, their weights are for
non-commercial use.

    each bin holds, in this order, its tokens: spikes, one a patch of K units (counts looked up in a table);
        covariates, one a dimension of the behaviour (its value one bin earlier, times a learned vector; 0 if blanked)
    tokens + code of the slot [B, (1 + T) × S, dim], the first bin empty
        → `depth` layers: attention over this bin and earlier ones, turned by the bin; SwiGLU → x
    x of a patch → the distribution of each unit's count one bin later, taught by softened cross-entropy → log_rates
    x of a covariate → its value in this bin, taught by squared error → behavior

Behaviour is decoded from spikes: covariates are blanked in use, and in training but for a prefix of some windows.
Constraint and return, the paper's other kinds of tokens, are absent: sessions here hold no such series.

Departs from the paper: the sequence goes on by bins, the paper's by tokens, so that there a patch is guessed knowing
those before it in the same bin. Here log_rates of a bin come from earlier bins only, and all of a bin at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import mean_where, softened_cross_entropy
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling
from workbench.nn.patches import Patches, most_patches, unpatched
from workbench.nn.rotary import RotaryTime
from workbench.nn.transformer import rotated
from workbench.session import Session


class NDT3(SpikeModel):
    """outputs of `target`, whose mean and scale undo the standardisation; bin_size, window and warmup in seconds.

    patch: units a patch; patches: most of them a session may have; prefix: share of the training windows that begin
    with covariates shown, for any part of their bins. No unit and no session has a row of its own: a new session needs
    none. Without a target the model learns from spikes alone. `SIZES` are the paper's two.
    """

    name = "ndt3"
    decodes = forecasts = True
    takes = "patches"
    SIZES: ClassVar = {"45M": dict(dim=1024, depth=6, heads=8), "350M": dict(dim=2048, depth=12, heads=16)}

    def __init__(self, *, target: str | None = None, outputs: int = 0, mean: Sequence[float] = (),
                 scale: Sequence[float] = (), bin_size: float = 0.02, window: float = 2.0, warmup: float = 0.5,
                 patch: int = 32, patches: int = 16, max_count: int = 20, dim: int = 256, depth: int = 4,
                 heads: int = 4, dropout: float = 0.1, prefix: float = 0.9):
        super().__init__()
        if window <= warmup:
            raise WorkbenchError(f"windows of {window:g} s leave nothing after a warm-up of {warmup:g} s; give a "
                                 "longer window= or a shorter warmup=")
        self.target, self.bin_size, self.window, self.warmup = target, bin_size, window, warmup
        self.decodes, self.prefix = bool(target), prefix
        self.patches = Patches(patch, patches, max_count, dim)
        self.slots = nn.Embedding(patches + outputs, dim)
        self.rotary = RotaryTime(dim // heads // 2, 2 * math.pi, 2e4 * math.pi)         # periods in bins
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.count_logits = nn.Linear(dim, patch * (max_count + 1), bias=False)
        if target:
            self.covariate, self.readout = nn.Linear(1, dim, bias=False), nn.Linear(dim, 1, bias=False)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str | None = None, size: str | None = None,
                     patch: int = 32, **settings) -> NDT3:
        """Bins as wide as the target's sampling interval, 20 ms at least, windows of about 2 s; room for the largest
        session.
        """
        if size is not None and size not in cls.SIZES:
            raise UnknownName("size", size, cls.SIZES, where="the published sizes of NDT3")
        known = dict(patch=patch, patches=most_patches(sessions, patch)) | (cls.SIZES[size] if size else {})
        if target:
            mean, scale = scaling(sessions, target)
            bin_size = settings.get("bin_size") or default_bins(sessions, target)
            known |= dict(target=target, outputs=len(mean), mean=mean, scale=scale, bin_size=bin_size,
                          window=max(round(2.0 / bin_size), 1) * bin_size)
        return cls(**known | settings)

    def extend(self, sessions: Sequence[Session]) -> None:
        """Nothing to add: the model knows no unit and no session by name."""

    def forward(self, batch: SpikeBatch) -> Output:
        """log_rates [B, N, T], of the mean count given earlier bins; behaviour [Q, outputs] from spikes alone, in its
        own bin and earlier ones, where the batch has the target's times.
        """
        bins = batch.bins(self.bin_size)
        logits, found = self.predict(batch, self.mean.new_zeros(len(batch), bins, len(self.mean)))
        counts = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
        log_rates = unpatched((logits.softmax(-1) @ counts).clamp(min=1e-6).log(), batch.unit_mask.shape[1])
        if self.target not in batch.targets:
            return Output(log_rates=log_rates)
        found = found[sample_bins(batch.targets[self.target], self.bin_size, bins)]
        return Output(log_rates=log_rates, behavior=found * self.scale + self.mean)

    def predict(self, batch: SpikeBatch, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of counts [B, T, P, patch, counts] and standardised behaviour [B, T, outputs].

        shown [B, T, outputs]: standardised covariates, 0 where blanked; a bin sees those of earlier bins.
        """
        spikes, there = self.patches(batch, self.bin_size), self.patches.units(batch).any(2)
        patches, outputs = spikes.shape[2], shown.shape[2]
        x = spikes
        if outputs:
            x = torch.cat([x, self.covariate(pad(shown, (0, 0, 1, -1))[..., None])], dim=2)
            there = pad(there, (0, outputs), value=True)
        slot = torch.cat([torch.arange(patches), self.patches.most + torch.arange(outputs)]).to(x.device)
        x = self.dropout(pad(x, (0, 0, 0, 0, 1, 0)) + self.slots(slot))
        grid = x.shape[:3]
        bins = torch.arange(grid[1], device=x.device).repeat_interleave(grid[2])
        sees = (bins[:, None] >= bins) & there.repeat(1, grid[1])[:, None]
        x, turn = x.flatten(1, 2), self.rotary(bins)
        for layer in self.layers:
            x = layer(x, sees[:, None], turn)
        x = self.norm(x).unflatten(1, grid[1:])
        logits = self.count_logits(x[:, :-1, :patches]).unflatten(-1, (self.patches.size, -1))
        return logits, self.readout(x[:, 1:, patches:])[..., 0] if outputs else shown

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Softened cross-entropy of counts, nats a count, and the squared error of the standardised behaviour, a shown
        prefix left out.
        """
        bins, outputs = batch.bins(self.bin_size), len(self.mean)
        blank = torch.ones(len(batch), bins, dtype=torch.bool, device=batch.device)
        shown = self.mean.new_zeros(len(batch), bins, outputs)
        if outputs and self.training:
            draw = torch.rand(2, len(batch), 1, device=batch.device)
            last = (draw[0] < self.prefix) * (draw[1] * bins).floor()   # never all of them
            blank = torch.arange(bins, device=batch.device) >= last
            shown = self.covariates(batch).masked_fill(blank[..., None], 0)
        logits, found = self.predict(batch, shown)
        units = self.patches.units(batch)[:, None].expand(-1, bins, -1, -1)
        spikes = softened_cross_entropy(logits, batch.patches(self.patches.size, self.bin_size), where=units)
        if not outputs:
            return {"loss": spikes}
        target = batch.targets[self.target]
        at = sample_bins(target, self.bin_size, bins)
        behavior = mean_where((found[at] - self.standardised(batch)).square().mean(1), blank[at])
        return {"loss": spikes + behavior, "spikes": spikes.detach(), "behavior": behavior.detach()}

    def standardised(self, batch: SpikeBatch) -> Tensor:
        """The samples of the target [Q, outputs], of mean 0 and variance 1."""
        return (batch.targets[self.target].values - self.mean) / self.scale

    def covariates(self, batch: SpikeBatch) -> Tensor:
        """The same in bins [B, T, outputs]: the mean of each bin's samples, 0 where there is none."""
        bins, values = batch.bins(self.bin_size), self.standardised(batch)
        window, bin_ = sample_bins(batch.targets[self.target], self.bin_size, bins)
        cell = window * bins + bin_
        total = values.new_zeros(len(batch) * bins, values.shape[1]).index_add(0, cell, values)
        number = torch.bincount(cell, minlength=len(total)).clamp(min=1)[:, None]
        return (total / number).unflatten(0, (len(batch), bins))


class Layer(nn.Module):
    """Attention with normed queries and keys, then SwiGLU as wide as the stream, each on a normed copy; no biases.

    Queries and keys: Henry et al. 2020, arXiv 2010.04245; SwiGLU: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        if dim % (2 * heads):
            raise WorkbenchError(f"{heads} heads do not divide a width of {dim} into even parts; choose heads that do")
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm_q, self.norm_k = (nn.LayerNorm(dim // heads, bias=False) for _ in range(2))
        self.up, self.down = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sees: Tensor, turn: Tensor) -> Tensor:
        """x [B, L, dim]; sees [B, 1, L, L], true where a token may look; turn [L, pairs] → [B, L, dim]."""
        q, k, v = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotated(self.norm_q(q), turn), rotated(self.norm_k(k), turn)
        x = x + self.dropout(self.to_out(scaled_dot_product_attention(q, k, v, attn_mask=sees)
                                         .transpose(1, 2).flatten(-2)))
        gate, value = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(silu(gate) * value))
