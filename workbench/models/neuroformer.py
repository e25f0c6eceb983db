"""Neuroformer: spikes as a sentence. The next spike, its unit and its time, from all spikes before it.

Antoniades et al. 2024, "Neuroformer: Multimodal and Multitask Generative Pretraining for Brain Data", ICLR,
arXiv 2311.00136; structure as in a-antoniades/Neuroformer (MIT).

    one bin of `bin_size` s: a start, then its spikes, each unit embedding + codes of time and order → [1 + spikes, D]
        → cross-attention to the spikes of the `past` s before the bin → to frames → to behaviour, where there are any
        → causal self-attention → which unit fires next, or none any more in this bin; and in which `resolution` of it

Every bin of a window is a sequence, and those whose past lies inside the window are learnt from. A unit that is not in
the session cannot be named, and no spike can come before the last one: their scores are −∞. Optionally (`contrast`)
the spikes of a bin, before they see the frames, must find the frames of their bin among others, and these them.

`generate` draws spike after spike and bin after bin, and sees what it drew.

Departs from the authors' code: frames and behaviour are seen up to a spike's own time, not to the end of the bin; the
places of frame patches are told (theirs are computed and thrown away); the loss is not scaled down; no sequence is cut
short; the end of a bin has no time of its own; the order of spikes has a code; a new recording adds rows to the table
of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.batch import SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.losses import clip_loss, mean_where
from workbench.models.base import Output, SpikeModel, scaling, unit_names
from workbench.nn.position import sinusoid
from workbench.nn.stitcher import ReadOut
from workbench.nn.transformer import Block
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


class Packed(NamedTuple):
    """Things of all windows in time order: x [S, ...], steps [S] of `resolution` since the window's start, windows."""

    x: Tensor
    steps: Tensor
    windows: Tensor


class Padded(NamedTuple):
    """The same a row for each bin: x [R, L, ...], steps [R, L] from the bin's start, and which are there [R, L]."""

    x: Tensor
    steps: Tensor
    there: Tensor


class Neuroformer(SpikeModel):
    """units: names ('<session id>/<unit id>'); behavior: series → {"mean", "scale"}; frames: a series whose columns are
    the pixels of pictures of frame_size (height, width), values of order 1. bin_size, past, resolution, window in s.
    Defaults are the paper's, but for the window: theirs is one bin and its past.
    """

    name = "neuroformer"
    generates = forecasts = embeds = True
    takes = "events"

    def __init__(self, *, units: Sequence[str], behavior: Mapping[str, Mapping[str, Any]] | None = None,
                 frames: str | None = None, frame_size: Sequence[int] = (), bin_size: float = 0.05, past: float = 0.15,
                 resolution: float = 0.01, window: float = 1.0, dim: int = 256, depth: int = 6, heads: int = 8,
                 dropout: float = 0.1, contrast: float = 0.0, contrast_dim: int = 1024, temperature: float = 0.5):
        super().__init__()
        self.steps, self.past = round(bin_size / resolution), round(past / resolution)
        if abs(self.steps * resolution - bin_size) > 1e-6 or abs(self.past * resolution - past) > 1e-6:
            raise WorkbenchError(f"bins of {bin_size:g} s and a past of {past:g} s are no whole numbers of "
                                 f"{resolution:g} s; choose a resolution that divides them")
        if window < past + bin_size - 1e-9:
            raise WorkbenchError(f"a window of {window:g} s holds no bin of {bin_size:g} s after a past of {past:g} s; "
                                 "give a longer window=")
        if contrast and not frames:
            raise WorkbenchError("there is nothing to contrast spikes with; name the frames=, or leave contrast= out")
        self.bin_size, self.resolution, self.window, self.warmup = bin_size, resolution, window, past
        self.frames, self.behavior = frames, sorted(behavior or {})
        self.reads = [*self.behavior, *([frames] if frames else [])]
        self.contrast, self.temperature = contrast, temperature

        self.units = Vocabulary("unit", units, dim, std=0.3)           # beside codes of time and order as large
        self.start = nn.Parameter(torch.randn(dim) * 0.3)
        self.time = nn.Sequential(nn.Linear(1, dim), nn.GELU(), nn.Linear(dim, dim))
        self.order = nn.Linear(dim, dim, bias=False)
        self.pictures = Pictures(frame_size, dim) if frames else None
        self.scalars = nn.ModuleList(Scalars(dim, **behavior[name]) for name in self.behavior)
        views = 1 + bool(frames) + bool(behavior)
        self.blank = nn.Parameter(torch.randn(views, dim) * 0.3)       # seen where there is nothing else
        self.context_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(views))
        stack = lambda: nn.ModuleList(Block(dim, heads, 4 * dim, dropout=dropout) for _ in range(depth))
        self.cross, self.own = nn.ModuleList(stack() for _ in range(views)), stack()
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)
        self.next_unit, self.no_unit, self.when = ReadOut(units, dim), nn.Linear(dim, 1), nn.Linear(dim, self.steps)
        if contrast:
            self.to_contrast = nn.ModuleList(nn.Linear(dim, contrast_dim) for _ in range(2))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, behavior: Sequence[str] = (), frames: str | None = None,
                     **settings) -> Neuroformer:
        """behavior, frames: series that are given to the model; a session may lack some."""
        known = {}
        for name in behavior:
            mean, scale = scaling([s for s in sessions if name in s.series] or sessions, name)
            known[name] = {"mean": mean, "scale": scale}
        if frames is not None and not any(frames in s.series for s in sessions):
            sessions[0].get_series(frames)                              # says what there is
        model = cls(units=unit_names(sessions), behavior=known, frames=frames, **settings)
        model.next_unit.start_at_(sessions, model.bin_size)
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """What is known at the end of every bin, as latents [B, T, D]: bin t has seen no spike after it."""
        spikes, bins = self.spikes(batch), torch.arange(batch.bins(self.bin_size), device=batch.device)
        own = self.cut(spikes, batch, bins, 0, self.steps)
        features, _ = self.features(own, self.contexts(spikes, batch, bins))
        last = features[torch.arange(len(features), device=batch.device), own.there.sum(1)]
        return Output(latents=last.unflatten(0, (len(batch), -1)))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """3/5 of the cross-entropy of the next unit and 2/5 of that of its time, nats; plus `contrast` × its loss."""
        spikes = self.spikes(batch)
        bins = torch.arange(-(-self.past // self.steps), batch.bins(self.bin_size), device=batch.device)
        own = self.cut(spikes, batch, bins, 0, self.steps)
        contexts = self.contexts(spikes, batch, bins)
        features, recent = self.features(own, contexts)
        which, when = self.scores(features, nn.functional.pad(own.steps, (1, 0)), batch)

        spike, after = own.there, nn.functional.pad(own.there, (1, 0), value=True)      # after: the start, or a spike
        unit = self.cut(spikes._replace(x=batch.units), batch, bins, 0, self.steps).x.masked_fill(~spike, -1)
        unit = nn.functional.pad(unit, (0, 1), value=-1) % which.shape[2]               # the last class: nobody
        step = own.steps.masked_fill(~spike, self.steps - 1)                            # one that can always be
        told = {"unit": mean_where(cross_entropy(which.mT, unit, reduction="none"), after),
                "when": mean_where(cross_entropy(when[:, :-1].mT, step, reduction="none"), spike)}
        loss = 0.6 * told["unit"] + 0.4 * told["when"]
        if self.contrast:
            pooled = lambda x, where: (x * where[..., None]).sum(1) / where.sum(1, keepdim=True)
            frames = contexts[1]
            met = frames.there[:, 1:].any(1)                            # a blank alone is nobody's twin
            pairs = pooled(recent, after)[met], pooled(frames.x, frames.there)[met]
            told["contrast"] = clip_loss(*(to(x) for to, x in zip(self.to_contrast, pairs, strict=True)),
                                         self.temperature) if met.any() else pairs[0].sum()
            loss = loss + self.contrast * told["contrast"]
        return {**{name: value.detach() for name, value in told.items()}, "loss": loss}

    # A batch as sequences

    def spikes(self, batch: SpikeBatch) -> Packed:
        """The embeddings of all spikes, without their times."""
        tokens = batch.spikes()
        embedded = self.units(self.units.unit_rows(batch)).index_select(0, tokens.units)
        return Packed(embedded, batch.spike_bins(self.resolution), tokens.windows)

    def cut(self, things: Packed, batch: SpikeBatch, bins: Tensor, first: int, last: int) -> Padded:
        """What lies from `first` to `last` steps after the start of each of the bins, in every window: R = B × bins."""
        length = batch.bins(self.resolution)
        clock = things.windows * length + things.steps                  # sorted
        window = torch.arange(len(batch), device=batch.device)[:, None] * length
        start = bins * self.steps
        edge = lambda step: torch.searchsorted(clock, (window + (start + step).clamp(0, length)).flatten())
        begin, end = edge(first), edge(last)
        column = torch.arange(int((end - begin).max()), device=batch.device)
        there = column < (end - begin)[:, None]
        index = torch.where(there, begin[:, None] + column, 0)
        steps = things.steps[index] - start.repeat(len(batch))[:, None]
        return Padded(things.x[index], steps.masked_fill(~there, 0), there)

    def contexts(self, spikes: Packed, batch: SpikeBatch, bins: Tensor) -> list[Padded]:
        """What each bin may look at, a blank in front: spikes of its past; frames and behaviour of the same and its own
        time.
        """
        found = [self.cut(spikes, batch, bins, -self.past, 0)]
        if self.frames:
            found.append(self.cut(self.pictures(batch, self.frames, self.resolution), batch, bins, -self.past,
                                  self.steps))
        if self.behavior:
            samples = [embed(batch, name, self.resolution) for name, embed in
                       zip(self.behavior, self.scalars, strict=True)]
            order = torch.cat([s.windows * batch.bins(self.resolution) + s.steps for s in samples]).argsort(stable=True)
            packed = Packed(*(torch.cat(parts)[order] for parts in zip(*samples, strict=True)))
            found.append(self.cut(packed, batch, bins, -self.past, self.steps))
        return [self._with_blank(*each) for each in zip(found, self.blank, self.context_norms, strict=True)]

    def _with_blank(self, things: Padded, blank: Tensor, norm: nn.Module) -> Padded:
        x = norm(torch.cat([blank.expand(len(things.x), 1, -1), things.x + self._time(things.steps)], 1))
        return Padded(x, nn.functional.pad(things.steps, (1, 0), value=-self.past),
                      nn.functional.pad(things.there, (1, 0), value=True))

    def _time(self, steps: Tensor) -> Tensor:
        every = torch.arange(-self.past, self.steps, device=steps.device)
        return nn.functional.embedding(steps + self.past, self.time(every[:, None] / self.steps))

    def _order(self, first: int, number: int) -> Tensor:
        """Codes of the places of spikes in their bin: without them it would not know how many there were."""
        return self.order(sinusoid(first + number, len(self.start))[first:].to(self.start))

    # The network

    def features(self, own: Padded, contexts: list[Padded]) -> tuple[Tensor, Tensor]:
        """What is known after the start and after each spike [R, 1 + L, D], and the same before frames are seen."""
        x = torch.cat([self.start.expand(len(own.x), 1, -1), own.x], 1)
        steps = nn.functional.pad(own.steps, (1, 0))
        x = self.dropout(x + self._time(steps) + self._order(0, x.shape[1]))
        x, recent = self.look(x, steps, contexts)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.own:
            x = block(x, mask=causal)
        return self.norm(x), recent

    def look(self, x: Tensor, steps: Tensor, contexts: list[Padded]) -> tuple[Tensor, Tensor]:
        """Tokens x [R, L, D] at steps [R, L] after the cross-attentions, and after the first of them only."""
        after = []
        for blocks, context in zip(self.cross, contexts, strict=True):
            mask = context.there[:, None] & (context.steps[:, None] <= steps[..., None])
            for block in blocks:
                x = block(x, context.x, mask=mask[:, None])
            after.append(x)
        return x, after[0]

    def scores(self, features: Tensor, steps: Tensor, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Scores of who is next [R, L, N + 1], columns as in `batch.counts`, then nobody; of when [R, L, steps]."""
        rows, length, _ = features.shape
        units = self.next_unit(features.reshape(len(batch), -1, features.shape[-1]), batch)
        units = units.masked_fill(~batch.unit_mask[..., None], -torch.inf).transpose(1, 2).reshape(rows, length, -1)
        past = torch.arange(self.steps, device=features.device) < steps[..., None]
        return torch.cat([units, self.no_unit(features)], -1), self.when(features).masked_fill(past, -torch.inf)

    # Drawing spikes

    @torch.no_grad()
    def generate(self, batch: SpikeBatch, *, since: float | None = None, top_k: int | None = None, top_p: float = 1.0,
                 temperature: float = 1.0, most: int = 1000) -> SpikeBatch:
        """The batch with all its spikes from `since` s on (by default the `past`) replaced by drawn ones.

        Frames and behaviour are given throughout. top_k: the k most probable choices only; top_p: the fewest that
        together have this probability; both shift firing rates, since a bin ends when nobody is chosen. most: spikes a
        bin at most. Times are spread evenly inside their `resolution`.
        """
        if not temperature > 0 or not 0 < top_p <= 1:
            raise WorkbenchError(f"nothing can be drawn at temperature {temperature:g} from the choices of top_p "
                                 f"{top_p:g}; give a temperature above 0 and a top_p in (0, 1]")
        first = round((self.warmup if since is None else since) / self.bin_size)
        batch, training = batch.drop(batch.spike_bins(self.bin_size) >= first), self.training
        self.eval()
        choose = lambda scores: _draw(scores[:, 0] / temperature, top_k, top_p)
        for bin_ in range(first, batch.bins(self.bin_size)):
            batch = self._draw_bin(batch, bin_, choose, most)
        self.train(training)
        return batch

    def _draw_bin(self, batch: SpikeBatch, bin_: int, choose: Callable[[Tensor], Tensor], most: int) -> SpikeBatch:
        """The batch with spikes in one more bin: token by token, each block remembering what it was given."""
        contexts = self.contexts(self.spikes(batch), batch, torch.tensor([bin_], device=batch.device))
        table, nobody = self.units(self.units.unit_rows(batch)), batch.unit_mask.shape[1]
        memory = [batch.times.new_zeros(len(batch), 0, len(self.start)) for _ in self.own]
        x, step = self.start.expand(len(batch), 1, -1), batch.session.new_zeros(len(batch), 1)
        alive, units, steps = torch.ones_like(batch.session, dtype=torch.bool), [], []
        while len(units) < most:
            x, _ = self.look(x + self._time(step) + self._order(len(units), 1), step, contexts)
            for i, block in enumerate(self.own):
                memory[i] = torch.cat([memory[i], block.norms[0](x)], 1)
                x = block(x, memory[i])
            which, when = self.scores(self.norm(x), step, batch)
            unit, later = choose(which), choose(when)
            alive = alive & (unit != nobody)
            if not alive.any():
                break
            units.append(torch.where(alive, unit, -1))
            steps.append(torch.where(alive, later, self.steps))
            unit, step = unit.masked_fill(~alive, 0), torch.where(alive, later, step[:, 0])[:, None]
            x = table[(batch.unit_offsets[:-1] + unit).clamp(max=len(table) - 1)][:, None]
        if not units:
            return batch
        units, steps = torch.stack(units, 1), torch.stack(steps, 1)
        # In order inside each step, since steps only grow; a hair off its edges, where float32 would round to the next.
        times = (steps + torch.rand(steps.shape, device=steps.device).clamp(0.01, 0.99)).sort(1).values
        times = (times + bin_ * self.steps) * self.resolution
        windows, column = (units >= 0).nonzero().unbind(1)
        return batch.add(windows, units[windows, column], times[windows, column])


class Scalars(nn.Module):
    """Samples of a series as tokens: a small perceptron of the standardised values."""

    def __init__(self, dim: int, mean: Sequence[float], scale: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))
        self.embed = nn.Sequential(nn.Linear(len(mean), dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, batch: SpikeBatch, name: str, resolution: float) -> Packed:
        target = batch.targets[name]
        values = target.values if len(target.times) else target.values.new_zeros(0, len(self.mean))
        return Packed(self.embed((values - self.mean) / self.scale), _steps(target.times, resolution, batch),
                      torch.repeat_interleave(target.offsets.diff()))


class Pictures(nn.Module):
    """Frames as tokens: patches of 3 frames × 8 × 8 pixels, every 3 frames and 4 pixels, at their last frame's time."""

    def __init__(self, size: Sequence[int], dim: int):
        super().__init__()
        if len(size) != 2 or min(size) < 8:
            raise WorkbenchError(f"frames of {list(size)} pixels have no patches of 8 × 8; give frame_size=[height, "
                                 "width], 8 or more each")
        self.size = tuple(size)
        self.patch = nn.Conv3d(1, dim, (3, 8, 8), (3, 4, 4))
        self.place = nn.Parameter(torch.randn(((size[0] - 8) // 4 + 1) * ((size[1] - 8) // 4 + 1), dim) * 0.02)

    def forward(self, batch: SpikeBatch, name: str, resolution: float) -> Packed:
        frames, (height, width) = batch.targets[name], self.size
        if len(frames.times) and frames.values.shape[1] != height * width:
            raise BadRecording(f"a frame of {name!r} has {frames.values.shape[1]} pixels, not {height} × {width}; give "
                               "frame_size=[height, width] as it is")
        number = frames.offsets.diff() // 3
        window = torch.repeat_interleave(number)
        nth = torch.arange(len(window), device=window.device) - (number.cumsum(0) - number)[window]
        index = frames.offsets[window] + 3 * nth                        # the first frame of each three
        three = torch.stack([frames.values[index + i] for i in range(3)], 1).view(-1, 1, 3, height, width)
        patches = self.patch(three).flatten(2).mT + self.place                              # [triples, patches, D]
        each = len(self.place)
        steps = _steps(frames.times[index + 2], resolution, batch)
        return Packed(patches.flatten(0, 1), steps.repeat_interleave(each), window.repeat_interleave(each))


def _steps(times: Tensor, resolution: float, batch: SpikeBatch) -> Tensor:
    return (times.double() / resolution + 1e-4).long().clamp_(max=batch.bins(resolution) - 1)


def _draw(scores: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """One class [R] of each row of scores [R, K], from the most probable ones only."""
    chance, order = scores.softmax(-1).sort(-1, descending=True)
    before = chance.cumsum(-1) - chance                                 # the probability of all better ones
    rank = torch.arange(chance.shape[-1], device=chance.device)
    chance = chance.masked_fill((before >= top_p) | (rank >= (top_k or len(rank))), 0)
    return order.gather(1, torch.multinomial(chance, 1))[:, 0]
