"""Masks on the neuron × time grid: what a model does not see, and what it is scored on. One mechanism for every model.

    draw(mode, …) → Mask(hidden [B, N, T], scored [B, N, T]) → counts with silence there, or spikes dropped there

    time          bins, each window its own · all units of a hidden bin are hidden
    shared_time   the same bins in every window
    neuron        units, over the whole window
    entry         single (unit, bin) entries
    intra_region  all units outside one region, and `ratio` of the units in it, which alone are scored
    inter_region  every unit of one region

Modes as in NDT1 (Ye & Pandarinath 2021, arXiv 2108.01210) and MtM (Zhang et al. 2024, arXiv 2407.14668).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError

MODES = ("time", "shared_time", "neuron", "entry", "intra_region", "inter_region")


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


def draw(mode: str, unit_mask: Tensor, bins: int, ratio: float, *, span: int = 1,
         regions: Tensor | None = None) -> Mask:
    """A random mask over units unit_mask [B, N] (false: padding) and `bins` bins, from torch's global random numbers.

    span: a hidden time lasts that many bins; the chance of each start is `ratio` / span, so overlaps leave the share
    hidden slightly below `ratio`. regions [B, N]: a number a unit, −1 for none; the region modes need two regions in
    every window.
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
    span = 1 if mode == "neuron" else span
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


def _by_region(mode: str, unit_mask: Tensor, ratio: float, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    if regions is None:
        raise WorkbenchError(f"a mask by {mode} needs the units' regions, and this model has none; give the sessions' "
                             "units a column 'region', or leave the region modes out")
    known = unit_mask & (regions >= 0)
    # One region a window, every region of the window with the same chance: the one with the highest of random numbers.
    number = torch.rand(len(regions), max(int(regions.max()) + 1, 1), device=regions.device)
    lot = number.gather(1, regions.clamp(min=0)).masked_fill(~known, -1)
    inside = known & (lot == lot.max(1, keepdim=True).values)
    if not (known & ~inside).any(1).all():
        raise WorkbenchError(f"a mask by {mode} needs two regions in every window; leave the region modes out, or "
                             "choose sessions with units in several regions")
    if mode == "inter_region":
        return inside, inside
    scored = inside & (torch.rand(unit_mask.shape, device=unit_mask.device) < ratio)
    return (unit_mask & ~inside) | scored, scored


def corrupt(counts: Tensor, hidden: Tensor, *, silent: float = 1.0, random: float = 0.0) -> Tensor:
    """The counts with hidden entries changed: a share `silent` of them to 0, of the rest a share `random` to counts
    drawn evenly up to the highest there is; what is left stays as it was (BERT's way, Devlin et al. 2018).
    """
    lot, highest = torch.rand_like(counts), int(counts.max()) if counts.numel() else 0
    noise = torch.randint_like(counts, highest + 1)
    changed = torch.where(hidden & (lot < silent), torch.zeros_like(counts), counts)
    return torch.where(hidden & (lot >= silent) & (lot < silent + (1 - silent) * random), noise, changed)
