"""NDT2, a masked autoencoder over patches of units: one transformer for many sessions.

Ye, Collinger, Wehbe & Gaunt 2023, NeurIPS, "Neural Data Transformer 2: Multi-context Pretraining for Neural Spiking
Activity"; their code is under the MIT licence.

    spikes → one token a (bin, patch of K units), its counts looked up in a table; + code of the bin + code of the patch
    some tokens are taken out; the others, and a context token of the session → encoder → encoded [B, M, dim]
        ├ the encoded back in their places, a mask token in the others → decoder → log-rates of K units a token;
        │    the Poisson likelihood of what was taken out teaches
        └ beside one query a bin → behaviour decoder → linear → behavior; the squared error teaches

Tokens see the context token; it sees itself. In use the encoder sees all tokens; log_rates of a token come from those
on the other colour of a chessboard of bins and patches, so that no count speaks for itself.

Departs from the authors' code: in training each window loses up to `silent` of its units from the input, and is scored
on them all the same (theirs names its held-out units beforehand), so that any unit can be hidden later; of the contexts
only the session is kept; learned codes of bins start as sines and cosines, so that near bins are alike from the start,
other codes small, and the bias of the log-rates at the mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import poisson_nll, window_mse
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling
from workbench.nn.patches import Patches, most_patches, unpatched
from workbench.nn.position import sinusoid
from workbench.nn.transformer import Transformer
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


class Encoded(NamedTuple):
    """Tokens [B, M, dim] that the encoder saw, their places [B, M] among bins × patches, and which are no padding."""

    tokens: Tensor
    places: Tensor
    real: Tensor


class NDT2(SpikeModel):
    """sessions: ids; outputs of `target`, whose mean and scale undo the standardisation; bin_size and window in s.

    patch: units a patch; patches: most of them a session may have; ratio: share of the tokens taken out in training;
    silent: most of the units that a window loses; weight: of the behaviour's loss beside that of the spikes. Without a
    target the model learns from spikes alone.
    """

    name = "ndt2"
    decodes = reconstructs = embeds = True
    takes = "patches"

    def __init__(self, *, sessions: Sequence[str], target: str | None = None, outputs: int = 0,
                 mean: Sequence[float] = (), scale: Sequence[float] = (), bin_size: float = 0.02, window: float = 1.0,
                 patch: int = 32, patches: int = 16, max_count: int = 20, dim: int = 256, depth: int = 6,
                 decoder_depth: int = 2, heads: int = 4, inner: int = 256, dropout: float = 0.1, ratio: float = 0.5,
                 silent: float = 0.3, causal: bool = False, weight: float = 20.0):
        super().__init__()
        if not 0 < ratio < 1 or not 0 <= silent < 1:
            raise WorkbenchError(f"ratio {ratio:g} and silent {silent:g} leave nothing to see or to learn; give a "
                                 "ratio between 0 and 1, and silent from 0 to below 1")
        self.target, self.bin_size, self.window = target, bin_size, window
        self.decodes, self.ratio, self.silent, self.causal, self.weight = bool(target), ratio, silent, causal, weight
        self.patches = Patches(patch, patches, max_count, dim)
        self.bin_codes = nn.Parameter(sinusoid(max(round(window / bin_size), 1), dim))
        self.patch_codes = nn.Parameter(torch.randn(patches, dim) * 0.3)
        self.sessions = Vocabulary("session", sessions, dim, std=0.3)
        self.flag, self.mask_token = (nn.Parameter(torch.randn(dim) * 0.3) for _ in range(2))
        stack = lambda depth: Transformer(dim, depth, heads, inner, dropout=dropout, norm="post")
        self.dropout, self.encoder, self.decoder = nn.Dropout(dropout), stack(depth), stack(decoder_depth)
        self.log_rates = nn.Linear(dim, patch)
        if target:
            self.query, self.behavior_decoder = nn.Parameter(torch.randn(dim) * 0.3), stack(decoder_depth)
            self.readout = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str | None = None, patch: int = 32,
                     **settings) -> NDT2:
        """Bins as wide as the target's sampling interval, 20 ms at least, windows of about 1 s; room for the largest
        session.
        """
        known = dict(patch=patch, patches=most_patches(sessions, patch))
        if target:
            mean, scale = scaling(sessions, target)
            bin_size = settings.get("bin_size") or default_bins(sessions, target)
            known |= dict(target=target, outputs=len(mean), mean=mean, scale=scale, bin_size=bin_size,
                          window=max(round(1.0 / bin_size), 1) * bin_size)
        model = cls(sessions=[s.id for s in sessions], **known | settings)
        rate = sum(s.rates().mean() for s in sessions) / len(sessions)
        nn.init.constant_(model.log_rates.bias, float(torch.tensor(rate * model.bin_size).clamp(min=1e-4).log()))
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """log_rates [B, N, T]; behaviour [Q, outputs] where the batch has the target's times; latents [B, T, dim].

        Latents are the mean of a bin's encoded tokens.
        """
        x, there = self.tokens(batch)
        (bins, patches), grid = x.shape[1:3], there.flatten(1)
        every = self.encode(batch, x, grid)
        latents = self.spread(every, x, x.new_zeros(())).sum(2) / there.sum(2, keepdim=True).clamp(min=1)
        place = torch.arange(bins * patches, device=x.device)
        black = (place // patches + place % patches) % 2 == 0
        here, other = (self.reconstruct(batch, x, there, self.encode(batch, x, grid & color))
                       for color in (~black, black))
        log_rates = torch.where(black.view(bins, patches, 1), here, other)
        behavior = None
        if self.target in batch.targets:
            behavior = self.decode(batch, every, bins, patches) * self.scale + self.mean
        return Output(log_rates=unpatched(log_rates, batch.unit_mask.shape[1]), behavior=behavior, latents=latents)

    def tokens(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """One token a patch and bin, with its codes [B, T, P, dim], and which of them there are [B, T, P]."""
        x, there = self.patches(batch, self.bin_size), self.patches.units(batch).any(2)
        return self.dropout(x + self.codes(*x.shape[1:3])), there[:, None].expand(-1, x.shape[1], -1)

    def codes(self, bins: int, patches: int) -> Tensor:
        """What tells the places apart [bins, patches, dim]. WorkbenchError for more bins than were built for."""
        if bins > len(self.bin_codes):
            raise WorkbenchError(f"a window of {bins} bins is longer than the {len(self.bin_codes)} bins that the "
                                 "model was built for; build it with a longer window=, or cut shorter windows")
        return self.bin_codes[:bins, None] + self.patch_codes[:patches]

    def encode(self, batch: SpikeBatch, x: Tensor, visible: Tensor) -> Encoded:
        """Only the `visible` [B, T × P] of the tokens x [B, T, P, dim], each seeing the others and the context."""
        most = int(visible.sum(1).max())
        places = (~visible).long().argsort(dim=1, stable=True)[:, :most]            # the visible first, in order
        real = visible.gather(1, places)
        seen = x.flatten(1, 2).gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        return Encoded(self.among_context(self.encoder, batch, seen, places // x.shape[2], real), places, real)

    def among_context(self, stack: Transformer, batch: SpikeBatch, x: Tensor, bins: Tensor, real: Tensor) -> Tensor:
        """Tokens x [B, L, dim] of `bins` [B, L], some of them `real` [B, L], through a stack with the context token."""
        context = self.sessions(self.sessions.session_rows(batch)) + self.flag
        sees = real[:, None].expand(-1, x.shape[1], -1)
        if self.causal:
            sees = sees & (bins[:, None] <= bins[:, :, None])
        sees = pad(pad(sees, (0, 0, 0, 1), value=False), (0, 1), value=True)        # the last row and column: context
        return stack(torch.cat([x, context[:, None]], dim=1), mask=sees[:, None])[:, :-1]

    def spread(self, encoded: Encoded, x: Tensor, other: Tensor) -> Tensor:
        """The encoded in their places, `other` in all others [B, T, P, dim]."""
        tokens = encoded.tokens.where(encoded.real[..., None], other)
        where = encoded.places[..., None].expand_as(tokens)
        return other.expand(x.shape).flatten(1, 2).scatter(1, where, tokens).view(x.shape)

    def reconstruct(self, batch: SpikeBatch, x: Tensor, there: Tensor, encoded: Encoded) -> Tensor:
        """Log rates [B, T, P, patch] of every token, from the encoded ones."""
        bins, patches = x.shape[1:3]
        x = self.spread(encoded, x, self.mask_token) + self.codes(bins, patches)
        at = torch.arange(bins, device=x.device).repeat_interleave(patches).expand(len(batch), -1)
        return self.log_rates(self.among_context(self.decoder, batch, x.flatten(1, 2), at, there.flatten(1))
                              .view(x.shape))

    def decode(self, batch: SpikeBatch, encoded: Encoded, bins: int, patches: int) -> Tensor:
        """Standardised behaviour [Q, outputs], by one query a bin, read in the bin that holds each sample."""
        asks = (self.query + self.bin_codes[:bins]).expand(len(batch), -1, -1)
        at = torch.arange(bins, device=asks.device).expand(len(batch), -1)
        x = self.among_context(self.behavior_decoder, batch, torch.cat([asks, encoded.tokens], dim=1),
                               torch.cat([at, encoded.places // patches], dim=1),
                               torch.cat([torch.ones_like(at, dtype=torch.bool), encoded.real], dim=1))
        return self.readout(x[sample_bins(batch.targets[self.target], self.bin_size, bins)])

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of the counts taken out, nats a count, and the weighted squared error of the
        standardised behaviour.
        """
        quiet = torch.rand(batch.unit_mask.shape, device=batch.device) < \
            self.silent * torch.rand(len(batch), 1, device=batch.device)
        x, there = self.tokens(batch.drop(quiet[batch.windows, batch.units]))
        visible = draw_visible(there.flatten(1), self.ratio)
        encoded = self.encode(batch, x, visible)
        hidden = (there & ~visible.view(there.shape))[..., None] & self.patches.units(batch)[:, None]
        loss = poisson = poisson_nll(self.reconstruct(batch, x, there, encoded),
                                     batch.patches(self.patches.size, self.bin_size), where=hidden)
        if self.target is None:
            return {"loss": loss}
        found = self.decode(batch, encoded, *x.shape[1:3]) * self.scale + self.mean
        behavior = window_mse(found, batch.targets[self.target], self.scale)
        return {"loss": poisson + self.weight * behavior, "poisson": poisson.detach(), "behavior": behavior.detach()}


def draw_visible(there: Tensor, ratio: float) -> Tensor:
    """A random share 1 − ratio of the tokens that are there [B, L], one at least in every window."""
    rank = torch.rand(there.shape, device=there.device).masked_fill(~there, 2).argsort(1).argsort(1)
    return there & (rank < (there.sum(1, keepdim=True) * (1 - ratio)).round().clamp(min=1))
