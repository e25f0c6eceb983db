"""CaPOYO: POYO+ on calcium traces, a token for each cell in each frame.

Azabou et al. 2025, "Multi-session, multi-task neural decoding from distinct cell-types and brain regions", ICLR;
structure as in torch_brain 0.1.2 (Apache-2.0).

    dF/F [F, cells] → concatenation of linear(value) [D / 2] and cell embedding [D / 2], rotary time of the frame
    latents → cross-attention → blocks → tasks, as in POYO+

The traces are a series of the session with one column a unit; batches carry them beside the targets. No tokens for
start and end, no types. Spikes, where there are any, are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.models.poyo_plus import POYOPlus
from workbench.nn.perceiver import Tokens
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


class CaPOYO(POYOPlus):
    """calcium: the series of the traces. All else as in POYO+; units are cells."""

    name = "capoyo"
    spikes = False

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str,
                 tasks: Mapping[str, Mapping[str, Any]], calcium: str = "dF/F", window: float = 1.0,
                 step: float = 0.125, latents: int = 32, dim: int = 128, depth: int = 24, head_dim: int = 64,
                 cross_heads: int = 4, self_heads: int = 8, dropout: float = 0.4, ffn_dropout: float = 0.2,
                 attention_dropout: float = 0.0, t_min: float = 1e-4, t_max: float = 2.0627):
        if dim % 2:
            raise WorkbenchError(f"a token is half value and half cell, so a width of {dim} does not do; give an even "
                                 "dim=")
        super().__init__(units=units, sessions=sessions, target=target, tasks=tasks, window=window, step=step,
                         latents=latents, dim=dim, depth=depth, head_dim=head_dim, cross_heads=cross_heads,
                         self_heads=self_heads, dropout=dropout, ffn_dropout=ffn_dropout,
                         attention_dropout=attention_dropout, t_min=t_min, t_max=t_max)
        self.calcium, self.reads = calcium, [calcium, *self.reads]
        self.units, self.types = Vocabulary("unit", units, dim // 2), None
        self.value = nn.Linear(1, dim // 2)
        nn.init.trunc_normal_(self.value.weight, std=0.02)
        nn.init.zeros_(self.value.bias)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, tasks: Mapping[str, str] | None = None,
                     calcium: str = "dF/F", size: str | None = None, **settings) -> CaPOYO:
        """As POYO+. BadRecording for a session whose traces are not those of its units."""
        if calcium in (target, *(tasks or ())):
            raise WorkbenchError(f"{calcium!r} is what CaPOYO sees, so decoding it says nothing; name another target")
        for session in sessions:
            check_cells(session, calcium)
        return super().for_sessions(sessions, target=target, tasks=tasks, calcium=calcium, size=size, **settings)

    def extend(self, sessions: Sequence[Session]) -> None:
        for session in sessions:
            check_cells(session, self.calcium)
        super().extend(sessions)

    def tokens(self, batch: SpikeBatch) -> tuple[Tensor, Tokens, Tokens, list[int]]:
        """A row of the table for every cell in every frame [F × cells, D]; nothing that windows share."""
        frames = batch.targets[self.calcium]
        number, cells = frames.offsets.diff(), batch.unit_offsets.diff()
        window = torch.repeat_interleave(number)
        frame = torch.repeat_interleave(cells[window])
        first = cells[window].cumsum(0) - cells[window]
        unit = batch.unit_offsets[window][frame] + torch.arange(len(frame), device=batch.device) - first[frame]
        values = frames.values[frame, batch.window_units[unit]]
        table = torch.cat([self.value(values[:, None]), self.units(self.units.unit_rows(batch)[unit])], dim=-1)
        rows = torch.arange(len(table), device=batch.device)
        return (table, Tokens(rows, frames.times[frame], (number * cells).tolist()),
                Tokens(rows[:0], frames.times[:0], [0]), [0] * len(batch))


def check_cells(session: Session, calcium: str) -> None:
    """BadRecording where the series has not one column a unit, in the order of the unit table, or no whole frame."""
    series = session.get_series(calcium)
    if series.columns != tuple(session.units["id"]):
        raise BadRecording(f"{session.id}: the {series.values.shape[1]} columns of {calcium!r} are not its "
                           f"{len(session.units)} units by name, so nobody knows whose traces they are; name the "
                           "columns as the units, or name the series of the units with calcium=")
    there = np.isfinite(series.values)
    if len(there) and not there.all(1).any():                           # windows leave out frames with a gap
        never = np.array(series.columns)[~there.any(0)]
        raise BadRecording(f"{session.id}: no frame of {calcium!r} has a value of every cell ({len(never)} of them "
                           f"never have one: {', '.join(never[:5]) or '-'}); leave out cells with gaps by "
                           "session.select")
