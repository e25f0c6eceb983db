"""Brain regions of units as numbers, for masks by region."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.session import Session


class Regions:
    """names: regions by the units' full names ('<session id>/<unit id>'), as `region_names` gives them."""

    def __init__(self, names: Mapping[str, str]):
        self.names = dict(names)
        self.all = sorted(set(self.names.values()))
        self._number = {region: i for i, region in enumerate(self.all)}
        self._of_session: dict[str, tuple[tuple[str, ...], Tensor]] = {}

    def numbers(self, batch: SpikeBatch) -> Tensor:
        """The row in `all` of every unit's region [B, N], −1 where it is unknown and in padding."""
        there, (lists, which) = batch.unit_mask, batch.present
        found = torch.cat([self._session(*each) for each in lists]).to(batch.device)[which]
        return torch.full_like(there, -1, dtype=torch.long).masked_scatter(there, found)

    def _session(self, session: str, units: tuple[str, ...]) -> Tensor:
        known = self._of_session.get(session)
        if known is None or known[0] is not units:
            numbers = [self._number.get(self.names.get(f"{session}/{unit}"), -1) for unit in units]
            known = self._of_session[session] = (units, torch.tensor(numbers, dtype=torch.long))
        return known[1]


def region_names(sessions: Sequence[Session]) -> dict[str, str]:
    """The known regions of units, by the units' full names."""
    return {f"{s.id}/{unit}": region for s in sessions
            for unit, region in zip(s.units["id"], s.units["region"], strict=True) if region != "unknown"}


def possible(modes: Iterable[str], sessions: Sequence[Session], model: str) -> list[str]:
    """The modes without those by region where no session has units in two known regions, which a warning says."""
    modes, regions = list(modes), region_names(sessions)
    wanted = [mode for mode in modes if mode.endswith("region")]
    poor = [s.id for s in sessions if len({regions.get(f"{s.id}/{unit}") for unit in s.units["id"]} - {None}) < 2]
    if not wanted or not poor:
        return modes
    if len(poor) == len(sessions) and len(wanted) == len(modes):
        raise WorkbenchError(f"{model} would learn by {' and '.join(wanted)} alone, and no session has units in two "
                             "known regions; add other modes, or sessions with regions")
    more = f" and {len(poor) - 3} more" if len(poor) > 3 else ""
    warnings.warn(f"{', '.join(poor[:3])}{more}: no units in two known regions, so {model} learns nothing there by "
                  f"{' and '.join(wanted)}; the other modes are as they were", stacklevel=4)
    return [mode for mode in modes if mode not in wanted or len(poor) < len(sessions)]
