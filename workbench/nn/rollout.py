"""Counts of all units, bin by bin, each bin knowing those before it: in parallel for training, or one after the other.

    plan of bin t (whatever is known of it otherwise) ──────────────────────────────────┐
    counts of bin t − 1 (true, sampled or expected) → Σ over units (counts − mean) × vector ┴→ GRU → state of bin t
    log rate of unit n in bin t = ⟨map of n's vector, state⟩ + n's own fading counts so far + n's mean
        → counts: Poisson, negative binomial, or a categorical that starts as Poisson's

The GRU's state and the fading counts are all that a bin leaves behind: the ten-thousandth costs what the first did.
Fading counts are told as log ratios to what the unit's mean would give, a spike added to either: they cannot explode.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.nn.stitcher import padded

FADES = 0.05, 0.15, 0.5, 2.0, 8.0, 30.0                                 # s, in which a unit's own counts fade
FASTEST = 1000.0                                                        # spikes/s, no unit is expected to fire faster


class Who(NamedTuple):
    """The units of a batch, as the decoder needs them: mask and log mean counts a bin [B, N], what a spike tells the
    GRU and what of its state is theirs [B, N, width], weights of their fading counts [B, N, fades], the shape of their
    counts [B, N, 1 or classes], if any.
    """

    mask: Tensor
    level: Tensor
    heard: Tensor
    direction: Tensor
    weigh: Tensor
    shape: Tensor | None


class State(NamedTuple):
    """What a rollout carries from bin to bin: the GRU's hidden state and what it hears next [B, width], fading counts
    [B, N, fades], and what a unit that fires one spike a bin would have [fades].
    """

    hidden: Tensor
    heard: Tensor
    fading: Tensor
    steady: Tensor


class Rollout(nn.Module):
    """The decoder. dim: of units' vectors; width: of plans and states; counts: "poisson", "negative_binomial" or
    "categorical" over 0 … classes − 1.
    """

    def __init__(self, dim: int, width: int, bin_size: float, *, counts: str, classes: int, dropout: float):
        super().__init__()
        self.bin_size, self.counts = bin_size, counts
        self.core = nn.GRU(width, width, batch_first=True)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.heard, self.direction = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.weigh = nn.Linear(dim, len(FADES))
        shape = {"poisson": 0, "negative_binomial": 1, "categorical": classes}[counts]
        self.shape = nn.Linear(dim, shape) if shape else None
        with torch.no_grad():                                           # near each unit's mean to begin with
            self.direction.weight.mul_(0.2)
            self.weigh.weight.mul_(0.1)
            self.weigh.bias.fill_(0.1)
            if self.shape is not None:
                self.shape.weight.zero_()
                self.shape.bias.zero_()
        self.register_buffer("fades", torch.tensor(FADES), persistent=False)

    def start(self, counts: Tensor, told: Tensor, cell: Tensor, age: Tensor, history: float, who: Who) -> State:
        """The state at the origin, from the recent bins' counts [B, N, T] and plans [B, T, width], and from all spikes
        [S] of the `history` s before it: cell, the flat place of each one's unit in [B, N], and age in whole bins.
        """
        heard = self.hear(counts, who)
        hidden = self.core(heard[:, :-1] + told[:, 1:])[1][0]
        fade = (-age[:, None] * self.bin_size / self.fades).exp()
        fading = heard.new_zeros(who.mask.numel(), len(FADES)).index_add(0, cell, fade.to(heard))
        steady = (1 - (-history / self.fades).exp()) / (1 - (-self.bin_size / self.fades).exp())
        return State(hidden, heard[:, -1], fading.unflatten(0, who.mask.shape), steady)

    def who(self, mask: Tensor, level: Tensor, vectors: Tensor, which: Tensor | None = None) -> Who:
        """From mask and log mean counts a bin [B, N], and vectors [U, dim] of the units where the mask is true, or of
        vectors [R, dim] those at `which` [U].
        """
        of_units = lambda made: padded(made(vectors), mask, which)
        scale = (level.detach().exp() * mask).sum(1, keepdim=True).clamp(min=1e-3).rsqrt()[..., None]
        return Who(mask, level, of_units(self.heard) * scale,
                   of_units(self.direction) * self.direction.out_features ** -0.5, of_units(self.weigh),
                   None if self.shape is None else of_units(self.shape))

    def hear(self, counts: Tensor, who: Who) -> Tensor:
        """What counts [B, N, T] tell the GRU [B, T, width]: by how much each unit's differ from its mean."""
        return ((counts - who.level.detach().exp()[..., None]) * who.mask[..., None]).transpose(1, 2) @ who.heard

    def _rate(self, hidden: Tensor, plan: Tensor, who: Who, fading: Tensor, steady: Tensor) -> Tensor:
        """Log rates [B, N, T] from states and plans [B, T, width], fading counts [B, N, T, fades], steady [T, fades].
        """
        state = self.dropout(self.norm(hidden + plan))
        own = (self._own(who, fading, steady) @ who.weigh[..., None])[..., 0]
        log_rates = who.direction @ state.transpose(1, 2) + own + who.level[..., None]
        return log_rates.clamp(max=math.log(FASTEST * self.bin_size))

    def _own(self, who: Who, fading: Tensor, steady: Tensor) -> Tensor:
        """Log ratios of fading counts to what the unit's mean would give [B, N, T, fades]."""
        return (fading + 1).log() - (who.level.detach().exp()[..., None, None] * steady + 1).log()

    def all(self, who: Who, plan: Tensor, state: State, counts: Tensor) -> Tensor:
        """Log rates [B, N, H] of all bins at once, where each bin's counts [B, N, H] are fed to the next."""
        hidden, fading, steady = self._past(who, plan, state, counts)
        return self._rate(hidden, plan, who, fading, steady)

    def _past(self, who: Who, plan: Tensor, state: State, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before every bin: the GRU's states [B, H, width], fading counts [B, N, H, fades], steady [H, fades]."""
        heard = torch.cat([state.heard[:, None], self.hear(counts[..., :-1], who)], dim=1)
        hidden = self.core(plan + heard, state.hidden[None])[0]
        bins = torch.arange(counts.shape[2], device=counts.device)
        lag = (bins[:, None] - bins)[None] * self.bin_size / self.fades[:, None, None]         # [fades, T, from]
        fade, since = (self.bin_size / self.fades[:, None, None] - lag).exp().tril(-1), (-lag[..., 0]).exp()
        fading = torch.einsum("bns,fts->bntf", counts, fade) + state.fading[:, :, None] * since.T
        return hidden, fading, fade.sum(2).T + state.steady * since.T

    @torch.no_grad()
    def solve(self, who: Who, plan: Tensor, state: State, counts: Tensor, vectors: Tensor, spread: float) -> Tensor:
        """Vectors [N, dim] of the units of one session that say counts [B, N, H] best, these ones being their prior, of
        deviation `spread`: for each unit a Poisson regression on states and fading counts, two of Newton's steps.
        """
        hidden, fading, steady = self._past(who, plan, state, counts)
        said = self.norm(hidden + plan).flatten(0, 1) @ self.direction.weight * self.direction.out_features ** -0.5
        own = self._own(who, fading, steady).transpose(0, 1).flatten(1, 2)                      # [N, B × H, fades]
        counts, prior = counts.transpose(0, 1).flatten(1), torch.eye(vectors.shape[1]).to(vectors) / spread ** 2
        found = vectors.clone()
        for n, vector in enumerate(vectors):
            x, base = said + own[n] @ self.weigh.weight, own[n] @ self.weigh.bias + who.level[0, n]
            for _ in range(2):
                rates = (x @ found[n] + base).clamp(max=math.log(FASTEST * self.bin_size)).exp()
                slope = (counts[n] - rates) @ x - prior @ (found[n] - vector)
                found[n] += torch.linalg.solve((x * rates[:, None]).T @ x + prior, slope)
        return found

    def roll(self, who: Who, plan: Tensor, state: State, feedback: str, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Expected spikes a bin and counts [B, N, H], bin by bin; counts that are NaN are sampled, or are what is
        expected.
        """
        hidden, heard, fading, steady = state
        weights, fade = self.core.all_weights[0], (-self.bin_size / self.fades).exp()
        rates, fed = torch.empty_like(counts), counts.clone()
        for t in range(counts.shape[2]):
            hidden = torch.gru_cell(plan[:, t] + heard, hidden, *weights)
            log_rates = self._rate(hidden[:, None], plan[:, t:t + 1], who, fading[:, :, None], steady[None])
            rates[..., t] = self.log_mean(log_rates, who)[..., 0].exp()
            now = self._sample(log_rates, who)[..., 0] if feedback == "sampled" else rates[..., t]
            fed[..., t] = now = torch.where(counts[..., t].isnan(), now * who.mask, counts[..., t])
            heard, fading, steady = self.hear(now[..., None], who)[:, 0], fading * fade + now[..., None], \
                steady * fade + 1
        return rates, fed

    def _sample(self, log_rates: Tensor, who: Who) -> Tensor:
        """Counts drawn at random [B, N, T]."""
        if self.counts == "categorical":
            chances = logits(log_rates, who.shape).softmax(-1)
            return torch.multinomial(chances.flatten(0, -2), 1).view(log_rates.shape).to(log_rates)
        if self.counts == "negative_binomial":
            sizes = who.shape.float().exp().expand_as(log_rates)        # gamma is not drawn in bf16
            log_rates = (torch._standard_gamma(sizes) / sizes).clamp(min=1e-12).log() + log_rates
        return torch.poisson(log_rates.exp())

    def log_mean(self, log_rates: Tensor, who: Who) -> Tensor:
        """Log expected counts, which are not quite the rates where counts are classes."""
        if self.counts != "categorical":
            return log_rates
        chances = logits(log_rates, who.shape).softmax(-1)
        return (chances @ torch.arange(chances.shape[-1], device=chances.device, dtype=chances.dtype)).log()


def logits(log_rates: Tensor, shape: Tensor) -> Tensor:
    """Logits [B, N, T, K] of counts: Poisson's, and how a unit departs from it [B, N, K]."""
    k = torch.arange(shape.shape[-1], device=shape.device, dtype=shape.dtype)
    return log_rates[..., None] * k - torch.lgamma(k + 1) + shape[..., None, :]
