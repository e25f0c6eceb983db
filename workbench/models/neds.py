"""NEDS, neural encoding and decoding at scale: one transformer from spikes to behaviour and from behaviour to spikes.

Zhang et al. 2025, "Neural Encoding and Decoding at Scale", arXiv 2504.08201; the authors' code, from which details are
taken, is under the MIT licence.

    counts    [B, N, T] → read-in → softsign → linear ────────────────┐ hidden tokens: one learned token; then
    behaviour [B, T, D] → map of the session → softsign → linear ─────┴─ + modality + position + session codes
        → [spikes of bins 1 … T, behaviour of bins 1 … T] → encoder layers, rotary in time, all see all
        → of the first half: read-out → log_rates [B, N, T], scored by their Poisson likelihood where hidden
        → of the second half: map of the session → behavior [Q, D], scored by its squared error where hidden

Every window of a batch draws one scheme of what is hidden:

    encoding          all spikes, from all behaviour
    decoding          all behaviour, from all spikes
    self_spikes       spikes of some bins, from those of others and all behaviour
    self_behaviour    behaviour of some bins, from that of others and all spikes
    random_token      spikes and behaviour of some bins

Departs from the authors' code: one behaviour, any series in time (theirs also has choices and other values of whole
trials, which windows here do not have); maps of spikes hold a row a unit, and behind the softsign one map serves all
sessions; each window hides bins of its own, not those of its scheme in the batch; bins that lack a sample of the
behaviour are hidden and not scored; codes of modality, position and session start at a tenth of theirs, which drown
spikes and behaviour for long; the bias of the read-out starts at each unit's mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softsign

from workbench.batch import SpikeBatch
from workbench.errors import BadRecording
from workbench.losses import mean_where, poisson_nll
from workbench.masking import draw
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling, unit_names
from workbench.nn.position import Position
from workbench.nn.rotary import RotaryTime
from workbench.nn.stitcher import ReadIn, ReadOut, SessionMap
from workbench.nn.transformer import Transformer
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

SHOWN, SOME, HIDDEN = range(3)
SCHEMES = {"encoding": (HIDDEN, SHOWN), "decoding": (SHOWN, HIDDEN), "self_spikes": (SOME, SHOWN),
           "self_behaviour": (SHOWN, SOME), "random_token": (SOME, SOME)}       # of spikes, of behaviour


class Seen(NamedTuple):
    """log_rates [B, N, T], standardised behaviour [B, T, D], states of spikes [B, T, dim]."""

    log_rates: Tensor
    behaviour: Tensor
    states: Tensor


class NEDS(SpikeModel):
    """units and sessions are names ('<session id>/<unit id>'); outputs of `target`, whose mean and scale undo the
    standardisation; bin_size and window in seconds; ratio: the share of bins that is hidden where some are. width:
    channels of the read-in, twice as many as a session has units in the authors' code. Other defaults are theirs.
    """

    name = "neds"
    decodes = reconstructs = embeds = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.02, window: float = 2.0,
                 width: int = 512, dim: int = 256, depth: int = 5, heads: int = 8, inner: int = 512,
                 dropout: float = 0.4, embedding_dropout: float = 0.2, ratio: float = 0.3):
        super().__init__()
        self.target, self.bin_size, self.window, self.ratio = target, bin_size, window, ratio
        self.read_in, self.embed_spikes = ReadIn(units, sessions, width), nn.Linear(width, dim)
        self.map_in, self.embed_behaviour = SessionMap(sessions, outputs, 2 * outputs), nn.Linear(2 * outputs, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.modality = nn.Parameter(torch.randn(2, 1, dim) * 0.1)            # of spikes, of behaviour
        self.position = Position("learned", max(round(window / bin_size), 1), dim, std=0.1)
        self.session = Vocabulary("session", sessions, dim, std=0.1)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.rotary = RotaryTime(dim // heads // 2, 6.28 * bin_size, 6.28e4 * bin_size)     # a bin is a radian, or less
        self.encoder = Transformer(dim, depth, heads, inner, dropout=dropout)
        self.encoder.tfixup_()
        self.read_out, self.map_out = ReadOut(units, dim), SessionMap(sessions, dim, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> NEDS:
        """Bins as wide as the target's sampling interval, 20 ms at least; windows of about 2 s."""
        mean, scale = scaling(sessions, target)
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        window = settings.pop("window", None) or max(round(2.0 / bin_size), 1) * bin_size
        model = cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target, outputs=len(mean),
                    mean=mean, scale=scale, bin_size=bin_size, window=window, **settings)
        model.read_out.start_at_(sessions, bin_size)
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, where the batch has them, decoded from spikes alone; what the
        decoded behaviour says of the spikes, log_rates [B, N, T]; the states of spikes [B, T, dim] that decoded it.
        """
        counts = batch.counts(self.bin_size)
        nothing = counts.new_zeros(len(batch), counts.shape[2], len(self.scale))
        decoded = self.predict(counts, nothing, whole("decoding", counts), batch)
        back = self.predict(counts, decoded.behaviour, whole("encoding", counts), batch)
        behavior = self.at_samples(decoded.behaviour, batch) if self.target in batch.targets else None
        return Output(behavior=behavior, log_rates=back.log_rates, latents=decoded.states)

    def encode(self, batch: SpikeBatch) -> Output:
        """Log rates [B, N, T], in log spikes per bin, from the behaviour alone. BadRecording where there is none."""
        if self.target not in batch.targets:
            raise BadRecording(f"a batch without {self.target!r}, from which this NEDS encodes spikes; read windows "
                               f"with targets=({self.target!r},)")
        counts, (behaviour, there) = batch.counts(self.bin_size), self.binned(batch)
        hidden = whole("encoding", counts) | ~there[:, None]
        return Output(log_rates=self.predict(counts, behaviour, hidden, batch).log_rates)

    def predict(self, counts: Tensor, behaviour: Tensor, hidden: Tensor, batch: SpikeBatch) -> Seen:
        """Everything, from the tokens of spikes and of behaviour (standardised) that are not hidden [B, 2, T]."""
        spikes = self.embed_spikes(softsign(self.read_in(counts, batch)))
        behaviour = self.embed_behaviour(softsign(self.map_in(behaviour, batch)))
        tokens = torch.where(hidden[..., None], self.mask_token, torch.stack([spikes, behaviour], dim=1))
        session = self.session(self.session.session_rows(batch))
        tokens = self.position(tokens + self.modality) + session[:, None, None]
        turn = self.rotary(torch.arange(tokens.shape[2], device=tokens.device) * self.bin_size)
        states = self.encoder(self.embedding_dropout(tokens).flatten(1, 2), turn=turn.repeat(2, 1))
        spikes, behaviour = states.unflatten(1, (2, -1)).unbind(1)
        return Seen(self.read_out(spikes, batch), self.map_out(behaviour, batch), spikes)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of hidden counts, nats an entry, plus squared error of hidden behaviour."""
        counts, (behaviour, there) = batch.counts(self.bin_size), self.binned(batch)
        hidden = self.hidden(batch)
        hidden[:, 1] |= ~there
        found = self.predict(counts, behaviour, hidden, batch)
        poisson = poisson_nll(found.log_rates, counts, where=hidden[:, :1] & batch.unit_mask[..., None])
        error = (self.at_samples(found.behaviour, batch) - batch.targets[self.target].values) / self.scale
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, counts.shape[2])
        mse = mean_where(error.square().mean(1), hidden[window, 1, bins])
        return {"loss": poisson + mse, "poisson": poisson.detach(), "mse": mse.detach()}

    def hidden(self, batch: SpikeBatch) -> Tensor:
        """Which tokens of spikes and of behaviour are hidden [B, 2, T], by a random scheme for every window."""
        scheme = torch.randint(len(SCHEMES), (len(batch),), device=batch.device)
        much = torch.tensor(list(SCHEMES.values()), device=batch.device)[scheme, :, None]
        one = torch.ones(len(batch), 1, dtype=torch.bool, device=batch.device)
        some = draw("time", one, batch.bins(self.bin_size), self.ratio).hidden      # the same of both
        return (much == HIDDEN) | (much == SOME) & some

    def binned(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """The standardised behaviour [B, T, D], the mean of each bin's samples, and which bins have any [B, T]."""
        target, bins = batch.targets[self.target], batch.bins(self.bin_size)
        window, at = sample_bins(target, self.bin_size, bins)
        values = (target.values - self.mean) / self.scale
        total = values.new_zeros(len(batch) * bins, values.shape[1]).index_add(0, window * bins + at, values)
        size = torch.bincount(window * bins + at, minlength=len(total))
        mean = total / size.clamp(min=1)[:, None]
        return mean.unflatten(0, (-1, bins)), (size > 0).unflatten(0, (-1, bins))

    def at_samples(self, behaviour: Tensor, batch: SpikeBatch) -> Tensor:
        """Standardised behaviour [B, T, D] → in its unit at the target's times [Q, D], read from their bins."""
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, behaviour.shape[1])
        return behaviour[window, bins] * self.scale + self.mean


def whole(scheme: str, counts: Tensor) -> Tensor:
    """Which tokens of spikes and of behaviour are hidden [B, 2, T] in every window, for counts [B, N, T]."""
    hidden = torch.tensor(SCHEMES[scheme], device=counts.device) == HIDDEN
    return hidden[None, :, None].expand(len(counts), 2, counts.shape[2])
