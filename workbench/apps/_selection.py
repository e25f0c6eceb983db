"""What is chosen, on the raster: bands of moments, rows of units, a box that chooses both.

    "12.3:12.9" and "a3,b7" (workbench.selection) → `bands` → a layer over the raster; a box → `of_a_box` → texts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.apps._marks import Drawn
from workbench.selection import written, written_units
from workbench.session import Session

BAND, EDGE = "#f0e442", "#8a7d00"                                       # a marker's yellow, which no unit has
PALE, CLEAR = "#ffffffa8", "#ffffff00"
MOST = 500                                                              # bands in view


def bands(moments: np.ndarray, start: float, stop: float, units: np.ndarray, order: np.ndarray) -> Drawn:
    """Chosen moments [n, 2] s as bands under the spikes, and every row but those of the chosen units pale.

    units: rows of the unit table; order [N]: those from the first row of the raster to the last.
    """
    seen = moments[(moments[:, 1] > start) & (moments[:, 0] < stop)][:MOST]
    under, over = [(a, -0.5, b, len(order) - 0.5, f"{BAND}66", EDGE) for a, b in seen], []
    if len(units):
        chosen = np.isin(order, units)
        under += [(start, a, stop, b, f"{BAND}66", CLEAR) for a, b in _runs(chosen)]
        over = [(start, a, stop, b, PALE, CLEAR) for a, b in _runs(~chosen)]
    return Drawn(under, over)


def _runs(rows: np.ndarray) -> np.ndarray:
    """The edges [n, 2] of neighbouring rows that are true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(int)))
    return edges.reshape(-1, 2) - 0.5


def of_a_box(session: Session, box: Sequence[float], whole: tuple[float, float], order: np.ndarray) -> dict[str, str]:
    """The texts `moments` and `chosen_units` of a box (left, bottom, right, top): seconds and rows of the raster.

    A box over all rows chooses no units, for all of them are meant.
    """
    left, right = (float(np.clip(t, *whole)) for t in sorted((box[0], box[2])))
    first, last = (np.clip(np.round(row), 0, len(order) - 1).astype(int) for row in sorted((box[1], box[3])))
    if not len(order) or right - left < 0.001:                          # to the millisecond that an address holds
        return {}
    rows = order[first:last + 1]
    return {"moments": written(np.array([[left, right]])),
            "chosen_units": written_units(session, np.sort(rows)) if len(rows) < len(order) else ""}


def around(moments: np.ndarray, whole: tuple[float, float]) -> tuple[float, float]:
    """A window that shows the first moment well: three times as long, 2 s at least."""
    (start, stop), middle = moments[0], moments[0].mean()
    half = max(1.5 * (stop - start), 1.0)
    first = max(min(middle - half, whole[1] - 2 * half), whole[0])
    return first, min(first + 2 * half, whole[1])


def told(moments: np.ndarray, units: np.ndarray) -> str:
    """What is chosen, in words."""
    said = [f"{len(moments):,} chosen moment{'s' * (len(moments) != 1)}, {np.diff(moments).sum():,.4g} s"] * bool(
        len(moments))
    return "; ".join([*said, *[f"{len(units):,} chosen unit{'s' * (len(units) != 1)}"] * bool(len(units))])
