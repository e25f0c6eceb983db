"""LDNS, latent diffusion for neural spikes: a smooth latent space of the population, and a diffusion that dreams in it.

Kapoor, Schulz, Vetter, Pei, Gao & Macke 2024, arXiv 2407.08751; the authors' code is MIT.

    counts [B, N, T], some hidden → read-in → `depth` causal S4D blocks → latents [B, T, latents]
        → read-out, softplus → rates, scored by the Poisson likelihood of what was hidden
    latents, standardised, with noise of a random step ─→ `depth` two-sided S4D blocks, adaptive norms told the step
        → the noise in them;  from noise alone, `steps` steps back → new latents → new rates and spikes (`generate`)

Two stages in one loss: the diffusion learns latents that are cut off from its gradient, standardised by the batch's
moments, so that neither stage feels the other and the diffusion has arrived when the learning rate, and with it the
drift of the latents, has run out. What generation needs of the moments is kept as their running average.

Departs from the authors' code: S4D in place of S4; one training in place of two in a row; maps in and out hold a row a
unit, so that several sessions share one latent space; a bin's penalty is shared by its units, so that it means the same
in large and small populations; adaptive norms start small and not at zero, so that every part learns from the first
step. Spike history, conditioning on behaviour and a running average of the denoiser's weights are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu, smooth_l1_loss, softplus

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import ddpm_loss, poisson_nll
from workbench.models.base import Output
from workbench.models.masked import Masked
from workbench.nn.masker import Masker
from workbench.nn.recurrence import S4D, filtered
from workbench.nn.stitcher import ReadIn, ReadOut

LAGS = 5                                                                # bins over which latents are kept smooth


class LDNS(Masked):
    """units, sessions and held_out are names ('<session id>/<unit id>'); bin_size and window in seconds.

    latents: their number; dim, depth: of the autoencoder; denoiser_dim, denoiser_depth, steps: of the diffusion; drop:
    the share of entries that a step hides; shrink, smooth: penalties of the latents. Defaults: the
    paper's model of the monkey.
    """

    name = "ldns"
    generates = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], held_out: Sequence[str] = (),
                 bin_size: float = 0.02, window: float = 1.4, latents: int = 16, dim: int = 256, depth: int = 4,
                 denoiser_dim: int = 256, denoiser_depth: int = 6, steps: int = 1000, drop: float = 0.5,
                 shrink: float = 0.001, smooth: float = 0.2):
        super().__init__()
        if drop >= 1 or denoiser_dim % 2:
            raise WorkbenchError(f"a share of {drop:g} hidden leaves nothing to infer from, or a denoiser of width "
                                 f"{denoiser_dim} is odd; give a drop= below 1 and an even denoiser_dim=")
        self.bin_size, self.window, self.drop, self.shrink, self.smooth = bin_size, window, drop, shrink, smooth
        self.read_in, self.read_out = ReadIn(units, sessions, dim), ReadOut(units, latents)
        self.encoder = nn.ModuleList(Block(dim) for _ in range(depth))
        self.to_latents = nn.Linear(dim, latents)
        self.standard = nn.BatchNorm1d(latents, affine=False, momentum=0.02)
        self.denoiser = Denoiser(latents, denoiser_dim, denoiser_depth)
        self.masker = Masker(self.read_out.units, held_out, mode="entry", ratio=drop, span=1, expand=0.0, silent=1.0,
                             random=0.0)
        # 1,000 steps of Ho et al. 2020; fewer steps are larger, and end in as much noise.
        beta = torch.linspace(0.1 / steps, 20.0 / steps, steps, dtype=torch.float64).clamp(max=0.999)
        self.register_buffer("kept", (1 - beta).cumprod(0).float(), persistent=False)     # of the signal's variance

    def predict(self, counts: Tensor, batch: SpikeBatch) -> Output:
        latents = self.encode(counts, batch)
        return Output(log_rates=self.log_rates(latents, batch), latents=latents)

    def encode(self, counts: Tensor, batch: SpikeBatch) -> Tensor:
        """Latents [B, T, latents] of counts [B, N, T]; each sees its own bin and those before it."""
        x = self.read_in(counts, batch)
        for block in self.encoder:
            x = block(x)
        return self.to_latents(x)

    def log_rates(self, latents: Tensor, batch: SpikeBatch) -> Tensor:
        """log of softplus of a linear map [B, N, T], which far below zero is the map itself."""
        x = self.read_out(latents, batch)
        return torch.where(x < -10, x, softplus(x.clamp(min=-10)).log())

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Both stages: "nll", of hidden entries (coordinated dropout: those seen are larger for it), with the latents'
        penalties, and "diffusion", the smooth L1 distance of the noise.
        """
        counts = batch.counts(self.bin_size)
        seen, scored = self.masker(counts, self.masker.held_out(self.read_out.units, batch), batch.unit_mask)
        latents = self.encode(seen / (1 - self.drop), batch)
        nll = poisson_nll(self.log_rates(latents, batch), counts, where=scored)
        rough = sum((latents[:, lag:] - latents[:, :-lag]).square().sum(2).mean() / (1 + lag)
                    for lag in range(1, min(LAGS, latents.shape[1] - 1) + 1))
        # The likelihood is per entry, so each bin's penalty is shared by its units, as if all were summed.
        units = batch.unit_mask.sum(1).float().mean().clamp(min=1)
        penalty = (self.shrink * latents.square().sum(2).mean() + self.smooth * rough) / units
        with torch.no_grad():                                           # learned from all counts, as they will be used
            clean = self.standard(self(batch).latents.transpose(1, 2)).transpose(1, 2)
        denoise = partial(self.denoiser, spectra=self.denoiser.spectra(clean.shape[1]))
        diffusion = ddpm_loss(denoise, clean, self.kept, partial(smooth_l1_loss, beta=0.04))
        return {"loss": nll + penalty + diffusion, "nll": nll.detach(), "penalty": penalty.detach(),
                "diffusion": diffusion.detach()}

    @torch.no_grad()
    def generate(self, batch: SpikeBatch) -> Output:
        """Rates that the model dreams up for the sessions, units and length of the batch, whose spikes it ignores.

        `torch.poisson` of the rates makes spikes of them. One evaluation of the denoiser a step.
        """
        bins, features = batch.bins(self.bin_size), self.to_latents.out_features
        spectra = self.denoiser.spectra(bins)
        x = torch.randn(len(batch), bins, features, device=self.kept.device)
        before = torch.cat([self.kept.new_ones(1), self.kept[:-1]])
        for step in reversed(range(len(self.kept))):
            noise = self.denoiser(x, torch.full((len(x),), step, device=x.device), spectra=spectra)
            alpha = self.kept[step] / before[step]
            x = (x - (1 - alpha) * noise / (1 - self.kept[step]).sqrt()) / alpha.sqrt()
            x = x + ((1 - alpha) * (1 - before[step]) / (1 - self.kept[step])).sqrt() * torch.randn_like(x)
        latents = x * (self.standard.running_var + self.standard.eps).sqrt() + self.standard.running_mean
        return Output(log_rates=self.log_rates(latents, batch), latents=latents)


class Block(nn.Module):
    """A filter over time, then two linear layers over channels; each normed first and added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.filter, self.up, self.down = S4D(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] → [B, T, width], causal."""
        x = x + gelu(self.filter(self.norms[0](x)))
        return x + self.down(gelu(self.up(self.norms[1](x))))


class Denoiser(nn.Module):
    """Noisy latents and the step of their noise → the noise in them."""

    def __init__(self, latents: int, width: int, depth: int):
        super().__init__()
        self.read_in = nn.Linear(latents, width)
        self.tell = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ToldBlock(width) for _ in range(depth))
        self.norm, self.read_out = nn.LayerNorm(width), nn.Linear(width, latents)
        with torch.no_grad():
            self.read_out.weight.mul_(0.1)
        half = width // 2
        self.register_buffer("waves", 1e-4 ** (torch.arange(half) / half), persistent=False)

    def spectra(self, length: int) -> list[Tensor]:
        """Every block's filter, for as many calls with windows of `length` bins as one likes."""
        return [block.spectrum(length) for block in self.blocks]

    def forward(self, noisy: Tensor, step: Tensor, *, spectra: Sequence[Tensor]) -> Tensor:
        """noisy [B, T, latents], step [B] → [B, T, latents]."""
        angle = step[:, None] * self.waves
        told = silu(self.tell(torch.cat([angle.sin(), angle.cos()], dim=-1)))[:, None]
        x = self.read_in(noisy)
        for block, spectrum in zip(self.blocks, spectra, strict=True):
            x = block(x, told, spectrum)
        return self.read_out(self.norm(x))


class ToldBlock(nn.Module):
    """A block that looks both ways in time, and whose norms shift and scale by what it is told."""

    def __init__(self, width: int):
        super().__init__()
        self.ahead, self.back = S4D(width), S4D(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.told = nn.Linear(width, 4 * width)
        with torch.no_grad():
            self.told.weight.mul_(0.1)
            self.told.bias.zero_()

    def spectrum(self, length: int) -> Tensor:
        """A filter turned back in time is one whose spectrum is conjugated."""
        return self.ahead.spectrum(length) + self.back.spectrum(length).conj()

    def forward(self, x: Tensor, told: Tensor, spectrum: Tensor) -> Tensor:
        """x [B, T, width], told [B, 1, width] → [B, T, width]."""
        shift, scale, shift_after, scale_after = self.told(told).chunk(4, dim=-1)
        norm = lambda x: layer_norm(x, x.shape[-1:])
        x = x + gelu(filtered(norm(x) * (1 + scale) + shift, spectrum))
        return x + self.down(gelu(self.up(norm(x) * (1 + scale_after) + shift_after)))
