"""LFADS, latent factor analysis via dynamical systems: a recurrent generator that each window starts and steers.

Sussillo et al. 2016, arXiv 1608.06315; Pandarinath et al. 2018, Nature Methods 15, 805; coordinated dropout of
Keshtkaran & Pandarinath 2019, arXiv 1908.07896. Written from the papers.

    counts [B, N, T], some hidden → read-in [B, T, factors] ─┬→ both-ways GRU, its ends → posterior of the initial state
                                                             └→ both-ways GRU ─┐
    each bin:  controller GRU ([that bin, factors so far]) ←───────────────────┘ → posterior of the input u
               generator GRU (u) → factors [B, T, factors] = latents → read-out → log_rates [B, N, T]

The loss is the negative evidence lower bound: the Poisson likelihood of what was hidden, the divergence of the initial
state from N(0, κ), that of the inputs from an autoregressive process of learned time and size, both ramped up, and a
penalty of the recurrent weights. In training the posteriors are drawn from, otherwise their means are taken.

Departs from the papers: read-in and read-out hold a row a unit and are learned in every case (the multi-session paper
fixes them by regression on trial averages, which needs trials), so that a single session has a read-in, too; GRUs are
torch's; the divergence of the inputs is exact given the input before, not estimated from the draw; the bound is per
entry (unit and bin), so that its size depends on neither the window nor the session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import gaussian_kl, poisson_nll
from workbench.models.base import Output
from workbench.models.masked import Masked
from workbench.nn.masker import Masker
from workbench.nn.stitcher import ReadIn, ReadOut

INITIAL_VARIANCE = 0.1                                                  # κ of the prior of initial states
LEAST_LOGVAR = math.log(1e-4)                                           # no posterior is narrower than this
INPUT_TIME, INPUT_VARIANCE = 10.0, 0.1                                  # bins, and of the process, at the start


class LFADS(Masked):
    """units, sessions and held_out are names ('<session id>/<unit id>'); bin_size and window in seconds.

    encoder, controller, generator: units of the GRUs; initial, factors, inputs: dimensions. drop: the share of entries
    that a step hides; ramp: steps until divergences and `penalty`, of the recurrent weights, have their full weight.
    """

    name = "lfads"
    generates = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], held_out: Sequence[str] = (),
                 bin_size: float = 0.02, window: float = 1.0, encoder: int = 100, initial: int = 64,
                 controller: int = 100, inputs: int = 4, generator: int = 200, factors: int = 40,
                 dropout: float = 0.05, drop: float = 0.3, ramp: int = 1000, penalty: float = 0.1):
        super().__init__()
        if drop >= 1:
            raise WorkbenchError(f"a step that hides a share of {drop:g} leaves nothing to infer from; give a drop= "
                                 "below 1")
        self.bin_size, self.window, self.drop, self.ramp, self.penalty = bin_size, window, drop, ramp, penalty
        self.dropout = nn.Dropout(dropout)
        self.read_in, self.read_out = ReadIn(units, sessions, factors), ReadOut(units, factors)
        both_ways = dict(batch_first=True, bidirectional=True)
        self.initial_encoder = nn.GRU(factors, encoder, **both_ways)
        self.initial_posterior = Posterior(2 * encoder, initial, INITIAL_VARIANCE)
        self.start = nn.Linear(initial, generator)
        self.input_encoder = nn.GRU(factors, encoder, **both_ways)
        self.controller_start = nn.Parameter(torch.zeros(controller))
        self.controller = nn.GRUCell(2 * encoder + factors, controller)
        self.input_posterior = Posterior(controller, inputs, INPUT_VARIANCE * -math.expm1(-2 / INPUT_TIME))
        self.generator = nn.GRUCell(inputs, generator)
        self.to_factors = nn.Parameter(torch.randn(factors, generator))
        self.log_time = nn.Parameter(torch.full((inputs,), math.log(INPUT_TIME)))       # of the inputs' prior, bins
        self.log_variance = nn.Parameter(torch.full((inputs,), math.log(INPUT_VARIANCE)))
        self.masker = Masker(self.read_out.units, held_out, mode="entry", ratio=drop, span=1, expand=0.0, silent=1.0,
                             random=0.0)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        # Matrices of variance 1 / inputs: with torch's third of it, seven of them in a row hand little on at the start.
        for part in self.children():
            if isinstance(part, nn.GRU | nn.GRUCell | nn.Linear | Posterior):
                for weight in part.parameters():
                    if weight.ndim == 2:
                        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def predict(self, counts: Tensor, batch: SpikeBatch) -> Output:
        """Log rates, and the factors as latents, from the means of the posteriors in evaluation."""
        factors, _ = self.infer(counts, batch)
        return Output(log_rates=self.read_out(factors, batch), latents=factors)

    def infer(self, counts: Tensor, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Factors [B, T, factors] and the divergence of the posteriors from their priors [B], nats, from counts."""
        x = self.dropout(self.read_in(counts, batch))
        ends = self.initial_encoder(x)[1].transpose(0, 1).flatten(1)
        initial, *about_initial = self.initial_posterior(self.dropout(ends))
        seen = self.dropout(self.input_encoder(x)[0])
        state, controller = self.start(initial), self.controller_start.expand(len(counts), -1)
        to_factors = normalize(self.to_factors, dim=1)
        factors, inputs = [linear(self.dropout(state), to_factors)], []
        for now in seen.unbind(1):
            controller = self.controller(torch.cat([now, factors[-1]], -1), controller)
            inputs.append(self.input_posterior(self.dropout(controller)))
            state = self.generator(inputs[-1][0], state)
            factors.append(linear(self.dropout(state), to_factors))
        divergence = gaussian_kl(*about_initial, prior_logvar=math.log(INITIAL_VARIANCE)) + \
            self._input_divergence(*(torch.stack(each, 1) for each in zip(*inputs, strict=True)))
        return torch.stack(factors[1:], 1), divergence

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Of the inputs [inputs]: how much of an input stays in the next bin, and the log variance of what is new."""
        keep = (-(-self.log_time).exp()).exp()
        return keep, self.log_variance + torch.log1p(-keep.square())

    def _input_divergence(self, drawn: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
        """Of posteriors [B, T, inputs] from the process that goes on from what was drawn the bin before [B], nats."""
        keep, new = self._prior()
        first = gaussian_kl(mean[:, 0], logvar[:, 0], prior_logvar=self.log_variance)
        return first + gaussian_kl(mean[:, 1:], logvar[:, 1:], keep * drawn[:, :-1], new).sum(1)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """The negative evidence lower bound, nats an entry, ramped in training; of its parts, "nll" and "kl".

        Coordinated dropout: the likelihood is of entries that are hidden, at random, and those seen are larger for it.
        """
        counts, there = batch.counts(self.bin_size), batch.unit_mask
        seen, scored = self.masker(counts, self.masker.held_out(self.read_out.units, batch), there)
        factors, divergence = self.infer(seen / (1 - self.drop), batch)
        nll = poisson_nll(self.read_out(factors, batch), counts, where=scored)
        kl = divergence.sum() / (there.sum().clamp(min=1) * counts.shape[2])
        size = (self.generator.weight_hh.square().mean() + self.controller.weight_hh.square().mean()) / 2
        weight = (self.steps / self.ramp).clamp(max=1) if self.training else 1.0
        self.steps += self.training
        return {"loss": nll + weight * (kl + self.penalty * size), "nll": nll.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def generate(self, batch: SpikeBatch) -> Output:
        """Rates that the model dreams up for the sessions, units and length of the batch, whose spikes it ignores.

        The initial state and the inputs are drawn from their priors; `torch.poisson` of the rates makes spikes of them.
        """
        keep, new = self._prior()
        noise = torch.randn(len(batch), batch.bins(self.bin_size), len(keep), device=keep.device)
        u, states = noise[:, 0] * (self.log_variance / 2).exp(), []
        state = self.start(noise.new_empty(len(batch), self.start.in_features).normal_(0, INITIAL_VARIANCE ** 0.5))
        for t in range(noise.shape[1]):
            u = keep * u + noise[:, t] * (new / 2).exp() if t else u
            state = self.generator(u, state)
            states.append(state)
        factors = linear(torch.stack(states, 1), normalize(self.to_factors, dim=1))
        return Output(log_rates=self.read_out(factors, batch), latents=factors)


class Posterior(nn.Module):
    """A diagonal Gaussian read out of features, at first of about that variance."""

    def __init__(self, features: int, dim: int, variance: float):
        super().__init__()
        self.read = nn.Linear(features, 2 * dim)
        nn.init.constant_(self.read.bias[dim:], math.log(variance))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., features] → a draw (in training; otherwise the mean), the mean, and the log variance [..., dim]."""
        mean, logvar = self.read(x).chunk(2, dim=-1)
        logvar = torch.logaddexp(logvar, torch.full_like(logvar, LEAST_LOGVAR))
        return mean + torch.randn_like(mean) * (logvar / 2).exp() if self.training else mean, mean, logvar
