"""NeuroBridge, part two: from the spikes that a picture caused to the picture's vector in an image model's space.

This project's own. Contrast as in CLIP (Radford et al. 2021, arXiv 2103.00020); two stages as MindEye2 trains its
readout before more of the network (Scotti et al. 2024, arXiv 2403.11207).

    counts of units in steps from onset on, standardised ─┬→ votes: each speaks for what drives its unit → [B, outputs]
                                                          └→ each unit's row, summed ────────────────┐
    spikes → NeuroBridge.encode → latents [B, M, width] → K learned queries, spread over the window ─┴→ 3-layer MLP
        → the picture's vector, by its squared error along principal axes, as generators want it [B, outputs]
    votes + vector, as much of it as it explains → which picture it was: contrast with the vectors of the pictures, by
        cosine, with a learned temperature, over all processes

Stage 1 (`freed` not given): the encoder is frozen. Stage 2 (`start`: a model of stage 1; `freed=4`): its last layers
learn too, more slowly, and alpha × its masked reconstruction keeps it from forgetting what it was pretrained to do.

Votes start at the discriminant of `neurobridge_votes`. A regression from counts to vectors asks for the vector's mean,
and gives the directions that hardly vary as much weight as those that do; the discriminant asks which picture it was.
What is not linear in the counts is for the network, which starts at nothing; noise on the counts that it learns from
keeps it from learning presentations by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from workbench.batch import Reader, SpikeBatch
from workbench.conditions import presentations
from workbench.errors import BadRecording, WorkbenchError
from workbench.losses import clip_loss
from workbench.models.base import Output, SpikeModel, columns, unit_names
from workbench.models.neurobridge import NeuroBridge
from workbench.models.neurobridge_votes import PENALTIES, votes
from workbench.models.ridge import solve
from workbench.nn.across import across_processes
from workbench.nn.near import near
from workbench.nn.perceiver import CrossAttention
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session
from workbench.windows import locked


class NeuroBridgePictures(SpikeModel):
    """encoder: settings of a `NeuroBridge`; target: a series of vectors such as "pictures:tiny", of `outputs` numbers.

    window: seconds from onset; step: of the counts' bins. windows: region → (start, stop) after onset, s: its spikes
    outside do not count, nor any of other regions (V1 30-80, V4 60-120, IT 80-200 ms). votes: counts are heard at all;
    readout: there is a network; either can be left out for comparison. noise: in training, on counts, in their standard
    deviations. contrast: its weight beside the vector's squared error. The temperature, like that of CLIP, starts at
    0.07 and stays above 0.01.
    """

    name = "neurobridge_pictures"
    embeds = True
    takes = "spikes"
    locked = True
    slower = MappingProxyType({"encoder.": 0.1,                         # in stage 2, lest it forgets
                               "votes.": 0.1})                          # which are good from the start

    def __init__(self, *, encoder: Mapping, target: str, outputs: int, window: float = 0.3, step: float = 0.1,
                 windows: Mapping[str, Sequence[float]] | None = None, votes: bool = True, readout: bool = True,
                 queries: int = 4, hidden: int = 512, dropout: float = 0.3, noise: float = 0.7, contrast: float = 0.3,
                 freed: int | None = None, alpha: float = 0.25):
        super().__init__()
        if not votes and not readout:
            raise WorkbenchError("without votes and without a readout nothing is left; leave out one of them")
        if freed and not readout:
            raise WorkbenchError("an encoder that is not read out cannot be freed; give readout=True, or no freed=")
        self.target, self.window, self.step, self.alpha, self.freed = target, window, step, alpha, freed
        self.noise, self.contrast = noise, contrast
        self.bins = round(window / step)
        if self.bins < 1 or abs(self.bins * step - window) > 1e-6:
            raise WorkbenchError(f"a window of {window:g} s is no whole number of steps of {step:g} s; choose others")
        self.windows = {region: tuple(each) for region, each in (windows or {}).items()}
        self.encoder = NeuroBridge(**encoder)
        self.chunk = self.encoder.chunk
        if unknown := {*self.windows} - {*self.encoder.regions.all}:
            raise WorkbenchError(f"no unit is in {', '.join(sorted(unknown))}; windows= may name "
                                 f"{', '.join(self.encoder.regions.all) or 'no region, for none is known'}")
        units = list(self.encoder.rates.words)
        self.votes = Vocabulary("unit", units, self.bins * outputs, std=0.0) if votes else None
        self.usual = Vocabulary("unit", units, 2 * self.bins, std=0.0)  # of counts, in the training part: the mean of
        self.usual.weight.requires_grad_(False)                         # each, and one over its standard deviation
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(outputs))              # of the pictures' vectors
        self.register_buffer("power", torch.ones(()))                   # their mean square, less the mean
        self.register_buffer("axes", torch.eye(outputs))                # their principal axes, as long as their spread
        self.settle = None if readout else nn.Linear(outputs, outputs)
        self.rows = Vocabulary("unit", units, self.bins * hidden) if votes and readout else None
        self.queries = self.ask = self.heard = self.project = None
        if readout:
            width, heads = self.encoder.widen.out_features, len(self.encoder.pace)
            self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
            self.ask = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0)
            self.heard = nn.Sequential(nn.LayerNorm(queries * width), nn.Dropout(dropout),
                                       nn.Linear(queries * width, hidden))
            again = [nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)]
            self.project = nn.Sequential(*again, *deepcopy(again), nn.GELU(), nn.Dropout(dropout),
                                         nn.Linear(hidden, outputs))
            if votes:
                nn.init.zeros_(self.project[-1].weight)
                nn.init.zeros_(self.project[-1].bias)
        self.encoder.requires_grad_(False)
        for part in [*self.encoder.backbone.blocks[-freed:], self.encoder.backbone.norm] if freed else ():
            part.requires_grad_(True)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, pretrained: str = "", start: str = "",
                     encoder: Mapping | None = None, **settings) -> NeuroBridgePictures:
        """pretrained: the folder of a NeuroBridge, or of a run that trained one. encoder: settings of a new one
        instead, with random weights. start: the folder of a model like this one, or of its run, to go on from: with
        freed=4 that is stage 2. Units that it has not met get new rows.
        """
        if sum(map(bool, (pretrained, start, encoder))) > 1:
            raise WorkbenchError("give one of pretrained= (a NeuroBridge), start= (a model of stage 1) and encoder= "
                                 "(settings of a new one)")
        outputs = columns(sessions, target)
        if start:
            before = cls.from_pretrained(start)
            if before.target != target:
                raise WorkbenchError(f"{start} is aligned to {before.target!r}, not to {target!r}; say "
                                     f"target={before.target}, or start anew")
            model = cls(**before._hub_mixin_config | settings)
            model.load_state_dict(before.state_dict())
            model.extend(sessions)
            return model
        whole = NeuroBridge.from_pretrained(pretrained) if pretrained else \
            NeuroBridge.for_sessions(sessions, **(encoder or {}))
        whole.extend(sessions)
        model = cls(encoder=whole._hub_mixin_config, target=target, outputs=outputs, **settings)
        model.encoder.load_state_dict(whole.state_dict())
        found = torch.from_numpy(np.concatenate([s.get_series(target).values for s in sessions])).float()
        model.mean.copy_(found.mean(0))
        model.power.copy_((found - model.mean).square().sum(1).mean())
        pictures = found.unique(dim=0) - model.mean
        spread, axes = torch.linalg.svd(pictures, full_matrices=False)[1:]
        model.axes.zero_()[:len(axes)] = spread[:, None] / len(pictures) ** 0.5 * axes
        model.meet(sessions, unit_names(sessions))
        if model.settle is not None:
            model.settle_(sessions)
        return model

    def extend(self, sessions: Sequence[Session]) -> None:
        """Rows for new units; they vote as their tuning says where their session has pictures, and else not at all."""
        new = [name for name in unit_names(sessions) if name not in self.usual.row]
        self.encoder.extend(sessions)
        super().extend(sessions)
        self._hub_mixin_config["encoder"] = self.encoder._hub_mixin_config
        self.meet([s for s in sessions if s.load_images is not None and {*unit_names([s])} & {*new}], new)

    @torch.no_grad()
    def meet(self, sessions: Sequence[Session], names: Sequence[str]) -> None:
        """Start the votes of the named units, from presentations in the sessions' time."""
        for session in sessions:
            counts, vectors = self._presented(session, lambda batch: self._seen(batch).counts(self.step).flatten(1))
            mine = unit_names([session])
            kept = torch.tensor([name in {*names} for name in mine])
            rows = self.usual.rows(mine)[kept]
            spread = counts.std(0)
            scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
            usual = np.stack([counts.mean(0), scale]).reshape(2, len(mine), self.bins).swapaxes(0, 1)
            self.usual.weight[rows] = torch.from_numpy(usual.reshape(len(mine), -1))[kept].float()
            if self.votes is not None:
                found = (votes(counts, vectors) * spread[:, None]).reshape(len(mine), -1)
                self.votes.weight[rows] = torch.from_numpy(found)[kept].float()

    @torch.no_grad()
    def settle_(self, sessions: Sequence[Session]) -> None:
        """Without a network, the map from votes to vectors: ridge regression on the sessions' time; its penalty is the
        one that does best on a fifth of the pictures.
        """
        both = [self._presented(s, lambda batch: self.eval()(batch).latents[:, 0]) for s in sessions]
        x, y = (np.concatenate(each) for each in zip(*both, strict=True))
        self.train()
        out = np.unique(y, axis=0, return_inverse=True)[1] % 5 == 0
        scale = PENALTIES * len(x) / x.shape[1]
        errors = [((x[out] @ w[:-1] + w[-1] - y[out]) ** 2).mean() for w in solve(x[~out], y[~out], scale)]
        w = solve(x, y, [scale[int(np.argmin(errors))]])[0]
        self.settle.weight.copy_(torch.from_numpy(w[:-1].T))
        self.settle.bias.copy_(torch.from_numpy(w[-1]))

    def _presented(self, session: Session, read: Callable[[SpikeBatch], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """read(batch) [n, F] of every presentation in the session's time, and their vectors less the mean [n, D]."""
        series = session.get_series(self.target)
        starts = locked(session.intervals, series.times, self.window)[:, 0]
        if len(np.unique(presentations(session)[1])) < 2 or len(starts) < 4:
            raise BadRecording(f"{session.id}: {len(starts)} presentations are too few to say what its units answer "
                               f"to; 4 of 2 pictures, with {self.window:g} s after onset, are the least")
        reader = Reader([session])
        found = [read(reader.read(np.zeros(len(at), int), at, self.window).to(self.mean.device)).cpu().numpy()
                 for at in np.array_split(starts, -(-len(starts) // 256))]
        vectors = series.values[np.searchsorted(series.times, starts - 1e-9)]
        return np.concatenate(found), vectors - self.mean.cpu().numpy()

    def train(self, mode: bool = True) -> NeuroBridgePictures:
        super().train(mode)
        if self.freed is None:
            self.encoder.eval()                                         # frozen as a whole: its dropout, too
        return self

    def forward(self, batch: SpikeBatch) -> Output:
        """Unit vectors [B, 1, outputs] in the pictures' space less its mean, from windows that begin at onset."""
        return Output(latents=self.read(batch)[0][:, None])

    def embedding(self, batch: SpikeBatch) -> Tensor:
        """The pictures' vectors [B, outputs] in the image model's own space and scale, as generators want them."""
        return self.mean + self.read(batch)[1]

    def read(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """In the pictures' space less its mean: unit vectors towards the picture, and what its vector should be, both
        [B, outputs].
        """
        if abs(batch.duration - self.window) > 1e-6:
            raise WorkbenchError(f"this model reads windows of {self.window:g} s from a picture's onset and was given "
                                 f"{batch.duration:g} s; cut windows of its own length")
        seen = self._seen(batch)
        units, counts = self._standard(seen)
        voted = normalize(self._summed(self.votes, units, counts, seen), dim=-1) if self.votes is not None else None
        if self.project is None:
            return voted, self.settle(voted)
        heard = self.heard(self._asked(seen))
        if self.rows is not None:
            heard = heard + self._summed(self.rows, units, counts, seen)
        vector = self.project(heard) @ self.axes
        if voted is None:
            return normalize(vector, dim=-1), vector
        explained = vector.norm(dim=-1, keepdim=True) / self.power      # of a vector of usual length: its share
        return normalize(voted + explained * vector, dim=-1), vector

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Share of the vectors' spread that is missed, and contrast of spikes and pictures both ways, nats; in stage 2
        alpha × the masked loss beside them. Presentations of one picture in a batch are not held against each other.
        """
        (found, vector), wanted = self.read(batch), batch.targets[self.target].values
        if len(wanted) != len(found):
            raise BadRecording(f"{len(found)} windows hold {len(wanted)} pictures; cut windows that begin with a "
                               "picture and end before the next (split.by=picture)")
        missed = self.missed(vector, wanted - self.mean)
        found, wanted = across_processes(found), across_processes(wanted)
        same = wanted.unique(dim=0, return_inverse=True)[1]
        contrast = clip_loss(found, wanted - self.mean, self.temperature, same)
        told = {"loss": missed + self.contrast * contrast, "contrast": contrast.detach(), "missed": missed.detach()}
        if self.freed is None:
            return told
        masked = self.encoder.loss(batch)["loss"]
        return told | {"loss": told["loss"] + self.alpha * masked, "masked": masked.detach()}

    def missed(self, vector: Tensor, wanted: Tensor) -> Tensor:
        """Squared error [B, outputs] each, a principal axis by its spread and not by its variance: where a thing is
        varies less than what it is, and matters as much to a picture. 1 for the mean.
        """
        spread = self.axes.norm(dim=1)
        weight = torch.where(spread > 1e-3 * spread.max(), spread ** -3, 0.0)
        return (((vector - wanted) @ self.axes.T).square() @ weight).mean() / spread.sum()

    @property
    def temperature(self) -> Tensor:
        return (-self.log_scale).exp().clamp(min=0.01)

    def _seen(self, batch: SpikeBatch) -> SpikeBatch:
        """The spikes that count: all, or of some regions, each in its own time after onset."""
        if not self.windows:
            return batch
        spans = [self.windows.get(region, (0.0, 0.0)) for region in self.encoder.regions.all]
        spans = torch.tensor([*spans, (0.0, 0.0)], device=batch.device)             # the last: no known region
        span = spans[self.encoder.regions.numbers(batch)[batch.windows, batch.units]]
        return batch.drop((batch.times < span[:, 0]) | (batch.times >= span[:, 1]))

    def _standard(self, seen: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Rows of the windows' units [U], and their counts [U, bins], standardised; with noise in training."""
        units = self.usual.unit_rows(seen)
        usual, scale = self.usual.weight[units].chunk(2, dim=1)
        where = seen.spikes().units * self.bins + seen.spike_bins(self.step)
        counts = torch.bincount(where, minlength=usual.numel()).view_as(usual).to(usual.dtype)
        counts = (counts - usual) * scale
        return units, counts + self.noise * torch.randn_like(counts) * (scale > 0) if self.training else counts

    def _summed(self, table: Vocabulary, units: Tensor, counts: Tensor, seen: SpikeBatch) -> Tensor:
        """Σ over a window's units and bins of count × row [B, D]."""
        rows = units[:, None] * self.bins + torch.arange(self.bins, device=units.device)
        return embedding_bag(rows.flatten(), table.weight.view(len(table.weight) * self.bins, -1),
                             seen.unit_offsets[:-1] * self.bins, mode="sum", per_sample_weights=counts.flatten())

    def _asked(self, seen: SpikeBatch) -> Tensor:
        """What the queries find in the encoder's latents [B, K × width]."""
        encoder, number = self.encoder, len(self.queries)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freed is not None):
            latents = encoder.encode(seen)
        when = (torch.arange(number, device=seen.device) + 0.5) * (self.window / number)
        at = encoder.latent_times(seen)
        queries = self.queries.expand(len(latents), -1, -1)
        turn = encoder.rotary(when).expand(len(latents), -1, -1)
        return (queries + self.ask(queries, turn, latents, encoder.rotary(at), near(encoder.pace, when, at))).flatten(1)
