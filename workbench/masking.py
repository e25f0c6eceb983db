"""Masks on the neuron × time grid: what a model does not see, and what it is scored on. One mechanism for every model.

    draw(mode, …) → Mask(hidden [B, N, T], scored [B, N, T]) → counts with silence there, or spikes dropped there

    time          bins, each window its own · all units of a hidden bin are hidden
    shared_time   the same bins in every window
    temporal      one run of bins in every chunk of `chunk` bins, so that each chunk keeps some
    causal        every bin after a random one, `ratio` of the window at most
    neuron        units, over the whole window
    entry         single (unit, bin) entries
    intra_region  all units outside one region, and `ratio` of the units in it, which alone are scored
    inter_region  every unit of one region

Modes as in NDT1 (Ye & Pandarinath 2021, arXiv 2108.01210) and MtM (Zhang et al. 2024, arXiv 2407.14668); temporal is
NeuroBridge's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError

MODES = ("time", "shared_time", "temporal", "causal", "neuron", "entry", "intra_region", "inter_region")


class Mask(NamedTuple):
    """hidden, scored [B, N, T]: true where the model sees nothing, and where its loss counts. Padding is in neither."""

    hidden: Tensor
    scored: Tensor

    def of_counts(self, counts: Tensor) -> Tensor:
        """The counts [B, N, T], silent where hidden."""
        return counts.masked_fill(self.hidden, 0)

    def of_spikes(self, batch: SpikeBatch) -> SpikeBatch:
        """The batch without the hidden spikes."""
        at = batch.spike_bins(batch.duration / self.hidden.shape[2])
        return batch.drop(self.hidden[batch.windows, batch.units, at])

    def to(self, device: str | torch.device) -> Mask:
        """The mask on another device."""
        return Mask(self.hidden.to(device), self.scored.to(device))

    def grid(self, bins: int) -> Mask:
        """The mask on coarser bins: hidden where any part of one is, scored where every part is."""
        if self.hidden.shape[2] % bins:
            raise WorkbenchError(f"a mask of {self.hidden.shape[2]} bins has no grid of {bins}; give a divisor")
        if self.hidden.shape[2] == bins:
            return self
        each = [part.unflatten(2, (bins, -1)) for part in self]
        return Mask(each[0].any(3), each[1].all(3))


def draw(mode: str, unit_mask: Tensor, bins: int, ratio: float, *, span: int = 1, chunk: int = 1,
         regions: Tensor | None = None) -> Mask:
    """A random mask over units unit_mask [B, N] (false: padding) and `bins` bins, from torch's global random numbers.

    span: a hidden time lasts that many bins; the chance of each start is `ratio` / span, so overlaps leave the share
    hidden slightly below `ratio`. chunk: bins of a chunk, for temporal; where it is 1, whole bins are hidden as by
    time. regions [B, N]: a number a unit, −1 for none; region modes leave windows without units in two known regions
    whole, neither hidden nor scored.
    """
    if mode not in MODES:
        raise UnknownName("mask", mode, MODES)
    if not 0 < ratio <= 1 or span < 1:
        raise WorkbenchError(f"a mask of ratio {ratio:g} and span {span} hides nothing or more than there is; give a "
                             "ratio in (0, 1] and a span of 1 bin or more")
    (windows, units), device = unit_mask.shape, unit_mask.device
    if mode.endswith("region"):
        hidden, scored = _by_region(mode, unit_mask, ratio, regions)
        hidden, scored = (m[..., None].expand(-1, -1, bins) for m in (hidden, scored))
        return Mask(hidden, scored)
    if mode == "causal" or (mode == "temporal" and chunk > 1):
        at = _after(windows, bins, ratio, device) if mode == "causal" else _runs(windows, bins, chunk, ratio, device)
        hidden = at[:, None] & unit_mask[..., None]
        return Mask(hidden, hidden)
    mode, span = "time" if mode == "temporal" else mode, 1 if mode == "neuron" else span
    # Starts lie up to span − 1 bins before the window too, so that its first bins are hidden as often as the others.
    room = bins + span - 1
    starts = {"time": (windows, 1, room), "shared_time": (1, 1, room), "neuron": (windows, units, 1),
              "entry": (windows, units, room)}[mode]
    hidden = torch.rand(starts, device=device) < ratio / span
    if span > 1:
        hidden = max_pool1d(hidden.float(), span, stride=1) > 0
    hidden = hidden & unit_mask[..., None]
    hidden = hidden.expand(windows, units, bins)
    return Mask(hidden, hidden)


def _after(windows: int, bins: int, ratio: float, device: torch.device) -> Tensor:
    """Bins [B, T] after a random one: at least the last bin, `ratio` of them at most."""
    most = max(round(ratio * bins), 1)
    return torch.arange(bins, device=device) >= bins - torch.randint(1, most + 1, (windows, 1), device=device)


def _runs(windows: int, bins: int, chunk: int, ratio: float, device: torch.device) -> Tensor:
    """One run of bins in every chunk [B, T], `ratio` of it on average, never the whole of it."""
    if bins % chunk:
        raise WorkbenchError(f"windows of {bins} bins are no whole number of chunks of {chunk}; choose others")
    shape = windows, bins // chunk, 1
    long = (ratio * chunk + torch.rand(shape, device=device)).floor().clamp(1, chunk - 1)
    first = (torch.rand(shape, device=device) * (chunk - long + 1)).floor()
    at = torch.arange(chunk, device=device)
    return ((at >= first) & (at < first + long)).flatten(1)


def _by_region(mode: str, unit_mask: Tensor, ratio: float, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    if regions is None:
        raise WorkbenchError(f"a mask by {mode} needs the units' regions, and this model has none; give the sessions' "
                             "units a column 'region', or leave the region modes out")
    able = two_regions(unit_mask, regions)[:, None]
    if not able.any():
        raise WorkbenchError(f"a mask by {mode} needs a window with two regions, and there is none; leave the region "
                             "modes out, or choose sessions with units in several regions")
    known = unit_mask & (regions >= 0) & able
    # One region a window, every region of the window with the same chance: the one with the highest of random numbers.
    number = torch.rand(len(regions), max(int(regions.max()) + 1, 1), device=regions.device)
    lot = number.gather(1, regions.clamp(min=0)).masked_fill(~known, -1)
    inside = known & (lot == lot.max(1, keepdim=True).values)
    if mode == "inter_region":
        return inside, inside
    scored = inside & (torch.rand(unit_mask.shape, device=unit_mask.device) < ratio)
    return (unit_mask & able & ~inside) | scored, scored


def two_regions(unit_mask: Tensor, regions: Tensor) -> Tensor:
    """Which windows [B] hold units of two known regions."""
    known = regions.masked_fill(~unit_mask, -1) + 1                     # column 0 takes those of none
    room = int(known.max()) + 1 if known.numel() else 1
    return unit_mask.new_zeros(len(regions), room).scatter(1, known, True)[:, 1:].sum(1) > 1


def corrupt(counts: Tensor, hidden: Tensor, *, silent: float = 1.0, random: float = 0.0) -> Tensor:
    """The counts with hidden entries changed: a share `silent` of them to 0, of the rest a share `random` to counts
    drawn evenly up to the highest there is; what is left stays as it was (BERT's way, Devlin et al. 2018).
    """
    lot, highest = torch.rand_like(counts), int(counts.max()) if counts.numel() else 0
    noise = torch.randint_like(counts, highest + 1)
    changed = torch.where(hidden & (lot < silent), torch.zeros_like(counts), counts)
    return torch.where(hidden & (lot >= silent) & (lot < silent + (1 - silent) * random), noise, changed)


class Controller:
    """Draws one mode a step, each with its chance, and how much it hides from the mode's own range.

    chances: mode → weight. Region modes are drawn only where a window has units in two known regions.
    """

    RATIOS: ClassVar = {"temporal": (0.5, 0.75), "causal": (0.5, 0.5), "neuron": (0.3, 0.5),
                        "intra_region": (0.5, 0.75), "inter_region": (1.0, 1.0)}

    def __init__(self, chances: Mapping[str, float]):
        for mode in chances:
            if mode not in self.RATIOS:
                raise UnknownName("mode", mode, self.RATIOS, where="the modes that can be drawn")
        if not all(chance > 0 for chance in chances.values()) or not chances:
            raise WorkbenchError(f"the chances of modes are {dict(chances)}; give at least one mode, each a chance "
                                 "above 0, and leave the others out")
        self.chances = dict(chances)

    def draw(self, unit_mask: Tensor, bins: int, *, chunk: int = 1, regions: Tensor | None = None,
             mode: str | None = None, ratio: float | None = None) -> tuple[str, Mask]:
        """The mode and its mask; mode and ratio are drawn where they are not given. Arguments as in `draw`."""
        if mode is None:
            mode = self._any(regions is not None and bool(two_regions(unit_mask, regions).any()))
        if mode not in self.RATIOS:
            raise UnknownName("mode", mode, self.RATIOS, where="the modes that can be drawn")
        low, high = self.RATIOS[mode]
        ratio = low + (high - low) * float(torch.rand(())) if ratio is None else ratio
        return mode, draw(mode, unit_mask, bins, ratio, chunk=chunk, regions=regions)

    def _any(self, regions: bool) -> str:
        able = {mode: chance for mode, chance in self.chances.items() if regions or not mode.endswith("region")}
        if not able:
            raise WorkbenchError("no window of the batch has units in two known regions, and only region modes can be "
                                 "drawn; choose sessions with units in several regions, or add modes")
        return list(able)[int(torch.multinomial(torch.tensor([*able.values()], dtype=torch.float), 1))]
