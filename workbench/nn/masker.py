"""Masked training on binned counts: what a model is shown, and what it is scored on.

    counts [B, N, T] → a random mask, held-out units silent → seen [B, N, T], scored [B, N, T]

Held-out units follow the protocol of the Neural Latents Benchmark (Pei et al. 2021, arXiv 2109.04463): they are never
in the input, in training or later, and always a target.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError
from workbench.masking import MODES, corrupt, draw
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


class Masker(nn.Module):
    """units: the model's table of units; held_out: names of some of them; mode, ratio: see `masking.draw`.

    With a chance of `expand` a batch hides spans of 1 to `span` bins, otherwise single bins. `silent`, `random`: what
    hidden counts become (`masking.corrupt`); held-out units are silent always.
    """

    def __init__(self, units: Vocabulary, held_out: Sequence[str], *, mode: str, ratio: float, span: int, expand: float,
                 silent: float, random: float):
        super().__init__()
        if not held_out and not ratio:
            raise WorkbenchError("a model with a mask of ratio 0 and no held-out units has nothing to learn from; give "
                                 "a ratio above 0, or held_out=")
        if mode not in MODES or mode.endswith("region"):
            raise UnknownName("mask", mode, [m for m in MODES if not m.endswith("region")],
                              where="the masks of a model that knows no regions")
        self.mode, self.ratio, self.span, self.expand = mode, ratio, span, expand
        self.silent, self.random = silent, random
        self.register_buffer("rows", units.rows(held_out), persistent=False)

    def held_out(self, units: Vocabulary, batch: SpikeBatch) -> Tensor:
        """Which columns of the batch's counts are held-out units [B, N, 1]."""
        there = batch.unit_mask
        return torch.zeros_like(there).masked_scatter(there, torch.isin(units.unit_rows(batch), self.rows))[..., None]

    def forward(self, counts: Tensor, held_out: Tensor, unit_mask: Tensor) -> tuple[Tensor, Tensor]:
        """seen, scored [B, N, T]: the counts with hidden entries changed, and where the loss counts."""
        hidden = held_out.expand_as(counts)
        seen = counts.masked_fill(hidden, 0)                            # first: random counts know nothing of them
        if not self.ratio:
            return seen, hidden
        wide = self.span > 1 and torch.rand(()) < self.expand
        span = int(torch.randint(1, self.span + 1, ())) if wide else 1
        mask = draw(self.mode, unit_mask & ~held_out[..., 0], counts.shape[2], self.ratio, span=span)
        return corrupt(seen, mask.hidden, silent=self.silent, random=self.random), mask.scored | hidden


def held_out_names(sessions: Sequence[Session], held_out: Sequence[str]) -> list[str]:
    """Full names of units given as '<session>/<unit>' or as bare ids; UnknownName for one that no session has."""
    named: dict[str, list[str]] = {}
    for session in sessions:
        for unit in session.units["id"]:
            named.setdefault(unit, []).append(f"{session.id}/{unit}")
    named |= {name: [name] for names in list(named.values()) for name in names}
    for name in held_out:
        if name not in named:
            raise UnknownName("unit", name, named, where="the sessions to train on")
    return list(dict.fromkeys(full for name in held_out for full in named[name]))
