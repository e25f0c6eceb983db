"""A session as pynapple objects, for the analyses that pynapple has (https://pynapple.org). Needs the extra `pynapple`.

    spikes, units → TsGroup `units`, every column of the unit table as metadata
    series        → TsdFrame each        trials, stimuli → IntervalSet, their columns as metadata
    intervals     → IntervalSet `intervals`, the time support of all of them
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.errors import BadRecording, WorkbenchError
from workbench.session import Session


class NeedsPynapple(WorkbenchError, ImportError):
    """pynapple is not installed."""


def convert(session: Session) -> dict:
    """A dict of `units` (TsGroup), `trials`, `stimuli`, `intervals` (IntervalSet) and every series by name (TsdFrame).

    Keys of `units` are rows of the unit table; its column `rate` is called `rate_`. Spikes and samples outside the
    valid intervals are left out, and so are trials without a stop or a length. pynapple joins trials that overlap,
    drops their columns, and says so. Raises NeedsPynapple where it is not installed, BadRecording where a series has
    the name of one of the tables.
    """
    try:
        import pynapple as nap
    except ImportError:
        raise NeedsPynapple("pynapple is not installed; to have sessions as pynapple objects: "
                            'pip install "spike-workbench[pynapple]"') from None
    taken = {"units", "trials", "stimuli", "intervals"} & set(session.series)
    if taken:
        raise BadRecording(f"{session.id}: series {min(taken)!r} has the name of a table, and pynapple's objects are "
                           "kept by name; rename the series")
    support = nap.IntervalSet(session.intervals[:, 0], session.intervals[:, 1])
    order = np.argsort(session.spike_units, kind="stable")
    ends = np.cumsum(np.bincount(session.spike_units, minlength=len(session.units)))
    trains = np.split(session.spike_times[order], ends[:-1]) if len(session.units) else []
    metadata = session.units.rename(columns={"rate": "rate_"})          # TsGroup has a rate of its own
    out = {"units": nap.TsGroup({row: nap.Ts(train, time_support=support) for row, train in enumerate(trains)},
                                time_support=support, metadata=metadata),
           "intervals": support}
    for name, events in (("trials", session.trials), ("stimuli", session.stimuli)):
        out[name] = _events(nap, events)
    for name, series in session.series.items():
        columns = list(series.columns) or None
        out[name] = nap.TsdFrame(t=series.times, d=series.values, columns=columns, time_support=support)
    return out


def _events(nap, events: pd.DataFrame):
    events = events[events["stop"] > events["start"]].sort_values("start", ignore_index=True)
    metadata = events.drop(columns=["start", "stop"])
    return nap.IntervalSet(events["start"].to_numpy(), events["stop"].to_numpy(),
                           metadata=metadata if len(metadata.columns) and len(events) else None)
