"""What is hidden by a mask, filled in: by a model, and by simple fills that any model has to beat on the same entries.

    windows → SpikeBatch → hide(mode, ratio, seed) → Mask ─┬→ copies of what is left, shrunk to the mean ─┐
                                                           └→ the model, from the spikes that are left ───┴→ rates
    rates [B, N, T] → gain over each unit's mean rate in training → bits per spike of the entries that are scored

Where a simple fill does nearly as well as the model, the mask leaks: what it hides can be copied from beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.masking import Mask, draw
from workbench.metrics import bits_per_spike
from workbench.nn.regions import Regions, region_names
from workbench.session import Session, inside
from workbench.windows import sliding, split

FITTED_ON = 16                                                          # windows that shrinkage is chosen on
SHRINKAGE = np.linspace(0, 0.95, 20)


class Filler:
    """Fills of one session's windows. `model`: any that says log-rates; `how`: to split, see `workbench.windows.split`.

    parts      train, valid, test → intervals [n, 2]; the whole session is "train" where it is too short for parts
    bin_size   of the grid that is filled in and scored, seconds: the model's, else 10 ms or the recording's own timing
    chunk      of temporal masks, seconds; windows are whole chunks
    mean       each unit's mean in training, expected spikes per bin [N]; half a spike where it was silent there
    """

    def __init__(self, session: Session, model=None, **how):
        if model is not None and not model.reconstructs:
            raise WorkbenchError(f"model {model.name!r} predicts no firing rates, so it fills in nothing; choose one "
                                 "that reconstructs")
        self.session, self.model = session, model
        self.bin_size = getattr(model, "bin_size", None) or max(0.01, session.resolution)
        self.chunk = getattr(model, "chunk", None) or max(round(0.05 / self.bin_size), 1) * self.bin_size
        try:
            self.parts = split(session, **how)
        except BadRecording:
            self.parts = {"train": session.intervals}
        train = self.parts["train"]
        seconds = float(np.diff(train).sum())
        if not len(session.units) or not seconds:
            raise BadRecording(f"{session.id}: {len(session.units)} units and {seconds:g} s to learn mean rates from; "
                               "masks need some of both")
        spikes = np.bincount(session.spike_units[inside(session.spike_times, train)], minlength=len(session.units))
        self.mean = torch.from_numpy(np.maximum(spikes, 0.5) / (seconds / self.bin_size)).float()
        self.regions = Regions(region_names([session]))
        self._reader = Reader([session], also=getattr(model, "reads", ()))

    def read(self, starts: np.ndarray, length: float) -> SpikeBatch:
        """Windows [B] of `length` seconds."""
        return self._reader.read(np.zeros(len(starts), int), starts, length)

    def whole_chunks(self, length: float, longest: float = 5.0) -> float:
        """The length nearest to `length` that windows can have, in seconds: whole chunks that training has room for."""
        room = min(np.diff(self.parts["train"]).max(), max(longest, self.chunk))
        if room < self.chunk - 1e-6:
            raise BadRecording(f"{self.session.id}: no interval is as long as a chunk of {self.chunk:g} s, which masks "
                               "are drawn in; choose another recording")
        return round(max(min(round(length / self.chunk), int(room / self.chunk + 1e-6)), 1) * self.chunk, 9)

    def nearest(self, start: float, length: float) -> float:
        """The start nearest to `start`, whole bins from that of an interval, of a window that lies inside it."""
        starts, stops = self.session.intervals.T
        room = np.floor((stops - starts - length) / self.bin_size + 1e-6)
        steps = np.clip(np.round((start - starts) / self.bin_size), 0, np.maximum(room, 0))
        here = starts + steps * self.bin_size
        return round(float(here[np.argmin(np.where(room >= 0, np.abs(here - start), np.inf))]), 9)

    def fine(self) -> int:
        """How many parts of a bin can be hidden by themselves: runs of 25 to 40 ms need 5 ms, as in training."""
        return max(round(self.bin_size / 0.005), 1) if self.chunk > 1.5 * self.bin_size else 1

    def hide(self, batch: SpikeBatch, mode: str, ratio: float, seed: int) -> Mask:
        """The mask that training draws for this batch after `torch.manual_seed(seed)`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if hasattr(self.model, "draw"):
                return self.model.draw(batch, mode, ratio)
            bin_size = self.bin_size / self.fine()
            return draw(mode, batch.unit_mask, batch.bins(bin_size), ratio, chunk=round(self.chunk / bin_size),
                        regions=self.regions.numbers(batch))

    def box(self, batch: SpikeBatch, start: float, stop: float, units: np.ndarray) -> Mask:
        """A mask drawn by hand: the rows `units` hidden from `start` to `stop`, in seconds from each window's start."""
        bins = batch.bins(self.bin_size)
        middle = (torch.arange(bins) + 0.5) * self.bin_size
        hidden = torch.zeros(len(self.mean), bins, dtype=torch.bool)
        hidden[units] = (middle >= start) & (middle < stop)
        if not hidden.any():
            raise WorkbenchError(f"a box of {len(units)} units from {start:g} to {stop:g} s of the window hides no bin "
                                 f"of {self.bin_size:g} s; draw a larger one")
        hidden = hidden.expand(len(batch), -1, -1)
        return Mask(hidden, hidden)

    def windows(self, part: np.ndarray, length: float, number: int | None = None) -> np.ndarray:
        """Starts of windows side by side in `part` [n, 2], the last one flush with the end, whole bins from their
        interval's; `number` of them at most, spread evenly. BadRecording where none fits."""
        first = self.session.intervals[np.searchsorted(self.session.intervals[:, 0], part[:, 0] + 1e-9) - 1, 0]
        bins = (part - first[:, None]) / self.bin_size
        whole = np.stack([np.ceil(bins[:, 0] - 1e-6), np.floor(bins[:, 1] + 1e-6)], axis=1)
        starts = sliding(first[:, None] + whole * self.bin_size, length, length)
        if number is None:
            return starts
        return starts[np.unique(np.linspace(0, len(starts) - 1, min(number, len(starts))).round().astype(int))]

    def held_out(self, length: float, number: int | None = None) -> np.ndarray:
        """Starts of windows of the test part; of the whole session where that has no room for one."""
        try:
            return self.windows(self.parts["test"], length, number)
        except (KeyError, BadRecording):
            return self.windows(self.session.intervals, length, number)

    def part_of(self, start: float, length: float) -> str:
        """The part that holds the whole window; empty for one that lies across parts."""
        return next((name for name, rows in self.parts.items()
                     if ((rows[:, 0] <= start + 1e-6) & (rows[:, 1] >= start + length - 1e-6)).any()), "")

    def shrinkage(self, length: float, hide) -> dict[str, float]:
        """How far to trust each copy, 0 to 1: what explains best what `hide(batch) → Mask` hides of the training time.

        A copy as it is says of a silent bin that no spike can be next to it, and loses to the mean everywhere.
        """
        batch = self.read(self.windows(self.parts["train"], length, FITTED_ON), length)
        mask = hide(batch).grid(batch.bins(self.bin_size))
        counts = batch.counts(self.bin_size)
        spikes, mean = counts[mask.scored], self.mean[:, None].expand_as(counts)[mask.scored]
        best = {}
        for name, copy in copies(counts, mask.hidden, self.mean).items():
            rates = [mean + a * (copy[mask.scored] - mean) for a in SHRINKAGE]
            best[name] = float(SHRINKAGE[int(np.argmax([(spikes * r.log() - r).sum().item() for r in rates]))])
        return best

    def simple(self, batch: SpikeBatch, mask: Mask, shrinkage: dict[str, float]) -> dict[str, Tensor]:
        """Expected spikes per bin [B, N, T] of every simple fill, by name."""
        counts, mean = batch.counts(self.bin_size), self.mean[:, None]
        hidden = mask.grid(counts.shape[2]).hidden
        found = copies(counts, hidden, self.mean) | {"mean rate": mean.expand_as(counts)}
        return {name: mean + shrinkage.get(name, 1.0) * (rates - mean) for name, rates in found.items()}

    @torch.no_grad()
    def predict(self, batch: SpikeBatch, mask: Mask) -> Tensor:
        """Expected spikes per bin [B, N, T] of all entries, by the model, from the spikes that the mask leaves."""
        model, device = self.model, next(self.model.parameters()).device
        training, on = model.training, batch.to(device)
        mask = Mask(*(part.to(device) for part in mask))
        model.eval()
        try:
            found = model.reconstruct(on, mask) if hasattr(model, "reconstruct") else model(mask.of_spikes(on))
        finally:
            model.train(training)
        return found.log_rates.exp().float().cpu()

    def gain(self, rates: Tensor, counts: Tensor) -> Tensor:
        """How much better than the mean rate in training `rates` explain each count, in bits; [..., N, T] as both."""
        rates, mean = rates.clamp(min=1e-9), self.mean[:, None]
        return (counts * (rates / mean).log() - rates + mean) / np.log(2)

    def bits(self, batch: SpikeBatch, mask: Mask, rates: dict[str, Tensor]) -> tuple[dict[str, float], int]:
        """Bits per spike of each fill over the mean rate in training, NaN without a spike; how many spikes."""
        counts = batch.counts(self.bin_size)
        last = lambda values: values.transpose(1, 2).double().numpy()   # units last
        counts = last(counts.masked_fill(~mask.grid(counts.shape[2]).scored, torch.nan))
        bits = {name: bits_per_spike(last(each), counts, self.mean.double().numpy()) for name, each in rates.items()}
        return bits, int(np.nansum(counts))


def copies(counts: Tensor, hidden: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Expected spikes per bin [B, N, T] as copied from what is not hidden; the unit's mean [N] where that is nothing.

    neighbours in time  the mean of the unit's nearest visible bins before and after
    previous bin        the nearest visible bin before
    other units         the unit's mean, times how much above their means the visible units fire in that bin
    """
    mean, bins = mean[:, None].expand_as(counts), counts.shape[2]
    at = torch.arange(bins).expand_as(counts)
    before = at.masked_fill(hidden, -1).cummax(2).values
    after = at.masked_fill(hidden, bins).flip(2).cummin(2).values.flip(2)
    found = torch.stack([before >= 0, after < bins])
    copied = torch.stack([counts.gather(2, before.clamp(min=0)), counts.gather(2, after.clamp(max=bins - 1))]) * found
    nearest = torch.where(found.any(0), copied.sum(0) / found.sum(0).clamp(min=1), mean)
    seen, expected = ((values.masked_fill(hidden, 0)).sum(1, keepdim=True) for values in (counts, mean))
    return {"neighbours in time": nearest, "previous bin": torch.where(found[0], copied[0], mean),
            "other units": mean * torch.where(expected > 0, seen / expected.clamp(min=1e-9), 1.0)}
