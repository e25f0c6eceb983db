"""NeuroBridge, part two: from the spikes that a picture caused to the picture's vector in an image model's space.

This project's own. Contrast as in CLIP (Radford et al. 2021, arXiv 2103.00020); two stages as MindEye2 trains its
readout before more of the network (Scotti et al. 2024, arXiv 2403.11207).

    spikes from a picture's onset on ─┬→ NeuroBridge.encode → latents [B, M, width]
                                      │     → K learned queries, spread over the window → 3-layer MLP ──┐
                                      └→ every spike votes: its unit's row at its time, less the usual ─┴→ [B, outputs]
    contrast with the vectors of the pictures, by cosine, with a learned temperature, over all processes
    → linear → the vector itself, as generators want it: contrast says which picture it was, not where its vector lies

Stage 1 (`freed` not given): the encoder is frozen. Stage 2 (`start`: a model of stage 1; `freed=4`): its last layers
learn too, more slowly, and alpha × its masked reconstruction keeps it from forgetting what it was pretrained to do.

Votes start where each unit's tuning in the image space says, which counts of the training part give in closed form:
    tuning    unit's count at time t ≈ ⟨W, vector of the picture⟩, ridge, its penalty by pictures left out one by one
    row       noise covariance⁻¹ W: a spike speaks for the pictures that drive its unit, as far as other units do not
              say the same (the linear discriminant between any two pictures, Fisher 1936)
A regression from counts to vectors asks for the vector's mean, and gives the directions that hardly vary as much weight
as those that do; the discriminant asks which picture it was. What the network adds starts at nothing, and the linear
map to vectors at ridge regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, embedding_bag, normalize

from workbench.batch import Reader, SpikeBatch
from workbench.conditions import presentations
from workbench.errors import BadRecording, WorkbenchError
from workbench.losses import clip_loss
from workbench.models.base import Output, SpikeModel, unit_names
from workbench.models.neurobridge import NeuroBridge
from workbench.models.neurobridge_decoder import weights_of
from workbench.models.ridge import solve
from workbench.nn.across import across_processes
from workbench.nn.near import near
from workbench.nn.perceiver import CrossAttention
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session
from workbench.windows import locked

PENALTIES = 10.0 ** np.arange(-2, 2.5, 0.5)                             # in mean squares of the vectors' components


class NeuroBridgePictures(SpikeModel):
    """encoder: settings of a `NeuroBridge`; target: a series of vectors such as "pictures:tiny", of `outputs` numbers.

    window: seconds from onset; step: of the votes' bins. windows: region → (start, stop) after onset, s: its spikes
    outside do not count, nor any of other regions (V1 30-80, V4 60-120, IT 80-200 ms). votes, readout: either path can
    be left out for comparison. The temperature, like that of CLIP, starts at 0.07 and stays above 0.01.
    """

    name = "neurobridge_pictures"
    embeds = True
    locked = True
    slower = MappingProxyType({"encoder.": 0.1})                        # in stage 2, lest it forgets

    def __init__(self, *, encoder: Mapping, target: str, outputs: int, window: float = 0.3, step: float = 0.05,
                 windows: Mapping[str, Sequence[float]] | None = None, votes: bool = True, readout: bool = True,
                 queries: int = 4, hidden: int = 512, dropout: float = 0.5, freed: int | None = None,
                 alpha: float = 0.25):
        super().__init__()
        if not votes and not readout:
            raise WorkbenchError("without votes and without a readout nothing is left; leave out one of them")
        if freed and not readout:
            raise WorkbenchError("an encoder that is not read out cannot be freed; give readout=True, or no freed=")
        self.target, self.window, self.step, self.alpha, self.freed = target, window, step, alpha, freed
        self.bins = round(window / step)
        if self.bins < 1 or abs(self.bins * step - window) > 1e-6:
            raise WorkbenchError(f"a window of {window:g} s is no whole number of steps of {step:g} s; choose others")
        self.windows = {region: tuple(each) for region, each in (windows or {}).items()}
        self.encoder = NeuroBridge(**encoder)
        if unknown := {*self.windows} - {*self.encoder.regions.all}:
            raise WorkbenchError(f"no unit is in {', '.join(sorted(unknown))}; windows= may name "
                                 f"{', '.join(self.encoder.regions.all) or 'no region, for none is known'}")
        units = list(self.encoder.rates.words)
        self.votes = Vocabulary("unit", units, self.bins * outputs, std=0.0) if votes else None
        self.usual = Vocabulary("unit", units, self.bins, std=0.0)      # counts, the mean of the training part
        self.usual.weight.requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(outputs))              # of the pictures' vectors
        self.settle = nn.Linear(outputs, outputs)
        self.queries = self.ask = self.project = None
        if readout:
            width, heads = self.encoder.widen.out_features, len(self.encoder.pace)
            self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
            self.ask = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0)
            self.project = nn.Sequential(
                nn.LayerNorm(queries * width), nn.Linear(queries * width, hidden), nn.GELU(), nn.Dropout(dropout),
                nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout),
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
        outputs = sessions[0].get_series(target).values.shape[1]
        if start:
            before = cls.from_pretrained(weights_of(start, "model of stage 1"))
            if before.target != target:
                raise WorkbenchError(f"{start} is aligned to {before.target!r}, not to {target!r}; say "
                                     f"target={before.target}, or start anew")
            model = cls(**before._hub_mixin_config | settings)
            model.load_state_dict(before.state_dict())
            model.extend(sessions)
            return model
        whole = NeuroBridge.from_pretrained(weights_of(pretrained)) if pretrained else \
            NeuroBridge.for_sessions(sessions, **(encoder or {}))
        whole.extend(sessions)
        model = cls(encoder=whole._hub_mixin_config, target=target, outputs=outputs, **settings)
        model.encoder.load_state_dict(whole.state_dict())
        found = torch.from_numpy(np.concatenate([s.get_series(target).values for s in sessions])).float()
        model.mean.copy_(found.mean(0))
        model.meet(sessions, unit_names(sessions))
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
            usual = counts.mean(0).reshape(len(mine), self.bins)
            self.usual.weight[rows] = torch.from_numpy(usual)[kept].float()
            if self.votes is not None:
                found = votes(counts, vectors).reshape(len(mine), -1)
                self.votes.weight[rows] = torch.from_numpy(found)[kept].float()

    @torch.no_grad()
    def settle_(self, sessions: Sequence[Session]) -> None:
        """Start the map from directions to vectors at ridge regression on the sessions' time; its penalty is the one
        that does best on a fifth of the pictures.
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
        found = [read(reader.read(np.zeros(len(at), int), at, self.window)).numpy()
                 for at in np.array_split(starts, -(-len(starts) // 256))]
        vectors = series.values[np.searchsorted(series.times, starts - 1e-9)]
        return np.concatenate(found), vectors - self.mean.numpy()

    def train(self, mode: bool = True) -> NeuroBridgePictures:
        super().train(mode)
        if self.freed is None:
            self.encoder.eval()                                         # frozen as a whole: its dropout, too
        return self

    def forward(self, batch: SpikeBatch) -> Output:
        """Unit vectors [B, 1, outputs] in the pictures' space less its mean, from windows that begin at onset."""
        return Output(latents=normalize(self.direction(batch), dim=-1)[:, None])

    def embedding(self, batch: SpikeBatch) -> Tensor:
        """The pictures' vectors [B, outputs] in the image model's own space and scale, as generators want them."""
        return self.mean + self.settle(normalize(self.direction(batch), dim=-1))

    def direction(self, batch: SpikeBatch) -> Tensor:
        """Where in the pictures' space, less its mean, the spikes point [B, outputs]; lengths mean nothing."""
        if abs(batch.duration - self.window) > 1e-6:
            raise WorkbenchError(f"this model reads windows of {self.window:g} s from a picture's onset and was given "
                                 f"{batch.duration:g} s; cut windows of its own length")
        seen = self._seen(batch)
        found = self._voted(seen) if self.votes is not None else 0.0
        return found if self.project is None else found + self.project(self._read(seen))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Contrast of spikes and pictures both ways, nats, and 1 − cosine of the vector; in stage 2 alpha × the masked
        loss beside them. Presentations of one picture in a batch are not held against each other.
        """
        found, wanted = self.direction(batch), batch.targets[self.target].values
        if len(wanted) != len(found):
            raise BadRecording(f"{len(found)} windows hold {len(wanted)} pictures; cut windows that begin with a "
                               "picture and end before the next (split.by=picture)")
        found, wanted = across_processes(found), across_processes(wanted)
        same = wanted.unique(dim=0, return_inverse=True)[1]
        contrast = clip_loss(found, wanted - self.mean, self.temperature, same)
        off = 1 - cosine_similarity(self.settle(normalize(found, dim=-1)), wanted - self.mean).mean()
        told = {"loss": contrast + off, "contrast": contrast.detach(), "off": off.detach()}
        if self.freed is None:
            return told
        masked = self.encoder.loss(batch)["loss"]
        return told | {"loss": told["loss"] + self.alpha * masked, "masked": masked.detach()}

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

    def _voted(self, seen: SpikeBatch) -> Tensor:
        """The rows of all spikes, summed, less what the window's units usually say [B, outputs]."""
        rows, votes = self.votes.unit_rows(seen), self.votes.weight.unflatten(1, (self.bins, -1))
        spoke = rows[seen.spikes().units] * self.bins + seen.spike_bins(self.step)
        usual = (self.usual.weight[:, :, None] * votes).sum(1)
        return embedding_bag(spoke, votes.flatten(0, 1), seen.offsets[:-1], mode="sum") - \
            embedding_bag(rows, usual, seen.unit_offsets[:-1], mode="sum")

    def _read(self, seen: SpikeBatch) -> Tensor:
        """What the queries find in the encoder's latents [B, K × width]."""
        encoder, number = self.encoder, len(self.queries)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freed is not None):
            latents = encoder.encode(seen)
        when = (torch.arange(number, device=seen.device) + 0.5) * (self.window / number)
        at = encoder.latent_times(seen)
        queries = self.queries.expand(len(latents), -1, -1)
        turn = encoder.rotary(when).expand(len(latents), -1, -1)
        return (queries + self.ask(queries, turn, latents, encoder.rotary(at), near(encoder.pace, when, at))).flatten(1)


def votes(counts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rows [F, D] such that Σ counts × rows points to the picture: noise covariance⁻¹ × tuning.

    counts [n, F] of presentations; vectors [n, D] of what they showed, less their mean. Scaled so that sums have a
    length of about 1.
    """
    shown, which = np.unique(vectors, axis=0, return_inverse=True)
    spread = counts.std(0)
    spread = np.where(spread > 0, spread, np.inf)                       # what never varies has no vote
    standard = (counts - counts.mean(0)) / spread
    number = np.bincount(which).astype(float)
    means = np.zeros((len(shown), counts.shape[1]))
    np.add.at(means, which, standard)
    means /= number[:, None]
    left, values, right = np.linalg.svd(shown, full_matrices=False)
    errors = []
    for penalty in PENALTIES * (values ** 2).mean():
        gone = _left_out(left, values, means, penalty)
        errors.append(((means - gone) ** 2 * number[:, None]).sum())
    penalty = PENALTIES[int(np.argmin(errors))] * (values ** 2).mean()
    tuning = right.T @ ((values / (values ** 2 + penalty))[:, None] * (left.T @ means))              # [D, F]
    noise = ledoit_wolf(standard - _left_out(left, values, means, penalty)[which])[0]
    rows = np.linalg.solve(noise, tuning.T) / spread[:, None]
    length = np.linalg.norm((counts - counts.mean(0)) @ rows, axis=1).mean()
    return rows / max(length, 1e-12)


def _left_out(left: np.ndarray, values: np.ndarray, means: np.ndarray, penalty: float) -> np.ndarray:
    """What a ridge fitted to all other pictures says of each [P, F], in closed form."""
    shrink = values ** 2 / (values ** 2 + penalty)
    said = left @ (shrink[:, None] * (left.T @ means))
    own = (left ** 2 @ shrink)[:, None].clip(max=1 - 1e-6)
    return means - (means - said) / (1 - own)
