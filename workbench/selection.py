"""What is chosen in one dashboard, so that the others light up: stretches of time and units, as an address holds them.

    chosen moments [n, 2] s → `written` → "12.3:12.9,40.1:41" → `parsed` → [n, 2]
    chosen units, rows of the unit table → `written_units` → "a3,b7" → `parsed_units` → rows
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import numpy as np

from workbench.errors import WorkbenchError
from workbench.session import Session, joined, unit_rows

MOST = 60                                                               # stretches that an address holds


def written(stretches: np.ndarray) -> str:
    """Stretches [n, 2] of seconds as text, to the millisecond; beyond `MOST` of them the nearest ones become one."""
    stretches = np.asarray(stretches, float).reshape(-1, 2)
    if len(stretches) > MOST:
        gaps = stretches[1:, 0] - stretches[:-1, 1]
        cut = np.sort(np.argsort(-gaps, kind="stable")[:MOST - 1])
        stretches = np.stack([stretches[np.append(0, cut + 1), 0], stretches[np.append(cut, len(gaps)), 1]], axis=1)
    first, last = np.floor(1e3 * stretches[:, 0] + 1e-6), np.ceil(1e3 * stretches[:, 1] - 1e-6)      # outwards
    return ",".join(f"{a / 1e3:.3f}:{b / 1e3:.3f}".replace(".000", "")
                    for a, b in zip(first, np.maximum(last, first + 1), strict=True))


def parsed(text: str) -> np.ndarray:
    """Sorted stretches [n, 2] of seconds, touching ones joined; none of empty text. WorkbenchError for other text."""
    try:
        pairs = [[float(t) for t in part.split(":")] for part in text.split(",") if part]
        stretches = np.array(pairs).reshape(-1, 2)
        if not np.isfinite(stretches).all() or (stretches[:, 0] >= stretches[:, 1]).any():
            raise ValueError
    except ValueError:
        raise WorkbenchError(f"moments={text!r} are no stretches of time; write seconds, from:until, as "
                             "moments=12.3:12.9,40:41") from None
    return joined(stretches[np.argsort(stretches[:, 0], kind="stable")])


def within(times: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Whether each time lies in one of sorted, disjoint stretches [n, 2]."""
    return np.searchsorted(stretches[:, 0], times, side="right") > np.searchsorted(stretches[:, 1], times, side="right")


def reached(first: np.ndarray, last: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Whether each time from `first` to `last` [P] s shares any with sorted, disjoint stretches [n, 2]."""
    return np.searchsorted(stretches[:, 1], first, side="right") < np.searchsorted(stretches[:, 0], last, side="right")


def written_units(session: Session, rows: Sequence[int]) -> str:
    """Units, rows of the unit table, as text."""
    return ",".join(str(unit).replace("%", "%25").replace(",", "%2C") for unit in session.units["id"].iloc[list(rows)])


def parsed_units(session: Session, text: str) -> np.ndarray:
    """Rows of the units of those ids; none of empty text. UnknownName for an id that the session has not."""
    return unit_rows(session.units, [unquote(part) for part in text.split(",") if part], session.id)
